"""Cross-correlation of features at positions some distance apart."""

import torch
from torch import Tensor

from models import Features, stride
from terms.base import TINY, LayerWeights, Statistics, Term, TermInputs, mean_over_layers
from terms.valid import crop_to_valid
from utils import Size, size_of, wrapped

LAGS = (8, 16, 32)  # px, down and across
LONGEST = 1 / 4  # of the shorter side; there are few pairs of positions at longer lags
COMPONENTS = 6  # principal components of the features; with 16, the exemplar may be copied
MIN_CONTRAST = 1e-3  # variance relative to the squared mean, below which a layer counts less


class CrossCorrelation(Term):
    """Cross-correlation of the channels at pairs of positions that are 8, 16 or 32 px apart, down
    and across: Berger and Memisevic, "Incorporating long-range consistency in CNN-based texture
    generation", 2017, section 3.

    Gram matrices do not constrain how positions farther apart than the receptive field are
    arranged. At the coarser scales of a pyramid the lags are longer, in px of the result.

    Departures from the paper: the mean of the source, which would dominate the products, is
    subtracted. The features are projected onto COMPONENTS principal components of the source, which
    takes less time and leaves the layout free. The error is relative to the squared norm of the
    source's covariance matrix, lag 0. The term uses one layer of each resolution below that of the
    picture, and is omitted at the finest of several scales.
    """

    needs_whole = "pairs positions of a layer"
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
        self.sources = {}
        for layer in self.layers:
            parts = [
                (share, crop_to_valid(view.features[layer].detach(), view.valid))
                for share, view in inputs.weighted_views
            ]
            self.sources[layer] = _Source(parts)

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
    """Return the lags, in positions of a layer.

    Args:
        step: px between adjacent positions.
        shorter: the shorter side, in positions.
    """
    distances = [px // step for px in LAGS if step <= px <= LONGEST * shorter * step]
    return [lag for d in distances for lag in ((d, 0), (0, d))]


class _Source:
    """Features of a layer of the exemplars, projected onto their principal components.

    Args:
        parts: share of each exemplar, and its features, (1, C, h, w).
    """

    def __init__(self, parts: list[tuple[float, Tensor]]) -> None:
        self.mean = torch.stack([share * maps.mean((2, 3)) for share, maps in parts]).sum(0)
        deviations = [(share, maps - self.mean[..., None, None]) for share, maps in parts]
        covariance = _mean_products(deviations, (0, 0))[0]
        # In ascending order. In float32, the solver fails where many channels are 0 everywhere; on
        # the CPU, as GPUs may lack float64.
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
