"""Catalogue of texture models, terms and presets, and the loss that is their weighted sum.

To add a texture model or a term, write a subclass of `Term` in `terms/` and call `add_method` or
`add_term` below. The command takes its flags, help and records from the catalogue.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models import Features
from terms.autocorrelation import Autocorrelation
from terms.base import LayerWeights, Statistics, Term, TermInputs, equal_weights
from terms.cnnmrf import CNNMRF
from terms.crosscorrelation import CrossCorrelation
from terms.gram import FIRST_LAYERS, GRAM_LAYERS, Gram
from terms.guided import Guided
from terms.histogram import Histogram
from terms.moments import Moments
from terms.patches import Patches
from terms.regions import per_region
from terms.sliced import Sliced
from terms.spectrum import Spectrum
from terms.variation import TotalVariation

MATCH_EVERY = 20  # default number of steps between rematches
LONG_RANGE_WEIGHT = 0.1  # weight of the spectrum for exemplars with long-range order


class TermEntry(NamedTuple):
    """A term of the catalogue; the flag `--NAME` of the command is its weight."""

    kind: type[Term]
    help: str  # one line


class Method(NamedTuple):
    """A texture model of the catalogue, `--method NAME` of the command, and its defaults."""

    kind: type[Term]
    help: str  # one line
    layers: list[str]  # default layers
    weights: dict[str, float]  # default weights of the terms that are added to it
    flags: tuple[str, ...] = ()  # the flags it uses that some other method does not use


TERMS: dict[str, TermEntry] = {}
METHODS: dict[str, Method] = {}


def add_term(name: str, kind: type[Term], help: str) -> None:
    """Add a term to the catalogue.

    Args:
        name: of its flag, `--NAME WEIGHT`.
        kind: its class.
        help: one line for `--help`.

    Raises:
        ValueError: the help is empty, or the name exists.
    """
    _check_new(name, help, TERMS)
    TERMS[name] = TermEntry(kind, help)


def add_method(
    name: str,
    kind: type[Term],
    help: str,
    layers: list[str],
    weights: dict[str, float],
    flags: tuple[str, ...] = (),
) -> None:
    """Add a texture model to the catalogue.

    Args:
        name: value of `--method`.
        kind: its class.
        help: one line for `--help`.
        layers: default layers, by the names of VGG ("conv3_1").
        weights: default weights of the terms that are added to it.
        flags: the flags it uses that some other method does not use, without dashes.

    Raises:
        ValueError: the help is empty, the name exists, or a term in `weights` does not exist.
    """
    _check_new(name, help, METHODS)
    if unknown := weights.keys() - TERMS.keys():
        raise ValueError(f"{name}: no such terms: {', '.join(sorted(unknown))}")
    METHODS[name] = Method(kind, help, layers, weights, flags)


def _check_new(name: str, help: str, catalogue: Mapping[str, object]) -> None:
    if not help.strip():
        raise ValueError(f"{name}: help is missing")
    if name in catalogue:
        raise ValueError(f"{name}: the name exists")


add_term("gram", Gram, "Gram matrices")
add_term("histogram", Histogram, "distribution and covariance of the colour channels")
add_term("moments", Moments, "mean and standard deviation of each channel")
add_term("spectrum", Spectrum, "power spectrum of the pixels, for order over any distance")
add_term("autocorrelation", Autocorrelation, "autocorrelation of the features of the middle layer")
add_term(
    "crosscorrelation",
    CrossCorrelation,
    "cross-correlation of features 8, 16 and 32 px apart, omitted at the finest scale",
)
add_term("patches", Patches, "distribution of 7x7 patches of pixels, at three sizes")
add_term("tv", TotalVariation, "total variation, for smooth pictures")

add_method(
    "gram",
    Gram,
    "Gram matrices of features",
    GRAM_LAYERS,
    {"histogram": 0.1, "crosscorrelation": 1.0},
)
add_method(
    "swd",
    Sliced,
    "distribution of features, by sliced Wasserstein distance",
    FIRST_LAYERS,
    {"histogram": 0.1},
    ("match_every",),
)
add_method(
    "cnnmrf",
    CNNMRF,
    "distance of each 3x3 patch of features from its nearest one",
    ["conv3_1", "conv4_1"],
    {"gram": 10.0, "histogram": 1.0, "patches": 10.0},
    ("match_every", "patch_rotations", "patch_scales"),
)
add_method(
    "guided",
    Guided,
    "contextual similarity of 7x7 patches of features",
    ["conv2_1", "conv3_1", "conv4_1"],
    {"gram": 10.0, "histogram": 0.5, "patches": 10.0},
    ("match_every", "patch_rotations", "patch_scales", "max_patches"),
)

BEST = "best"
# Area, relative to the exemplar's, of the largest output that BEST paints if the exemplar has no
# rows, columns or grain along an axis.
MOST_PAINTED = 2
PRESETS: dict[str, dict[str, Any]] = {
    # Most outputs are painted instead; see `command.plan`.
    BEST: {"optimizer": "LBFGS", "epoch": 200},
    # Painting alone; `epoch` is the number of steps that snapshots refer to.
    "draft": {"repaint": 1.0, "epoch": 100},
    # No copied pixels, in less than half of the time of the default.
    "fast": {"optimizer": "LBFGS", "epoch": 150},
    # Style transfer.
    "photo": {"optimizer": "LBFGS", "epoch": 300},
}


def weighted_kinds(
    method: str, weights: Mapping[str, float], layers: LayerWeights, every: Iterable[str]
) -> list[tuple[float, type[Term], LayerWeights]]:
    """Return weight, class and layers of the method and of each term whose weight is not 0.

    Args:
        method: a name in `METHODS`.
        weights: of terms in `TERMS`.
        layers: of the method.
        every: all layers of the network, which terms use with equal weights.
    """
    equal = equal_weights(every)
    terms = [(weight, TERMS[name].kind, equal) for name, weight in weights.items() if weight]
    return [(1.0, METHODS[method].kind, layers), *terms]


def at_finest_scale(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of the terms that are used at the finest of several scales."""
    return {name: w for name, w in weights.items() if not TERMS[name].kind.coarse_only}


def whole_layers_of(
    method: str,
    weights: Mapping[str, float],
    layers: LayerWeights,
    every: Iterable[str],
    divided: bool,
) -> set[str]:
    """Return the layers, and "image", that some term cannot evaluate block by block.

    Args:
        method, weights, layers, every: as in `weighted_kinds`.
        divided: whether the output may be divided into regions.
    """
    needed: set[str] = set()
    for _, kind, used in weighted_kinds(method, weights, layers, every):
        if kind.needs_whole or (divided and kind.permutation_invariant):
            needed.update(kind.layers_used(used))
    return needed


class MeasuredFeatures(Features):
    """The pixels and layers that some terms need whole, with the statistics of the other terms,
    which were measured block by block."""

    def __init__(self, features: Features, statistics: dict[int, Statistics]) -> None:
        super().__init__(features)
        self.statistics = statistics  # index of the term in `Criterion.terms` -> its statistics


class Criterion:
    """Weighted sum of a texture model and terms."""

    def __init__(
        self,
        inputs: TermInputs,
        layers: LayerWeights,
        method: str = "gram",
        weights: dict[str, float] | None = None,
        match_every: int = MATCH_EVERY,
    ) -> None:
        """
        Args:
            inputs: exemplars, with features of all layers; canvas; options.
            layers: layers of the texture model, with their weights.
            method: a name in `METHODS`.
            weights: of terms in `TERMS`, which use all layers; terms of weight 0 are not built.
                None: the method's defaults.
            match_every: steps between rematches.
        """
        weights = METHODS[method].weights if weights is None else weights
        every = [layer for layer in inputs.exemplars[0].features if layer != "image"]
        self.terms: list[tuple[float, Term]] = []
        for weight, kind, used in weighted_kinds(method, weights, layers, every):
            self.terms.append((weight, per_region(kind, inputs, used)))
        self.whole_layers = whole_layers_of(
            method, weights, layers, every, inputs.canvas.output_regions is not None
        )
        rematches = any(term.rematches for _, term in self.terms)
        self.match_every = match_every if rematches else None

    def add(self, weight: float, term: Term, layers: Iterable[str]) -> None:
        """Add a term that needs `layers` whole; `weight` is relative to the sum of all others."""
        self.terms.append((weight * sum(weight for weight, _ in self.terms), term))
        self.whole_layers |= set(layers)

    def rematch(self, output: Features) -> None:
        """Rematch all terms for the features of an output."""
        for _, term in self.terms:
            term.rematch(output)

    @property
    def generators(self) -> list[torch.Generator]:
        """Random generators that `rematch` draws from."""
        return [one for _, term in self.terms for one in term.generators]

    def __call__(self, output: Features) -> Tensor:
        """Return the loss, (B,), of the features of an output, (B, C, h, w) each."""
        known = output.statistics if isinstance(output, MeasuredFeatures) else {}
        errors = [
            weight * (term.distance(known[i]) if i in known else term(output))
            for i, (weight, term) in enumerate(self.terms)
        ]
        return torch.stack(errors).sum(0)

    def measure_additive(self, output: Features) -> dict[int, Statistics]:
        """Measure a part of the picture by the terms whose statistics add up.

        Returns:
            index of the term -> its statistics.
        """
        terms = enumerate(term for _, term in self.terms)
        return {i: term.measure(output) for i, term in terms if not term.needs_whole}
