"""Loss and gradient of a picture block by block: the same to rounding, in the memory of a block.

Statistics that are sums over positions are added up block by block without a graph. The gradient by
them is then held while every block is evaluated again, and the gradient of the *whole* block, what
lies around it included, is added into the picture's. Positions inside a block see nothing beyond
one radius of the receptive field, so that much around it is enough for both passes. Processes that
look at one block each exchange some of that half-way through the net, and look at less around them.

Terms that need the whole of a layer get it whole, put together from the blocks; of its graph there
is never more than a block.
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


class Span(NamedTuple):
    """Part of an axis, in px, with what lies around it."""

    start: int
    stop: int
    before: int  # px that are looked at in front of it
    after: int
    length: int  # of the axis

    def places(self, device: torch.device) -> Tensor:
        """What is looked at; an axis that goes on where it began is gone round."""
        first, last = self.start - self.before, self.stop + self.after
        return torch.arange(first, last, device=device) % self.length

    def place(self, whole: int, step: int) -> slice:
        """The span itself in a layer of so many positions, one every `step` px."""
        return slice(self.start // step, whole if self.stop == self.length else self.stop // step)


def spans(length: int, side: int, around: int, step: int, wraps: bool) -> list[Span]:
    """An axis in parts of at most `side` px, of equal length up to a multiple of `step`.

    Args:
        around: px that are looked at on either side; fewer where the axis ends, unless it `wraps`.
    """
    units, most = math.ceil(length / step), max(1, side // step)
    count = math.ceil(units / most)
    if wraps and count > 1 and math.ceil(units / count) * step + 2 * around >= length:
        count = 1  # its surroundings would be all of it, and some of it twice
    edges = [units * i // count * step for i in range(count)] + [length]
    if count == 1:
        return [Span(0, length, 0, 0, length)]
    return [
        Span(
            start,
            stop,
            around if wraps else min(around, start),
            around if wraps else min(around, length - stop),
            length,
        )
        for start, stop in zip(edges, edges[1:], strict=False)
    ]


class Parts(NamedTuple):
    """How a picture of some size is looked at."""

    side: int | None = None  # px, of a block without its surroundings; None: the whole picture
    graphs: int = 1  # of so many blocks what the way back needs is kept

    def cut(self, size: Size) -> bool:
        """Whether a picture of that size is larger than a block."""
        return self.side is not None and math.prod(size) > self.side**2


class Blocks:
    """An extractor that looks at a picture block by block, on behalf of one criterion."""

    def __init__(
        self,
        trunk: Extractor,
        criterion: Criterion,
        side: int | None,
        group: ProcessGroup = SINGLE_PROCESS,
        graphs: int = 1,
    ) -> None:
        """
        Args:
            side: px, of a block without its surroundings, at most; and no less than the net's
                stride. None: as large as can be.
            group: that shares them.
            graphs: of so many blocks what the way back needs is kept, at least of one; the others
                are looked at twice.
        """
        self.trunk, self.criterion, self.side, self.group = trunk, criterion, side, group
        self.graphs = graphs
        self.step = stride(trunk.layers)
        self.whole = [layer for layer in trunk.layers if layer in criterion.whole_layers]

    def __call__(
        self, image: Tensor, tile: str = "", dtype: torch.dtype | None = None
    ) -> MeasuredFeatures:
        """Of (B, 3 or 1, H, W) what `Extractor` gives, in the layers that some term needs whole,
        and what the other terms measure of the rest."""
        image = image.expand(-1, 3, -1, -1)
        look = _Look(self, size_of(image), tile, dtype)
        found = _ByBlocks.apply(image, look)
        maps, totals = found[: len(self.whole)], found[len(self.whole) :]
        features = {"image": image, **dict(zip(self.whole, maps, strict=True))}
        sums = map(Sums, totals, look.counts.tolist())
        return MeasuredFeatures(features, unflatten_statistics(look.statistics, sums))


class _Block(NamedTuple):
    rows: Span
    columns: Span

    def cut_out(self, image: Tensor) -> Tensor:
        """The block with its surroundings."""
        return image.detach()[(..., *self.places(image))]

    def places(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the picture it and its surroundings are."""
        rows, columns = (span.places(image.device) for span in self)
        return rows[:, None], columns

    @property
    def around(self) -> Sides:
        """How many px of its surroundings that is."""
        return Sides(self.rows.before, self.rows.after, self.columns.before, self.columns.after)

    def place(self, maps: Tensor, step: int) -> Tensor:
        """The block in a layer of the whole picture, a view."""
        rows, columns = (span.place(n, step) for span, n in zip(self, maps.shape[2:], strict=True))
        return maps[..., rows, columns]


class _Look:
    """How one picture is looked at, and what was measured of it."""

    def __init__(self, blocks: Blocks, size: Size, tile: str, dtype: torch.dtype | None) -> None:
        self.blocks, self.size, self.dtype = blocks, size, dtype
        count, step, trunk = blocks.group.size, blocks.step, blocks.trunk
        most = [length + -length % step if blocks.side is None else blocks.side for length in size]
        # As many rows of blocks for each process, so that none has to wait for the others.
        most[0] = math.ceil(size[0] / (count * math.ceil(size[0] / (count * most[0]))))
        most[0] += -most[0] % step

        def cut_with(halos: Mapping[str, int]) -> list[list[Span]]:
            return [
                spans(length, side, halos["image"], step, axis in tile)
                for axis, length, side in zip("yx", size, most, strict=True)
            ]

        self.exchange: Exchange | None = None
        cuts = rows, columns = cut_with(trunk.halos_exchanged)
        least = max(halo * _step(layer) for layer, halo in trunk.halos_exchanged.items())
        one_each = len(rows) == count > 1 and len(columns) == 1
        if one_each and all(span.stop - span.start >= least for span in rows):
            self.exchange = partial(blocks.group.exchange, ring="y" in tile)
        else:
            cuts = cut_with(trunk.halos)
        parts = [_Block(*pair) for pair in product(*cuts)]
        # A picture with fewer blocks is looked at by each of them whole.
        self.group = blocks.group if len(parts) >= count else SINGLE_PROCESS
        self.parts = parts[self.group.rank :: self.group.size]
        # Round an axis that is cut the blocks' surroundings go; the net goes round the others.
        uncut = (axis for axis, spans_ in zip("yx", cuts, strict=True) if len(spans_) == 1)
        self.tile = "".join(axis for axis in uncut if axis in tile)
        self.statistics: dict[int, Statistics] | None = None  # of these parts
        self.counts = torch.zeros(0, dtype=torch.int64)  # of positions, of all sums, everywhere

    def seen(self, part: _Block, image: Tensor, graph: bool) -> _Seen:
        """One block of (B, 3, H, W), with the graph that leads to its pixels or without."""
        blocks = self.blocks
        with torch.set_grad_enabled(graph):
            leaf = part.cut_out(image).requires_grad_(graph)
            inside = blocks.trunk(leaf, self.tile, self.dtype, part.around, self.exchange)
            statistics = blocks.criterion.measure_additive(inside)
        return _Seen(part, leaf, {layer: inside[layer] for layer in blocks.whole}, statistics)

    def add(self, seen: _Seen, maps: Features) -> None:
        """Put what a block has seen to what others have, and into layers of the whole picture."""
        for layer, inside in seen.maps.items():
            if layer not in maps:
                height, width = (side // _step(layer) for side in self.size)
                maps[layer] = inside.new_zeros(*inside.shape[:2], height, width).contiguous(
                    memory_format=memory_format_for(inside.device)
                )
            seen.part.place(maps[layer], _step(layer)).copy_(inside)
        before, more = self.statistics, seen.statistics
        self.statistics = more if before is None else add_statistics(before, more)


class _Seen(NamedTuple):
    """What there is of one block."""

    part: _Block
    image: Tensor  # (B, 3, ., .), with its surroundings
    maps: Features  # inside, of the layers that some term needs whole
    statistics: dict[int, Statistics]  # of the other terms

    def gradient(self, by_maps: Features, by_totals: Sequence[Tensor | None]) -> Tensor:
        """By its pixels and its surroundings', from that by layers of the whole picture and by
        totals; None stands for what no loss has looked at."""
        totals = (one.total for one in flatten_statistics(self.statistics))
        pairs = list(zip(totals, by_totals, strict=True))
        pairs += [
            (inside, self.part.place(by_maps[layer], _step(layer)))
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
    """Outputs -> a number whose gradient by them is what is given.

    `torch.autograd.grad` takes gradients itself, but imports a computer algebra system for it, for
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


class _ByBlocks(torch.autograd.Function):
    """(B, 3, H, W) -> the layers that are needed whole, and the totals of all that is summed."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, look: _Look) -> tuple[Tensor, ...]:
        ctx.save_for_backward(image)
        ctx.set_materialize_grads(False)
        maps: Features = {}
        ctx.look, ctx.kept = look, []
        for left, part in zip(range(len(look.parts), 0, -1), look.parts, strict=True):
            # The way back needs as much memory as the graph of a block in any case.
            graph = left <= look.blocks.graphs and ctx.needs_input_grad[0]
            seen = look.seen(part, image, graph)
            look.add(seen, maps)
            if graph:
                ctx.kept.append(seen)
        sums = flatten_statistics(look.statistics)
        found = [x.detach() for x in (*maps.values(), *(one.total for one in sums))]
        look.counts = torch.tensor([one.count for one in sums])
        look.group.all_reduce(found)
        look.group.all_reduce([look.counts])
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        (image,), look = ctx.saved_tensors, ctx.look
        kept, ctx.kept = ctx.kept, []
        whole = look.blocks.whole
        pairs = zip(whole, gradients[: len(whole)], strict=True)
        by_maps = {layer: gradient for layer, gradient in pairs if gradient is not None}
        total = torch.zeros_like(image, memory_format=torch.contiguous_format)
        for part in reversed(look.parts):
            seen = kept.pop() if kept else look.seen(part, image, graph=True)
            total[(..., *part.places(image))] += seen.gradient(by_maps, gradients[len(whole) :])
        look.group.all_reduce([total])
        return total, None


def _step(layer: str) -> int:
    """How many px of the picture lie between two positions of a layer."""
    return 1 if layer == "image" else stride([layer])
