"""What "the same texture" means: the catalogue of methods, terms and presets, and their sum.

A new texture model is a class in `terms/` and one line of the catalogue below; so is a new term.
The command's flags, its help and the README's tables come from here.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models import Features
from terms.autocorrelation import Autocorrelation
from terms.base import LayerWeights, Statistics, Term, TermInputs, equal_weights
from terms.cnnmrf import CNNMRF
from terms.gram import FIRST_LAYERS, GRAM_LAYERS, Gram
from terms.guided import Guided
from terms.histogram import Histogram
from terms.moments import Moments
from terms.patches import Patches
from terms.regions import layers_needed_whole, per_region
from terms.sliced import Sliced
from terms.spectrum import Spectrum
from terms.variation import TotalVariation

MATCH_EVERY = 20  # steps for which what a term holds fixed is held
LONG_RANGE_WEIGHT = 0.1  # of the spectrum, for exemplars with long-range order


class TermEntry(NamedTuple):
    """A term that the command offers as a weight, `--name`."""

    kind: type[Term]
    help: str  # one line


class Method(NamedTuple):
    """A texture model, and what goes with it unless the user says otherwise."""

    kind: type[Term]
    help: str  # one line
    layers: list[str]
    weights: dict[str, float]  # of the terms beside it
    takes: tuple[str, ...] = ()  # flags that it has a use for, of those that not every method has


TERMS: dict[str, TermEntry] = {}
METHODS: dict[str, Method] = {}


def add_term(name: str, kind: type[Term], help: str) -> None:
    """Offer a term beside any method.

    Raises:
        ValueError: it has no help, or the name is taken.
    """
    _check_new(name, help, TERMS)
    TERMS[name] = TermEntry(kind, help)


def add_method(
    name: str,
    kind: type[Term],
    help: str,
    layers: list[str],
    weights: dict[str, float],
    takes: tuple[str, ...] = (),
) -> None:
    """Offer a texture model as `--method NAME`.

    Raises:
        ValueError: it has no help, the name is taken, or a weight is of no term.
    """
    _check_new(name, help, METHODS)
    if unknown := weights.keys() - TERMS.keys():
        raise ValueError(f"{name}: no such terms: {', '.join(sorted(unknown))}")
    METHODS[name] = Method(kind, help, layers, weights, takes)


def _check_new(name: str, help: str, catalogue: Mapping[str, object]) -> None:
    if not help.strip():
        raise ValueError(f"{name}: say in one line what it is")
    if name in catalogue:
        raise ValueError(f"{name}: there is one of that name")


add_term("gram", Gram, "Gram matrices")
add_term(
    "histogram", Histogram, "distribution of each colour channel, and the channels' covariance"
)
add_term("moments", Moments, "mean and standard deviation of each filter")
add_term("spectrum", Spectrum, "power spectrum of the pixels: order over any distance")
add_term("autocorrelation", Autocorrelation, "autocorrelation of the features of the middle layer")
add_term("patches", Patches, "distribution of 7x7 patches of pixels, on three sizes")
add_term("tv", TotalVariation, "total variation, for smooth pictures")

add_method("gram", Gram, "Gram matrices of features", GRAM_LAYERS, {"histogram": 0.1})
add_method(
    "swd",
    Sliced,
    "the whole distribution of features, by random projections",
    FIRST_LAYERS,
    {"histogram": 0.1},
    ("match_every",),
)
add_method(
    "cnnmrf",
    CNNMRF,
    "every 3x3 patch of features follows its nearest one",
    ["conv3_1", "conv4_1"],
    {"gram": 10.0, "histogram": 1.0, "patches": 10.0},
    ("match_every", "patch_rotations", "patch_scales"),
)
add_method(
    "guided",
    Guided,
    "every 7x7 patch of features is like one of the exemplar's and unlike all others",
    ["conv2_1", "conv3_1", "conv4_1"],
    {"gram": 10.0, "histogram": 0.5, "patches": 10.0},
    ("match_every", "patch_rotations", "patch_scales", "max_patches"),
)

# By purpose: the picture that people prefer, and a draft of it; no pixel copied, in less than half
# of the time; a photo that is painted in a texture.
PRESETS: dict[str, dict[str, Any]] = {
    "best": {"repaint": 1.0, "epoch": 100},  # which numbers the steps, of snapshots as well
    "draft": {"repaint": 1.0, "epoch": 100},
    "fast": {"optimizer": "LBFGS", "epoch": 150},
    "photo": {"optimizer": "LBFGS", "epoch": 300},
}


def weighted_kinds(
    method: str, weights: Mapping[str, float], layers: LayerWeights, every: Iterable[str]
) -> list[tuple[float, type[Term], LayerWeights]]:
    """Return weight, kind and layers of the method, and of each term beside it that has a weight;
    terms get every layer there is, with equal weights."""
    alike = equal_weights(every)
    beside = [(weight, TERMS[name].kind, alike) for name, weight in weights.items() if weight]
    return [(1.0, METHODS[method].kind, layers), *beside]


def whole_layers_of(
    method: str,
    weights: Mapping[str, float],
    layers: LayerWeights,
    every: Iterable[str],
    divided: bool,
) -> set[str]:
    """The layers, "image" among them, that some term cannot look at part by part, where the output
    may be divided into regions."""
    kinds = weighted_kinds(method, weights, layers, every)
    return {layer for _, kind, seen in kinds for layer in layers_needed_whole(kind, seen, divided)}


class MeasuredFeatures(Features):
    """Features of which the terms that are sums have measured everything, part by part; what is
    here are the pixels and the layers that other terms need whole."""

    def __init__(self, features: Features, statistics: dict[int, Statistics]) -> None:
        super().__init__(features)
        self.statistics = statistics  # by the place of the term in the criterion


class Criterion:
    """A texture model and the terms beside it: the sum that an optimiser brings to zero."""

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
            inputs: exemplars with the features that the trunk gives, the canvas and options.
            layers: the layers that the texture model looks at, with their weights.
            method: a name in `METHODS`.
            weights: of the terms in `TERMS`; the term of a weight that is 0 is not built. None
                means the method's own. Terms look at every layer there is.
            match_every: steps between renewals.
        """
        weights = METHODS[method].weights if weights is None else weights
        every = [layer for layer in inputs.exemplars[0].features if layer != "image"]
        self.terms: list[tuple[float, Term]] = []
        for weight, kind, seen in weighted_kinds(method, weights, layers, every):
            self.terms.append((weight, per_region(kind, inputs, seen)))
        self.whole_layers = whole_layers_of(
            method, weights, layers, every, inputs.canvas.output_regions is not None
        )
        renews = any(term.renews for _, term in self.terms)
        self.match_every = match_every if renews else None

    def add(self, weight: float, term: Term, layers: Iterable[str]) -> None:
        """One more term, which needs these layers whole; its weight is relative to the sum of all
        others: that of the texture."""
        self.terms.append((weight * sum(weight for weight, _ in self.terms), term))
        self.whole_layers |= set(layers)

    def renew(self, output: Features) -> None:
        """Take anew what the terms hold fixed, for these features of the output."""
        for _, term in self.terms:
            term.renew(output)

    @property
    def generators(self) -> list[torch.Generator]:
        """What renewals draw from."""
        return [one for _, term in self.terms for one in term.generators]

    def __call__(self, output: Features) -> Tensor:
        """(B, C, h, w) each -> (B,)."""
        known = output.statistics if isinstance(output, MeasuredFeatures) else {}
        errors = [
            weight * (term.distance(known[i]) if i in known else term(output))
            for i, (weight, term) in enumerate(self.terms)
        ]
        return torch.stack(errors).sum(0)

    def measure_additive(self, output: Features) -> dict[int, Statistics]:
        """What the other terms measure of a part, by their places: it adds up to the whole's."""
        terms = enumerate(term for _, term in self.terms)
        return {i: term.measure(output) for i, term in terms if not term.needs_whole}
