"""Features -> one number per picture: what it means for two pictures to be the same texture.

Every texture model is a class here. It is built once from the features of the source, and is then
called with the features of the output: `model(output) -> (B,)`; pictures of a batch never mix.

A model whose objective holds something fixed for a while (matches, random directions, a sample)
has `renew(output)`, which takes it anew, every so many steps.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from guides import Regional
from patches import (
    ContextualScore,
    at_once,
    balanced,
    chunk_rows,
    higher,
    nearest_patches,
    overlapped,
    strips,
)
from terms import (
    GRAM_LAYERS,
    PLAIN,
    TERMS,
    TINY,
    Features,
    Gram,
    Settings,
    resampled,
    squared_wasserstein,
)
from utils import wrapped


class Sliced:
    """The sliced Wasserstein loss of Heitz et al., "A Sliced Wasserstein Loss for Neural Texture
    Synthesis", 2021, section 3: features projected on random unit directions, as many as a layer
    has channels, sorted and compared.

    We depart from the paper: relative to the source's mean square, so that layers weigh the same;
    directions stay for some steps, so that the objective is smooth in between; and other sizes
    are compared through quantiles, where the paper repeats samples.
    """

    unordered = True

    def __init__(self, source: Features, layers: list[str], settings: Settings) -> None:
        self.source = {layer: source[layer].detach().float().flatten(2)[0] for layer in layers}
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.slices: dict[str, tuple[Tensor, Tensor]] = {}

    def renew(self, output: Features) -> None:
        for layer, source in self.source.items():
            C = len(source)
            directions = torch.randn(C, C, generator=self.generator).to(source.device)
            directions /= directions.norm(dim=1, keepdim=True)
            ascending = (directions @ source).sort(1).values  # (C, h w)
            self.slices[layer] = directions, resampled(ascending, output[layer][0, 0].numel())

    def __call__(self, output: Features) -> Tensor:
        errors = []
        for layer, (directions, wanted) in self.slices.items():
            projected = directions @ output[layer].float().flatten(2)  # (B, C, H W)
            distance = squared_wasserstein(projected.sort(2).values, wanted)
            errors.append(distance / wanted.square().mean().clamp(min=TINY))
        return torch.stack(errors).mean(0)


class CNNMRF:
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

    def __init__(self, source: Features, layers: list[str], settings: Settings) -> None:
        self.sources = {
            layer: [f[layer][0].detach().float().contiguous() for f in (source, *settings.variants)]
            for layer in layers
        }
        self.settings, self.tile = settings, settings.tile
        self.found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def renew(self, output: Features) -> None:
        for layer, sources in self.sources.items():
            pictures = output[layer].detach().float()
            laid = [self._laid(p.contiguous(), sources, i) for i, p in enumerate(pictures)]
            self.found[layer] = tuple(torch.stack(parts) for parts in zip(*laid, strict=True))

    def _laid(
        self, picture: Tensor, sources: list[Tensor], i: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(C, H, W) -> mean of the patches found, how many overlap, their squared spread."""
        size = min(self.patch, *(side for maps in (picture, *sources) for side in maps.shape[1:]))
        here, there = None, [None] * len(sources)
        if self.settings.guide is not None:
            here = _resized(_of_picture(self.settings.guide[1], i), picture.shape[1:])
            here = self._of_patches(wrapped(here, self.tile, size - 1, size - 1), size)
            there = [
                self._of_patches(_resized(guide, maps.shape[1:]), size)
                for guide, maps in zip(self.settings.guide[0], sources, strict=True)
            ]
        picture = wrapped(picture[None], self.tile, size - 1, size - 1)[0]
        found, offset = [], 0
        for source, guide in zip(sources, there, strict=True):
            start, correlation = nearest_patches(picture, source, size, here, guide)
            found.append((start + offset, correlation, torch.full_like(start, source.shape[2])))
            offset += source[0].numel()
        if self.settings.shares:
            found = self._shared(found, picture, size)
        start, _, stride = reduce(higher, found)
        flat = torch.cat([source.flatten(1) for source in sources], 1)
        return overlapped(flat, start, stride, size)

    def _shared(
        self, found: list[tuple[Tensor, ...]], picture: Tensor, size: int
    ) -> list[tuple[Tensor, ...]]:
        """The same with heights such that every exemplar has its share of the patches."""
        pools, shares = self.settings.pools, self.settings.shares
        norms = F.avg_pool2d(picture.square().sum(0)[None], size, 1)[0].sqrt().clamp(min=1e-12)
        cosines = [height / norms for _, height, _ in found]
        best = [
            torch.stack([c for c, pool in zip(cosines, pools, strict=True) if pool == k]).amax(0)
            for k in range(len(shares))
        ]
        added = balanced(torch.stack(best).flatten(1), shares)
        return [
            (start, cosine + added[pool], stride)
            for (start, _, stride), cosine, pool in zip(found, cosines, pools, strict=True)
        ]

    @staticmethod
    def _of_patches(guide: Tensor, size: int) -> Tensor:
        """(1, G, H, W) -> (G, H - size + 1, W - size + 1), whose squared distances are weighed."""
        return math.sqrt(GUIDE_WEIGHT) * F.avg_pool2d(guide, size, 1)[0]

    def __call__(self, output: Features) -> Tensor:
        errors = []
        for layer, (mean, count, spread) in self.found.items():
            maps = output[layer].float()
            more = [a - b for a, b in zip(mean.shape[2:], maps.shape[2:], strict=True)]
            distance = (wrapped(maps, self.tile, *more) - mean).square().sum(1) * count  # (B, H, W)
            energy = (distance.sum((1, 2)) + spread) / count.sum((1, 2))
            norm = self.sources[layer][0].square().sum(0).mean().clamp(min=TINY)
            errors.append(energy / norm)
        return torch.stack(errors).mean(0)


class Guided:
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

    patch, stride = 7, 4
    occurrence_weight = 0.05

    def __init__(self, source: Features, layers: list[str], settings: Settings) -> None:
        self.mean = {layer: source[layer].detach().float().mean((2, 3), True) for layer in layers}
        self.sources = {
            layer: [
                f[layer].detach().float() - self.mean[layer] for f in (source, *settings.variants)
            ]
            for layer in layers
        }
        self.settings = settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.held: dict[str, list[_Held]] = {}

    def renew(self, output: Features) -> None:
        for layer, sources in self.sources.items():
            pictures = output[layer].detach().float() - self.mean[layer]
            self.held[layer] = [
                self._hold(sources, pictures[i : i + 1], i) for i in range(len(pictures))
            ]

    def _hold(self, sources: list[Tensor], picture: Tensor, i: int) -> "_Held":
        size = min(self.patch, *(side for maps in (*sources, picture) for side in maps.shape[2:]))
        tile, unwrapped = self.settings.tile, picture.shape[2:]
        picture = wrapped(picture, tile, size - 1, size - 1)
        most = max(1, self.settings.max_patches // len(sources))
        samples = [self._sample(maps, size, most) for maps in sources]
        sample = self._sample(picture, size, self.settings.max_patches)
        wanted = _joined([s.unit_patches(m) for s, m in zip(samples, sources, strict=True)])
        drawn = sample.unit_patches(picture)
        apart: Callable[[slice], Tensor | float] = lambda rows: 0.0  # noqa: E731
        if self.settings.guide is not None:
            there = [
                s.means(_resized(guide, maps.shape[2:]))
                for s, guide, maps in zip(samples, self.settings.guide[0], sources, strict=True)
            ]
            here = _resized(_of_picture(self.settings.guide[1], i), unwrapped)
            here = sample.means(wrapped(here, tile, size - 1, size - 1))
            apart = partial(_guide_distance, here, _joined(there))
        share = self._share(
            [s.count(m) for s, m in zip(samples, sources, strict=True)], drawn, wanted
        )
        used = wanted.new_zeros(len(wanted))
        for rows in strips(len(drawn), chunk_rows(4 * len(wanted), wanted.device)):
            nearest = (share + apart(rows) - drawn[rows] @ wanted.T).argmin(1)
            used += nearest.bincount(minlength=len(wanted))
        penalty = share + self.occurrence_weight * used * (len(wanted) / len(drawn))  # (M,)
        return _Held(sample, wanted, lambda rows: penalty + apart(rows), tile)

    def _share(self, counts: list[int], drawn: Tensor, wanted: Tensor) -> Tensor | float:
        """(M,) to add to the distances, for every exemplar to have its share of the patches."""
        if not self.settings.shares:
            return 0.0
        pools = torch.tensor(self.settings.pools).repeat_interleave(torch.tensor(counts))
        pools = pools.to(wanted.device)
        best = []
        for rows in strips(len(drawn), chunk_rows(8 * len(wanted), wanted.device)):
            cosines = drawn[rows] @ wanted.T
            each = range(len(self.settings.shares))
            best.append(torch.stack([cosines[:, pools == k].amax(1) for k in each]))
        return -balanced(torch.cat(best, 1), self.settings.shares)[pools]

    def _sample(self, maps: Tensor, size: int, most: int) -> "_Sample":
        spare = [min(self.stride, side - size + 1) for side in maps.shape[2:]]
        origin = [torch.randint(n, (), generator=self.generator).item() for n in spare]
        count = math.prod(
            (side - start - size) // self.stride + 1
            for side, start in zip(maps.shape[2:], origin, strict=True)
        )
        chosen = None
        if count > most:
            chosen = torch.randperm(count, generator=self.generator)[:most]
            chosen = chosen.to(maps.device)
        return _Sample(size, self.stride, origin, chosen)

    def __call__(self, output: Features) -> Tensor:
        errors = []
        for layer, held in self.held.items():
            maps = output[layer].float() - self.mean[layer]
            scores = [at_once(h.score, m[None]) for h, m in zip(held, maps, strict=True)]
            errors.append(torch.stack(scores))
        return torch.stack(errors).mean(0)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _of_picture(guide: Tensor, i: int) -> Tensor:
    """(B or 1, G, H, W) -> (1, G, H, W): the guide of picture i, or the one guide of them all."""
    return guide[i : i + 1] if len(guide) > 1 else guide


def _resized(guide: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(guide, tuple(size), mode="bilinear", antialias=True)


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
        # All patches of a large layer would not fit; only the chosen ones are ever copied.
        C, _, W = maps.shape[1:]
        across = (W - self.size) // self.stride + 1
        starts = (self.chosen // across * W + self.chosen % across) * self.stride
        steps = torch.arange(self.size, device=maps.device)
        positions = (steps[:, None] * W + steps).view(-1, 1) + starts  # (size^2, N)
        flat = maps.movedim(1, -1).reshape(-1, C)
        return flat[positions].permute(2, 0, 1).flatten(0, 1)

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


class Method(NamedTuple):
    """A texture model, and what goes with it unless the user says otherwise."""

    model: type
    layers: list[str]
    weights: dict[str, float]  # of the terms beside it
    takes: tuple[str, ...] = ()  # flags that it has a use for


METHODS = {
    "gram": Method(Gram, GRAM_LAYERS, {"histogram": 0.1}),
    "swd": Method(Sliced, GRAM_LAYERS, {"histogram": 0.1}, ("match_every",)),
    "cnnmrf": Method(
        CNNMRF,
        ["conv3_1", "conv4_1"],
        {"gram": 10.0, "histogram": 1.0, "patches": 10.0},
        ("match_every", "patch_rotations", "patch_scales"),
    ),
    "guided": Method(
        Guided,
        ["conv2_1", "conv3_1", "conv4_1"],
        {"gram": 10.0, "histogram": 0.5, "patches": 10.0},
        ("match_every", "patch_rotations", "patch_scales", "max_patches"),
    ),
}
GUIDE_WEIGHT = 10.0  # of squared distances of guides, beside cosines of features
LONG_RANGE_WEIGHT = 0.1  # of the spectrum, for exemplars that repeat


class Criterion:
    """A texture model and the terms beside it: the sum that an optimiser brings to zero."""

    def __init__(
        self,
        source: Features,
        layers: list[str],
        method: str = "gram",
        weights: dict[str, float] | None = None,
        settings: Settings = PLAIN,
    ) -> None:
        """
        Args:
            source: features of the exemplar.
            layers: the layers that the texture model looks at.
            method: a name in `METHODS`.
            weights: of the terms in `terms.TERMS`; the term of a weight that is 0 is not built.
                None means the method's own. Terms look at every layer there is.
            settings: what the texture model can be told.
        """
        default = METHODS[method]
        weights = default.weights if weights is None else weights
        self.model = _built(default.model, source, layers, settings)
        every = [layer for layer in source if layer != "image"]
        self.terms = [
            (weight, _built(TERMS[name], source, every, settings))
            for name, weight in weights.items()
            if weight
        ]
        parts = (self.model, *(term for _, term in self.terms))
        self.renewable = [part for part in parts if hasattr(part, "renew")]
        self.match_every = settings.match_every if self.renewable else None

    def add(self, weight: float, term: Callable[[Features], Tensor]) -> None:
        """One more term, its weight relative to the sum of all others: that of the texture."""
        total = 1 + sum(weight for weight, _ in self.terms)
        self.terms.append((weight * total, term))

    def renew(self, output: Features) -> None:
        """Take anew what model and terms hold fixed, for these features of the output."""
        for part in self.renewable:
            part.renew(output)

    def __call__(self, output: Features) -> Tensor:
        """(B, ...) features -> (B,)."""
        return self.model(output) + sum(weight * term(output) for weight, term in self.terms)


def _built(kind: type, source: Features, layers: list[str], settings: Settings) -> Callable:
    """A model or term, for each exemplar and region alone where it does not tell them apart."""
    if settings.shares and kind not in (CNNMRF, Guided):
        return _Blend(kind, source, layers, settings)
    if settings.regions is not None and getattr(kind, "unordered", False):
        return Regional(kind, source, layers, settings)
    return kind(source, layers, settings)


class _Blend:
    """Several exemplars' statistics, each met as much as its share: squared distances add up to
    that from the mean of the statistics, for Gram matrices, or from the barycentre of the
    distributions (Rabin et al. 2011), and a constant.
    """

    def __init__(self, kind: type, source: Features, layers: list[str], settings: Settings) -> None:
        pictures = source, *settings.variants
        alone = settings._replace(variants=(), pools=(), shares=())
        self.parts = [
            (share, _built(kind, pictures[settings.pools.index(k)], layers, alone))
            for k, share in enumerate(settings.shares)
        ]
        if hasattr(kind, "renew"):
            self.renew = self._renew

    def _renew(self, output: Features) -> None:
        for _, part in self.parts:
            part.renew(output)

    def __call__(self, output: Features) -> Tensor:
        return sum(share * part(output) for share, part in self.parts)
