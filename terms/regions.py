"""Terms that are applied to each region of the output."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import Exemplar, LayerWeights, Statistics, Term, TermInputs, View
from terms.valid import drop_invalid, positions_of_regions, valid_at
from utils import Size, size_of

RegionPositions = dict[Size, list[Tensor]]  # size of a layer -> indices y w + x of each region


class PerRegion(Term):
    """Mean of a permutation-invariant term over the regions of the output, weighted by their areas:
    Gatys et al., "Controlling Perceptual Factors in Neural Style Transfer", 2017, section 4. The
    regions are the tags of Heitz et al., "A Sliced Wasserstein Loss for Neural Texture Synthesis",
    2021.
    """

    needs_whole = "gathers the positions of every region"

    def __init__(self, kind: type[Term], inputs: TermInputs, layers: LayerWeights) -> None:
        regions = inputs.canvas.output_regions
        assert regions is not None  # `per_region` builds this term only if there are regions
        self.regions = regions
        self.count = count_of_regions(inputs.exemplars, regions)
        self.positions: RegionPositions = {}
        pictures = [(one, self._located(one.views_for_statistics())) for one in inputs.exemplars]
        areas = [int(n) for n in regions[regions >= 0].bincount(minlength=self.count)]
        self.present = [k for k, area in enumerate(areas) if area]
        self.parts: list[tuple[float, Term]] = []  # share of the area, and term, of each region
        for k in self.present:
            sources = [replace(one, views=(View(_gather(some, k)),)) for one, some in pictures]
            nonempty = (s for s in sources if all(x.shape[2] for x in s.features.values()))
            part = kind(TermInputs(tuple(nonempty), options=inputs.options), layers)
            self.parts.append((areas[k] / sum(areas), part))

    def rematch(self, output: Features) -> None:
        for (_, part), features in zip(self.parts, self._split(output), strict=True):
            part.rematch(features)

    @property
    def rematches(self) -> bool:
        return any(part.rematches for _, part in self.parts)

    @property
    def generators(self) -> list[torch.Generator]:
        return [one for _, part in self.parts for one in part.generators]

    def measure(self, output: Features) -> Statistics:
        measured = [
            part.measure(features)
            for (_, part), features in zip(self.parts, self._split(output), strict=True)
        ]
        # If no pixel is in any region, the loss is this 0, with gradient 0.
        nothing = 0 * next(iter(output.values())).flatten(1).sum(1)
        return {"parts": measured, "nothing": nothing}

    def distance(self, statistics: Statistics) -> Tensor:
        distance = statistics["nothing"]
        for (share, part), measured in zip(self.parts, statistics["parts"], strict=True):
            distance = distance + share * part.distance(measured)
        return distance

    def _split(self, output: Features) -> list[Features]:
        """Return the output's features in each region that is present."""
        positions = self._locate(self.positions, output, self.regions)
        return [_RegionFeatures(output, positions, k) for k in self.present]

    def _located(self, views: Iterable[View]) -> list[tuple[Features, RegionPositions]]:
        """Return features, and positions of the regions, of each view."""
        return [
            (view.features, self._locate({}, view.features, regions_of(view), view.valid))
            for view in views
        ]

    def _locate(
        self,
        positions: RegionPositions,
        features: Features,
        regions: Tensor,
        valid: Tensor | None = None,
    ) -> RegionPositions:
        """Add the positions of the regions, at each size of the features, to `positions`."""
        for maps in features.values():
            size = size_of(maps)
            if size not in positions:
                masks = region_masks(regions, size, self.count)
                inside = None if valid is None else valid_at(valid, size).flatten()
                positions[size] = positions_of_regions(masks, inside)
        return positions


def per_region(kind: type[Term], inputs: TermInputs, layers: LayerWeights) -> Term:
    """Build a term. A permutation-invariant one is built for each region, if there are regions, and
    from valid positions only."""
    if kind.permutation_invariant:
        if inputs.canvas.output_regions is not None:
            return PerRegion(kind, inputs, layers)
        inputs = replace(inputs, exemplars=tuple(map(drop_invalid, inputs.exemplars)))
    return kind(inputs, layers)


def regions_of(view: View) -> Tensor:
    """Return the region of each pixel of a view, (1, 1, h, w) of int64: 0 if the view has no
    regions, -1 for invalid pixels."""
    regions = view.regions
    if regions is None:
        regions = torch.zeros_like(view.image[:, :1], dtype=torch.int64)
    valid = view.valid
    if valid is None:
        return regions
    if size_of(regions) != size_of(valid):  # the features are those of a reduced picture
        valid = F.adaptive_avg_pool2d(valid.float(), size_of(regions)) > 0.5
    return torch.where(valid, regions, -1)


def count_of_regions(exemplars: Iterable[Exemplar], output_regions: Tensor) -> int:
    """Return the number of regions of exemplars and output, 1 + the highest index."""
    views = (view for one in exemplars for view in one.views_for_statistics())
    return 1 + int(max(x.max() for x in (output_regions, *map(regions_of, views))))


def one_hot(regions: Tensor, count: int) -> Tensor:
    """Return the one-hot encoding: (1, 1, H, W) of 0 ... count - 1 -> (1, count, H, W) of float."""
    return F.one_hot(regions[:, 0], count).movedim(3, 1).float()


def region_masks(regions: Tensor, size: Size, count: int) -> Tensor:
    """Return the mask of each region in a layer of size (h, w): (1, 1, H, W) of -1 ... count - 1 ->
    (count, h w) of bool.

    A position is in the region that covers its largest part. A region with no such position gets
    the position of which it covers most, in addition to the region that has it.
    """
    shares = one_hot(regions + 1, count + 1)
    shares = F.adaptive_avg_pool2d(shares, size)[0].flatten(1)  # (1 + count, h w)
    masks = F.one_hot(shares.argmax(0), count + 1).T.bool()[1:]
    for mask, share in zip(masks, shares[1:], strict=True):
        if not mask.any() and share.max() > 0:
            mask[share.argmax()] = True
    return masks


class _RegionFeatures(Features):
    """Features at the n positions of region k, (B, C, n, 1) each, gathered on first access."""

    def __init__(self, features: Features, positions: RegionPositions, k: int) -> None:
        super().__init__()
        self.features, self.positions, self.k = features, positions, k

    def __missing__(self, layer: str) -> Tensor:
        maps = self.features[layer]
        self[layer] = maps.flatten(2)[..., self.positions[size_of(maps)][self.k]][..., None]
        return self[layer]


def _gather(pictures: list[tuple[Features, RegionPositions]], k: int) -> Features:
    """Concatenate the positions of region k in several pictures: (1, C, n, 1) for each layer."""
    parts = [_RegionFeatures(features, positions, k) for features, positions in pictures]
    return {layer: torch.cat([part[layer] for part in parts], 2) for layer in pictures[0][0]}
