"""Loss and gradient of a picture tile by tile, equal up to rounding, in the memory of a tile.

The forward pass adds up, tile by tile, the statistics that are sums over positions, and keeps the
graphs of the last tiles only. The backward pass evaluates the other tiles again, with their graphs,
and adds the gradient with respect to each tile and its halo to that of the picture. Positions in a
tile depend on no pixel farther away than the radius of the receptive field, so that a halo of that
width is enough for both passes. Processes that evaluate one tile each exchange a halo of features
half-way through the network; then the halo of pixels is narrower.

For terms that need a whole layer, the layer is assembled from the tiles.
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
    graphs: int = 1  # number of last tiles whose graphs are kept; the others are evaluated twice

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

    def within(self, count: int, step: int) -> slice:
        """Return the span without its halo in a layer of `count` positions, one every `step` px."""
        return slice(self.start // step, count if self.stop == self.length else self.stop // step)


def spans(length: int, side: int, halo: int, step: int, wraps: bool) -> list[Span]:
    """Divide an axis into similar spans of at most `side` px that start at multiples of `step`.

    Args:
        halo: px on either side; fewer at the ends of the axis, unless it `wraps`.
    """
    units, most = math.ceil(length / step), max(1, side // step)
    count = math.ceil(units / most)
    if wraps and count > 1 and math.ceil(units / count) * step + 2 * halo >= length:
        count = 1  # with its halo, each span would be longer than the axis
    edges = [units * i // count * step for i in range(count)] + [length]
    if count == 1:
        halo = 0
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
        criterion: measures the statistics; its `whole_layers` are assembled.
        tiling: its side is at least the network's stride; None: each process has one tile.
        group: processes among which the tiles are divided.
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
        """Return the features of (B, 3 or 1, H, W) in the layers that some term needs whole, and
        the statistics of the other terms. Arguments are those of `Extractor`."""
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
        """Return the index of the tile and its halo in the picture."""
        rows, columns = (span.positions(image.device) for span in self)
        return rows[:, None], columns

    @property
    def halo(self) -> Sides:
        """Widths of the halo in px."""
        return Sides(self.rows.before, self.rows.after, self.columns.before, self.columns.after)

    def within(self, maps: Tensor, step: int) -> Tensor:
        """Return a view of the tile without its halo in a layer of the whole picture."""
        rows, columns = (span.within(n, step) for span, n in zip(self, maps.shape[2:], strict=True))
        return maps[..., rows, columns]


class _Evaluation:
    """One evaluation of a picture: its tiles, and the statistics added up over them."""

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
        # With fewer tiles than processes, each process evaluates the whole picture.
        self.group = tiled.group if len(tiles) >= count else SINGLE_PROCESS
        self.tiles = tiles[self.group.rank :: self.group.size]
        # Along a divided axis, the halo of a tile wraps; along another, the network's padding does.
        undivided = (axis for axis, parts in zip("yx", cuts, strict=True) if len(parts) == 1)
        self.wrap = "".join(axis for axis in undivided if axis in wrap)
        self.statistics: dict[int, Statistics] | None = None  # of the tiles of this process
        self.counts = torch.zeros(0, dtype=torch.int64)  # positions in each sum, over all tiles

    def _sides(self, size: Size) -> Size:
        """Return the height and width of a tile, the largest for which all processes have the same
        number of rows of tiles, so that none waits for the others."""
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

    def evaluate(self, tile: _Tile, image: Tensor, graph: bool) -> _EvaluatedTile:
        """Evaluate one tile of (B, 3, H, W), with or without a graph."""
        tiled = self.tiled
        with torch.set_grad_enabled(graph):
            leaf = image.detach()[(..., *tile.positions(image))].requires_grad_(graph)
            inside = tiled.net(leaf, self.wrap, self.dtype, tile.halo, self.exchange)
            statistics = tiled.criterion.measure_additive(inside)
        maps = {layer: inside[layer] for layer in tiled.whole}
        return _EvaluatedTile(tile, leaf, maps, statistics)

    def add(self, one: _EvaluatedTile, maps: Features) -> None:
        """Add the statistics of a tile to those of the others, and copy its features into the
        layers of the whole picture."""
        for layer, inside in one.maps.items():
            if layer not in maps:
                height, width = (side // _step(layer) for side in self.size)
                maps[layer] = inside.new_zeros(*inside.shape[:2], height, width).contiguous(
                    memory_format=memory_format_for(inside.device)
                )
            one.tile.within(maps[layer], _step(layer)).copy_(inside)
        before, more = self.statistics, one.statistics
        self.statistics = more if before is None else add_statistics(before, more)


class _EvaluatedTile(NamedTuple):
    """Features and statistics of a tile."""

    tile: _Tile
    image: Tensor  # (B, 3, ., .), with its halo
    maps: Features  # without the halo, of the layers that some term needs whole
    statistics: dict[int, Statistics]  # of the other terms

    def gradient(self, by_maps: Features, by_totals: Sequence[Tensor | None]) -> Tensor:
        """Return the gradient with respect to the pixels of the tile and its halo.

        Args:
            by_maps: gradient with respect to layers of the whole picture.
            by_totals: gradient with respect to each total; None: the loss does not depend on it.
        """
        totals = (one.total for one in flatten_statistics(self.statistics))
        pairs = list(zip(totals, by_totals, strict=True))
        pairs += [
            (inside, self.tile.within(by_maps[layer], _step(layer)))
            for layer, inside in self.maps.items()
            if layer in by_maps
        ]
        known = [(found, gradient) for found, gradient in pairs if gradient is not None]
        outputs, gradients = zip(*known, strict=True)
        with torch.enable_grad():
            scalar = _WithGradient.apply(gradients, *outputs)
        return torch.autograd.grad(scalar, self.image)[0]


class _WithGradient(torch.autograd.Function):
    """Return a scalar whose gradient with respect to the outputs is given.

    It replaces the argument `grad_outputs` of `torch.autograd.grad`, for which PyTorch would import
    SymPy, which takes two seconds.
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
    """Map a picture (B, 3, H, W) to the layers that are needed whole and the total of each sum."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, evaluation: _Evaluation) -> tuple[Tensor, ...]:
        ctx.save_for_backward(image)
        ctx.set_materialize_grads(False)
        maps: Features = {}
        ctx.evaluation, ctx.kept = evaluation, []
        tiles, graphs = evaluation.tiles, evaluation.tiled.tiling.graphs
        for left, tile in zip(range(len(tiles), 0, -1), tiles, strict=True):
            # The graphs of the last tiles are kept, since the backward pass begins with them.
            graph = left <= graphs and ctx.needs_input_grad[0]
            evaluated = evaluation.evaluate(tile, image, graph)
            evaluation.add(evaluated, maps)
            if graph:
                ctx.kept.append(evaluated)
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
            one = kept.pop() if kept else evaluation.evaluate(tile, image, graph=True)
            total[(..., *tile.positions(image))] += one.gradient(by_maps, gradients[len(whole) :])
        evaluation.group.all_reduce([total])
        return total, None


def _step(layer: str) -> int:
    """Return the distance between neighbouring positions of a layer, in px of the picture."""
    return 1 if layer == "image" else stride([layer])
