"""Approximate nearest neighbours of patches by PatchMatch.

Barnes et al., "PatchMatch: A Randomized Correspondence Algorithm for Structural Image Editing",
2009. Departure: all patches are updated at once, with neighbours 8, 4, 2 and 1 px away, instead of
one after the other in scanline order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.descriptors import LazyDescriptors, chunk_size
from utils import Size

STRIDES = (8, 4, 2, 1, 1)  # px to the neighbours whose offsets are propagated
SEARCH_RATIO = 3  # ratio of the radii of successive random searches


@dataclass(frozen=True)
class NNField:
    """Nearest-neighbour field: the coordinates of a source patch or pixel for each query.

    Queries form a grid (H, W). The coordinates of a patch are those of its top left pixel. The
    offset of a query is its neighbour's coordinates minus its own.
    """

    y: Tensor  # (H, W) of int64
    x: Tensor  # (H, W) of int64

    @classmethod
    def random(cls, size: Size, source_size: Size, generator: torch.Generator) -> NNField:
        """Return a field of the given size with uniformly random coordinates in the source."""
        device = generator.device
        y, x = (torch.randint(n, size, generator=generator, device=device) for n in source_size)
        return cls(y, x)

    @property
    def size(self) -> Size:
        """(H, W) of the queries."""
        return self.y.shape[0], self.y.shape[1]

    def __getitem__(self, index: Tensor | slice | tuple[slice, slice]) -> NNField:
        """Return the field of some queries."""
        return NNField(self.y[index], self.x[index])

    def to(self, device: torch.device) -> NNField:
        """Return the field on another device."""
        return NNField(self.y.to(device), self.x.to(device))

    def zeros_like(self) -> NNField:
        """Return a field of zeros of the same size."""
        return NNField(torch.zeros_like(self.y), torch.zeros_like(self.x))

    def clamp(self, source_size: Size) -> NNField:
        """Return the field with coordinates clamped to the source."""
        height, width = source_size
        return NNField(self.y.clamp(0, height - 1), self.x.clamp(0, width - 1))

    def flat(self, source_width: int) -> Tensor:
        """Return flat indices y * source_width + x, (H, W) of int64."""
        return self.y * source_width + self.x

    def offset_concentration(self) -> float:
        """Return the probability that two random queries have the same offset, in (0, 1].

        It is 1 for a translated copy of the source.
        """
        rows, columns = (torch.arange(side, device=self.y.device) for side in self.size)
        offsets = torch.stack((self.y - rows[:, None], self.x - columns)).flatten(1)
        _, counts = offsets.unique(dim=1, return_counts=True)
        return (counts / counts.sum()).square().sum().item()

    def propagate(self, down: int, across: int, wrap: str) -> NNField:
        """Return the field in which each query has the offset of the query `down` px above and
        `across` px left of it.

        Along the axes in `wrap`, queries wrap around. Along others, a query beyond the border has
        the coordinates of the outermost query.
        """
        y, x = (
            _shift(_shift(z, 0, down, "y" in wrap), 1, across, "x" in wrap)
            for z in (self.y, self.x)
        )
        return NNField(y + down, x + across)

    def resize(self, size: Size, factor: float) -> NNField:
        """Return a field of another size, with offsets multiplied by `factor`."""
        rows, columns = (torch.arange(side, device=self.y.device) for side in size)
        old_rows, old_columns = (
            ((new + 0.5) * old / side).long()
            for new, old, side in zip((rows, columns), self.size, size, strict=True)
        )
        y, x = (z[old_rows][:, old_columns] for z in (self.y, self.x))
        y = ((y - old_rows[:, None]) * factor).round().long() + rows[:, None]
        x = ((x - old_columns) * factor).round().long() + columns
        return NNField(y, x)


def _shift(z: Tensor, dim: int, by: int, wraps: bool) -> Tensor:
    """Shift (H, W) along a dimension; the border is replicated, or wraps."""
    if by == 0 or wraps:
        return z.roll(by, dim) if by else z
    count = min(abs(by), z.shape[dim])
    kept = z.shape[dim] - count
    border = z.narrow(dim, 0 if by > 0 else z.shape[dim] - 1, 1)
    borders = border.expand([count if d == dim else n for d, n in enumerate(z.shape)])
    if by > 0:
        return torch.cat((borders, z.narrow(dim, 0, kept)), dim)
    return torch.cat((z.narrow(dim, count, kept), borders), dim)


@dataclass(frozen=True)
class Candidates:
    """Source patches that a search may return, and how their distances are weighted."""

    descriptors: Tensor | LazyDescriptors  # (h, w, D)
    usable: Tensor  # (h, w) of bool; at least one is True
    cost_factor: Tensor | None = None  # (h, w), multiplies squared distances; None: 1
    # (h, w) of int64: a query keeps the label of its first neighbour. None: all have one label.
    labels: Tensor | None = None
    # Number of guide channels, which are the last of the D values. Their squared distances are
    # multiplied by the highest factor instead, so that no low factor outweighs a guide.
    guide_channels: int = 0

    @property
    def size(self) -> Size:
        """(h, w) of the source patches."""
        return self.usable.shape[0], self.usable.shape[1]

    def index_select(self, index: Tensor) -> Tensor:
        """Return a copy of the descriptors (N, D) of patches with flat indices (N,)."""
        if isinstance(self.descriptors, LazyDescriptors):
            return self.descriptors.index_select(index)
        return self.descriptors.flatten(0, 1).index_select(0, index)


class PatchMatch:
    """Search for source patches at a small distance from each query.

    Args:
        queries: (H, W, D), descriptors.
        candidates: Source patches.
        generator: Generator of random coordinates, on the device of the descriptors.
        wrap: Axes along which the queries repeat.
    """

    def __init__(
        self, queries: Tensor, candidates: Candidates, generator: torch.Generator, wrap: str = ""
    ) -> None:
        self.queries, self.candidates = queries, candidates
        self.generator, self.wrap = generator, wrap
        factor = candidates.cost_factor
        self.highest_factor = 1.0 if factor is None else factor.max()

    def __call__(self, field: NNField, iterations: int) -> NNField:
        """Return a field (H, W) of usable patches that cost no more than those of `field`.

        Unusable patches of `field` are first replaced by random ones.
        """
        height, width = self.candidates.size
        labels = self.candidates.labels
        field = self._replace_unusable(field)
        y, x = field.y.flatten(), field.x.flatten()
        best = y * width + x
        label = None if labels is None else _take(labels, best)
        cost = self._cost(best)

        def test(other: NNField) -> None:
            """Take the neighbours of another field that are allowed and cost less."""
            inside = (other.y >= 0) & (other.y < height) & (other.x >= 0) & (other.x < width)
            other = other.clamp((height, width))
            index = other.flat(width).flatten()
            inside = inside.flatten() & _take(self.candidates.usable, index)
            if labels is not None:
                inside &= _take(labels, index) == label
            # Once a field has converged, `other` has the same neighbours for most queries.
            queries = (inside & (index != best)).nonzero()[:, 0]
            new_cost = self._cost(index.index_select(0, queries), queries)
            better = new_cost < cost.index_select(0, queries)
            queries, new_cost = queries[better], new_cost[better]
            cost[queries] = new_cost
            for old, new in ((best, index), (y, other.y.flatten()), (x, other.x.flatten())):
                old[queries] = new.index_select(0, queries)

        field = NNField(y.view(field.size), x.view(field.size))  # views that `test` writes to
        for _ in range(iterations):
            for stride in STRIDES:
                for down, across in ((0, stride), (0, -stride), (stride, 0), (-stride, 0)):
                    test(field.propagate(down, across, self.wrap))
            radius = max(height, width)
            while radius >= 1:
                test(self._perturb(field, radius))
                radius //= SEARCH_RATIO
        return field

    def distance(self, field: NNField) -> Tensor:
        """Return the squared distance of each query to its neighbour, (H, W)."""
        index = field.flat(self.candidates.size[1])
        (distance,) = self._squared_distances(index.flatten(), None, [slice(None)])
        return distance.view(index.shape)

    def _squared_distances(
        self, index: Tensor, queries: Tensor | None, values: list[slice]
    ) -> list[Tensor]:
        """Return the squared distances (N,) over each of some slices of the D values.

        Args:
            index: (N,) flat indices of source patches.
            queries: (N,) flat indices of the queries; None: all of them in order.
            values: Slices of the D values.
        """
        chunk, flat = chunk_size(index.device), self.queries.flatten(0, 1)
        distances: list[list[Tensor]] = []
        for n, some in enumerate(index.split(chunk)):
            part = slice(n * chunk, n * chunk + len(some))
            own = flat[part] if queries is None else flat.index_select(0, queries[part])
            squares = self.candidates.index_select(some).sub_(own).square_()
            distances.append([squares[:, part].sum(1) for part in values])
        return [torch.cat(parts) for parts in zip(*distances, strict=True)]

    def _cost(self, index: Tensor, queries: Tensor | None = None) -> Tensor:
        """Return the costs (N,), squared distances times factors. Args as `_squared_distances`."""
        factor, guides = self.candidates.cost_factor, self.candidates.guide_channels
        if factor is None:
            return self._squared_distances(index, queries, [slice(None)])[0]
        pixels = self.queries.shape[2] - guides
        values = [slice(pixels), slice(pixels, None)] if guides else [slice(pixels)]
        distance, *guided = self._squared_distances(index, queries, values)
        cost = distance * _take(factor, index)
        return cost + guided[0] * self.highest_factor if guided else cost

    def _perturb(self, field: NNField, radius: int) -> NNField:
        """Return the field plus uniformly random offsets of at most `radius` px."""
        y, x = (z + self._randint(-radius, radius + 1, z.shape) for z in (field.y, field.x))
        return NNField(y, x)

    def _replace_unusable(self, field: NNField) -> NNField:
        """Return the field with unusable patches replaced by random usable ones."""
        usable, width = self.candidates.usable, self.candidates.size[1]
        field = field.clamp(self.candidates.size)
        every = usable.flatten().nonzero()[:, 0]
        random = every[self._randint(0, len(every), field.y.shape)]
        kept = _take(usable, field.flat(width).flatten()).view(field.size)
        return NNField(
            torch.where(kept, field.y, random // width), torch.where(kept, field.x, random % width)
        )

    def _randint(self, low: int, high: int, shape: torch.Size) -> Tensor:
        generator = self.generator
        return torch.randint(low, high, shape, generator=generator, device=generator.device)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Return the values (N,) of (h, w) at flat indices (N,)."""
    return values.flatten().index_select(0, index)
