"""Mean and standard deviation of the channels of a layer."""

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
    """Mean and standard deviation of every channel, which Galerne et al., "Scaling Painting Style
    Transfer", 2024, add to Gram matrices.

    Departure from the paper: the squared distance is relative to the squared norm of the source's
    moments and averaged over the layers.
    """

    permutation_invariant = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        # Moments about the source's mean, as rounding errors of those about 0 can exceed the
        # variance.
        self.centres = inputs.mix_statistics(lambda maps: {k: maps[k].mean((2, 3)) for k in layers})
        found = inputs.mix_statistics(
            lambda maps: {k: v.mean for k, v in self.measure(maps).items()}
        )
        self.source = {layer: self._moments(means, layer) for layer, means in found.items()}
        self.layers = layers

    def measure(self, output: Features) -> Statistics:
        found = {}
        for layer, centre in self.centres.items():
            centred = output[layer] - centre[..., None, None]
            total = torch.stack((centred.sum((2, 3)), centred.square().sum((2, 3))), 1)
            found[layer] = Sums(total, centred[0, 0].numel())
        return found

    def distance(self, statistics: Statistics) -> Tensor:
        errors = {
            layer: relative_error(self._moments(statistics[layer].mean, layer), source)
            for layer, source in self.source.items()
        }
        return mean_over_layers(errors, self.layers)

    def _moments(self, means: Tensor, layer: str) -> Tensor:
        """Convert mean and mean square about the centre, (B, 2, C), to mean and standard deviation,
        (B, 2, C)."""
        mean, square = means.unbind(1)
        variance = (square - mean.square()).clamp(min=0)
        return torch.stack((self.centres[layer] + mean, (variance + TINY).sqrt()), 1)
