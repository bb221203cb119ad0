"""Loss and gradient of a picture tile by tile: the same to rounding, in the memory of a tile.

Statistics that are sums over positions are added up over the tiles without a graph. The gradient by
these sums is then held while each tile is evaluated again, and the gradient of the *whole* tile,
its halo included, is added into the picture's. Positions inside a tile do not depend on anything
beyond one radius of the receptive field, so that a halo of that width is enough for both passes.
Processes that evaluate one tile each exchange a halo half-way through the network, and need a
narrower one around their tile.

Terms that need the whole of a layer get it, assembled from the tiles; there is never more of its
graph than that of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses import Criterion, MeasuredFeatures
from models import Exchange, Extractor, Features, stride
from terms.base import Statistics, Sums, add_statistics, flatten_statistics, unflatten_statistics
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from utils import Sides, Size, memory_format_for, size_of


class Tiling(NamedTuple):
    """How a picture is divided into tiles."""

    side: int | None = None  # px, of a tile without its halo; None: the whole picture is one
    graphs: int = 1  # tiles whose graphs are kept; the others are evaluated twice

    def applies_to(self, size: Size) -> bool:
        """Whether a picture of that size is larger than a tile."""
        return self.side is not None and math.prod(size) > self.side**2


WHOLE = Tiling()


class Span(NamedTuple):
    """Part of an axis, in px, with its halo."""

    start: int
    stop: int
    before: int  # px of the halo in front of it
    after: int
    length: int  # of the axis

    def positions(self, device: torch.device) -> Tensor:
        """Return the positions of the span and its halo, modulo the length of the axis."""
        first, last = self.start - self.before, self.stop + self.after
        return torch.arange(first, last, device=device) % self.length

    def within(self, whole: int, step: int) -> slice:
        """Return the span itself in a layer with a position every `step` px, `whole` in all."""
        return slice(self.start // step, whole if self.stop == self.length else self.stop // step)


def spans(length: int, side: int, halo: int, step: int, wraps: bool) -> list[Span]:
    """Divide an axis into spans of at most `side` px, of equal length up to a multiple of `step`.

    Args:
        halo: px on either side; fewer where the axis ends, unless it `wraps`.
    """
    units, most = math.ceil(length / step), max(1, side // step)
    count = math.ceil(units / most)
    if wraps and count > 1 and math.ceil(units / count) * step + 2 * halo >= length:
        count = 1  # with its halo, each span would be longer than the axis
    edges = [units * i // count * step for i in range(count)] + [length]
    if count == 1:
        return [Span(0, length, 0, 0, length)]
    return [
        Span(
            start,
            stop,
            halo if wraps else min(halo, start),
            halo if wraps else min(halo, length - stop),
            length,
        )
        for start, stop in zip(edges, edges[1:], strict=False)
    ]


class TiledExtractor:
    """An extractor that evaluates a picture tile by tile, for one criterion.

    Args:
        net: the extractor of a tile.
        criterion: which says what it measures and which layers it needs whole.
        tiling: sides of at least the network's stride; None for tiles as large as possible.
        group: processes that share the tiles.
    """

    def __init__(
        self,
        net: Extractor,
        criterion: Criterion,
        tiling: Tiling = WHOLE,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.net, self.criterion, self.tiling, self.group = net, criterion, tiling, group
        self.step = stride(net.layers)
        self.whole = [layer for layer in net.layers if layer in criterion.whole_layers]

    def __call__(
        self, image: Tensor, wrap: str = "", dtype: torch.dtype | None = None
    ) -> MeasuredFeatures:
        """Return the features of (B, 3 or 1, H, W), as `Extractor` does, in the layers that some
        term needs whole, and the statistics of the other terms."""
        image = image.expand(-1, 3, -1, -1)
        evaluation = _Evaluation(self, size_of(image), wrap, dtype)
        found = _Tiled.apply(image, evaluation)
        maps, totals = found[: len(self.whole)], found[len(self.whole) :]
        features = {"image": image, **dict(zip(self.whole, maps, strict=True))}
        sums = map(Sums, totals, evaluation.counts.tolist())
        return MeasuredFeatures(features, unflatten_statistics(evaluation.statistics, sums))


class _Tile(NamedTuple):
    rows: Span
    columns: Span

    def positions(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of the tile and its halo, as an index of the picture."""
        rows, columns = (span.positions(image.device) for span in self)
        return rows[:, None], columns

    def with_halo(self, image: Tensor) -> Tensor:
        """Return the pixels of the tile and its halo."""
        return image.detach()[(..., *self.positions(image))]

    @property
    def halo(self) -> Sides:
        """px on each side."""
        return Sides(self.rows.before, self.rows.after, self.columns.before, self.columns.after)

    def within(self, maps: Tensor, step: int) -> Tensor:
        """Return the tile in a layer of the whole picture, a view."""
        rows, columns = (span.within(n, step) for span, n in zip(self, maps.shape[2:], strict=True))
        return maps[..., rows, columns]


class _Evaluation:
    """One evaluation of a picture, and what was measured of it."""

    def __init__(
        self, tiled: TiledExtractor, size: Size, wrap: str, dtype: torch.dtype | None
    ) -> None:
        self.tiled, self.size, self.dtype = tiled, size, dtype
        net, count = tiled.net, tiled.group.size
        sides = self._sides(size)
        self.exchange: Exchange | None = None
        cuts = rows, columns = self._cuts(sides, wrap, net.halos_exchanged)
        least = max(halo * _step(layer) for layer, halo in net.halos_exchanged.items())
        one_each = len(rows) == count > 1 and len(columns) == 1
        if one_each and all(span.stop - span.start >= least for span in rows):
            self.exchange = partial(tiled.group.exchange, ring="y" in wrap)
        else:
            cuts = self._cuts(sides, wrap, net.halos)
        tiles = [_Tile(*pair) for pair in product(*cuts)]
        # A picture with fewer tiles than processes is evaluated by each of them.
        self.group = tiled.group if len(tiles) >= count else SINGLE_PROCESS
        self.tiles = tiles[self.group.rank :: self.group.size]
        # Halos wrap around an axis that is divided; the network wraps around the others.
        undivided = (axis for axis, parts in zip("yx", cuts, strict=True) if len(parts) == 1)
        self.wrap = "".join(axis for axis in undivided if axis in wrap)
        self.statistics: dict[int, Statistics] | None = None  # of these tiles
        self.counts = torch.zeros(0, dtype=torch.int64)  # of positions, of all sums, of all tiles

    def _sides(self, size: Size) -> Size:
        """Return the largest height and width of a tile, such that each process has as many rows of
        tiles, and none waits for the others."""
        step, side, count = self.tiled.step, self.tiled.tiling.side, self.tiled.group.size
        height, width = (length + -length % step if side is None else side for length in size)
        height = math.ceil(size[0] / (count * math.ceil(size[0] / (count * height))))
        return height + -height % step, width

    def _cuts(self, sides: Size, wrap: str, halos: Mapping[str, int]) -> list[list[Span]]:
        """Return the spans of the rows and those of the columns."""
        return [
            spans(length, side, halos["image"], self.tiled.step, axis in wrap)
            for axis, length, side in zip("yx", self.size, sides, strict=True)
        ]

    def seen(self, tile: _Tile, image: Tensor, graph: bool) -> _Seen:
        """Evaluate one tile of (B, 3, H, W), with or without the graph to its pixels."""
        tiled = self.tiled
        with torch.set_grad_enabled(graph):
            leaf = tile.with_halo(image).requires_grad_(graph)
            inside = tiled.net(leaf, self.wrap, self.dtype, tile.halo, self.exchange)
            statistics = tiled.criterion.measure_additive(inside)
        return _Seen(tile, leaf, {layer: inside[layer] for layer in tiled.whole}, statistics)

    def add(self, seen: _Seen, maps: Features) -> None:
        """Add the statistics of a tile to those of the others, and copy its features into the
        layers of the whole picture."""
        for layer, inside in seen.maps.items():
            if layer not in maps:
                height, width = (side // _step(layer) for side in self.size)
                maps[layer] = inside.new_zeros(*inside.shape[:2], height, width).contiguous(
                    memory_format=memory_format_for(inside.device)
                )
            seen.tile.within(maps[layer], _step(layer)).copy_(inside)
        before, more = self.statistics, seen.statistics
        self.statistics = more if before is None else add_statistics(before, more)


class _Seen(NamedTuple):
    """A tile that was evaluated."""

    tile: _Tile
    image: Tensor  # (B, 3, ., .), with its halo
    maps: Features  # without the halo, of the layers that some term needs whole
    statistics: dict[int, Statistics]  # of the other terms

    def gradient(self, by_maps: Features, by_totals: Sequence[Tensor | None]) -> Tensor:
        """Return the gradient by the pixels of the tile and its halo, from that by layers of the
        whole picture and by totals; None where a loss does not depend on a total."""
        totals = (one.total for one in flatten_statistics(self.statistics))
        pairs = list(zip(totals, by_totals, strict=True))
        pairs += [
            (inside, self.tile.within(by_maps[layer], _step(layer)))
            for layer, inside in self.maps.items()
            if layer in by_maps
        ]
        known = [(found, gradient) for found, gradient in pairs if gradient is not None]
        if not known:
            return torch.zeros_like(self.image)
        outputs, gradients = zip(*known, strict=True)
        with torch.enable_grad():
            seed = _Seed.apply(gradients, *outputs)
        return torch.autograd.grad(seed, self.image)[0]


class _Seed(torch.autograd.Function):
    """Outputs -> a number with a given gradient by them.

    `torch.autograd.grad` takes gradients of outputs itself, but imports sympy for them, which takes
    two seconds.
    """

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[None, *tuple[Tensor, ...]]:
        return None, *ctx.gradients


class _Tiled(torch.autograd.Function):
    """(B, 3, H, W) -> the layers that are needed whole, and the totals of all sums."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, evaluation: _Evaluation) -> tuple[Tensor, ...]:
        ctx.save_for_backward(image)
        ctx.set_materialize_grads(False)
        maps: Features = {}
        ctx.evaluation, ctx.kept = evaluation, []
        tiles, graphs = evaluation.tiles, evaluation.tiled.tiling.graphs
        for left, tile in zip(range(len(tiles), 0, -1), tiles, strict=True):
            # The backward pass needs the memory of one graph in any case.
            graph = left <= graphs and ctx.needs_input_grad[0]
            seen = evaluation.seen(tile, image, graph)
            evaluation.add(seen, maps)
            if graph:
                ctx.kept.append(seen)
        sums = flatten_statistics(evaluation.statistics)
        found = [x.detach() for x in (*maps.values(), *(one.total for one in sums))]
        evaluation.counts = torch.tensor([one.count for one in sums])
        evaluation.group.all_reduce(found)
        evaluation.group.all_reduce([evaluation.counts])
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        (image,), evaluation = ctx.saved_tensors, ctx.evaluation
        kept, ctx.kept = ctx.kept, []
        whole = evaluation.tiled.whole
        pairs = zip(whole, gradients[: len(whole)], strict=True)
        by_maps = {layer: gradient for layer, gradient in pairs if gradient is not None}
        total = torch.zeros_like(image, memory_format=torch.contiguous_format)
        for tile in reversed(evaluation.tiles):
            seen = kept.pop() if kept else evaluation.seen(tile, image, graph=True)
            total[(..., *tile.positions(image))] += seen.gradient(by_maps, gradients[len(whole) :])
        evaluation.group.all_reduce([total])
        return total, None


def _step(layer: str) -> int:
    """Return the distance of two positions of a layer in px of the picture."""
    return 1 if layer == "image" else stride([layer])
