"""A first layout: blocks of the exemplar laid over each other so that they fit.

Image quilting, Efros and Freeman 2001, at the coarsest scale, where it takes no time and whole
objects fit into a block. What has rows and columns keeps them beyond a block: two blocks are to lie
as far from each other as the exemplar, moved by as much, is like itself (He and Sun, "Statistics of
Patch Offsets for Image Completion", 2012, who take the offsets of similar patches for that).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.correspondences import Places, marks_of_windows
from engine.kinds import STOCHASTIC, Kind
from terms.autocorrelation import pearson_autocorrelation, remove_shading
from utils import Size, size_of

OVERLAP = 0.3  # of a block
TOLERANCE = 0.1  # over the best block's error: among those one is drawn
ANY_ORDER = 0.05  # of the output; exemplars that lack about as much come in any order
LEAST_ERROR = 1e-4  # of a pixel; less is no reason to prefer a block
MOVED = 0.25  # of a block, by which it lies elsewhere than in the source at least
ORDER = 3.0  # of the squared difference that a block's place makes expect, beside that of its rim
NEAR = 1.5  # blocks, after which a block counts 1 / e for another one's place; beyond twice that, 0
LEAST_LAG = 0.08  # of the shorter side; what is less is the same place, not a period
LEFT = 0.15  # of the picture, which two copies of it must share for their likeness to be known


def quilted(
    source: Tensor,
    owner: Tensor,
    canvas: Tensor,
    known: Tensor,
    shares: list[float],
    tile: str,
    generator: torch.Generator,
    block: Size,
    kind: Kind = STOCHASTIC,
) -> Places:
    """Where in the source each pixel of a canvas comes from.

    A block is chosen by how it fits to what lies there already, by the guide, and by how often
    its pixels were used: so that all of the exemplar appears, and nothing twice before. No block
    goes where it is in the exemplar, if another one fits at all.

    Args:
        source: (C, h, w), pictures and after their three channels guides, all of them below each
            other. Squared differences of all channels add up.
        owner: (h, w) of int64: which exemplar a pixel is of; UNKNOWN is none.
        canvas: (C, H, W), what is known of the output.
        known: (C, H, W) of bool.
        shares: of the exemplars.
        tile: axes along which the canvas goes on where it began.
        generator: of what is drawn, on the CPU.
        block: its height and width; of small exemplars and of small canvases it is the whole.
        kind: of the source. If it is regular, blocks keep its rows and columns; if it has a grain,
            their ends along it do not lie beside each other.

    Returns:
        Places of pixels, (H, W); where the canvas was known, too.
    """
    block = (
        min(block[0], source.shape[1], canvas.shape[1]),
        min(block[1], source.shape[2], canvas.shape[2]),
    )
    # A line of blocks along a grain begins before the canvas and ends behind it, anywhere, unless
    # one block reaches from border to border.
    beyond = [
        n if axis == kind.axis and axis not in tile and n < side else 0
        for axis, n, side in zip("yx", block, canvas.shape[1:], strict=True)
    ]
    around = (beyond[1], beyond[1], beyond[0], beyond[0])
    canvas, known = F.pad(canvas, around), F.pad(known, around)
    size = H, W = canvas.shape[1], canvas.shape[2]
    order = _Order(source[:3], block, size, tile) if kind.regular else None
    quilt = _Quilt(source, owner, block, shares, generator, order)
    free = ~known[0]
    y, x = (torch.zeros(size, dtype=torch.int64, device=source.device) for _ in "yx")
    below, beside = (torch.arange(side, device=source.device) for side in block)
    for top, left in _corners(size, block, tile, kind.axis, generator):
        rows, columns = ((top + below) % H)[:, None], (left + beside) % W
        here, sure = canvas[:, rows, columns], known[:, rows, columns]
        laid_so_far = owner[y[free & known[0]], x[free & known[0]]]
        exemplar = quilt.neediest(laid_so_far)
        down, across = quilt.chosen(exemplar, here, sure, (top - beyond[0], left - beyond[1]))
        laid = source[:, down : down + block[0], across : across + block[1]]
        error = (laid - here).square().sum(0)
        taken = _cut(error, sure[0])
        y[rows, columns] = torch.where(taken, (down + below)[:, None], y[rows, columns])
        x[rows, columns] = torch.where(taken, across + beside, x[rows, columns])
        taken &= free[rows, columns]
        canvas[:3, rows, columns] = torch.where(taken, laid, here)[:3]
        known[:3, rows, columns] = True
    inside = slice(beyond[0], H - beyond[0]), slice(beyond[1], W - beyond[1])
    return Places(y[inside], x[inside])


def _corners(
    size: Size, block: Size, tile: str, grain: str, generator: torch.Generator
) -> list[Size]:
    """Rows and columns where blocks begin, in the order in which they are laid: those of a line
    along the grain one after the other, and every line from another place on."""
    if not grain:
        rows, columns = (_starts(size[i], block[i], "yx"[i] in tile) for i in (0, 1))
        return [(row, column) for row in rows for column in columns]
    i = "yx".index(grain)
    anywhere = grain in tile or block[i] < size[i]
    corners = []
    for line in _starts(size[1 - i], block[1 - i], "yx"[1 - i] in tile):
        step = _step(block[i])
        first = int(torch.randint(step, (1,), generator=generator)) if anywhere else 0
        last = first + size[i] if grain in tile else size[i] - block[i] + 1
        along = range(first, last, step)
        corners += [(n, line) if grain == "y" else (line, n) for n in along]
    return corners


def _step(block: int) -> int:
    """From where a block begins to where the next one does."""
    return block - round(OVERLAP * block)


def _starts(side: int, block: int, wraps: bool) -> list[int]:
    """Where blocks begin, for them to cover a side."""
    if wraps:
        return list(range(0, side, _step(block)))
    return [*range(0, side - block, _step(block)), side - block]


class _Quilt:
    """All blocks of the source, and how often each was used."""

    def __init__(
        self,
        source: Tensor,
        owner: Tensor,
        block: Size,
        shares: list[float],
        generator: torch.Generator,
        order: _Order | None,
    ) -> None:
        self.spectra = torch.fft.rfft2(torch.cat((source.square(), source)))
        self.size = size_of(source[None])
        self.block, self.shares, self.generator, self.order = block, shares, generator, order
        self.owner = marks_of_windows(owner, block)
        # How often the pixels of each block were used, on average.
        self.used = torch.zeros(self.owner.shape, device=source.device)

    def chosen(self, exemplar: int, here: Tensor, sure: Tensor, at: Size) -> Size:
        """(C, height, width) of the canvas, whether each is known, and where that is -> row and
        column of the source, in that exemplar."""
        there = here * sure
        error = self._products(torch.cat((sure.float(), -2 * there))) + there.square().sum()
        error = error / sure[0].sum().clamp(min=1)
        cost = error.clamp(min=LEAST_ERROR) * (1 + self.used)
        if self.order is not None:
            cost = cost + ORDER * self.order.missing(at, (len(cost), cost.shape[1]))
        cost = torch.where(self.owner == exemplar, cost, torch.inf)
        elsewhere = cost.masked_fill(self._unmoved(at), torch.inf)
        if elsewhere.isfinite().any():
            cost = elsewhere
        among = (cost <= cost.min() * (1 + TOLERANCE)).nonzero()
        drawn = int(torch.randint(len(among), (1,), generator=self.generator))
        down, across = among[drawn].tolist()
        below, beside = (1 - n.abs() / side for n, side in self._from((down, across)))
        self.used += below.clamp(min=0)[:, None] * beside.clamp(min=0)
        if self.order is not None:
            self.order.laid.append((at, (down, across)))
        return down, across

    def _unmoved(self, at: Size) -> Tensor:
        """Which blocks of the source lie, but for a part of them, in the same place of it."""
        below, beside = (n.abs() < MOVED * side for n, side in self._from(at))
        return below[:, None] & beside

    def _from(self, at: Size) -> list[tuple[Tensor, int]]:
        """How many rows and columns every block begins behind a place, and their height, width."""
        places = (torch.arange(n, device=self.owner.device) for n in self.owner.shape)
        return [(n - start, side) for n, start, side in zip(places, at, self.block, strict=True)]

    def _products(self, block: Tensor) -> Tensor:
        """(2 C, height, width) -> (h', w'): summed products with every block of the squared source
        and of the source."""
        other = torch.fft.rfft2(block, self.size).conj()
        found = torch.fft.irfft2((self.spectra * other).sum(0), self.size)
        return found[: self.used.shape[0], : self.used.shape[1]]

    def neediest(self, laid: Tensor) -> int:
        """The index of the exemplar that the next block is taken from: that which lacks most of its
        share.

        Args:
            laid: (N,) of int64, the exemplar of each pixel that is laid.
        """
        found = laid.bincount(minlength=len(self.shares)) / max(1, len(laid))
        drawn = torch.rand(len(self.shares), generator=self.generator)
        return int((torch.tensor(self.shares) - found + ANY_ORDER * drawn).argmax())


class _Order:
    """How far a block, at its place, would be from the order of those that were laid."""

    def __init__(self, source: Tensor, block: Size, size: Size, tile: str) -> None:
        """(3, h, w) of the source; of the canvas its size, and the axes along which it wraps."""
        self.block, self.size, self.tile = block, size, tile
        self.laid: list[tuple[Size, Size]] = []  # where in the canvas, and where from
        sides = source.shape[1:]
        self.reach = min(sides) - 1
        likeness = pearson_autocorrelation(remove_shading(source[None]), self.reach).to(source)
        lag = torch.arange(-self.reach, self.reach + 1, device=source.device)
        rows, columns = ((1 - lag.abs() / side).clamp(min=0) for side in sides)
        known = rows[:, None] * columns > LEFT
        far = lag[:, None].square() + lag.square() > (LEAST_LAG * min(sides)) ** 2
        # No more is asked for than the exemplar has after a period: else blocks would go on where
        # their neighbours end, which is to copy.
        most = likeness[known & far].max()
        # Two pictures of a variance and a correlation differ by 2 variance (1 - correlation).
        variance = source.var((1, 2)).sum()
        likeness = torch.where(known, likeness, -1)
        self.table = 2 * variance * (most - likeness).clamp(min=0)

    def missing(self, at: Size, among: Size) -> Tensor:
        """The mean squared difference that is to be expected, of blocks from all of `among`."""
        total, weights = torch.zeros(among, device=self.table.device), 0.0
        places = [torch.arange(side, device=self.table.device) for side in among]
        for there, source in self.laid:
            gap = [
                (to - from_ + side // 2) % side - side // 2 if axis in self.tile else to - from_
                for to, from_, side, axis in zip(at, there, self.size, "yx", strict=True)
            ]
            blocks = math.hypot(*(n / side for n, side in zip(gap, self.block, strict=True)))
            if blocks > 2 * NEAR:
                continue
            y, x = (
                (place - start - n).clamp(-self.reach, self.reach) + self.reach
                for place, start, n in zip(places, source, gap, strict=True)
            )
            weight = math.exp(-blocks / NEAR)
            total, weights = total + weight * self.table[y[:, None], x], weights + weight
        return total / max(weights, 1e-12)


def _cut(error: Tensor, known: Tensor) -> Tensor:
    """(height, width) of errors, and whether a pixel lies there already -> which pixels are taken
    from the new block: those on its side of the cuts of least error, and all that are unknown."""
    taken = torch.ones_like(known)
    for quarter in range(4):
        e, k = torch.rot90(error, quarter), torch.rot90(known, quarter)
        overlap = int(k.all(0).long().cumprod(0).sum())
        if 0 < overlap < e.shape[1]:
            turned = torch.rot90(taken, quarter)
            turned &= torch.arange(e.shape[1], device=e.device) > _path(e[:, :overlap])[:, None]
            taken = torch.rot90(turned, -quarter)
    return taken | ~known


def _path(error: Tensor) -> Tensor:
    """(n, m) -> (n,): the column of every row, on the way down of least sum of errors that moves
    one column a row at most."""
    total = error.numpy().copy()  # whose operations on a few numbers take a fifth of PyTorch's time
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
