"""Base class of texture terms, their inputs, and the statistics that they share.

A term measures how far an output is from its exemplars. It is built once from the exemplars'
features and is then a function of the output's features: `term(features) -> (B,)`. Pictures of a
batch are independent. Values are relative to the exemplar, so that a weight has the same effect
for any network, layer and picture size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models import Features
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from utils import Size, resize

TINY = 1e-8  # least denominator; the statistics of a constant exemplar are 0
SORT_CHUNK = 2**22  # values that are sorted at a time; sorting takes ten times their memory
SERIAL_SORT_BELOW = 2**16  # values; one thread sorts fewer before a second one has started
MASK_MARGIN = 4  # px around the mask that are in its region; farther pixels may differ in texture
MAX_PATCHES = 10_000


@dataclass(frozen=True)
class View:
    """A picture that texture is taken from, with maps of its pixels."""

    features: Features  # layer -> (1, C, h, w); "image" is the picture, (1, 3, h, w) in [0, 1]
    guide: Tensor | None = None  # (1, G, h, w), for terms that match patches
    regions: Tensor | None = None  # (1, 1, h, w) of int64, for statistics; -1: in no region
    valid: Tensor | None = None  # (1, 1, h, w) of bool; None: all pixels are valid

    @property
    def image(self) -> Tensor:
        """(1, 3, h, w) in [0, 1]."""
        return self.features["image"]

    def to(self, device: torch.device) -> View:
        """Return a copy on a device."""
        features = {layer: maps.to(device) for layer, maps in self.features.items()}
        return View(features, *(_to(x, device) for x in (self.guide, self.regions, self.valid)))


@dataclass(frozen=True)
class Exemplar:
    """A given texture: the original picture, followed by its rotated and resized copies."""

    views: tuple[View, ...]
    share: float = 1.0  # of the output; the shares of all exemplars add up to 1
    # Degrees counter-clockwise and scale factors. The copies are all pairs of both, in the order
    # of `utils.rotated_and_resized`.
    rotations: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()

    @property
    def features(self) -> Features:
        """Features of the original picture."""
        return self.views[0].features

    @property
    def image(self) -> Tensor:
        """(1, 3, h, w) in [0, 1]: the original picture."""
        return self.views[0].image

    @property
    def valid(self) -> Tensor | None:
        """(1, 1, h, w) of bool: valid pixels of the original picture; None: all."""
        return self.views[0].valid

    def views_for_statistics(self) -> tuple[View, ...]:
        """Return the original picture and those copies that have regions."""
        return self.views[:1] + tuple(v for v in self.views[1:] if v.regions is not None)

    def to(self, device: torch.device) -> Exemplar:
        """Return a copy on a device."""
        return replace(self, views=tuple(view.to(device) for view in self.views))


@dataclass(frozen=True)
class Canvas:
    """Size, borders and control maps of the output. All maps have the size of the canvas.

    Raises:
        ValueError: a map has another size.
    """

    size: Size  # (height, width)
    wrap: str = ""  # axes along which the output is periodic: "", "x", "y" or "xy"
    init: Tensor | None = None  # (1, 3, H, W) in [0, 1]: initial picture; None: noise
    mask: Tensor | None = None  # (1, 1, H, W) of bool: pixels that may change; None: all
    content: Tensor | None = None  # (1, 3, H, W) in [0, 1]: photo whose layout is kept
    keep_color: bool = False  # give the output the hue and saturation of the content
    guide: Tensor | None = None  # (1, G, H, W), compared with the guides of the views
    regions: Tensor | None = None  # (1, 1, H, W) of int64, as in the views
    # (1, 3, H, W) in [0, 1]: a seamless tile whose edges the output gets; wrap is "xy"
    edges: Tensor | None = None

    def __post_init__(self) -> None:
        for name, maps in self._maps().items():
            if maps is not None and tuple(maps.shape[2:]) != tuple(self.size):
                raise ValueError(f"{name} has the size {tuple(maps.shape[2:])}, not {self.size}")

    @property
    def has_layout(self) -> bool:
        """Whether a map fixes positions in the output."""
        return any(x is not None for x in (self.init, self.content, self.guide))

    @property
    def has_maps(self) -> bool:
        """Whether the canvas has any map."""
        return self.has_layout or self.mask is not None or self.regions is not None

    @property
    def output_regions(self) -> Tensor | None:
        """(1, 1, H, W) of int64: the region of every output pixel; None: a single region.

        Pixels farther than MASK_MARGIN from the mask are in no region, -1: their difference from
        the exemplar would be compensated inside the mask.
        """
        if self.mask is None:
            return self.regions
        near = _dilate(self.mask, self.wrap)
        regions = (
            torch.zeros_like(near, dtype=torch.int64) if self.regions is None else self.regions
        )
        return torch.where(near, regions, -1)

    def mask_at(self, size: Size) -> Tensor | None:
        """Resize `mask`: a pixel may change if any pixel that it covers may."""
        if self.mask is None or tuple(size) == tuple(self.size):
            return self.mask
        return F.adaptive_max_pool2d(self.mask.float(), size) > 0

    def init_at(self, size: Size) -> Tensor | None:
        """Resize `init`."""
        return None if self.init is None else resize(self.init, size, self.wrap)

    def to(self, device: torch.device) -> Canvas:
        """Return a copy on a device."""
        moved: dict[str, Any] = {name: _to(maps, device) for name, maps in self._maps().items()}
        return replace(self, **moved)

    def _maps(self) -> dict[str, Any]:
        names = ("init", "mask", "content", "guide", "regions", "edges")
        return {name: getattr(self, name) for name in names}


def _to(maps: Tensor | None, device: torch.device) -> Tensor | None:
    return None if maps is None else maps.to(device)


def _dilate(mask: Tensor, wrap: str) -> Tensor:
    """Dilate a mask (1, 1, H, W) of bool by MASK_MARGIN, wrapping around along the axes `wrap`."""
    grown = mask.float()
    margin = MASK_MARGIN
    for axis, pads in (("x", (margin, margin, 0, 0)), ("y", (0, 0, margin, margin))):
        grown = F.pad(grown, pads, "circular" if axis in wrap else "constant")
    return F.max_pool2d(grown, 2 * margin + 1, 1) > 0


@dataclass(frozen=True)
class Options:
    """Settings of terms."""

    seed: int = 0  # of random directions and samples
    max_patches: int = MAX_PATCHES  # largest number of patches of a layer that are compared
    group: ProcessGroup = SINGLE_PROCESS  # processes that evaluate the same pictures


@dataclass(frozen=True)
class TermInputs:
    """Arguments of the constructor of a term, except its layers."""

    exemplars: tuple[Exemplar, ...]
    canvas: Canvas = Canvas((1, 1))
    options: Options = Options()

    @property
    def weighted_views(self) -> list[tuple[float, View]]:
        """Share and original picture of each exemplar; the shares are normalised to sum 1."""
        total = sum(one.share for one in self.exemplars)
        return [(one.share / total, one.views[0]) for one in self.exemplars]

    def mix_statistics(
        self, statistics: Callable[[Features], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the mean of the exemplars' statistics, weighted by their shares.

        If the statistics are means over positions, the result is that of a picture in which each
        exemplar has its share of the positions.
        """
        parts = [(share, statistics(view.features)) for share, view in self.weighted_views]
        return {
            name: sum((share * part[name].detach() for share, part in parts), torch.zeros(()))
            for name in parts[0][1]
        }

    @property
    def views(self) -> list[View]:
        """All views of all exemplars."""
        return [view for one in self.exemplars for view in one.views]

    @property
    def exemplar_of_view(self) -> list[int]:
        """Index of the exemplar of each view."""
        return [k for k, one in enumerate(self.exemplars) for _ in one.views]

    @property
    def matched_shares(self) -> list[float]:
        """Shares of the exemplars by which patches are matched; [] if there is one exemplar, or a
        guide that says which exemplar goes where, which overrides the shares."""
        divided = len(self.exemplars) > 1 and self.canvas.guide is None
        return [one.share for one in self.exemplars] if divided else []


@dataclass(frozen=True)
class Sums:
    """A sum over positions, and their number. Sums of disjoint parts of a picture add up to the
    sum of the whole."""

    total: Tensor  # (B, ...)
    count: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """(B, ...)"""
        return self.total / self.count


LayerWeights = Mapping[str, float]  # layer -> weight above 0, relative to the others
Statistics = dict[str, Any]  # `Sums`; anything if the term needs the whole picture


def add_statistics(one: Any, other: Any) -> Any:
    """Add the statistics of two parts of a picture: `Sums`, nested in dictionaries."""
    if isinstance(one, Sums):
        return one + other
    return {name: add_statistics(a, other[name]) for name, a in one.items()}


def flatten_statistics(statistics: Any) -> list[Sums]:
    """Return all `Sums` nested in dictionaries, in order."""
    if isinstance(statistics, Sums):
        return [statistics]
    return [sums for part in statistics.values() for sums in flatten_statistics(part)]


def unflatten_statistics(statistics: Any, sums: Iterator[Sums]) -> Any:
    """Replace all `Sums` nested in `statistics` by others, in the order of `flatten_statistics`."""
    if isinstance(statistics, Sums):
        return next(sums)
    return {name: unflatten_statistics(part, sums) for name, part in statistics.items()}


class Term:
    """Base class of texture models and of the terms added to them.

    Subclasses implement `__init__`, `measure` and `distance`. Those that hold matches, directions
    or samples fixed for some steps also implement `rematch`, and set `generator` if they draw them.
    """

    # Why statistics of parts of a picture do not add up; "" if they do: `measure` returns `Sums`.
    needs_whole: str = ""
    uses_pixels: ClassVar[bool] = False  # uses "image", no other layer
    permutation_invariant: ClassVar[bool] = False  # unchanged if positions are permuted
    coarse_only: ClassVar[bool] = False  # omitted at the finest of several scales
    generator: torch.Generator | None = None  # that `rematch` draws from

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        """
        Args:
            inputs: exemplars, with features at `layers`; the canvas; options.
            layers: layers that the term uses, with their weights.
        """
        raise NotImplementedError

    @classmethod
    def layers_used(cls, layers: LayerWeights) -> list[str]:
        """Return those of the layers that the term uses, or "image"."""
        return ["image"] if cls.uses_pixels else list(layers)

    def measure(self, output: Features) -> Statistics:
        """Return the statistics of an output's features, (B, C, h, w) each."""
        raise NotImplementedError

    def distance(self, statistics: Statistics) -> Tensor:
        """Return the distance of the output's statistics from the exemplars', (B,)."""
        raise NotImplementedError

    def rematch(self, output: Features) -> None:
        """Recompute the matches, directions or samples that are held until the next call.

        Args:
            output: features of the output, (B, C, h, w) each.
        """

    @property
    def rematches(self) -> bool:
        """Whether the term holds matches, directions or samples between calls of `rematch`."""
        return type(self).rematch is not Term.rematch

    @property
    def generators(self) -> list[torch.Generator]:
        """Random generators that `rematch` draws from."""
        return [] if self.generator is None else [self.generator]

    def __call__(self, output: Features) -> Tensor:
        """Return the distance of an output's features, (B, C, h, w) each, from the exemplars',
        (B,)."""
        return self.distance(self.measure(output))


def relative_error(output: Tensor, source: Tensor) -> Tensor:
    """Return the squared distance divided by the squared norm of the source: (B, ...), (1, ...) ->
    (B,)."""
    distance = (output - source).flatten(1).square().sum(1)
    return distance / source.square().sum().clamp(min=TINY)


def interpolate_quantiles(ascending: Tensor, count: int) -> Tensor:
    """Return `count` evenly spaced quantiles of values in ascending order: (..., n) ->
    (..., count). Quantile i is at (i + 1/2) / count, by linear interpolation."""
    if ascending.shape[-1] == count:
        return ascending
    steps = torch.arange(count, dtype=torch.float64) + 0.5  # on the CPU, as GPUs may lack float64
    position = (steps * (ascending.shape[-1] / count) - 0.5).clamp(0, ascending.shape[-1] - 1)
    low = position.long()
    share, low = (position - low).to(ascending), low.to(ascending.device)
    high = (low + 1).clamp(max=ascending.shape[-1] - 1)
    return torch.lerp(ascending[..., low], ascending[..., high], share)


class QuantileMixture:
    """Quantiles of a mixture of empirical distributions.

    Args:
        parts: share of each distribution and its values in ascending order, (..., n). The share of
            a distribution without values is divided among the others.
    """

    def __init__(self, parts: Sequence[tuple[float, Tensor]]) -> None:
        self.parts = [(share, ascending) for share, ascending in parts if ascending.shape[-1]]
        self.quantiles: dict[int, Tensor] = {}

    def __call__(self, count: int) -> Tensor:
        """Return `count` quantiles in ascending order, (..., count), which are cached."""
        if count not in self.quantiles:
            self.quantiles[count] = self._mix(count)
        return self.quantiles[count]

    def _mix(self, count: int) -> Tensor:
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
    values: Tensor, source: Tensor, group: ProcessGroup = SINGLE_PROCESS
) -> Tensor:
    """Return the squared Wasserstein-2 distance of samples in one dimension, mean over K.

    It is the mean squared difference of the sorted samples (Rabin et al., "Wasserstein Barycenter
    and Its Application to Texture Mixing", 2011).

    Args:
        values: (B, K, n).
        source: (K, n) or (1, K, n), in ascending order.
        group: processes that all have the same values. On a CPU each sorts a part of the K rows,
            as sorting takes longer than communicating.

    Returns:
        (B,)
    """
    distance: Tensor = _SquaredWasserstein.apply(values, source, group)
    return distance


class _SquaredWasserstein(torch.autograd.Function):
    """`squared_wasserstein`; saves only the difference of each value from its quantile."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, source: Tensor, group: ProcessGroup) -> Tensor:
        excess = torch.empty_like(values, memory_format=torch.contiguous_format)
        total = values.new_zeros(len(values))
        K = values.shape[1]
        group = group if values.device.type == "cpu" and group.size <= K else SINGLE_PROCESS
        rows = max(1, min(SORT_CHUNK // values[:, 0].numel(), math.ceil(K / group.size)))
        chunks = zip(*(x.split(rows, -2) for x in (values, source, excess)), strict=True)
        for n, (chunk, sorted_source, excess_chunk) in enumerate(chunks):
            if n % group.size != group.rank:
                excess_chunk.zero_()  # a term of the sum over processes
                continue
            ascending, order = sort_with_indices(chunk)
            difference = ascending.sub_(sorted_source)
            excess_chunk.scatter_(-1, order, difference)
            total += difference.square().sum((1, 2))
        group.all_reduce([excess, total])
        ctx.save_for_backward(excess)
        return total / excess[0].numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (excess,) = ctx.saved_tensors
        return excess * (gradient / excess[0].numel() * 2).view(-1, 1, 1), None, None


def sort_with_indices(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the last dimension in ascending order, as `torch.sort`: (..., n) -> values and indices.

    On a CPU float32 values are sorted by NumPy as int64 keys, which takes a seventh of the time of
    `torch.sort` (one core with AVX2): the upper half of a key has the order of the value, the lower
    half is the index.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.sort(-1)
    n = values.shape[-1]
    keys = _ordered_bits(values.contiguous().view(torch.int32)).long() << 32 | torch.arange(n)
    rows = keys.flatten(0, -2)
    threads = min(torch.get_num_threads(), len(rows))
    if threads == 1 or rows.numel() < SERIAL_SORT_BELOW:
        _sort_rows(rows)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(_sort_rows, rows.tensor_split(threads)))
    return _ordered_bits((keys >> 32).int()).view(torch.float32), keys.bitwise_and_(2**32 - 1)


def _ordered_bits(bits: Tensor) -> Tensor:
    """Map the bits of float32 to int32 of the same order, and back. The bits of negative floats
    are in reverse order."""
    return torch.where(bits < 0, bits ^ (2**31 - 1), bits)


def _sort_rows(keys: Tensor) -> None:
    keys.numpy().sort(1)


def equal_weights(layers: Iterable[str]) -> dict[str, float]:
    """Return weight 1 for each layer."""
    return dict.fromkeys(layers, 1.0)


def mean_over_layers(errors: Mapping[str, Tensor], weights: LayerWeights) -> Tensor:
    """Return the weighted mean of the errors of the layers, (B,) each -> (B,)."""
    mean = sum(weights.values()) / len(weights)
    return torch.stack([errors[k] * (weight / mean) for k, weight in weights.items()]).mean(0)
