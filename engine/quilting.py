"""A first layout: blocks of the exemplar laid over each other so that they fit.

Image quilting, Efros and Freeman 2001, at the coarsest scale, where it takes no time and whole
objects fit into a block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.correspondences import Places, marks_of_windows

BLOCK, OVERLAP = 20, 6  # px of the coarsest scale
TOLERANCE = 0.1  # over the best block's error: among those one is drawn
LEAST_ERROR = 1e-4  # of a pixel; less is no reason to prefer a block


def quilted(
    source: Tensor,
    owner: Tensor,
    canvas: Tensor,
    known: Tensor,
    shares: list[float],
    tile: str,
    generator: torch.Generator,
) -> Places:
    """Where in the source each pixel of a canvas comes from.

    A block is chosen by how it fits to what lies there already, by the guide, and by how often
    its pixels were used: so that all of the exemplar appears, and nothing twice before.

    Args:
        source: (C, h, w), pictures and after their three channels guides, all of them below each
            other. Squared differences of all channels add up.
        owner: (h, w) of int64: which exemplar a pixel is of; UNKNOWN is none.
        canvas: (C, H, W), what is known of the output.
        known: (C, H, W) of bool.
        shares: of the exemplars.
        tile: axes along which the canvas goes on where it began.
        generator: of what is drawn, on the CPU.

    Returns:
        Places of pixels, (H, W); where the canvas was known, too.
    """
    H, W = canvas.shape[1:]
    # Of small exemplars and of small canvases a block is the whole.
    block = min(BLOCK, *source.shape[1:], H, W)
    step = max(1, block - min(OVERLAP, block // 3))
    quilt = _Quilt(source, owner, block, shares, generator)
    free = ~known[0]
    canvas, known = canvas.clone(), known.clone()
    y, x = (torch.zeros(H, W, dtype=torch.int64, device=source.device) for _ in "yx")
    side = torch.arange(block, device=source.device)
    for top in _starts(H, block, step, "y" in tile):
        for left in _starts(W, block, step, "x" in tile):
            rows, columns = ((top + side) % H)[:, None], (left + side) % W
            here, sure = canvas[:, rows, columns], known[:, rows, columns]
            down, across = quilt.chosen(here, sure)
            laid = source[:, down : down + block, across : across + block]
            error = (laid - here).square().sum(0)
            taken = _cut(error, sure[0])
            y[rows, columns] = torch.where(taken, (down + side)[:, None], y[rows, columns])
            x[rows, columns] = torch.where(taken, across + side, x[rows, columns])
            taken &= free[rows, columns]
            canvas[:3, rows, columns] = torch.where(taken, laid, here)[:3]
            known[:3, rows, columns] = True
    return Places(y, x)


def _starts(side: int, block: int, step: int, wraps: bool) -> list[int]:
    """Where blocks begin, for them to cover a side."""
    if wraps:
        return list(range(0, side, step))
    inner = range(0, side - block, step)
    return [*inner, side - block]


class _Quilt:
    """All blocks of the source, and how often each was used."""

    def __init__(
        self,
        source: Tensor,
        owner: Tensor,
        block: int,
        shares: list[float],
        generator: torch.Generator,
    ) -> None:
        self.block, self.generator, self.shares = block, generator, shares
        self.columns = F.unfold(source[None], block)[0]  # (C block^2, M)
        self.squares = self.columns.square()
        self.width = source.shape[2] - block + 1
        self.used = torch.zeros(source.shape[1:], device=source.device)
        self.owner = marks_of_windows(owner, block).flatten()

    def chosen(self, here: Tensor, sure: Tensor) -> tuple[int, int]:
        """(C, block, block) of the canvas, and whether each is known -> row and column."""
        mask = sure.flatten().float()
        there = here.flatten() * mask
        error = mask @ self.squares - 2 * (there @ self.columns) + there.square().sum()
        error = error / sure[0].sum().clamp(min=1)
        mean_use = F.avg_pool2d(self.used[None], self.block, 1)[0].flatten()
        cost = error.clamp(min=LEAST_ERROR) * (1 + mean_use)
        cost = torch.where(self.owner == self._exemplar(), cost, torch.inf)
        among = (cost <= cost.min() * (1 + TOLERANCE)).nonzero()[:, 0]
        drawn = int(torch.randint(len(among), (1,), generator=self.generator))
        down, across = divmod(int(among[drawn]), self.width)
        self.used[down : down + self.block, across : across + self.block] += 1
        return down, across

    def _exemplar(self) -> int:
        """Which exemplar a block is taken from, by their shares."""
        drawn = torch.rand(1, generator=self.generator).item()
        ends = torch.tensor(self.shares).cumsum(0)
        return min(int((ends < drawn).sum()), len(self.shares) - 1)


def _cut(error: Tensor, known: Tensor) -> Tensor:
    """(block, block) of errors, and whether a pixel lies there already -> which pixels are taken
    from the new block: those on its side of the cuts of least error, and all that are unknown."""
    taken = torch.ones_like(known)
    for quarter in range(4):
        e, k = torch.rot90(error, quarter), torch.rot90(known, quarter)
        overlap = int(k.all(0).long().cumprod(0).sum())
        if 0 < overlap < len(e):
            turned = torch.rot90(taken, quarter)
            turned &= torch.arange(len(e), device=e.device) > _path(e[:, :overlap])[:, None]
            taken = torch.rot90(turned, -quarter)
    return taken | ~known


def _path(error: Tensor) -> Tensor:
    """(n, m) -> (n,): the column of every row, on the way down of least sum of errors that moves
    one column a row at most."""
    total, rows = error.clone(), len(error)
    for i in range(1, rows):
        above = F.pad(total[i - 1], (1, 1), value=torch.inf)
        total[i] += torch.stack((above[:-2], above[1:-1], above[2:])).amin(0)
    path = [int(total[-1].argmin())]
    for i in range(rows - 2, -1, -1):
        first = max(0, path[-1] - 1)
        path.append(first + int(total[i, first : path[-1] + 2].argmin()))
    return torch.tensor(path[::-1], device=error.device)
