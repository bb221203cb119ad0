"""Give a picture exactly the distribution of an exemplar's luminance or of its channels."""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.colours import is_grey, luma
from utils import pad_axes, size_of

LUMINANCE, COLOR = "luminance", "color"
MATCHED = (LUMINANCE, COLOR)
FINE = 1000  # the luma of whole levels is a multiple of 1 / FINE, as `colours.LUMA` has 3 digits
ROWS = 256  # rows whose colours are computed at a time, which bounds memory


def with_exact_histogram(
    image: Tensor,
    exemplar: Tensor,
    matched: str,
    levels: int,
    *,
    mask: Tensor | None = None,
    wrap: str = "",
) -> Tensor:
    """Replace the luminance, or each channel, of a picture by the exemplar's values of equal rank.

    The n-th of N pixels in ascending order gets the exemplar's quantile (n + 1/2) / N, a value that
    occurs in the exemplar. Pixels of equal value are ordered by `ranked`.

    Luminance is luma (ITU-R BT.601). The colour of a pixel keeps its difference from grey, reduced
    where it would leave [0, 1]. Of the eight colours of whole levels around it, the result has the
    one of nearest luma among those whose luma rounds to the wanted level. Each luma is therefore
    within 0.19 levels of the wanted one, and the luma rounded to levels is exact.

    Args:
        image: (1, 3, H, W) in [0, 1].
        exemplar: (1, 3, h, w) in [0, 1].
        matched: LUMINANCE, or COLOR: red, green and blue, each by itself.
        levels: largest level of a channel in the file, to which the result is rounded.
        mask: (1, 1, H, W) of bool, the pixels that are replaced and ranked; None: all.
        wrap: axes along which the picture repeats.

    Returns:
        (1, 3, H, W) in multiples of 1 / levels; pixels outside the mask are those of `image`.
    """
    pixels, source = image.cpu().double() * levels, (exemplar.cpu().double() * levels).round()
    if matched == COLOR or is_grey(image):
        wanted = source if matched == COLOR else _fine_luma(source).div(FINE).round()
        planes = zip(pixels.split(1, 1), wanted.expand_as(source).split(1, 1), strict=True)
        found = torch.cat([_by_ranks(plane, values, mask, wrap) for plane, values in planes], 1)
    else:
        wanted = _by_ranks(luma(pixels), _fine_luma(source), mask, wrap)
        rows = zip(pixels.split(ROWS, 2), wanted.split(ROWS, 2), strict=True)
        found = torch.cat([_with_fine_luma(*some, levels) for some in rows], 2)
    found = (found / levels).to(image)
    return found if mask is None else torch.where(mask.to(image.device), found, image)


def ranked(plane: Tensor, wrap: str = "") -> Tensor:
    """Return the indices of the pixels of (1, 1, H, W) in ascending order, (H W,).

    Pixels of equal value are ordered by the mean of the 3x3 px around each, then of 9x9 px and so
    on, so that a flat area gets a smooth shading (Coltuc, Bolon and Chassery, "Exact Histogram
    Specification", 2006; departure: square windows, up to the size of the picture). If all means
    are equal, the order is random with a fixed seed.
    """
    values = plane.flatten()
    ascending, order = values.sort(stable=True)
    steps = ascending.diff() > 0
    tied = ~(F.pad(steps, (1, 0), value=True) & F.pad(steps, (0, 1), value=True))
    if tied.any():
        some = order[tied]
        drawn = torch.randperm(len(some), generator=torch.Generator().manual_seed(0))
        some = some[drawn]
        for means in reversed(_box_means(plane, wrap)):  # the last sort decides first
            some = some[means.flatten()[some].argsort(stable=True)]
        order[tied] = some
    return order


def _box_means(plane: Tensor, wrap: str) -> list[Tensor]:
    """Return a map (1, 1, H, W) and its means of 3x3 px, 9x9 px and so on around each pixel, up to
    the shorter side of the map, which is mirrored at borders where it does not repeat."""
    height, width = size_of(plane)
    mirrors = "".join(axis for axis in "yx" if axis not in wrap)
    found, side = [plane], 1
    while 3 * side <= min(height, width):
        # Each is the mean of three rows of three squares of the size before, side by side.
        around = pad_axes(found[-1], wrap, mirrors, side)
        rows = torch.stack([around[:, :, k * side :][:, :, :height] for k in range(3)]).sum(0)
        squares = torch.stack([rows[..., k * side :][..., :width] for k in range(3)])
        found.append(squares.sum(0) / 9)
        side *= 3
    return found


def _by_ranks(plane: Tensor, source: Tensor, mask: Tensor | None, wrap: str) -> Tensor:
    """Replace the values of (1, 1, H, W), or those under the mask, by the source's values of equal
    rank, (1, 1, h, w)."""
    order = ranked(plane, wrap)
    if mask is not None:
        order = order[mask.cpu().flatten()[order]]
    values, count = source.flatten().sort().values, len(order)
    places = (2 * torch.arange(count) + 1) * len(values) // (2 * count)
    return plane.flatten().scatter(0, order, values[places]).view_as(plane)


def _fine_luma(levels: Tensor) -> Tensor:
    """Return the luma of whole levels in steps of 1 / FINE, without rounding errors."""
    return (FINE * luma(levels)).round()


def _with_fine_luma(pixels: Tensor, wanted: Tensor, levels: int) -> Tensor:
    """Return colours of whole levels whose luma is the wanted one, see `with_exact_histogram`.

    Args:
        pixels: (1, 3, h, w) in [0, levels].
        wanted: (1, 1, h, w) of `_fine_luma`.
    """
    grey = wanted / FINE
    chroma = pixels - luma(pixels)
    room = torch.where(chroma > 0, levels - grey, grey) / chroma.abs().clamp(min=1e-9)
    exact = grey + chroma * room.amin(1, keepdim=True).clamp(max=1)
    low = exact.floor().clamp(0, levels - 1)
    nearby = torch.tensor(list(product((0, 1), repeat=3)), dtype=low.dtype)  # (8, 3)
    least, best = torch.full_like(grey, torch.inf), torch.zeros_like(grey, dtype=torch.int64)
    lowest, level = _fine_luma(low), _rounded(wanted)
    for k, more in enumerate(_fine_luma(nearby.view(8, 3, 1, 1)).flatten().tolist()):
        found = lowest + more
        apart = (found - wanted).abs() + FINE * (_rounded(found) != level)
        best = torch.where(apart < least, k, best)
        least = torch.minimum(apart, least)
    return low + nearby[best[0, 0]].movedim(2, 0)


def _rounded(fine_luma: Tensor) -> Tensor:
    return ((fine_luma + FINE // 2) / FINE).floor()


class Luminance(NamedTuple):
    """Mean and standard deviation of the luma of a picture, in [0, 1]."""

    mean: float
    deviation: float


def luminance(image: Tensor, mask: Tensor | None = None) -> Luminance:
    """Return the statistics of the luma of (1, 3, H, W), or of its pixels under a mask,
    (1, 1, H, W) of bool."""
    values = luma(image.cpu().double())
    values = values if mask is None else values[mask.cpu()]
    return Luminance(values.mean().item(), values.std(correction=0).item())
