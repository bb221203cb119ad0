"""The distribution of patches of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.autocorrelation import PERIODIC, period
from terms.base import (
    TINY,
    LayerWeights,
    QuantileMixture,
    Statistics,
    Term,
    TermInputs,
    View,
    sort_with_indices,
    squared_wasserstein,
)
from terms.regions import count_of_regions, region_masks, regions_of
from terms.valid import crop_to_valid, positions_of_regions, valid_centres
from utils import Size, pad_axes, size_of

PATCH = 7  # px
PATCH_LEVELS = 3  # each of half the size
PATCH_DIRECTIONS = 16  # at full size; four times as many at half of it cost the same
PATCH_SIDE = 42  # px; many directions pin a smaller picture, and the output becomes a copy


class _Marks(NamedTuple):
    """The regions of a picture's pixels, and which of these count."""

    regions: Tensor  # (1, 1, ., .) of -1 ... count - 1; -1 is no region
    valid: Tensor | None = None  # (1, 1, ., .) of bool; None: all


class Patches(Term):
    """The distribution of 7x7 patches of pixels, by the sliced Wasserstein distance on random unit
    directions, on the picture and on its halves and quarters: Elnekave and Weiss, "Generating
    Natural Images with Direct Patch Distributions Matching", 2022.

    We depart from the paper: directions stay for some steps, so that the objective is smooth in
    between; the distance is relative to the variance of the source's projections; sizes are
    compared through quantiles; every region has a distribution of its own, that of the patches
    whose middle lies in it; and the picture is mirrored at its borders. Otherwise the outermost
    rows are in one patch where others are in seven, and take up what the others leave over: beads
    of dark and light.
    """

    needs_whole = "sorts the projections of all patches"
    uses_pixels = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.tile, self.count, asked = inputs.canvas.tile, 1, inputs.canvas.output_regions
        self.marks = None if asked is None else _Marks(asked)
        self.group = inputs.options.group
        views = [one.views[:1] for one in inputs.exemplars]
        if asked is not None:
            views = [one.views_for_statistics() for one in inputs.exemplars]
            self.count = count_of_regions([view for some in views for view in some], asked)
        shares = [share for share, _ in inputs.weighted_views]
        self.sources = list(zip(shares, map(self._divided, views), strict=True))
        self.image, _ = self.sources[0][1][0]
        piece = crop_to_valid(self.image, inputs.exemplars[0].views[0].valid)
        self.side = min(self.image.shape[2:])
        # A periodic exemplar has no layout to copy, so many directions are safe.
        self.repeats = period(piece)[0] > PERIODIC
        self.positions: dict[tuple[int, Size, str], list[Tensor]] = {}
        self.generator = torch.Generator().manual_seed(1)  # scores judge by other directions
        self.renew(inputs.exemplars[0].features)

    @property
    def generators(self) -> list[torch.Generator]:
        return [self.generator]

    def renew(self, output: Features) -> None:
        """Draw new directions."""
        self.levels: list[tuple[int, Tensor, list[QuantileMixture]]] = []
        self.variances: dict[tuple[int, ...], Tensor] = {}
        for level in range(PATCH_LEVELS):
            factor = 2**level
            many = self.repeats or self.side >= factor * PATCH_SIDE
            count = PATCH_DIRECTIONS * (4**level if many else 1)
            directions = unit_directions(count, self.generator).to(self.image)
            if self.side >= factor * PATCH:
                found = [self._ascending(factor, directions, views) for _, views in self.sources]
                shares = [share for share, _ in self.sources]
                wanted = [
                    QuantileMixture(list(zip(shares, parts, strict=True)))
                    for parts in zip(*found, strict=True)
                ]
                self.levels.append((factor, directions, wanted))

    def _divided(self, views: Sequence[View]) -> list[tuple[Tensor, _Marks | None]]:
        """The picture of every view and its marks; None: one region, of which all counts."""
        return [
            (
                view.image.detach(),
                None
                if self.marks is None and view.valid is None
                else _Marks(regions_of(view), view.valid),
            )
            for view in views
        ]

    def _ascending(
        self, factor: int, directions: Tensor, views: list[tuple[Tensor, _Marks | None]]
    ) -> list[Tensor]:
        """(1, K, n) in ascending order for each region of an exemplar."""
        found = [
            self._projected(image, factor, directions, "", marks)
            for image, marks in views
            if min(image.shape[2:]) >= factor * PATCH
        ]
        nothing = [directions.new_zeros(1, len(directions), 0)] * self.count
        found = found or [nothing]
        return [sort_with_indices(torch.cat(parts, 2))[0] for parts in zip(*found, strict=True)]

    def measure(self, output: Features) -> Statistics:
        image = output["image"]
        return {
            str(factor): self._projected(image, factor, directions, self.tile, self.marks)
            for factor, directions, _ in self.levels
            if min(image.shape[2:]) >= factor * PATCH
        }

    def distance(self, statistics: Statistics) -> Tensor:
        errors = [
            self._distance(factor, statistics[str(factor)], wanted)
            for factor, _, wanted in self.levels
            if str(factor) in statistics
        ]
        return sum(errors, torch.zeros(1, device=self.image.device)) / PATCH_LEVELS

    def _distance(self, factor: int, found: list[Tensor], wanted: list[QuantileMixture]) -> Tensor:
        """(B, K, n) and the samples (1, K, m) of every region -> (B,), regions by their n."""
        pairs = [
            (parts, samples(parts.shape[2]))
            for parts, samples in zip(found, wanted, strict=True)
            if parts.shape[2] and samples.parts
        ]
        if not pairs:
            return found[0].new_zeros(len(found[0]))
        known = factor, *(parts.shape[2] for parts in found)
        if known not in self.variances:
            variance = torch.cat([ascending for _, ascending in pairs], 2).var(2, correction=0)
            self.variances[known] = variance.mean().clamp(min=TINY)
        count = sum(parts.shape[2] for parts, _ in pairs)
        distances = (
            squared_wasserstein(parts, ascending, self.group) * (parts.shape[2] / count)
            for parts, ascending in pairs
        )
        return sum(distances) / self.variances[known]

    def _projected(
        self, image: Tensor, factor: int, directions: Tensor, wraps: str, marks: _Marks | None
    ) -> list[Tensor]:
        """(B, 3, H, W), (K, 3, 7, 7) -> (B, K, n) of each region.

        Every patch is in the region of its middle. Along the axes that the output tiles, the output
        `wraps` and the source has no border; along the others both are mirrored.
        """
        smaller, reach = F.avg_pool2d(image, factor), PATCH // 2
        mirrors = "".join(axis for axis in "yx" if axis not in self.tile)
        projected = F.conv2d(pad_axes(smaller, wraps, mirrors, reach), directions)
        projected = projected.flatten(2)
        if marks is None:
            return [projected]
        places = self._places(marks, size_of(smaller), wraps + mirrors)
        return [projected[..., of_region] for of_region in places]

    def _places(self, marks: _Marks, size: Size, whole: str) -> list[Tensor]:
        """Flat positions of the patches of every region in a picture of that size, found once.

        Along the axes that are `whole`, every pixel is the middle of one.
        """
        known = id(marks.regions), size, whole
        if known not in self.positions:
            h, w = size
            top, left = (0 if axis in whole else PATCH // 2 for axis in "yx")
            middles = slice(top, h - top), slice(left, w - left)
            masks = region_masks(marks.regions, size, self.count).view(-1, h, w)[:, *middles]
            inside = None
            if marks.valid is not None:
                inside = valid_centres(marks.valid, size, PATCH)[middles].flatten()
            self.positions[known] = positions_of_regions(masks.flatten(1), inside)
        return self.positions[known]


def unit_directions(count: int, generator: torch.Generator) -> Tensor:
    """(count, 3, PATCH, PATCH): random patches of norm 1, drawn on the CPU."""
    directions = torch.randn(count, 3, PATCH, PATCH, generator=generator)
    return directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
