"""Guided correspondence: every large patch is like one of the exemplar's and unlike all others."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import LayerWeights, Statistics, Term, TermInputs, mean_over_layers
from terms.matching import (
    GUIDE_WEIGHT,
    ContextualScore,
    chunk_rows,
    eager_gradient,
    gather_patches,
    resize_guide,
    row_slices,
    share_offsets,
)
from terms.valid import select_valid, usable_patches
from utils import size_of, wrapped


class Guided(Term):
    """Guided correspondence: Zhou et al., "Neural Texture Synthesis with Guided Correspondence",
    2023, equations 1 to 5.

    Patches of 7x7 positions at stride 4, by cosine distance about the source's mean feature, plus
    a penalty for source patches that are used more often than their share, plus the distance of
    guides; scored by contextual similarity, which wants every patch near one source patch and far
    from all others.

    We depart from the paper: sample, strides' origin and occurrences are held between renewals,
    so that the objective is smooth in between; the stride is 4 instead of 3, for a quarter of the
    time and no loss; patches of the finest layer do not join, at ten times the cost of all others.
    """

    needs_whole = "compares every patch with all of the exemplar's"
    patch, stride = 7, 4
    occurrence_weight = 0.05

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.views = [view for one in inputs.exemplars for view in one.views]
        self.pools = [k for k, one in enumerate(inputs.exemplars) for _ in one.views]
        self.shares = [one.share for one in inputs.exemplars] if inputs.uses_shares else []
        self.canvas, self.max_patches = inputs.canvas, inputs.options.max_patches
        self.layers = layers
        first = self.views[0]
        self.mean = {
            layer: select_valid(first.features[layer].detach(), first.valid).mean((2, 3), True)
            for layer in layers
        }
        self.sources = {
            layer: [view.features[layer].detach() - self.mean[layer] for view in self.views]
            for layer in layers
        }
        self.generator = torch.Generator().manual_seed(inputs.options.seed)
        self.held: dict[str, list[_Held]] = {}

    @property
    def generators(self) -> list[torch.Generator]:
        return [self.generator]

    def renew(self, output: Features) -> None:
        for layer, sources in self.sources.items():
            pictures = output[layer].detach() - self.mean[layer]
            self.held[layer] = [self._hold(sources, picture) for picture in pictures.split(1)]

    def _hold(self, sources: list[Tensor], picture: Tensor) -> "_Held":
        size = min(self.patch, *(side for maps in (*sources, picture) for side in maps.shape[2:]))
        tile, unwrapped = self.canvas.tile, picture.shape[2:]
        picture = wrapped(picture, tile, size - 1, size - 1)
        most = max(1, self.max_patches // len(sources))
        samples = [
            self._sample(maps, size, most, view.valid)
            for maps, view in zip(sources, self.views, strict=True)
        ]
        sample = self._sample(picture, size, self.max_patches)
        wanted = _joined([s.unit_patches(m) for s, m in zip(samples, sources, strict=True)])
        drawn = sample.unit_patches(picture)
        apart: Callable[[slice], Tensor | float] = lambda rows: 0.0  # noqa: E731
        if self.canvas.guide is not None:
            there = [
                s.means(resize_guide(view.guide, maps.shape[2:]))
                for s, view, maps in zip(samples, self.views, sources, strict=True)
            ]
            here = resize_guide(self.canvas.guide, unwrapped)
            here = sample.means(wrapped(here, tile, size - 1, size - 1))
            apart = partial(_guide_distance, here, _joined(there))
        share = self._share(
            [s.count(m) for s, m in zip(samples, sources, strict=True)], drawn, wanted
        )
        used = wanted.new_zeros(len(wanted))
        for rows in row_slices(len(drawn), chunk_rows(4 * len(wanted), wanted.device)):
            nearest = (share + apart(rows) - drawn[rows] @ wanted.T).argmin(1)
            used += nearest.bincount(minlength=len(wanted))
        penalty = share + self.occurrence_weight * used * (len(wanted) / len(drawn))  # (M,)
        return _Held(sample, wanted, lambda rows: penalty + apart(rows), tile)

    def _share(self, counts: list[int], drawn: Tensor, wanted: Tensor) -> Tensor | float:
        """(M,) to add to the distances, for every exemplar to have its share of the patches."""
        if not self.shares:
            return 0.0
        pools = torch.tensor(self.pools).repeat_interleave(torch.tensor(counts))
        pools = pools.to(wanted.device)
        best = []
        for rows in row_slices(len(drawn), chunk_rows(8 * len(wanted), wanted.device)):
            cosines = drawn[rows] @ wanted.T
            each = range(len(self.shares))
            best.append(torch.stack([cosines[:, pools == k].amax(1) for k in each]))
        return -share_offsets(torch.cat(best, 1), self.shares)[pools]

    def _sample(self, maps: Tensor, size: int, most: int, valid: Tensor | None = None) -> "_Sample":
        spare = [min(self.stride, side - size + 1) for side in maps.shape[2:]]
        origin = [int(torch.randint(n, (), generator=self.generator)) for n in spare]
        count = math.prod(
            (side - start - size) // self.stride + 1
            for side, start in zip(maps.shape[2:], origin, strict=True)
        )
        chosen = None
        if count > most or valid is not None:
            chosen = torch.randperm(count, generator=self.generator).to(maps.device)
        if chosen is not None and valid is not None:
            y, x = origin
            usable = usable_patches(valid, size_of(maps), size)
            on_grid = usable[y :: self.stride, x :: self.stride].flatten()[chosen]
            chosen = chosen[on_grid] if on_grid.any() else chosen
        if chosen is not None:
            chosen = chosen[:most]
        return _Sample(size, self.stride, origin, chosen)

    def measure(self, output: Features) -> Statistics:
        scores = {}
        for layer, held in self.held.items():
            maps = output[layer] - self.mean[layer]
            found = [eager_gradient(h.score, m[None]) for h, m in zip(held, maps, strict=True)]
            scores[layer] = torch.stack(found)
        return scores

    def distance(self, statistics: Statistics) -> Tensor:
        return mean_over_layers(statistics, self.layers)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _guide_distance(drawn: Tensor, wanted: Tensor, rows: slice) -> Tensor:
    """(N, G), (M, G) -> what guides add to the distances of n rows, (n, M)."""
    return GUIDE_WEIGHT * torch.cdist(drawn[rows], wanted).square()


class _Sample(NamedTuple):
    """Which patches of a layer are looked at."""

    size: int
    stride: int
    origin: list[int]  # y, x of the first one
    chosen: Tensor | None  # of all patches at that stride; None means all of them

    def count(self, maps: Tensor) -> int:
        """How many patches that are of (1, C, H, W)."""
        return self.columns(maps[:, :1]).shape[1]

    def columns(self, maps: Tensor) -> Tensor:
        """(1, C, H, W) -> (C size^2, N)."""
        y, x = self.origin
        maps = maps[..., y:, x:]
        if self.chosen is None:
            return F.unfold(maps, self.size, stride=self.stride)[0]
        W = maps.shape[3]
        across = (W - self.size) // self.stride + 1
        starts = (self.chosen // across * W + self.chosen % across) * self.stride
        return gather_patches(maps, starts, self.size)

    def unit_patches(self, maps: Tensor) -> Tensor:
        """(1, C, H, W) -> (N, C size^2), each of norm 1."""
        return F.normalize(self.columns(maps), dim=0).T

    def means(self, guide: Tensor) -> Tensor:
        """(1, G, H, W) -> (N, G): the mean of the guide over every patch."""
        return self.columns(guide).view(guide.shape[1], self.size**2, -1).mean(1).T


class _Held(NamedTuple):
    """What the score of one layer of one picture holds between renewals."""

    sample: _Sample
    source: Tensor  # (M, D), of norm 1
    extra: Callable[[slice], Tensor]  # n rows -> added to their distances, (n, M) or (M,)
    tile: str

    def score(self, maps: Tensor) -> Tensor:
        """(1, C, H, W) -> mean contextual score of its patches."""
        more = self.sample.size - 1
        maps = wrapped(maps, self.tile, more, more)
        return ContextualScore.apply(self.sample.columns(maps).T, self.source, self.extra).mean()
