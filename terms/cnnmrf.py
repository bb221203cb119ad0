"""CNNMRF: every small patch follows its nearest one in the exemplar."""

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
    """The Markov random field of Li and Wand, "Combining Markov Random Fields and Convolutional
    Neural Networks for Image Synthesis", 2016, equations 2 and 3, solved by EM.

    E-step, `renew`: every 3x3 patch of the output's features gets the source patch with which it
    has the highest normalised correlation. M-step: descent with the matches held. The squared
    distances of overlapping patches are then, up to a constant, the distance of every position
    from the mean of what is laid over it: the sum over patches is exact, and costs no more than a
    content loss.

    We depart from the paper in the normalisation, relative to the source's norm, and in that
    rotated and scaled patches come from features of the rotated and scaled exemplar.
    """

    patch = 3
    needs_whole = "lays patches over their places"

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.views = [view for one in inputs.exemplars for view in one.views]
        self.pools = [k for k, one in enumerate(inputs.exemplars) for _ in one.views]
        self.shares = [one.share for one in inputs.exemplars] if inputs.uses_shares else []
        self.canvas, self.layers = inputs.canvas, layers
        self.sources = {
            layer: [view.features[layer][0].detach().contiguous() for view in self.views]
            for layer in layers
        }
        first = self.views[0]
        self.energies = {}  # of the first exemplar's positions
        for layer in layers:
            maps = select_valid(first.features[layer].detach(), first.valid)[0]
            self.energies[layer] = maps.square().sum(0).mean().clamp(min=TINY)
        self.found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def renew(self, output: Features) -> None:
        for layer, sources in self.sources.items():
            pictures = output[layer].detach()
            laid = [self._laid(picture.contiguous(), sources) for picture in pictures]
            means, counts, spreads = (torch.stack(parts) for parts in zip(*laid, strict=True))
            self.found[layer] = means, counts, spreads

    def _laid(self, picture: Tensor, sources: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(C, H, W) -> mean of the patches found, how many overlap, their squared spread."""
        size = min(self.patch, *(side for maps in (picture, *sources) for side in maps.shape[1:]))
        here: Tensor | None = None
        there: Sequence[Tensor | None] = [None] * len(sources)
        if self.canvas.guide is not None:
            here = resize_guide(self.canvas.guide, picture.shape[1:])
            here = self._of_patches(wrapped(here, self.canvas.tile, size - 1, size - 1), size)
            there = [
                self._of_patches(resize_guide(view.guide, maps.shape[1:]), size)
                for view, maps in zip(self.views, sources, strict=True)
            ]
        picture = wrapped(picture[None], self.canvas.tile, size - 1, size - 1)[0]
        found: list[Sequence[Tensor]] = []
        offset = 0
        for view, source, guide in zip(self.views, sources, there, strict=True):
            usable = None
            if view.valid is not None:
                usable = usable_patches(view.valid, size_of(source[None]), size)
            start, correlation = nearest_patches(picture, source, size, here, guide, usable)
            found.append((start + offset, correlation, torch.full_like(start, source.shape[2])))
            offset += source[0].numel()
        if self.shares:
            found = self._shared(found, picture, size)
        start, _, stride = reduce(elementwise_best, found)
        flat = torch.cat([source.flatten(1) for source in sources], 1)
        return overlap_patches(flat, start, stride, size)

    def _shared(
        self, found: list[Sequence[Tensor]], picture: Tensor, size: int
    ) -> list[Sequence[Tensor]]:
        """The same with similarities such that every exemplar has its share of the patches."""
        norms = F.avg_pool2d(picture.square().sum(0)[None], size, 1)[0].sqrt().clamp(min=1e-12)
        cosines = [similarity / norms for _, similarity, _ in found]
        best = []
        for k in range(len(self.shares)):
            own = [c for c, pool in zip(cosines, self.pools, strict=True) if pool == k]
            best.append(torch.stack(own).amax(0))
        added = share_offsets(torch.stack(best).flatten(1), self.shares)
        return [
            (start, cosine + added[pool], stride)
            for (start, _, stride), cosine, pool in zip(found, cosines, self.pools, strict=True)
        ]

    @staticmethod
    def _of_patches(guide: Tensor, size: int) -> Tensor:
        """(1, G, H, W) -> (G, H - size + 1, W - size + 1), whose squared distances are weighed."""
        return math.sqrt(GUIDE_WEIGHT) * F.avg_pool2d(guide, size, 1)[0]

    def measure(self, output: Features) -> Statistics:
        energies = {}
        for layer, (mean, count, spread) in self.found.items():
            maps = output[layer]
            more = [a - b for a, b in zip(mean.shape[2:], maps.shape[2:], strict=True)]
            apart = wrapped(maps, self.canvas.tile, *more) - mean
            distance = apart.square().sum(1) * count  # (B, H, W)
            energies[layer] = (distance.sum((1, 2)) + spread) / count.sum((1, 2))
        return energies

    def distance(self, statistics: Statistics) -> Tensor:
        errors = {layer: energy / self.energies[layer] for layer, energy in statistics.items()}
        return mean_over_layers(errors, self.layers)
