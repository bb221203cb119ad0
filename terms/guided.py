"""Guided correspondence: contextual similarity of large patches."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import LayerWeights, Statistics, Term, TermInputs, mean_over_layers
from terms.matching import (
    ContextualScore,
    ExtraDistance,
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
    """Guided correspondence loss of Zhou et al., "Neural Texture Synthesis with Guided
    Correspondence", 2023, equations 1 to 5.

    Patches of 7x7 positions at stride 4 are compared by cosine distance, after subtraction of the
    source's mean feature. A penalty in proportion to the number of matches of a source patch, and
    the distance of the guides, are added. The loss is the negative logarithm of the contextual
    similarity, which is small if every output patch is near one source patch and far from all
    others.

    Departures from the paper: the sample of patches, the origin of their grid and the numbers of
    matches are held until the next rematch, so that the objective is smooth in between; the stride
    is 4 instead of 3, which takes a quarter of the time without loss of quality; by default the
    finest layer is not used, as it takes ten times as long as all others.
    """

    needs_whole = "compares every patch with all patches of the exemplar"
    patch, stride = 7, 4
    occurrence_weight = 0.05

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.views, self.exemplar_of_view = inputs.views, inputs.exemplar_of_view
        self.shares = inputs.matched_shares
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

    def rematch(self, output: Features) -> None:
        """Draw patches and count how often each source patch is the nearest one."""
        for layer, sources in self.sources.items():
            pictures = output[layer].detach() - self.mean[layer]
            self.held[layer] = [self._hold(sources, picture) for picture in pictures.split(1)]

    def _hold(self, sources: list[Tensor], picture: Tensor) -> "_Held":
        size = min(self.patch, *(side for maps in (*sources, picture) for side in maps.shape[2:]))
        wrap, unwrapped = self.canvas.wrap, picture.shape[2:]
        picture = wrapped(picture, wrap, size - 1, size - 1)
        most = max(1, self.max_patches // len(sources))
        samples = [
            self._sample(maps, size, most, view.valid)
            for maps, view in zip(sources, self.views, strict=True)
        ]
        sample = self._sample(picture, size, self.max_patches)
        source = _cat([s.unit_patches(m) for s, m in zip(samples, sources, strict=True)])
        drawn = sample.unit_patches(picture)
        guides: tuple[Tensor, ...] = ()
        if self.canvas.guide is not None:
            output_guide = resize_guide(self.canvas.guide, unwrapped)
            source_guides = [
                s.means(resize_guide(view.guide, maps.shape[2:]))
                for s, view, maps in zip(samples, self.views, sources, strict=True)
            ]
            output_guide = sample.means(wrapped(output_guide, wrap, size - 1, size - 1))
            guides = output_guide, _cat(source_guides)
        counts = [s.count(m) for s, m in zip(samples, sources, strict=True)]
        by_share = self._share_penalty(counts, drawn, source)
        extra = ExtraDistance(by_share, *guides)
        used = source.new_zeros(len(source))
        for rows in row_slices(len(drawn), chunk_rows(4 * len(source), source.device)):
            nearest = (extra.of_rows(rows) - drawn[rows] @ source.T).argmin(1)
            used += nearest.bincount(minlength=len(source))
        penalty = by_share + self.occurrence_weight * used * (len(source) / len(drawn))
        return _Held(sample, source, ExtraDistance(penalty, *guides), wrap)

    def _share_penalty(self, counts: list[int], drawn: Tensor, source: Tensor) -> Tensor:
        """Return a penalty of each source patch, (M,), such that every exemplar is matched by its
        share of the output patches.

        Args:
            counts: number of source patches of each view.
            drawn: output patches, (N, D).
            source: source patches, (M, D).
        """
        if not self.shares:
            return source.new_zeros(len(source))
        exemplars = torch.tensor(self.exemplar_of_view).repeat_interleave(torch.tensor(counts))
        exemplars = exemplars.to(source.device)
        best = []
        for rows in row_slices(len(drawn), chunk_rows(8 * len(source), source.device)):
            cosines = drawn[rows] @ source.T
            each = range(len(self.shares))
            best.append(torch.stack([cosines[:, exemplars == k].amax(1) for k in each]))
        return -share_offsets(torch.cat(best, 1), self.shares)[exemplars]

    def _sample(self, maps: Tensor, size: int, most: int, valid: Tensor | None = None) -> "_Sample":
        """Draw the origin of a grid of patches of (1, C, H, W), and at most `most` of the patches,
        valid ones if there are any."""
        spare = [min(self.stride, side - size + 1) for side in maps.shape[2:]]
        origin = [int(torch.randint(n, (), generator=self.generator)) for n in spare]
        count = math.prod(
            (side - start - size) // self.stride + 1
            for side, start in zip(maps.shape[2:], origin, strict=True)
        )
        if count <= most and valid is None:
            return _Sample(size, self.stride, origin, None)
        chosen = torch.randperm(count, generator=self.generator).to(maps.device)
        if valid is not None:
            y, x = origin
            usable = usable_patches(valid, size_of(maps), size)
            on_grid = usable[y :: self.stride, x :: self.stride].flatten()[chosen]
            chosen = chosen[on_grid] if on_grid.any() else chosen
        return _Sample(size, self.stride, origin, chosen[:most])

    def measure(self, output: Features) -> Statistics:
        scores = {}
        for layer, held in self.held.items():
            maps = output[layer] - self.mean[layer]
            found = [eager_gradient(h.score, m[None]) for h, m in zip(held, maps, strict=True)]
            scores[layer] = torch.stack(found)
        return scores

    def distance(self, statistics: Statistics) -> Tensor:
        return mean_over_layers(statistics, self.layers)


def _cat(parts: list[Tensor]) -> Tensor:
    """Concatenate along dimension 0; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Sample(NamedTuple):
    """A sample of patches on a grid."""

    size: int
    stride: int
    origin: list[int]  # y, x of the upper left corner of the first patch
    chosen: Tensor | None  # (N,), indices of the sampled patches of the grid; None: all

    def count(self, maps: Tensor) -> int:
        """Return the number of sampled patches of (1, C, H, W)."""
        return self.columns(maps[:, :1]).shape[1]

    def columns(self, maps: Tensor) -> Tensor:
        """Return the patches as columns: (1, C, H, W) -> (C size^2, N)."""
        y, x = self.origin
        maps = maps[..., y:, x:]
        if self.chosen is None:
            return F.unfold(maps, self.size, stride=self.stride)[0]
        W = maps.shape[3]
        across = (W - self.size) // self.stride + 1
        starts = (self.chosen // across * W + self.chosen % across) * self.stride
        return gather_patches(maps, starts, self.size)

    def unit_patches(self, maps: Tensor) -> Tensor:
        """Return the patches as unit vectors: (1, C, H, W) -> (N, C size^2)."""
        return F.normalize(self.columns(maps), dim=0).T

    def means(self, guide: Tensor) -> Tensor:
        """Return the mean of a guide over each patch: (1, G, H, W) -> (N, G)."""
        return self.columns(guide).view(guide.shape[1], self.size**2, -1).mean(1).T


class _Held(NamedTuple):
    """State between rematches, of one layer of one picture."""

    sample: _Sample  # of the output
    source: Tensor  # (M, D), source patches as unit vectors
    extra: ExtraDistance
    wrap: str

    def score(self, maps: Tensor) -> Tensor:
        """Return the mean contextual score of the patches: (1, C, H, W) -> ()."""
        more = self.sample.size - 1
        maps = wrapped(maps, self.wrap, more, more)
        return ContextualScore.apply(self.sample.columns(maps).T, self.source, self.extra).mean()
