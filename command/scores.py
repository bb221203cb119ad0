"""How good a synthesised texture is, without any pretrained net: what a careful reviewer checks.

Every score compares an output with its exemplar, both (1, 3, H, W) in [0, 1] and of any sizes.
A score means little alone, so each comes beside the value that one half of the exemplar has
against the other: two pieces of the same real texture.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.colours import luma
from terms.autocorrelation import PERIODIC, pearson_autocorrelation, period, remove_shading
from terms.base import interpolate_quantiles
from terms.matching import gather_patches
from terms.patches import PATCH, PATCH_LEVELS, unit_directions
from utils import LEVELS, resize, scaled_size

DIRECTIONS = 128
LEAST_SIDE = 64  # px, so that a half of the exemplar still has three pyramid levels of patches
STRIDE = 4  # px between the patches whose nearest ones are looked for
SMALL_SIDE = 128  # px: a side of the source, were it square, where objects are compared
OBJECT = 12  # px, a side of the patches there
CHUNK = 2**25  # distances held at a time, 128 MiB


def wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """(..., n), (..., m) samples -> (...): Wasserstein-1 distance of their distributions."""
    count = max(a.shape[-1], b.shape[-1])
    a, b = (interpolate_quantiles(x.sort(-1).values, count) for x in (a, b))
    return (a - b).abs().mean(-1)


def colour(output: Tensor, source: Tensor) -> float:
    """Wasserstein-1 distance of the values of each channel, mean of the three, in grey levels."""
    return LEVELS * wasserstein(output[0].flatten(1), source[0].flatten(1)).mean().item()


def patches(output: Tensor, source: Tensor) -> float:
    """Sliced Wasserstein-1 distance of 7x7 patches over three pyramid levels, in grey levels.

    Random unit directions (Rabin et al. 2011), the same in every call.
    """
    generator = torch.Generator().manual_seed(0)
    distances = []
    for level in range(PATCH_LEVELS):
        directions = unit_directions(DIRECTIONS, generator)
        projected = [
            F.conv2d(F.avg_pool2d(x, 2**level), directions)[0].flatten(1) for x in (output, source)
        ]
        distances.append(wasserstein(*projected).mean())
    return LEVELS * torch.stack(distances).mean().item()


def _fine(image: Tensor, side: int) -> Tensor:
    """What is finer than a mean over `side` px, an odd number."""
    return image - F.avg_pool2d(F.pad(image, [side // 2] * 4, "reflect"), side, 1)


def _log_ratio(output: float, source: float) -> float:
    """In octaves; both in [0, 1], below a quarter of a grey level as good as none."""
    return math.log2(max(output, 0.25 / LEVELS) / max(source, 0.25 / LEVELS))


def chroma(output: Tensor, source: Tensor) -> float:
    """How much stronger the output's colour differences finer than 3 px are, in octaves.

    Specks of colour, and the fringes of edges: above 0. A net sees chroma hardly, eyes do.
    """
    strengths = [_fine(x - luma(x), 3).square().mean().sqrt().item() for x in (output, source)]
    return _log_ratio(*strengths)


def grain(output: Tensor, source: Tensor) -> float:
    """How much stronger the luma finer than 5 px is in the flattest fifth of 9x9 px, in octaves.

    Hatching and noise in flat places: above 0. Flat places without their grain: below 0.
    """
    strengths = []
    for image in (output, source):
        local = F.avg_pool2d(_fine(luma(image), 5).square(), 9, 4).flatten().sqrt().sort().values
        strengths.append(local[: max(1, len(local) // 5)].mean().item())
    return _log_ratio(*strengths)


def rim(output: Tensor, source: Tensor) -> float:
    """Steps of luma in the outermost two lines over those inside, against the source's, octaves."""
    strengths = []
    for image in (output, source):
        grey = luma(image)[0, 0]
        steps = grey.diff(dim=0)[:, 1:].abs() + grey.diff(dim=1)[1:].abs()
        lines = torch.cat([steps[:2], steps[-2:], steps.T[:2], steps.T[-2:]], 1)
        strengths.append((lines.mean() / steps[4:-4, 4:-4].mean().clamp(min=1e-6)).item())
    return _log_ratio(*strengths)


def _reach(output: Tensor, source: Tensor) -> int:
    return min(*output.shape[-2:], *source.shape[-2:]) // 2


def peak(output: Tensor, source: Tensor) -> float:
    """The output's correlation with itself after the source's period, over the source's own.

    Light falling off over a picture is left out; the highest value within 2 px of the period
    counts. NaN where the source does not repeat clearly enough to be regular.
    """
    clear, y, x = period(source, _reach(output, source))
    if clear < PERIODIC:
        return math.nan
    reach = max(abs(y), abs(x)) + 2
    y, x = y + reach, x + reach
    drawn, wanted = (
        pearson_autocorrelation(remove_shading(image), reach)[y - 2 : y + 3, x - 2 : x + 3].max()
        for image in (output, source)
    )
    return (drawn / wanted).item()


def copied(output: Tensor, source: Tensor) -> float:
    """Share of 7x7 patches that were copied from the source together with their neighbours.

    A patch counts when its nearest source patch, the one 4 px to its right's and the one 4 px
    below's lie in the source as the three lie in the output: more than 11x11 pixels in one piece.
    """
    return _kept(_nearest_places(output, source, PATCH), 1, 0)


def layout(output: Tensor, source: Tensor) -> float:
    """Share of places whose surroundings are the source's, though stretched or other in detail.

    At a size of 128 px, a place counts when its nearest 12x12 patch, the one 32 px to its right's
    and the one 32 px below's lie in the source as the three lie in the output, by 4 px. Near 0 for
    another picture of the texture; one that repeats has no other layout.
    """
    places = _nearest_places(*_small(output, source), OBJECT)
    reach = min(SMALL_SIDE // 4 // STRIDE, *(side // 2 for side in places.shape[1:]))
    return _kept(places, reach, 4)


def objects(output: Tensor, source: Tensor) -> float:
    """How far 12x12 patches are from the source's nearest, mean square over the source's variance.

    At a size of 128 px: what is melted, torn or out of order.
    """
    return _mean_distance(*_small(output, source))


def used(output: Tensor, source: Tensor) -> float:
    """The reverse of `objects`: how far the source's patches are from the output's nearest.

    Parts of the source that the output lacks.
    """
    return _mean_distance(*reversed(_small(output, source)))


def _small(output: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Both resized by the factor that gives the source as many pixels as SMALL_SIDE squared.

    By a larger one where less than two patches would fit along a side.
    """
    least = min(*output.shape[2:], *source.shape[2:])
    factor = max(SMALL_SIDE / math.sqrt(math.prod(source.shape[2:])), 2 * OBJECT / least)
    return resize(output, scaled_size(output, factor)), resize(source, scaled_size(source, factor))


def _mean_distance(image: Tensor, searched: Tensor) -> float:
    places = _nearest_places(image, searched, OBJECT)
    there = gather_patches(searched, (places[0] * searched.shape[3] + places[1]).flatten(), OBJECT)
    here = F.unfold(image, OBJECT, stride=STRIDE)[0]
    return ((here - there).square().mean() / _variance(searched)).item()


def _variance(image: Tensor) -> Tensor:
    """Of the pixels about their mean colour, mean of the channels; not below a grey level's."""
    return image.var((2, 3), correction=0).mean().clamp(min=1 / LEVELS**2)


def _nearest_places(output: Tensor, source: Tensor, patch: int) -> Tensor:
    """(2, n, m): row and column of the nearest source patch of every fourth output patch."""
    wanted = F.unfold(source, patch)[0]  # (P, M)
    drawn = F.unfold(output, patch, stride=STRIDE)[0].T  # (N, P)
    half_norms = wanted.square().sum(0) / 2
    rows = max(1, CHUNK // wanted.shape[1])
    nearest = torch.cat([(half_norms - part @ wanted).argmin(1) for part in drawn.split(rows)])
    across = source.shape[3] - patch + 1
    columns = (output.shape[3] - patch) // STRIDE + 1
    return torch.stack((nearest // across, nearest % across)).view(2, -1, columns)


def _kept(places: Tensor, reach: int, tolerance: int) -> float:
    """Share of places whose neighbours `reach` to the right and below lie in the source likewise.

    (2, n, m) from `_nearest_places`; by `tolerance` px of the source in rows and in columns.
    """
    here, step = places[:, :-reach, :-reach], reach * STRIDE
    right, below = places[:, :-reach, reach:] - here, places[:, reach:, :-reach] - here
    right[1] -= step
    below[0] -= step
    return ((right.abs() <= tolerance) & (below.abs() <= tolerance)).all(0).float().mean().item()


def unshifted(output: Tensor, source: Tensor) -> float:
    """RMSE of output and source laid over each other, over the source's standard deviation.

    0 for the exemplar itself, 1.41 for an unrelated picture of the same texture.
    """
    height, width = (min(output.shape[i], source.shape[i]) for i in (2, 3))
    a, b = (x[..., :height, :width] for x in (output, source))
    spread = (b - b.mean((2, 3), keepdim=True)).square().mean().sqrt()
    return ((a - b).square().mean().sqrt() / spread.clamp(min=1e-6)).item()


def seam(output: Tensor, source: Tensor) -> float:
    """Mean step across the borders of a 2x2 tiling over the mean step inside; 1 is seamless."""
    across = sum((output.select(d, 0) - output.select(d, -1)).abs().mean().item() for d in (2, 3))
    inside = sum(output.diff(dim=d).abs().mean().item() for d in (2, 3))
    return across / max(inside, 1e-6)


class Score(NamedTuple):
    """A score, and how to read it."""

    function: Callable[[Tensor, Tensor], float]
    reading: str


SCORES = {
    "colour": Score(colour, "Wasserstein-1 of each channel, grey levels; 0 is best"),
    "patches": Score(patches, "sliced Wasserstein of 7x7 patches, grey levels; 0 is best"),
    "chroma": Score(chroma, "fine colour differences, octaves; 0 is best, above: specks"),
    "grain": Score(grain, "detail of the flattest fifth, octaves; 0 is best"),
    "rim": Score(rim, "steps at the border over those inside, octaves; 0 is best"),
    "objects": Score(objects, "12x12 patches to the exemplar's at 128 px; 0 is best"),
    "used": Score(used, "the exemplar's 12x12 patches to the picture's; 0 is best"),
    "peak": Score(
        peak, "correlation after a period, over the exemplar's; 1 is best, nan: irregular"
    ),
    "copied": Score(copied, "share of patches copied with their neighbours; 0 is best"),
    "layout": Score(layout, "share of places that lie as in the exemplar; 0 is best"),
    "unshifted": Score(unshifted, "RMSE over the standard deviation; 0 is a copy, 1.41 unrelated"),
    "seam": Score(seam, "step across the border over the step inside; 1 tiles"),
}


@torch.no_grad()
def score(output: Tensor, exemplar: Tensor) -> dict[str, tuple[float, float]]:
    """Every score of an output, and the same of the exemplar's halves: name -> (value, halves).

    Both pictures (1, 3, H, W) in [0, 1] on the CPU, sides of `LEAST_SIDE` px or more. The halves
    are cut across the longer side.
    """
    longer = 2 if exemplar.shape[2] > exemplar.shape[3] else 3
    first, second = exemplar.split(exemplar.shape[longer] // 2, longer)[:2]
    return {
        name: (function(output, exemplar), function(second, first))
        for name, (function, _) in SCORES.items()
    }
