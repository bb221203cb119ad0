"""One term for several regions: each alone, weighed by its share of the output."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import LayerWeights, Statistics, Sums, Term, TermInputs, View
from terms.valid import drop_invalid, positions_of_regions, valid_at
from utils import Size, size_of

RegionPositions = dict[Size, list[Tensor]]  # size of a layer -> flat positions of each region


class PerRegion(Term):
    """A term that sees what features there are, not where, for every region alone: Gatys et al.,
    "Controlling Perceptual Factors in Neural Style Transfer", 2017, section 4, and the tags of
    Heitz et al. 2021; regions weigh as much as they have of the output.
    """

    needs_whole = "gathers the places of every region"

    def __init__(self, kind: type[Term], inputs: TermInputs, layers: LayerWeights) -> None:
        region = inputs.canvas.output_regions
        assert region is not None  # else there is nothing to divide
        self.region = region
        views = [view for one in inputs.exemplars for view in one.views_for_statistics()]
        self.count = count_of_regions(views, self.region)
        self.positions: RegionPositions = {}
        pictures = [(one, self._pictures(one.views_for_statistics())) for one in inputs.exemplars]
        sizes = [int(n) for n in region[region >= 0].bincount(minlength=self.count)]
        self.kept = [k for k, size in enumerate(sizes) if size]
        self.parts: list[tuple[float, Term]] = []  # each with the share of its region
        for k in self.kept:
            sources = [replace(one, views=(View(_gathered(some, k)),)) for one, some in pictures]
            having = tuple(one for one in sources if all(x.shape[2] for x in one.features.values()))
            part = kind(TermInputs(having, options=inputs.options), layers)
            self.parts.append((sizes[k] / sum(sizes), part))

    def renew(self, output: Features) -> None:
        for (_, part), features in zip(self.parts, self._seen(output), strict=True):
            part.renew(features)

    @property
    def renews(self) -> bool:
        return any(part.renews for _, part in self.parts)

    @property
    def generators(self) -> list[torch.Generator]:
        return [one for _, part in self.parts for one in part.generators]

    def measure(self, output: Features) -> Statistics:
        measured = [
            part.measure(features)
            for (_, part), features in zip(self.parts, self._seen(output), strict=True)
        ]
        # Where no place has a region, the loss is 0 and so is its gradient.
        nothing = 0 * next(iter(output.values())).flatten(1).sum(1)
        return {"parts": measured, "nothing": Sums(nothing, 1)}

    def distance(self, statistics: Statistics) -> Tensor:
        distance = statistics["nothing"].total
        for (share, part), measured in zip(self.parts, statistics["parts"], strict=True):
            distance = distance + share * part.distance(measured)
        return distance

    def _seen(self, output: Features) -> list[Features]:
        """What the part of each region sees of the output."""
        places = self._places(self.positions, output, self.region)
        return [_OfRegion(output, places, k) for k in self.kept]

    def _pictures(self, views: Iterable[View]) -> list[tuple[Features, RegionPositions]]:
        return [
            (view.features, self._places({}, view.features, regions_of(view), view.valid))
            for view in views
        ]

    def _places(
        self,
        places: RegionPositions,
        features: Features,
        regions: Tensor,
        valid: Tensor | None = None,
    ) -> RegionPositions:
        """`places` with the positions of every region for each size of the features."""
        for maps in features.values():
            size = size_of(maps)
            if size not in places:
                masks = region_masks(regions, size, self.count)
                inside = None if valid is None else valid_at(valid, size).flatten()
                places[size] = positions_of_regions(masks, inside)
        return places


def per_region(kind: type[Term], inputs: TermInputs, layers: LayerWeights) -> Term:
    """A term of that kind; if it cannot distinguish regions itself, one for each region."""
    if inputs.canvas.output_regions is not None and kind.permutation_invariant:
        return PerRegion(kind, inputs, layers)
    if (
        any(one.views[0].valid is not None for one in inputs.exemplars)
        and kind.permutation_invariant
    ):
        inputs = replace(inputs, exemplars=tuple(map(drop_invalid, inputs.exemplars)))
    return kind(inputs, layers)


def layers_needed_whole(kind: type[Term], layers: LayerWeights, divided: bool) -> list[str]:
    """The layers, or "image", that a term of that kind cannot compute block by block.

    Args:
        divided: whether the output may be divided into regions.
    """
    return (
        kind.layers_used(layers)
        if kind.needs_whole or (divided and kind.permutation_invariant)
        else []
    )


def regions_of(view: View) -> Tensor:
    """(1, 1, h, w) of int64: the region of each pixel of a view; 0 where it is not divided, and -1
    where the pixel does not count."""
    regions = view.regions
    if regions is None:
        regions = torch.zeros_like(view.image[:, :1], dtype=torch.int64)
    return regions if view.valid is None else _outside_no_region(regions, view.valid)


def _outside_no_region(regions: Tensor, valid: Tensor) -> Tensor:
    if size_of(regions) != size_of(valid):  # features are of a smaller picture
        valid = F.adaptive_avg_pool2d(valid.float(), size_of(regions)) > 0.5
    return torch.where(valid, regions, -1)


def count_of_regions(views: list[View], asked: Tensor) -> int:
    """The number of regions in views and output; -1 is no region."""
    return 1 + int(max(x.max() for x in (asked, *(regions_of(view) for view in views))))


def one_hot(regions: Tensor, count: int) -> Tensor:
    """(1, 1, H, W) of 0 ... count - 1 -> (1, count, H, W) of 0 and 1."""
    return F.one_hot(regions[:, 0], count).movedim(3, 1).float()


def region_masks(regions: Tensor, size: Size, count: int) -> Tensor:
    """(1, 1, H, W) of -1 ... count - 1 -> (count, h w) of bool: the positions of each region.

    A position belongs to the region with the largest share of it, -1 being none. A region that is
    the largest at no position gets the position where its share is highest.
    """
    shares = one_hot(regions + 1, count + 1)
    shares = F.adaptive_avg_pool2d(shares, size)[0].flatten(1)  # (1 + count, h w)
    masks = F.one_hot(shares.argmax(0), count + 1).T.bool()[1:]
    for mask, share in zip(masks, shares[1:], strict=True):
        if not mask.any() and share.max() > 0:
            mask[share.argmax()] = True
    return masks


class _OfRegion(Features):
    """(B, C, H, W) each -> (B, C, n, 1), the positions of region k, computed for a layer when it is
    asked for."""

    def __init__(self, features: Features, places: RegionPositions, k: int) -> None:
        super().__init__()
        self.features, self.positions, self.k = features, places, k

    def __missing__(self, layer: str) -> Tensor:
        maps = self.features[layer]
        self[layer] = maps.flatten(2)[..., self.positions[size_of(maps)][self.k]][..., None]
        return self[layer]


def _gathered(pictures: list[tuple[Features, RegionPositions]], k: int) -> Features:
    """The positions of region k in several pictures, concatenated: (1, C, n, 1) of each layer."""
    parts = [_OfRegion(features, places, k) for features, places in pictures]
    return {layer: torch.cat([part[layer] for part in parts], 2) for layer in pictures[0][0]}
