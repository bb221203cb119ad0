"""A material's other maps, carried along with its colour."""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.repaint import Painting
from models import Features
from terms.matching import more_similar, nearest_patches, overlapped
from utils import Size, padded, rotated_and_resized, size_of

LAYERS = ["relu1_1", "relu2_1", "relu3_1"]  # at strides 1, 2 and 4
VOTE = 5  # px; every pixel is the mean of what this many patches either way have there


def correspondence(output: Features, source: Features, tile: str = "") -> tuple[Tensor, Tensor]:
    """(H, W) of int64: for every pixel of the output the pixel y * w + x of the source that has
    the same surroundings, from features at `LAYERS`, (1, C, ., .); and (H, W), how near they are.

    Nearest 3x3 patches of the deepest layer, then at each finer one the best of what a place and
    its neighbours were found to be, and of the places next to that (PatchMatch, Barnes et al. 2009,
    without its random search).
    """
    finest, *_, deepest = LAYERS
    maps = padded(output[deepest], tile, "replicate")
    start, _ = nearest_patches(maps[0].contiguous(), source[deepest][0].contiguous(), 3)
    width = source[deepest].shape[3]
    found = torch.stack((start // width + 1, start % width + 1))  # (2, h, w), centres of patches
    for layer in reversed(LAYERS[:-1]):
        found = _enlarged(found, size_of(output[layer]))
        found, near = _refined(found, output[layer], source[layer])
    return found[0] * source[finest].shape[3] + found[1], near


def painted_from(painting: Painting) -> list[tuple[Tensor, Tensor]]:
    """What `correspondence` returns, for every view: 0 for how near the one is that a place was
    painted from, and less for all others."""
    found, top = [], 0
    across = painting.views.shape[1]
    rows, columns = painting.places // across, painting.places % across
    owner = painting.views[rows, columns]
    for view in range(int(painting.views.max()) + 1):
        mine = painting.views == view
        height, width = int(mine.any(1).sum()), int(mine.any(0).sum())
        here = owner == view
        place = ((rows - top) * width + columns).where(here, 0)
        found.append((place, here.float() - 1))
        top += height
    return found


def _enlarged(found: Tensor, size: Size) -> Tensor:
    """(2, h, w) positions of a layer -> (2, H, W) of the next finer one, of twice the size."""
    double = (2 * found).repeat_interleave(2, 1).repeat_interleave(2, 2)
    double[0, 1::2] += 1
    double[1, :, 1::2] += 1
    spare = [max(0, side - double.shape[1 + i]) for i, side in enumerate(size)]
    double = F.pad(double[None].float(), (0, spare[1], 0, spare[0]), "replicate")[0].long()
    return double[:, : size[0], : size[1]]


def _refined(found: Tensor, output: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The best of each place's candidates, by 5x5 patches: (2, H, W) -> the same and (H, W)."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    candidates = [found + torch.tensor(step, device=found.device)[:, None, None] for step in steps]
    around = padded(found[None].float(), "", "replicate")[0].long()
    height, width = found.shape[1:]
    for y, x in steps:
        # What the neighbour at (y, x) found, seen from here.
        other = around[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        candidates.append(other - torch.tensor((y, x), device=found.device)[:, None, None])
    judged: list[Sequence[Tensor]] = [_judged(place, output, source) for place in candidates]
    best, near = reduce(more_similar, judged)
    return best, near


def _judged(place: Tensor, output: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Places moved to where a patch fits in, and how near the features there are: 0 is equal."""
    margins = [min(VOTE // 2, (side - 1) // 2) for side in source.shape[2:]]
    place = torch.stack(
        [
            c.clamp(margin, side - 1 - margin)
            for c, margin, side in zip(place, margins, source.shape[2:], strict=True)
        ]
    )
    there = source[0].flatten(1)[:, (place[0] * source.shape[3] + place[1]).flatten()]
    distance = (output[0] - there.view(output.shape[1:])).square().sum(0)
    mean = F.avg_pool2d(distance[None, None], VOTE, 1, VOTE // 2, count_include_pad=False)
    return place, -mean[0, 0]


def carried(
    copies: Sequence[Tensor], found: Sequence[tuple[Tensor, Tensor]], tile: str = ""
) -> Tensor:
    """A map of the exemplar, and of its copies rotated and resized, (1, C, h, w) each, and what
    `correspondence` found for each -> (1, C, H, W) of the output, every place from the nearest.

    Patches around the places that correspond are laid over each other and averaged. The mean is
    flatter than the map, so the values of the places themselves are dealt out by its ranks: heights
    keep their range, labels stay labels. Normals are made normals again.
    """
    places, near = zip(*found, strict=True)
    nearest = torch.stack(near).argmax(0)

    def of_nearest(values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)  # (copies, C, H, W)
        return stacked.gather(0, nearest.expand_as(stacked[:1]))[0]

    pairs = list(zip(copies, places, strict=True))
    mean = of_nearest([_mean_of_patches(copy, place, tile) for copy, place in pairs])
    own = of_nearest([copy[0].flatten(1)[:, place] for copy, place in pairs])
    ranks = mean.flatten(1).argsort(dim=1, stable=True)
    dealt = torch.empty_like(own.flatten(1)).scatter_(1, ranks, own.flatten(1).sort(1).values)
    dealt = dealt.view_as(mean)
    if holds_normals(copies[0]):
        dealt = (F.normalize(2 * dealt - 1, dim=0) + 1) / 2
    return dealt[None]


def _mean_of_patches(maps: Tensor, places: Tensor, tile: str) -> Tensor:
    """(1, C, h, w), (H, W) -> (C, H, W)."""
    (height, width), reach = maps.shape[2:], VOTE // 2
    y = (places // width).clamp(reach, height - 1 - reach)  # so that a patch fits in
    x = (places % width).clamp(reach, width - 1 - reach)
    places = y * width + x
    rows, columns = (
        torch.arange(-reach, side + reach, device=places.device) % side
        if axis in tile
        else torch.arange(reach, side - reach, device=places.device)
        for axis, side in zip("yx", places.shape, strict=True)
    )
    starts = places[rows][:, columns] - reach * (width + 1)
    mean, _, _ = overlapped(maps[0].flatten(1), starts, torch.full_like(starts, width), VOTE)
    top, left = (2 * reach if axis in tile else 0 for axis in "yx")
    return mean[:, top : top + places.shape[0], left : left + places.shape[1]]


def holds_normals(maps: Tensor) -> bool:
    """Whether (1, 3, h, w) in [0, 1] are vectors of length 1, stored as normal maps are."""
    lengths = (2 * maps - 1).norm(dim=1)
    return maps.shape[1] == 3 and ((lengths - 1).abs() < 0.02).float().mean().item() > 0.9


def rotated(maps: Tensor, degrees: Sequence[float], factors: Sequence[float]) -> list[Tensor]:
    """`utils.rotated_and_resized`, normals rotating along: red to the right, green up."""
    found = rotated_and_resized(maps, degrees, factors)
    if not holds_normals(maps):
        return found
    angles = [math.radians(angle) for angle in (0, *degrees) for _ in (1, *factors)][1:]
    for i, angle in enumerate(angles):
        x, y, z = (2 * found[i] - 1).split(1, 1)
        cos, sin = math.cos(angle), math.sin(angle)
        found[i] = (torch.cat((cos * x - sin * y, sin * x + cos * y, z), 1) + 1) / 2
    return found
