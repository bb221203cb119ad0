"""Tiles that fit another tile along every edge.

The inside of a new seamless tile is laid into the given one, and cut where the two differ least, as
a block of image quilting. Cohen et al., "Wang Tiles for Image and Texture Generation", 2003, cut
their tiles in the same way. Departures: all edges are those of one tile, so that any two tiles fit
in any order; and the new tile, which may be cut anywhere, is first rolled to where it agrees with
the given one.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.quilting import inside_cuts
from utils import Size, pad_axes, size_of

# Distances from the border, relative to the shorter side: the cut runs between them.
OUTERMOST, INNERMOST = 1 / 32, 3 / 16
# The difference of a roll may exceed the least one by this share. The roll of least difference
# often puts the same objects at the same places, which would make the repetition visible.
TOLERANCE = 0.3
# px; a roll is used only if none within this distance agrees better, which keeps rows of bricks
# aligned.
NEAR = 2


class Fitted(NamedTuple):
    """A tile that fits another one."""

    image: Tensor  # (1, 3, H, W) in [0, 1]
    inside: Tensor  # (1, 1, H, W) of bool: pixels of the new tile; the others are the given ones
    shift: Size  # rows and columns by which the new tile was rolled


def fitted(image: Tensor, edges: Tensor, *, roll: bool) -> Fitted:
    """Give a seamless tile the edges of another one.

    Args:
        image: (1, 3, H, W) in [0, 1], seamless in both directions.
        edges: (1, 3, H, W) in [0, 1], likewise.
        roll: whether the image may be rolled.
    """
    outer, inner = (max(1, round(part * min(size_of(image)))) for part in (OUTERMOST, INNERMOST))
    inner = max(inner, outer + 1)
    distance = _distance_to_border(size_of(image))
    shift = _best_shift(image, edges, distance, outer, inner) if roll else (0, 0)
    image = image.roll(shift, (2, 3))
    middle = slice(outer, -outer)
    error = (image - edges).square().sum(1)[0, middle, middle].cpu()
    taken = torch.zeros(size_of(image), dtype=torch.bool)
    taken[middle, middle] = inside_cuts(error, distance[middle, middle] < inner)
    inside = taken[None, None].to(image.device)
    return Fitted(torch.where(inside, image, edges), inside, shift)


def _distance_to_border(size: Size) -> Tensor:
    """Return the number of pixels between each pixel and the border, (H, W) of int64."""
    rows, columns = (torch.minimum(n, n.flip(0)) for n in map(torch.arange, size))
    return torch.minimum(rows[:, None], columns)


def _best_shift(image: Tensor, edges: Tensor, distance: Tensor, outer: int, inner: int) -> Size:
    """Return the rows and columns by which to roll an image.

    A roll is a candidate if its difference from the edges, where the cut runs, is the least within
    NEAR px and at most 1 + TOLERANCE times the least of all. The result is the candidate that
    differs most inside.

    Args:
        distance: (H, W), to the border.
        outer, inner: least and greatest distance of the cut from the border.
    """
    band = (distance >= outer) & (distance < inner)
    at_cut, inside = (_rolled_difference(image, edges, part) for part in (band, distance >= inner))
    at_cut = at_cut.clamp(min=0)  # rounding may give a little less
    around = pad_axes(-at_cut[None, None], "xy", "", NEAR)
    least_near = -F.max_pool2d(around, 2 * NEAR + 1, 1)[0, 0]
    allowed = (at_cut <= (1 + TOLERANCE) * at_cut.min()) & (at_cut == least_near)
    best = int(inside.where(allowed, -torch.inf).argmax())
    return best // inside.shape[1], best % inside.shape[1]


def _rolled_difference(image: Tensor, edges: Tensor, part: Tensor) -> Tensor:
    """Return the sum over a part of the pixels, (H, W) of bool, of the squared difference from the
    edges, for every roll of an image: [y, x] for y rows and x columns, (H, W) of float64."""
    size = size_of(image)
    image, edges = (one[0].cpu().double() for one in (image, edges))  # GPUs may lack float64
    weight, rfft = part.double(), torch.fft.rfft2
    spectrum = rfft(weight) * rfft(image.square().sum(0)).conj()
    spectrum -= 2 * (rfft(weight * edges) * rfft(image).conj()).sum(0)
    return torch.fft.irfft2(spectrum, size) + (weight * edges.square()).sum()
