"""What every term is built from and what it promises.

A term says what an output shall have in common with its exemplars. It is built once from the
exemplars' features, and is then a function of the output's: `term(features) -> (B,)`. It never
mixes the pictures of a batch, and its values do not depend on net, layer and size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models import Features
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from utils import Size, resize

TINY = 1e-8  # keeps a flat exemplar, whose statistics are zero, from dividing by zero
SORT_CHUNK = 2**22  # values that are sorted at a time; sorting takes ten times their memory
MASK_MARGIN = 4  # px around what may change that count with it; beyond may lie another texture
MAX_PATCHES = 10_000


@dataclass(frozen=True)
class View:
    """One picture that texture is taken from, and what each of its places is."""

    features: Features  # "image" is the picture itself, (1, 3, h, w) in [0, 1]
    guide: Tensor | None = None  # (1, G, h, w), for terms that match patches
    regions: Tensor | None = None  # (1, 1, h, w) of int64, for statistics; -1 is no region
    valid: Tensor | None = None  # (1, 1, h, w) of bool: the places that count; None: all

    @property
    def image(self) -> Tensor:
        """(1, 3, h, w) in [0, 1]."""
        return self.features["image"]


@dataclass(frozen=True)
class Exemplar:
    """A given texture: the picture as it is, then the same rotated and resized."""

    views: tuple[View, ...]
    share: float = 1.0  # of the output; those of all exemplars add up to 1
    rotations: tuple[float, ...] = ()  # degrees counter-clockwise and factors, of which the copies
    factors: tuple[float, ...] = ()  # are all the pairs, as `utils.rotated_and_resized` orders them

    @property
    def features(self) -> Features:
        """Of the picture as it is."""
        return self.views[0].features

    @property
    def image(self) -> Tensor:
        """(1, 3, h, w) in [0, 1]: the picture as it is."""
        return self.views[0].image

    @property
    def valid(self) -> Tensor | None:
        """(1, 1, h, w) of bool: the pixels of the exemplar as it is that count; None: all."""
        return self.views[0].valid

    def views_for_statistics(self) -> tuple[View, ...]:
        """The picture as it is, and those of its copies of which a guide says what they are."""
        return self.views[:1] + tuple(v for v in self.views[1:] if v.regions is not None)

    def to(self, device: torch.device) -> Exemplar:
        """The same on another device."""
        return replace(self, views=tuple(moved(view, device) for view in self.views))


@dataclass(frozen=True)
class Canvas:
    """The picture to make, but for its texture. All maps have its size.

    Raises ValueError for a map of another size.
    """

    size: Size  # (height, width)
    tile: str = ""  # axes along which it goes on where it began, "x", "y" or "xy"
    init: Tensor | None = None  # (1, 3, H, W) in [0, 1]: what it starts from; None means noise
    mask: Tensor | None = None  # (1, 1, H, W) of bool: where it may leave init; None: everywhere
    content: Tensor | None = None  # (1, 3, H, W) in [0, 1]: the photo whose layout it keeps
    keep_color: bool = False  # it gets the content's hue and saturation
    guide: Tensor | None = None  # (1, G, H, W): what each place shall be, as views have it
    regions: Tensor | None = None  # (1, 1, H, W) of int64: the same for statistics

    def __post_init__(self) -> None:
        for name in ("init", "mask", "content", "guide", "regions"):
            maps = getattr(self, name)
            if maps is not None and tuple(maps.shape[2:]) != tuple(self.size):
                raise ValueError(f"{name} has the size {tuple(maps.shape[2:])}, not {self.size}")

    @property
    def has_layout(self) -> bool:
        """Whether anything says where in the output something is to be."""
        return any(x is not None for x in (self.init, self.content, self.guide))

    @property
    def output_regions(self) -> Tensor | None:
        """(1, 1, H, W) of int64: the region whose statistics a place shall have; None: one for
        all. What is kept further than MASK_MARGIN from all that may change counts in none, -1, as
        it would only be made up for elsewhere."""
        if self.mask is None:
            return self.regions
        near = _dilated(self.mask, self.tile)
        whole = torch.zeros_like(near, dtype=torch.int64)
        return torch.where(near, whole if self.regions is None else self.regions, -1)

    def mask_at(self, size: Size) -> Tensor | None:
        """`mask` in another size: a place may change where any of it may."""
        if self.mask is None or tuple(size) == tuple(self.size):
            return self.mask
        return F.adaptive_max_pool2d(self.mask.float(), size) > 0

    def init_at(self, size: Size) -> Tensor | None:
        """`init` in another size."""
        return None if self.init is None else resize(self.init, size, self.tile)

    def to(self, device: torch.device) -> Canvas:
        """The same on another device."""
        return moved(self, device)


def _dilated(mask: Tensor, tile: str) -> Tensor:
    """(1, 1, H, W) of bool -> the same, grown by MASK_MARGIN, across the border of what tiles."""
    grown = mask.float()
    for axis, pads in (
        ("x", (MASK_MARGIN, MASK_MARGIN, 0, 0)),
        ("y", (0, 0, MASK_MARGIN, MASK_MARGIN)),
    ):
        grown = F.pad(grown, pads, "circular" if axis in tile else "constant")
    return F.max_pool2d(grown, 2 * MASK_MARGIN + 1, 1) > 0


def moved(record: Any, device: torch.device) -> Any:
    """A copy of a data class whose tensors are on that device."""

    def there(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return {k: there(v) for k, v in value.items()} if isinstance(value, dict) else value

    values = {f.name: there(getattr(record, f.name)) for f in fields(record)}
    return replace(record, **values)


@dataclass(frozen=True)
class Options:
    """How terms look at pictures."""

    seed: int = 0  # of what is drawn at random
    max_patches: int = MAX_PATCHES  # of a layer that are compared
    group: ProcessGroup = SINGLE_PROCESS  # of processes that look at the same pictures


@dataclass(frozen=True)
class TermInputs:
    """All that a term is built from."""

    exemplars: tuple[Exemplar, ...]
    canvas: Canvas = Canvas((1, 1))
    options: Options = Options()

    @property
    def weighted_views(self) -> list[tuple[float, View]]:
        """(share, view) of each exemplar as it is; the shares add up to 1."""
        total = sum(one.share for one in self.exemplars)
        return [(one.share / total, one.views[0]) for one in self.exemplars]

    def mix_statistics(
        self, statistics: Callable[[Features], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The statistics of the exemplars, weighed by their shares: of means over positions, those
        of a picture in which each exemplar has its share."""
        found = [(share, statistics(view.features)) for share, view in self.weighted_views]
        (first, one), *others = found
        total = {name: first * value.detach() for name, value in one.items()}
        for share, other in others:
            total = {name: value + share * other[name].detach() for name, value in total.items()}
        return total

    @property
    def uses_shares(self) -> bool:
        """Whether exemplars are mixed by their shares; where a guide says which of them goes
        where, shares have nothing to decide."""
        return len(self.exemplars) > 1 and self.canvas.guide is None


@dataclass(frozen=True)
class Sums:
    """A statistic before it is divided by the number of positions: those of two parts of a
    picture add up to that of the whole."""

    total: Tensor  # (B, ...)
    count: int  # of positions

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """(B, ...)"""
        return self.total / self.count


LayerWeights = Mapping[str, float]  # layer -> weight above 0, relative to the others
Statistics = dict[str, Any]  # Sums, or what a term that needs the whole picture makes of it


def add_statistics(one: Any, other: Any) -> Any:
    """Statistics of two parts of a picture, `Sums` in dictionaries and lists -> of both."""
    if not isinstance(one, dict | list):
        return one + other
    if isinstance(one, list):
        return [add_statistics(a, b) for a, b in zip(one, other, strict=True)]
    return {name: add_statistics(a, other[name]) for name, a in one.items()}


def flatten_statistics(statistics: Any) -> list[Sums]:
    """All sums in such dictionaries and lists, in order."""
    if isinstance(statistics, Sums):
        return [statistics]
    parts = statistics.values() if isinstance(statistics, dict) else statistics
    return [sums for part in parts for sums in flatten_statistics(part)]


def unflatten_statistics(statistics: Any, sums: Iterator[Sums]) -> Any:
    """The same dictionaries and lists of other sums, as `flatten_statistics` orders them."""
    if isinstance(statistics, Sums):
        return next(sums)
    if isinstance(statistics, list):
        return [unflatten_statistics(part, sums) for part in statistics]
    return {name: unflatten_statistics(part, sums) for name, part in statistics.items()}


class Term:
    """The base of texture models and of the terms beside them."""

    needs_whole: str = ""  # why parts of a picture do not do; "": its statistics are Sums
    uses_pixels: ClassVar[bool] = False  # looks at the picture itself, not at features
    permutation_invariant: ClassVar[bool] = False  # does not see where things are

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        """
        Args:
            inputs: exemplars with features at `layers`, which it mixes by their shares; the canvas,
                whose borders, guide and regions it minds; and options.
            layers: that the term looks at, with their weights.
        """
        raise NotImplementedError

    @classmethod
    def layers_used(cls, layers: LayerWeights) -> list[str]:
        """Those of the layers that it uses, or "image"."""
        return ["image"] if cls.uses_pixels else list(layers)

    def measure(self, output: Features) -> Statistics:
        """What the distance needs to know of features, (B, C, h, w) each."""
        raise NotImplementedError

    def distance(self, statistics: Statistics) -> Tensor:
        """(B,): how far what was measured is from the exemplars."""
        raise NotImplementedError

    def renew(self, output: Features) -> None:
        """Take anew what is held fixed between renewals: matches, directions, samples."""

    @property
    def renews(self) -> bool:
        """Whether there is anything to renew."""
        return type(self).renew is not Term.renew

    @property
    def generators(self) -> list[torch.Generator]:
        """What renewals draw from."""
        return []

    def __call__(self, output: Features) -> Tensor:
        """(B,)"""
        return self.distance(self.measure(output))


def relative_error(output: Tensor, source: Tensor) -> Tensor:
    """(B, ...), (1, ...) -> (B,): squared distance over the squared norm of the source."""
    distance = (output - source).flatten(1).square().sum(1)
    return distance / source.square().sum().clamp(min=TINY)


def interpolate_quantiles(ascending: Tensor, count: int) -> Tensor:
    """(..., n) in ascending order -> (..., count): the same distribution in `count` quantiles."""
    if ascending.shape[-1] == count:
        return ascending
    steps = torch.arange(count, dtype=torch.float64) + 0.5  # on the CPU, as GPUs may lack float64
    position = (steps * (ascending.shape[-1] / count) - 0.5).clamp(0, ascending.shape[-1] - 1)
    low = position.long()
    share, low = (position - low).to(ascending), low.to(ascending.device)
    high = (low + 1).clamp(max=ascending.shape[-1] - 1)
    return torch.lerp(ascending[..., low], ascending[..., high], share)


class QuantileMixture:
    """A mixture of distributions, each a share and its values in ascending order, (..., n).

    The share of a distribution without values goes to the others.
    """

    def __init__(self, parts: Sequence[tuple[float, Tensor]]) -> None:
        self.parts = [(share, ascending) for share, ascending in parts if ascending.shape[-1]]
        self.quantiles: dict[int, Tensor] = {}

    def __call__(self, count: int) -> Tensor:
        """(..., count): as many quantiles, computed once."""
        if count not in self.quantiles:
            self.quantiles[count] = self._mixed(count)
        return self.quantiles[count]

    def _mixed(self, count: int) -> Tensor:
        if len(self.parts) == 1:
            return interpolate_quantiles(self.parts[0][1], count)
        sums = list(accumulate(share for share, _ in self.parts))
        ends = [round(count * part / sums[-1]) for part in sums]
        counts = (end - start for start, end in pairwise([0, *ends]))
        found = [
            interpolate_quantiles(one, n) for (_, one), n in zip(self.parts, counts, strict=True)
        ]
        return torch.cat(found, -1).sort(-1).values


def squared_wasserstein(
    values: Tensor, wanted: Tensor, group: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    """(B, K, n) and, in ascending order, (K, n) or (1, K, n) -> (B,): the squared Wasserstein-2
    distance of the samples, which in one dimension is that of the sorted values (Rabin et al.
    2011), mean over K.

    Processes of a group, who all have the same values, sort some of the K each: on a CPU, where
    that takes longer than to tell the others.
    """
    distance: Tensor = _Transport.apply(values, wanted, group)
    return distance


class _Transport(torch.autograd.Function):
    """What autograd would do, but that how far each value is to move is all that is kept."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, wanted: Tensor, group: ProcessGroup) -> Tensor:
        excess = torch.empty_like(values, memory_format=torch.contiguous_format)
        total = values.new_zeros(len(values))
        K = values.shape[1]
        group = group if values.device.type == "cpu" and group.size <= K else SINGLE_PROCESS
        rows = max(1, min(SORT_CHUNK // values[:, 0].numel(), math.ceil(K / group.size)))
        groups = zip(*(x.split(rows, -2) for x in (values, wanted, excess)), strict=True)
        for n, (some, sought, place) in enumerate(groups):
            if n % group.size != group.rank:
                place.zero_()  # for what another process finds
                continue
            ascending, order = sort_with_indices(some)
            apart = ascending.sub_(sought)
            place.scatter_(-1, order, apart)
            total += apart.square().sum((1, 2))
        group.all_reduce([excess, total])
        ctx.save_for_backward(excess)
        return total / excess[0].numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (excess,) = ctx.saved_tensors
        return excess * (gradient / excess[0].numel() * 2).view(-1, 1, 1), None, None


def sort_with_indices(values: Tensor) -> tuple[Tensor, Tensor]:
    """(..., n) -> the same in ascending order, and where each of them was.

    As whole numbers, NumPy sorts them with all that a processor has: a seventh of the time that
    `torch.sort` takes (one core with AVX2). The bits of floats >= 0 are in their order, those of
    others in the reverse; below them goes the place.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.sort(-1)
    n = values.shape[-1]
    keys = _as_whole(values.contiguous().view(torch.int32)).long() << 32 | torch.arange(n)
    rows = keys.flatten(0, -2)
    parts = rows.tensor_split(max(1, min(torch.get_num_threads(), len(rows))))
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(_sort_rows, parts))
    return _as_whole((keys >> 32).int()).view(torch.float32), keys.bitwise_and_(2**32 - 1)


def _as_whole(bits: Tensor) -> Tensor:
    """Bits of float32 -> whole numbers in their order, and back."""
    return torch.where(bits < 0, bits ^ (2**31 - 1), bits)


def _sort_rows(keys: Tensor) -> None:
    keys.numpy().sort(1)


def equal_weights(layers: Iterable[str]) -> dict[str, float]:
    """Return weight 1 for each layer."""
    return dict.fromkeys(layers, 1.0)


def mean_over_layers(errors: Mapping[str, Tensor], weights: LayerWeights) -> Tensor:
    """(B,) of every layer -> (B,): their weighted mean."""
    mean = sum(weights.values()) / len(weights)
    return torch.stack([errors[k] * (weight / mean) for k, weight in weights.items()]).mean(0)
