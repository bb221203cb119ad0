"""Distribution of patches of pixels."""

from __future__ import annotations

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
PATCH_LEVELS = 3  # full, half and quarter size
PATCH_DIRECTIONS = 16  # at full size; four times as many take the same time at half the size
MANY_DIRECTIONS_SIDE = 42  # px; with many directions, smaller pictures would be copied


class Patches(Term):
    """Distribution of 7x7 patches of pixels, by the sliced Wasserstein distance on random unit
    directions, at full, half and quarter size: Elnekave and Weiss, "Generating Natural Images with
    Direct Patch Distributions Matching", 2022.

    Departures from the paper: directions are held until the next rematch, so that the objective is
    smooth in between; the distance is relative to the variance of the source's projections;
    pictures of different sizes are compared by quantiles; every region has a distribution of its
    own, that of the patches whose centre is in the region; pictures are mirrored at their borders.
    Without mirroring, the outermost rows, which are in one row of patches where others are in
    seven, would compensate the error of all others and become a line of dark and light dots.
    """

    needs_whole = "sorts the projections of all patches"
    uses_pixels = True
    generator: torch.Generator

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        regions = inputs.canvas.output_regions
        self.wrap, self.group, self.count = inputs.canvas.wrap, inputs.options.group, 1
        self.output_map = None if regions is None else _RegionMap(regions)
        if regions is not None:
            self.count = count_of_regions(inputs.exemplars, regions)
        shares = [share for share, _ in inputs.weighted_views]
        self.sources = [
            (share, list(map(self._with_map, one.views_for_statistics())))
            for share, one in zip(shares, inputs.exemplars, strict=True)
        ]
        self.image, _ = self.sources[0][1][0]
        self.side = min(self.image.shape[2:])
        # With many directions the layout of an exemplar is copied, but a periodic one has none.
        rectangle = crop_to_valid(self.image, inputs.exemplars[0].valid)
        self.periodic = period(rectangle)[0] > PERIODIC
        self.generator = torch.Generator().manual_seed(1)  # not the directions of the scores
        self.rematch(inputs.exemplars[0].features)

    def rematch(self, output: Features) -> None:
        """Draw directions, and sort the projections of the source on them."""
        self.levels: list[tuple[int, Tensor, list[QuantileMixture]]] = []  # factor, directions
        self.variances: dict[tuple[int, ...], Tensor] = {}
        for level in range(PATCH_LEVELS):
            factor = 2**level
            many = self.periodic or self.side >= factor * MANY_DIRECTIONS_SIDE
            count = PATCH_DIRECTIONS * (4**level if many else 1)
            directions = unit_directions(count, self.generator).to(self.image)
            if self.side >= factor * PATCH:
                found = [self._ascending(factor, directions, views) for _, views in self.sources]
                shares = [share for share, _ in self.sources]
                mixtures = [
                    QuantileMixture(list(zip(shares, parts, strict=True)))
                    for parts in zip(*found, strict=True)
                ]
                self.levels.append((factor, directions, mixtures))

    def _with_map(self, view: View) -> tuple[Tensor, _RegionMap | None]:
        """Return picture and region map of a view; the map is None if all pixels are valid and the
        output is a single region."""
        whole = self.output_map is None and view.valid is None
        return view.image.detach(), None if whole else _RegionMap(regions_of(view), view.valid)

    def _ascending(
        self, factor: int, directions: Tensor, views: list[tuple[Tensor, _RegionMap | None]]
    ) -> list[Tensor]:
        """Return the projections of an exemplar in ascending order, (1, K, n), for each region."""
        found = [
            self._project(image, factor, directions, "", regions)
            for image, regions in views
            if min(image.shape[2:]) >= factor * PATCH
        ]
        nothing = [directions.new_zeros(1, len(directions), 0)] * self.count
        found = found or [nothing]
        return [sort_with_indices(torch.cat(parts, 2))[0] for parts in zip(*found, strict=True)]

    def measure(self, output: Features) -> Statistics:
        image = output["image"]
        return {
            str(factor): self._project(image, factor, directions, self.wrap, self.output_map)
            for factor, directions, _ in self.levels
            if min(image.shape[2:]) >= factor * PATCH
        }

    def distance(self, statistics: Statistics) -> Tensor:
        errors = [
            self._level_distance(factor, statistics[str(factor)], mixtures)
            for factor, _, mixtures in self.levels
            if str(factor) in statistics
        ]
        return sum(errors, torch.zeros(1, device=self.image.device)) / PATCH_LEVELS

    def _level_distance(
        self, factor: int, found: list[Tensor], mixtures: list[QuantileMixture]
    ) -> Tensor:
        """Return the distance at one level, (B,): the mean over regions, weighted by their numbers
        of patches n.

        Args:
            factor: by which the picture is reduced at this level.
            found: projections of the output, (B, K, n) for each region.
            mixtures: projections of the source for each region.
        """
        pairs = [
            (parts, mixture(parts.shape[2]))
            for parts, mixture in zip(found, mixtures, strict=True)
            if parts.shape[2] and mixture.parts
        ]
        if not pairs:
            return found[0].new_zeros(len(found[0]))
        key = factor, *(parts.shape[2] for parts in found)
        if key not in self.variances:
            variance = torch.cat([source for _, source in pairs], 2).var(2, correction=0)
            self.variances[key] = variance.mean().clamp(min=TINY)
        count = sum(parts.shape[2] for parts, _ in pairs)
        distances = (
            squared_wasserstein(parts, source, self.group) * (parts.shape[2] / count)
            for parts, source in pairs
        )
        return sum(distances) / self.variances[key]

    def _project(
        self, image: Tensor, factor: int, directions: Tensor, wraps: str, regions: _RegionMap | None
    ) -> list[Tensor]:
        """Reduce a picture, and project its patches: (B, 3, H, W), (K, 3, 7, 7) -> (B, K, n) for
        each region.

        Along `wraps`, which are the axes of `self.wrap` for the output and none for a source, the
        picture is padded periodically. Along the axes that are not in `self.wrap` it is mirrored. A
        source is not padded along the axes in `self.wrap`.
        """
        reduced, reach = F.avg_pool2d(image, factor), PATCH // 2
        mirrors = "".join(axis for axis in "yx" if axis not in self.wrap)
        projected = F.conv2d(pad_axes(reduced, wraps, mirrors, reach), directions).flatten(2)
        if regions is None:
            return [projected]
        positions = regions.patch_positions(size_of(reduced), wraps + mirrors, self.count)
        return [projected[..., of_region] for of_region in positions]


class _RegionMap:
    """Positions of the patches of each region of a picture.

    Args:
        regions: (1, 1, H, W) of int64: region of each pixel; -1: in no region.
        valid: (1, 1, H, W) of bool; None: all pixels are valid.
    """

    def __init__(self, regions: Tensor, valid: Tensor | None = None) -> None:
        self.regions, self.valid = regions, valid
        self.positions: dict[tuple[Size, str], list[Tensor]] = {}

    def patch_positions(self, size: Size, padded: str, count: int) -> list[Tensor]:
        """Return the indices of the patches of each region, for the picture resized to `size`.

        A patch is in the region of its centre. Along the axes in `padded` every pixel is the centre
        of a patch. The result is cached.
        """
        key = size, padded
        if key not in self.positions:
            h, w = size
            top, left = (0 if axis in padded else PATCH // 2 for axis in "yx")
            centres = slice(top, h - top), slice(left, w - left)
            masks = region_masks(self.regions, size, count).view(-1, h, w)[:, *centres]
            valid = None
            if self.valid is not None:
                valid = valid_centres(self.valid, size, PATCH)[centres].flatten()
            self.positions[key] = positions_of_regions(masks.flatten(1), valid)
        return self.positions[key]


def unit_directions(count: int, generator: torch.Generator) -> Tensor:
    """Draw random directions of norm 1 on the CPU: (count, 3, PATCH, PATCH)."""
    directions = torch.randn(count, 3, PATCH, PATCH, generator=generator)
    return directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
