"""CNNMRF: distance of every 3x3 patch of features from its nearest patch of the exemplar."""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import TINY, LayerWeights, Statistics, Term, TermInputs, mean_over_layers
from terms.matching import (
    GUIDE_WEIGHT,
    elementwise_best,
    nearest_patches,
    overlap_patches,
    resize_guide,
    share_offsets,
)
from terms.valid import select_valid, usable_patches
from utils import size_of, wrapped


class CNNMRF(Term):
    """Markov random field of Li and Wand, "Combining Markov Random Fields and Convolutional Neural
    Networks for Image Synthesis", 2016, equations 2 and 3, minimised by alternation.

    `rematch` matches every 3x3 patch of the output's features with the source patch of highest
    normalised correlation. The matches are held until the next rematch. The sum over patches of
    squared distances equals, up to a constant, the sum over positions of the squared distance from
    the mean of the matched patches that overlap there, weighted by their number. It is computed in
    this form, which is exact and costs as much as a content loss. Rotated and scaled patches are
    taken from the features of rotated and scaled copies of the exemplar.

    Departure from the paper: the loss is the mean over patches and their positions, relative to the
    mean squared norm of the source's features, averaged over the layers.
    """

    patch = 3
    needs_whole = "matches patches across the borders of parts"

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.views, self.exemplar_of_view = inputs.views, inputs.exemplar_of_view
        self.shares = inputs.matched_shares
        self.canvas, self.layers = inputs.canvas, layers
        self.sources = {
            layer: [view.features[layer][0].detach().contiguous() for view in self.views]
            for layer in layers
        }
        first = self.views[0]
        self.energies = {}  # layer -> mean squared norm of the first exemplar's features
        for layer in layers:
            maps = select_valid(first.features[layer].detach(), first.valid)[0]
            self.energies[layer] = maps.square().sum(0).mean().clamp(min=TINY)
        # layer -> mean, count and spread from `overlap_patches`, stacked over the batch.
        self.overlaps: dict[str, tuple[Tensor, ...]] = {}

    def rematch(self, output: Features) -> None:
        """Match the patches of the output."""
        for layer, sources in self.sources.items():
            pictures = output[layer].detach()
            found = [self._match(picture.contiguous(), sources) for picture in pictures]
            self.overlaps[layer] = tuple(map(torch.stack, zip(*found, strict=True)))

    def _match(self, picture: Tensor, sources: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Match the patches of features (C, H, W), and return `overlap_patches` of the matches."""
        size = min(self.patch, *(side for maps in (picture, *sources) for side in maps.shape[1:]))
        guides: Sequence[tuple[Tensor, Tensor] | None] = [None] * len(sources)
        if self.canvas.guide is not None:
            guide = resize_guide(self.canvas.guide, picture.shape[1:])
            guide = wrapped(guide, self.canvas.wrap, size - 1, size - 1)
            guide = self._patch_guides(guide, size)
            guides = [
                (guide, self._patch_guides(resize_guide(view.guide, maps.shape[1:]), size))
                for view, maps in zip(self.views, sources, strict=True)
            ]
        picture = wrapped(picture[None], self.canvas.wrap, size - 1, size - 1)[0]
        found: list[Sequence[Tensor]] = []
        offset = 0
        for view, source, pair in zip(self.views, sources, guides, strict=True):
            usable = None
            if view.valid is not None:
                usable = usable_patches(view.valid, size_of(source[None]), size)
            start, correlation = nearest_patches(picture, source, size, pair, usable)
            found.append((start + offset, correlation, torch.full_like(start, source.shape[2])))
            offset += source[0].numel()
        if self.shares:
            found = self._by_shares(found, picture, size)
        start, _, stride = reduce(elementwise_best, found)
        flat = torch.cat([source.flatten(1) for source in sources], 1)
        return overlap_patches(flat, start, stride, size)

    def _by_shares(
        self, found: list[Sequence[Tensor]], picture: Tensor, size: int
    ) -> list[Sequence[Tensor]]:
        """Add offsets to the cosines, so that every exemplar is matched by its share of the
        patches."""
        norms = F.avg_pool2d(picture.square().sum(0)[None], size, 1)[0].sqrt().clamp(min=1e-12)
        cosines = [similarity / norms for _, similarity, _ in found]
        best = []
        for k in range(len(self.shares)):
            own = [c for c, n in zip(cosines, self.exemplar_of_view, strict=True) if n == k]
            best.append(torch.stack(own).amax(0))
        offsets = share_offsets(torch.stack(best).flatten(1), self.shares)
        return [
            (start, cosine + offsets[k], stride)
            for (start, _, stride), cosine, k in zip(
                found, cosines, self.exemplar_of_view, strict=True
            )
        ]

    @staticmethod
    def _patch_guides(guide: Tensor, size: int) -> Tensor:
        """Return the guide of each patch, weighted: (1, G, H, W) -> (G, H - size + 1,
        W - size + 1)."""
        return math.sqrt(GUIDE_WEIGHT) * F.avg_pool2d(guide, size, 1)[0]

    def measure(self, output: Features) -> Statistics:
        energies = {}
        for layer, (mean, count, spread) in self.overlaps.items():
            maps = output[layer]
            more = [a - b for a, b in zip(mean.shape[2:], maps.shape[2:], strict=True)]
            difference = wrapped(maps, self.canvas.wrap, *more) - mean
            distance = difference.square().sum(1) * count  # (B, H, W)
            energies[layer] = (distance.sum((1, 2)) + spread) / count.sum((1, 2))
        return energies

    def distance(self, statistics: Statistics) -> Tensor:
        errors = {layer: energy / self.energies[layer] for layer, energy in statistics.items()}
        return mean_over_layers(errors, self.layers)
