"""Further maps of a material, such as normals or height, carried to the output with its colour."""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import Canvas, Exemplar, View
from terms.matching import chunk_rows, elementwise_best, nearest_patches, row_slices
from terms.valid import usable_patches
from utils import LABELS, NORMALS, Size, pad, resize, rotated_and_resized, size_of

LAYERS = ["relu1_1", "relu2_1", "relu3_1"]  # at strides 1, 2 and 4
VOTE = 5  # px, side of the patches that overlap at each pixel
HALVINGS = 12  # of `reordered`; cells of the k-d tree of 1024x1024 pixels have 256 pixels
MAX_LENGTH_ERROR = 0.1  # of normals; 8 bits change the length by 0.01, JPEG by more
MOST = 0.9  # least share of the pixels at which a condition on normals must hold
FLAT_BLUE = 0.04  # largest error by JPEG of a blue channel that is 0 or 1 throughout
DECISIVE = 3.0  # least ratio of the curls of the two readings of green that tells which is right


def correspondence(
    output: Features, source: Features, wrap: str = "", valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find for each pixel of the output the pixel of the source with the most similar surroundings.

    The search starts from the nearest 3x3 patches of the deepest layer. At each finer layer, the
    candidates are the position found for a pixel, the eight around it, and those that the offsets
    of neighbouring pixels give; the best is taken (PatchMatch, Barnes et al. 2009, without its
    random search).

    Args:
        output: features of the output at `LAYERS`, (1, C, ., .).
        source: features of the source at `LAYERS`, (1, C, ., .).
        wrap: axes along which the output repeats, "x", "y" or "xy".
        valid: (1, 1, h, w) of bool, pixels of the source that may be found; None: all.

    Returns:
        (H, W) of int64, flat indices y * w + x into the source; and (H, W), the similarity, 0 for
        equal features and negative for others.
    """
    finest, *_, deepest = LAYERS
    maps = pad(output[deepest], wrap, "replicate")
    usable = None if valid is None else usable_patches(valid, size_of(source[deepest]), 3)
    pair = maps[0].contiguous(), source[deepest][0].contiguous()
    start, _ = nearest_patches(*pair, 3, usable=usable)
    width = source[deepest].shape[3]
    # (2, h, w): y, x of the centres of patches.
    found = torch.stack((start // width + 1, start % width + 1))
    for layer in reversed(LAYERS[:-1]):
        found = _enlarged(found, size_of(output[layer]))
        size = size_of(source[layer])
        inside = None if valid is None else usable_patches(valid, size, 1)
        found, near = _refined(found, output[layer], source[layer], inside)
    return found[0] * source[finest].shape[3] + found[1], near


def painted_correspondence(
    places: Tensor, exemplars: tuple[Exemplar, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Return the correspondence of a painting with each view of its exemplars, as `correspondence`
    does. The similarity is 0 for the view that a pixel was painted from, and -1 for the others.

    Args:
        places: of the painting, (H, W), as in `PaintingFrame`.
    """
    sizes = [size_of(view.image) for one in exemplars for view in one.views]
    across = max(width for _, width in sizes)
    rows, columns = places // across, places % across
    found, top = [], 0
    for height, width in sizes:
        here = (top <= rows) & (rows < top + height)
        place = ((rows - top) * width + columns).where(here, 0)
        found.append((place, here.float() - 1))
        top += height
    return found


def _enlarged(found: Tensor, size: Size) -> Tensor:
    """Convert the positions found at a layer, (2, h, w), to those at the next finer layer, which
    has about twice the size, (2, H, W)."""
    double = (2 * found).repeat_interleave(2, 1).repeat_interleave(2, 2)
    double[0, 1::2] += 1
    double[1, :, 1::2] += 1
    spare = [max(0, side - double.shape[1 + i]) for i, side in enumerate(size)]
    double = F.pad(double[None].float(), (0, spare[1], 0, spare[0]), "replicate")[0].long()
    return double[:, : size[0], : size[1]]


def _refined(
    found: Tensor, output: Tensor, source: Tensor, inside: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return better positions of the source for each position of the output, and the similarity.

    Args:
        found: (2, H, W), y and x in the source.
        output: (1, C, H, W).
        source: (1, C, h, w).
        inside: (h, w) of bool, positions of the source that may be found; None: all.

    Returns:
        (2, H, W) and (H, W).
    """
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    candidates = [found + torch.tensor(step, device=found.device)[:, None, None] for step in steps]
    around = pad(found[None].float(), "", "replicate")[0].long()
    height, width = found.shape[1:]
    for y, x in steps:
        # The position that has the offset of the neighbour at (y, x).
        other = around[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        candidates.append(other - torch.tensor((y, x), device=found.device)[:, None, None])
    judged: list[Sequence[Tensor]] = [
        _judged(place, output, source, inside) for place in candidates
    ]
    best, near = reduce(elementwise_best, judged)
    return best, near


def _judged(
    place: Tensor, output: Tensor, source: Tensor, inside: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return positions (2, H, W), moved so that a patch around them fits into the source, and the
    similarity of these patches, (H, W), -inf outside `inside`. Args are those of `_refined`."""
    sides = zip(place, source.shape[2:], strict=True)
    place = torch.stack([_fitted(index, side) for index, side in sides])
    there = source[0].flatten(1)[:, (place[0] * source.shape[3] + place[1]).flatten()]
    distance = (output[0] - there.view(output.shape[1:])).square().sum(0)
    mean = F.avg_pool2d(distance[None, None], VOTE, 1, VOTE // 2, count_include_pad=False)
    near = -mean[0, 0]
    return place, near if inside is None else near.where(inside[place[0], place[1]], -math.inf)


def _fitted(index: Tensor, side: int) -> Tensor:
    """Return the middles of patches along an axis of a source, moved so that the patches fit."""
    margin = min(VOTE // 2, (side - 1) // 2)
    return index.clamp(margin, side - 1 - margin)


def carried(
    copies: Sequence[Tensor],
    found: Sequence[tuple[Tensor, Tensor]],
    kind: str,
    wrap: str = "",
    valid: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return the map of the output, from the map of the exemplar.

    Each position of the output corresponds to a patch of VOTE x VOTE px in its most similar copy;
    these patches overlap at every pixel. A label is the most frequent one among them. For other
    kinds, the mean of the patches would have less contrast than the map. Therefore the values at
    the corresponding positions are reordered to be near that mean; all channels of a pixel come
    from one position.

    Args:
        copies: (1, C, h, w) each, the map of the exemplar and its rotated and resized copies.
        found: correspondence of the output with each copy, see `correspondence`.
        kind: a name in `utils.KINDS`.
        wrap: axes along which the output repeats.
        valid: (1, 1, h, w) of bool for each copy, the pixels that are used; None: all.

    Returns:
        (1, C, H, W)
    """
    places, near = zip(*found, strict=True)
    nearest = torch.stack(near).argmax(0)
    starts, strides = _laid(copies, torch.stack(places), nearest)
    values = torch.cat([copy[0].flatten(1) for copy in copies], 1)  # (C, N) of all copies
    height, width = nearest.shape
    rows = chunk_rows(VOTE**2 * width * 8 * (3 + len(values)), values.device)
    votes = (_votes(starts, strides, part, wrap) for part in row_slices(height, rows))
    if valid is not None:
        inside = torch.cat([one.flatten() for one in valid])
        votes = (torch.where(inside[some], some, some[:1]) for some in votes)
    if kind == LABELS:
        colours, labels = values.unique(dim=1, return_inverse=True)
        return colours[:, torch.cat([_most_frequent(labels[some]) for some in votes])][None]
    mean = torch.cat([values[:, some].mean(1) for some in votes], 1)
    return reordered(values[:, starts].flatten(1), mean.flatten(1)).view_as(mean)[None]


def reordered(values: Tensor, wanted: Tensor) -> Tensor:
    """Return the values (C, N) in an order in which each is near the wanted value (C, N).

    A single channel is matched by rank. Several channels are matched by two k-d trees: values and
    wanted values are both sorted along the principal axis of the largest extent and halved, then so
    is each half, and so on.
    """
    C, N = values.shape
    spread, axes = torch.linalg.eigh(values.float().cpu().cov().view(C, C))
    spread, axes = spread.clamp(min=0).sqrt(), axes.to(values)
    ranks = [(axes.T @ x).argsort(dim=1, stable=True).argsort(dim=1) for x in (values, wanted)]
    position = torch.arange(N, device=values.device)
    orders = [position, position]
    for level in range(HALVINGS if C > 1 else 1):
        axis = int(spread.argmax())
        spread[axis] /= 2
        block = position * 2**level // N * N
        orders = [
            order[(block + rank[axis][order]).argsort()]
            for order, rank in zip(orders, ranks, strict=True)
        ]
    found = torch.empty_like(values)
    found[:, orders[1]] = values[:, orders[0]]
    return found


def _laid(copies: Sequence[Tensor], places: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions in the concatenated copies, moved so that a patch around them fits into the
    copy, and the widths of the copies, (H, W) each.

    Args:
        copies: (1, C, h, w) each.
        places: (copies, H, W), flat indices into each copy.
        nearest: (H, W), index of the copy to take.
    """
    laid, before = [], 0
    for copy, place in zip(copies, places, strict=True):
        height, width = size_of(copy)
        y, x = _fitted(place // width, height), _fitted(place % width, width)
        laid.append(before + y * width + x)
        before += height * width
    widths = torch.tensor([copy.shape[3] for copy in copies], device=nearest.device)
    return torch.stack(laid).gather(0, nearest[None])[0], widths[nearest]


def _votes(starts: Tensor, strides: Tensor, rows: slice, wrap: str) -> Tensor:
    """Return the positions that overlapping patches give each pixel of some rows, (VOTE^2, h, W).
    The first is that of the patch around the pixel itself. At borders that do not repeat, patches
    of the outermost rows and columns are taken more than once.

    Args:
        starts: (H, W), centre of the patch of each pixel, in the concatenated copies.
        strides: (H, W), width of the copy that the patch is in.
        rows: of the output.
        wrap: axes along which the output repeats.
    """
    sides, reach = starts.shape, VOTE // 2
    own = torch.arange(sides[0], device=starts.device)[rows], torch.arange(sides[1]).to(starts)
    steps = sorted(range(-reach, reach + 1), key=abs)
    found = []
    for y in steps:
        for x in steps:
            at, off = [], []
            for axis, side, index, step in zip("yx", sides, own, (y, x), strict=True):
                there = index + step
                at.append(there % side if axis in wrap else there.clamp(0, side - 1))
                off.append(torch.full_like(index, -step) if axis in wrap else index - at[-1])
            around = at[0][:, None], at[1]
            found.append(starts[around] + off[0][:, None] * strides[around] + off[1])
    return torch.stack(found)


def _most_frequent(votes: Tensor) -> Tensor:
    """Return the most frequent of N values: (N, h, W) of int64 -> (h, W). Of several that are
    equally frequent, it is the first."""
    counts = torch.zeros_like(votes)
    for one in votes:
        counts += votes == one
    # Of equal maxima, argmax may return any.
    earlier = torch.arange(len(votes), 0, -1, device=votes.device).view(-1, 1, 1)
    return votes.gather(0, (counts * len(votes) + earlier).argmax(0, keepdim=True))[0]


# --------------------------------------------------------------------------------------- normals


def normalized(maps: Tensor) -> Tensor:
    """Scale the normals in the first three channels of (1, C, H, W) in [0, 1] to length 1. Vectors
    of length 0 become perpendicular to the picture."""
    vectors = 2 * maps[:, :3] - 1
    none = vectors.norm(dim=1, keepdim=True) < 1e-3
    out = torch.tensor([0.0, 0.0, 1.0]).to(maps).view(1, 3, 1, 1)
    vectors = F.normalize(torch.where(none, out, vectors), dim=1)
    return torch.cat(((vectors + 1) / 2, maps[:, 3:]), 1)


def with_blue(maps: Tensor) -> Tensor:
    """Return normals (1, C, H, W) whose blue is computed so that their length is 1."""
    z = (1 - (2 * maps[:, :2] - 1).square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat((maps[:, :2], (z + 1) / 2, maps[:, 3:]), 1)


def lacks_blue(maps: Tensor) -> bool:
    """Return whether (1, C, H, W) are normals of which only red and green are stored: blue is 0
    throughout or 1 throughout, most lengths are not 1, and red and green have means near 0.5 and
    lie within the unit circle."""
    if maps.shape[1] < 3:
        return False
    low, high = (x.item() for x in maps[:, 2].aminmax())
    x, y, _ = (2 * maps[0, :3] - 1).unbind(0)
    about_middle = max(abs(x.mean().item()), abs(y.mean().item())) < 0.2
    within = _share(x.square() + y.square() < (1 + MAX_LENGTH_ERROR) ** 2) > MOST
    whole = _share(_length_error(maps) < FLAT_BLUE / 2) > MOST
    flat = high < FLAT_BLUE or low > 1 - FLAT_BLUE
    return flat and about_middle and within and not whole


def holds_normals(maps: Tensor) -> bool:
    """Return whether (1, C, H, W) in [0, 1] are normals: vectors of length 1 that point out of the
    picture, or normals that lack blue."""
    if maps.shape[1] < 3:
        return False
    outward = 2 * maps[:, 2] - 1 > -MAX_LENGTH_ERROR
    unit = (_length_error(maps) < MAX_LENGTH_ERROR) & outward
    return _share(unit) > MOST or lacks_blue(maps)


def _length_error(maps: Tensor) -> Tensor:
    """Return the absolute difference of the length of normals from 1: (1, C, H, W) -> (1, H, W)."""
    return ((2 * maps[:, :3] - 1).norm(dim=1) - 1).abs()


def _share(places: Tensor) -> float:
    return places.float().mean().item()


def green_up(maps: Tensor) -> bool | None:
    """Return whether green above 0.5 means up (OpenGL) in normals (1, C, H, W), or down (DirectX);
    None if the normals do not tell.

    The slopes of a surface have a curl of 0 unless green is read the wrong way. The slopes of
    stripes have a curl of 0 either way.
    """
    x, y, z = (2 * normalized(maps)[:, :3] - 1).unbind(1)
    slope_x, slope_y = (-side / z.clamp(min=0.1) for side in (x, y))  # to the right, and up
    along = slope_x[:, 2:, 1:-1] - slope_x[:, :-2, 1:-1]  # change of slope_x downwards
    across = slope_y[:, 1:-1, 2:] - slope_y[:, 1:-1, :-2]  # change of slope_y to the right
    # Rows go down, so that `along` and `across` have opposite signs if green is up.
    up, down = (found.square().mean().item() for found in (along + across, along - across))
    if max(up, down) < DECISIVE * min(up, down) + 1e-4:
        return None
    return up < down


def rotated(
    maps: Tensor, degrees: Sequence[float], factors: Sequence[float], kind: str
) -> list[Tensor]:
    """Return the copies that `utils.rotated_and_resized` makes of a map. The vectors of normals, of
    which green must be up, are rotated as well."""
    found = rotated_and_resized(maps, degrees, factors, kind == LABELS)
    if kind != NORMALS:
        return found
    angles = [math.radians(angle) for angle in (0, *degrees) for _ in (1, *factors)][1:]
    for i, angle in enumerate(angles):
        x, y, z = (2 * found[i][:, :3] - 1).split(1, 1)
        cos, sin = math.cos(angle), math.sin(angle)
        turned = (torch.cat((cos * x - sin * y, sin * x + cos * y, z), 1) + 1) / 2
        found[i] = torch.cat((turned, found[i][:, 3:]), 1)
    return found


def finished(maps: Tensor, size: Size, shift: tuple[int, int], kind: str, wrap: str) -> Tensor:
    """Return a map (1, C, H, W) of a kind, resized to (height, width) and rolled by the rows and
    columns of `shift`; normals are scaled to length 1."""
    maps = resize(maps, size, wrap, kind == LABELS).roll(shift, (2, 3))
    return normalized(maps) if kind == NORMALS else maps


def with_kept(carried: Tensor, maps: Tensor, exemplar: View, canvas: Canvas) -> Tensor:
    """Replace the carried map by the exemplar's own map where the canvas keeps pixels of the
    exemplar. If the kept pixels are not the exemplar's, the carried map is returned unchanged.

    Args:
        carried: (1, C, H, W).
        maps: (1, C, h, w), the exemplar's map.

    Returns:
        (1, C, H, W)
    """
    if canvas.mask is None or canvas.init is None:
        return carried
    kept, (height, width) = ~canvas.mask, size_of(exemplar.image)
    top = left = 0
    if size_of(kept) != (height, width):
        top, left = (int(kept[0, 0].any(axis).int().argmax()) for axis in (1, 0))
    right, bottom = kept.shape[3] - left - width, kept.shape[2] - top - height
    if min(right, bottom) < 0:
        return carried
    valid = torch.ones_like(maps[:, :1]) if exemplar.valid is None else exemplar.valid.to(maps)
    placed, image, there = (
        F.pad(one, (left, right, top, bottom)) for one in (maps, exemplar.image, valid)
    )
    here = kept & (there > 0)
    same = torch.equal(canvas.init.where(here, 0), image.where(here, 0))
    return placed.where(here, carried) if same else carried
