"""Image quilting: an image of overlapping blocks of the source.

Efros and Freeman, "Image Quilting for Texture Synthesis and Transfer", 2001. Departures: a block's
error increases with how often its pixels were used, so that all of the source appears; a block is
not laid near its own position in the source; and blocks of regular textures keep the source's rows
and columns, by its autocorrelation, as He and Sun, "Statistics of Patch Offsets for Image
Completion", 2012, keep the offsets of similar patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.descriptors import window_labels
from engine.kinds import STOCHASTIC, Kind
from engine.patchmatch import NNField
from terms.autocorrelation import pearson_autocorrelation, remove_shading
from utils import Size, size_of

OVERLAP = 0.3  # of a block's side
TOLERANCE = 0.1  # a block is drawn from those whose cost exceeds the least by at most this share
SHARE_JITTER = 0.05  # of the output; exemplars whose deficits differ by less are drawn at random
ERROR_FLOOR = 1e-4  # mean square per pixel; smaller errors count as equal
MIN_DISPLACEMENT = 0.25  # of a block's side; least distance of its positions in output and source
ORDER_WEIGHT = 3.0  # of the expected difference from regular order, relative to the overlap's error
ORDER_RANGE = 1.5  # blocks; distance at which a laid block weighs 1 / e; beyond twice this, 0
MIN_LAG = 0.08  # of the source's shorter side; shorter lags are no periods
MIN_COMMON_AREA = 0.15  # of the source; correlations at lags with less overlap are unreliable


@dataclass(frozen=True)
class QuiltSource:
    """Maps that blocks are taken from."""

    # (C, h, w): channels of the image and the guide, whose squared differences are summed.
    maps: Tensor
    exemplars: Tensor  # (h, w) of int64: the exemplar of each pixel, or NO_LABEL
    shares: list[float]  # of the output, of each exemplar


def quilt(
    source: QuiltSource,
    canvas: Tensor,
    known: Tensor,
    *,
    block: Size,
    generator: torch.Generator,
    wrap: str = "",
    kind: Kind = STOCHASTIC,
) -> NNField:
    """Cover a canvas with overlapping blocks of the source.

    Args:
        source: Maps on the CPU.
        canvas: (C, H, W), known values of the output.
        known: (C, H, W) of bool.
        block: Height and width of a block, reduced to those of the source and the canvas.
        generator: Generator on the CPU.
        wrap: Axes along which the canvas repeats.
        kind: Kind of the source. If it is regular, blocks keep its rows and columns. If it has a
            grain, each line of blocks along the grain starts at a random place.

    Returns:
        Coordinates of the source pixel of each canvas pixel, known ones included.
    """
    height, width = map(min, block, source.maps.shape[1:], canvas.shape[1:])
    block = height, width
    # Unless one block covers the whole axis, a line of blocks along a grain starts at a random
    # place before the canvas and ends beyond it.
    margins = [
        n if axis == kind.axis and axis not in wrap and n < side else 0
        for axis, n, side in zip("yx", block, canvas.shape[1:], strict=True)
    ]
    sides = margins[1], margins[1], margins[0], margins[0]
    area = _Area(F.pad(canvas, sides), F.pad(known, sides), block)
    order = _Order(source.maps[:3], block, area.size, wrap) if kind.regular else None
    blocks = _BlockChooser(source, block, generator, order)
    for top, left in _block_corners(area.size, block, wrap, kind.axis, generator):
        exemplar = blocks.most_lacking(source.exemplars[area.covered()])
        values, given = area.window((top, left))
        y, x = blocks.choose(exemplar, values, given, (top - margins[0], left - margins[1]))
        laid = source.maps[:, y : y + height, x : x + width]
        area.cover((top, left), laid, (y, x), values, given)
    rows, columns = (slice(n, side - n) for n, side in zip(margins, area.size, strict=True))
    return area.field[rows, columns]


class _Area:
    """Canvas with its margins, which is gradually covered by blocks.

    Args:
        maps: (C, H, W), values.
        known: (C, H, W) of bool.
        block: Height and width of a block.
    """

    def __init__(self, maps: Tensor, known: Tensor, block: Size) -> None:
        self.maps, self.known, self.free = maps, known, ~known[0]
        self.size = size_of(maps[None])
        y, x = (torch.zeros(self.size, dtype=torch.int64) for _ in "yx")
        self.field = NNField(y, x)
        self.block_rows, self.block_columns = map(torch.arange, block)

    def covered(self) -> tuple[Tensor, Tensor]:
        """Return the source coordinates (N,), (N,) of the pixels that are covered by blocks."""
        inside = self.free & self.known[0]
        return self.field.y[inside], self.field.x[inside]

    def _index(self, corner: Size) -> tuple[Tensor, Tensor]:
        rows = (corner[0] + self.block_rows) % self.size[0]
        return rows[:, None], (corner[1] + self.block_columns) % self.size[1]

    def window(self, corner: Size) -> tuple[Tensor, Tensor]:
        """Return the values under a block and which of them are known, (C, height, width) each."""
        rows, columns = self._index(corner)
        return self.maps[:, rows, columns], self.known[:, rows, columns]

    def cover(
        self, corner: Size, block: Tensor, start: Size, values: Tensor, known: Tensor
    ) -> None:
        """Lay a block (C, height, width) from `start` of the source, cut where it overlaps.

        Args:
            values, known: the `window` at the corner.
        """
        rows, columns = self._index(corner)
        error = (block - values).square().sum(0)
        taken = inside_cuts(error, known[0])
        for z, own in (
            (self.field.y, (start[0] + self.block_rows)[:, None]),
            (self.field.x, start[1] + self.block_columns),
        ):
            z[rows, columns] = torch.where(taken, own, z[rows, columns])
        taken &= self.free[rows, columns]
        self.maps[:3, rows, columns] = torch.where(taken, block, values)[:3]
        self.known[:3, rows, columns] = True


def _block_corners(
    size: Size, block: Size, wrap: str, grain: str, generator: torch.Generator
) -> list[Size]:
    """Return the top left corners of the blocks, in the order in which they are laid.

    With a grain along "y" or "x", they are in lines along it, each with a random start.
    """
    if not grain:
        rows, columns = (_block_starts(size[i], block[i], "yx"[i] in wrap) for i in (0, 1))
        return [(row, column) for row in rows for column in columns]
    i = "yx".index(grain)
    anywhere = grain in wrap or block[i] < size[i]
    corners = []
    for line in _block_starts(size[1 - i], block[1 - i], "yx"[1 - i] in wrap):
        step = _block_step(block[i])
        first = int(torch.randint(step, (1,), generator=generator)) if anywhere else 0
        end = first + size[i] if grain in wrap else size[i] - block[i] + 1
        along = range(first, end, step)
        corners += [(n, line) if grain == "y" else (line, n) for n in along]
    return corners


def _block_step(side: int) -> int:
    """Return the distance from one block to the next."""
    return side - round(OVERLAP * side)


def _block_starts(size: int, side: int, wraps: bool) -> list[int]:
    """Return the first pixels of blocks that cover an axis."""
    if wraps:
        return list(range(0, size, _block_step(side)))
    return [*range(0, size - side, _block_step(side)), size - side]


class _BlockChooser:
    """Chooses blocks by their error at known pixels, their use so far and their order."""

    def __init__(
        self, source: QuiltSource, block: Size, generator: torch.Generator, order: _Order | None
    ) -> None:
        self.spectra = torch.fft.rfft2(torch.cat((source.maps.square(), source.maps)))
        self.size = size_of(source.maps[None])
        self.block, self.shares, self.generator, self.order = block, source.shares, generator, order
        self.exemplars = window_labels(source.exemplars, block)  # of blocks, at their corners
        # How often the pixels of each block were used, on average.
        self.use = torch.zeros(self.exemplars.shape)

    def most_lacking(self, laid: Tensor) -> int:
        """Return the exemplar whose share of the covered pixels is most below its wanted share.

        Args:
            laid: (N,) of int64, exemplar of each pixel that blocks cover.
        """
        found = laid.bincount(minlength=len(self.shares)) / max(1, len(laid))
        jitter = SHARE_JITTER * torch.rand(len(self.shares), generator=self.generator)
        return int((torch.tensor(self.shares) - found + jitter).argmax())

    def choose(self, exemplar: int, values: Tensor, known: Tensor, position: Size) -> Size:
        """Draw a block from those of nearly the least cost.

        Args:
            exemplar: Exemplar that the block is taken from.
            values: (C, height, width) of the canvas.
            known: (C, height, width) of bool.
            position: Row and column of the canvas.

        Returns:
            Row and column of the source.
        """
        values = values * known
        error = self._correlate(torch.cat((known.float(), -2 * values))) + values.square().sum()
        error = error / known[0].sum().clamp(min=1)
        cost = error.clamp(min=ERROR_FLOOR) * (1 + self.use)
        if self.order is not None:
            corners = cost.shape[0], cost.shape[1]
            cost = cost + ORDER_WEIGHT * self.order.expected_difference(position, corners)
        cost = torch.where(self.exemplars == exemplar, cost, torch.inf)
        rows, columns = (n.abs() < MIN_DISPLACEMENT * side for n, side in self._lags(position))
        displaced = cost.masked_fill(rows[:, None] & columns, torch.inf)
        if displaced.isfinite().any():
            cost = displaced
        among = (cost <= cost.min() * (1 + TOLERANCE)).nonzero()
        drawn = int(torch.randint(len(among), (1,), generator=self.generator))
        y, x = among[drawn].tolist()
        rows, columns = (1 - n.abs() / side for n, side in self._lags((y, x)))
        self.use += rows.clamp(min=0)[:, None] * columns.clamp(min=0)
        if self.order is not None:
            self.order.laid.append((position, (y, x)))
        return y, x

    def _lags(self, position: Size) -> list[tuple[Tensor, int]]:
        """Return for each axis the lags of all corners from a position, and the block's side."""
        sides = zip(self.use.shape, position, self.block, strict=True)
        return [(torch.arange(count) - start, side) for count, start, side in sides]

    def _correlate(self, block: Tensor) -> Tensor:
        """Return the correlation (h', w') of (2 C, height, width) with the squared source and the
        source, summed over channels."""
        spectrum = torch.fft.rfft2(block, self.size).conj()
        correlation = torch.fft.irfft2((self.spectra * spectrum).sum(0), self.size)
        return correlation[: self.use.shape[0], : self.use.shape[1]]


class _Order:
    """Expected difference of a block from one that continues the order of the laid blocks.

    Args:
        source: (3, h, w).
        block: Height and width of a block.
        size: Height and width of the canvas.
        wrap: Axes along which the canvas repeats.
    """

    def __init__(self, source: Tensor, block: Size, size: Size, wrap: str) -> None:
        self.block, self.size, self.wrap = block, size, wrap
        self.laid: list[tuple[Size, Size]] = []  # positions of each block in canvas and source
        sides = source.shape[1:]
        self.reach = min(sides) - 1
        correlation = pearson_autocorrelation(remove_shading(source[None]), self.reach).to(source)
        lag = torch.arange(-self.reach, self.reach + 1)
        rows, columns = ((1 - lag.abs() / side).clamp(min=0) for side in sides)
        reliable = rows[:, None] * columns > MIN_COMMON_AREA
        far = lag[:, None].square() + lag.square() > (MIN_LAG * min(sides)) ** 2
        # At the far lag of the highest correlation, usually a period, the expected difference is 0.
        # If it were 0 at lag 0 only, blocks would continue their neighbours and copy the source.
        highest = correlation[reliable & far].max()
        # The mean squared difference of two images of equal variance and mean is
        # 2 variance (1 - correlation).
        variance = source.var((1, 2)).sum()
        correlation = torch.where(reliable, correlation, -1)
        self.difference_at_lag = 2 * variance * (highest - correlation).clamp(min=0)

    def expected_difference(self, position: Size, corners: Size) -> Tensor:
        """Return the expected mean squared difference of each block of the source at a position of
        the canvas, which is a weighted mean over the laid blocks.

        Args:
            position: Row and column of the canvas.
            corners: (h', w'), number of positions of blocks in the source along each axis.

        Returns:
            (h', w').
        """
        total, weights = torch.zeros(corners), 0.0
        places = [torch.arange(side) for side in corners]
        for other, source in self.laid:
            lag = [
                (to - from_ + side // 2) % side - side // 2 if axis in self.wrap else to - from_
                for to, from_, side, axis in zip(position, other, self.size, "yx", strict=True)
            ]
            blocks = math.hypot(*(n / side for n, side in zip(lag, self.block, strict=True)))
            if blocks > 2 * ORDER_RANGE:
                continue
            y, x = (
                (place - start - n).clamp(-self.reach, self.reach) + self.reach
                for place, start, n in zip(places, source, lag, strict=True)
            )
            weight = math.exp(-blocks / ORDER_RANGE)
            total = total + weight * self.difference_at_lag[y[:, None], x]
            weights += weight
        return total / max(weights, 1e-12)


def inside_cuts(error: Tensor, known: Tensor) -> Tensor:
    """Return which pixels of a block are laid.

    Args:
        error: (height, width), squared differences from the values under the block.
        known: (height, width) of bool, pixels whose values are known.

    Returns:
        (height, width) of bool: pixels inside the cuts, which run through the overlap at each side
        along the path of least error, and all pixels that are not known.
    """
    taken = torch.ones_like(known)
    for quarter in range(4):
        e, k = torch.rot90(error, quarter), torch.rot90(known, quarter)
        overlap = int(k.all(0).long().cumprod(0).sum())
        if 0 < overlap < e.shape[1]:
            turned = torch.rot90(taken, quarter)
            turned &= torch.arange(e.shape[1]) > _least_path(e[:, :overlap])[:, None]
            taken = torch.rot90(turned, -quarter)
    return taken | ~known


def _least_path(error: Tensor) -> Tensor:
    """Return the column in each row, (n,), of the path of least summed error through (n, m).

    The path moves by at most one column from row to row. It is found by dynamic programming, with
    NumPy, since its operations on a few numbers take a fifth of the time of PyTorch's.
    """
    total = error.numpy().copy()
    for above, row in zip(total, total[1:], strict=False):
        least = above.copy()
        np.minimum(least[1:], above[:-1], out=least[1:])
        np.minimum(least[:-1], above[1:], out=least[:-1])
        row += least
    *rows, last = total.tolist()
    path = [last.index(min(last))]
    for sums in reversed(rows):
        first = max(0, path[-1] - 1)
        near = sums[first : path[-1] + 2]
        path.append(first + near.index(min(near)))
    return torch.tensor(path[::-1])
