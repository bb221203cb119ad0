"""Cross-correlation of features at positions some distance apart."""

import torch
from torch import Tensor

from models import Features, stride
from terms.base import TINY, LayerWeights, Statistics, Term, TermInputs, mean_over_layers
from terms.valid import weighted_sources
from utils import Size, size_of, wrapped

LAGS = (8, 16, 32)  # px, down or across
LONGEST = 1 / 4  # of the shorter side; longer lags fix the layout
COMPONENTS = 6  # principal components of the features; with 16, the exemplar can be copied
# Errors are divided by the norm of the covariance, at least this part of the squared norm of the
# mean, so that layers with little contrast count less.
MIN_CONTRAST = 1e-3


class CrossCorrelation(Term):
    """Cross-correlation of the channels at pairs of positions that are 8, 16 or 32 px apart, down
    or across: Berger and Memisevic, "Incorporating Long-Range Consistency in CNN-Based Texture
    Generation", 2017, section 3.

    Gram matrices do not constrain how features farther apart than the receptive field are arranged.
    At the coarser scales of a pyramid the lags are longer, in px of the result.

    Departures from the paper: the mean of the source, which would dominate the products, is
    subtracted. The features are projected onto COMPONENTS principal components of the source. This
    takes less time, and keeps the output from copying the layout of the source. The error is
    divided by the squared norm of the covariance matrix of the projected features (see
    MIN_CONTRAST). The term uses the first layer of each resolution below that of the picture or, if
    there is none, the first layer. Lags below the stride of the layer or above LONGEST of the
    shorter side are left out. The term is omitted at the finest of several scales.
    """

    needs_whole = "multiplies features at distant positions"
    coarse_only = True

    @classmethod
    def layers_used(cls, layers: LayerWeights) -> list[str]:
        first: dict[int, str] = {}  # stride -> first layer that has it
        for layer in layers:
            first.setdefault(stride([layer]), layer)
        return [layer for step, layer in first.items() if step > 1] or list(first.values())

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.layers = {layer: layers[layer] for layer in self.layers_used(layers)}
        self.wrap = inputs.canvas.wrap
        self.sources = {layer: _Source(weighted_sources(inputs, layer)) for layer in self.layers}

    def measure(self, output: Features) -> Statistics:
        errors = {}
        for layer, source in self.sources.items():
            maps = source.project(output[layer])
            differences = [
                _products(wrapped(maps, self.wrap, *lag), lag) - source.target(lag)
                for lag in _lags(stride([layer]), min(*size_of(maps), source.shorter))
            ]
            squares = [x.square().sum((1, 2)) for x in differences] or [0 * maps[:, 0, 0, 0]]
            errors[layer] = torch.stack(squares).mean(0) / source.norm
        return errors

    def distance(self, statistics: Statistics) -> Tensor:
        return mean_over_layers(statistics, self.layers)


def _lags(step: int, shorter: int) -> list[Size]:
    """Return the lags (down, across) that fit a layer, in positions.

    Args:
        step: px between adjacent positions.
        shorter: the shorter side, in positions.
    """
    distances = [px // step for px in LAGS if step <= px <= LONGEST * shorter * step]
    return [lag for d in distances for lag in ((d, 0), (0, d))]


class _Source:
    """Features of a layer, projected onto the principal components of all exemplars together.

    Args:
        parts: share of each exemplar, and its features, (1, C, h, w).
    """

    def __init__(self, parts: list[tuple[float, Tensor]]) -> None:
        self.mean = torch.stack([share * maps.mean((2, 3)) for share, maps in parts]).sum(0)
        deviations = [(share, maps - self.mean[..., None, None]) for share, maps in parts]
        covariance = _mean_products(deviations, (0, 0))[0]
        # The variances ascend. In float32 the solver can fail if many channels are 0 everywhere. It
        # runs on the CPU, as GPUs may lack float64.
        variances, vectors = torch.linalg.eigh(covariance.cpu().double())
        self.basis = vectors[:, -COMPONENTS:].to(covariance)
        self.parts = [(share, self.project(maps)) for share, maps in parts]
        least = MIN_CONTRAST * self.mean.square().sum()
        self.norm = variances[-COMPONENTS:].square().sum().to(least).clamp(min=least**2 + TINY)
        self.shorter = min(side for _, maps in parts for side in size_of(maps))
        self.targets: dict[Size, Tensor] = {}

    def project(self, maps: Tensor) -> Tensor:
        """Subtract the mean and project: (B, C, H, W) -> (B, K, H, W), K at most COMPONENTS."""
        return ((maps.movedim(1, -1) - self.mean) @ self.basis).movedim(-1, 1)

    def target(self, lag: Size) -> Tensor:
        """Return the mean products at a lag in the mixture of the exemplars, (1, K, K). The result
        is cached."""
        if lag not in self.targets:
            self.targets[lag] = _mean_products(self.parts, lag)
        return self.targets[lag]


def _mean_products(parts: list[tuple[float, Tensor]], lag: Size) -> Tensor:
    """Return the sum of `_products` of several pictures, weighted by their shares."""
    return torch.stack([share * _products(maps, lag) for share, maps in parts]).sum(0)


def _products(maps: Tensor, lag: Size) -> Tensor:
    """Return the mean over positions p of the products of each channel at p and each channel at
    p + lag: (B, K, H, W) -> (B, K, K)."""
    height, width = size_of(maps)
    here = maps[:, :, : height - lag[0], : width - lag[1]].flatten(2)
    there = maps[:, :, lag[0] :, lag[1] :].flatten(2)
    return here @ there.mT / here.shape[2]
