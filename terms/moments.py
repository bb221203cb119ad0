"""Mean and standard deviation of every filter."""

import torch
from torch import Tensor

from models import Features
from terms.base import (
    TINY,
    LayerWeights,
    Statistics,
    Sums,
    Term,
    TermInputs,
    mean_over_layers,
    relative_error,
)


class Moments(Term):
    """Mean and standard deviation of every filter, as Galerne et al., "Scaling Painting Style
    Transfer", 2024, put beside Gram matrices; relative to the source's, mean over the layers.
    """

    permutation_invariant = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        # Squares are summed about the source's mean: about zero, rounding would eat the variance.
        self.centres = inputs.mix_statistics(lambda maps: {k: maps[k].mean((2, 3)) for k in layers})
        found = inputs.mix_statistics(
            lambda maps: {k: v.mean for k, v in self.measure(maps).items()}
        )
        self.wanted = {layer: self._moments(means, layer) for layer, means in found.items()}
        self.layers = layers

    def measure(self, output: Features) -> Statistics:
        found = {}
        for layer, centre in self.centres.items():
            about = output[layer] - centre[..., None, None]
            total = torch.stack((about.sum((2, 3)), about.square().sum((2, 3))), 1)
            found[layer] = Sums(total, about[0, 0].numel())
        return found

    def distance(self, statistics: Statistics) -> Tensor:
        errors = {
            layer: relative_error(self._moments(statistics[layer].mean, layer), wanted)
            for layer, wanted in self.wanted.items()
        }
        return mean_over_layers(errors, self.layers)

    def _moments(self, means: Tensor, layer: str) -> Tensor:
        """(B, 2, C), mean and mean square about the centre -> mean and standard deviation."""
        mean, square = means.unbind(1)
        variance = (square - mean.square()).clamp(min=0)
        return torch.stack((self.centres[layer] + mean, (variance + TINY).sqrt()), 1)
