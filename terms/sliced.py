"""Sliced Wasserstein distance of features."""

import torch
from torch import Tensor

from models import Features
from terms.base import (
    TINY,
    LayerWeights,
    QuantileMixture,
    Statistics,
    Term,
    TermInputs,
    mean_over_layers,
    sort_with_indices,
    squared_wasserstein,
)


class Sliced(Term):
    """Sliced Wasserstein loss of Heitz et al., "A Sliced Wasserstein Loss for Neural Texture
    Synthesis", 2021, section 3: features are projected on random unit directions, as many as the
    layer has channels, sorted and compared.

    Departures from the paper: the distance is relative to the mean square of the source's
    projections, so that layers have equal weight; directions are held until the next rematch, so
    that the objective is smooth in between; pictures of different sizes are compared by quantiles,
    where the paper repeats samples.
    """

    needs_whole = "sorts the projections of all positions"
    permutation_invariant = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.group, self.layers = inputs.options.group, layers
        self.sources = {
            layer: [
                (share, one.features[layer].detach().flatten(2)[0])
                for share, one in inputs.weighted_views
            ]
            for layer in layers
        }
        self.generator = torch.Generator().manual_seed(inputs.options.seed)
        self.slices: dict[str, tuple[Tensor, Tensor]] = {}

    def rematch(self, output: Features) -> None:
        """Draw directions, and sort the projections of the source."""
        for layer, sources in self.sources.items():
            first = sources[0][1]
            C = len(first)
            directions = torch.randn(C, C, generator=self.generator).to(first)
            directions /= directions.norm(dim=1, keepdim=True)
            found = QuantileMixture(
                [(share, sort_with_indices(directions @ one)[0]) for share, one in sources]
            )
            self.slices[layer] = directions, found(output[layer][0, 0].numel())

    def measure(self, output: Features) -> Statistics:
        return {
            layer: directions @ output[layer].flatten(2)  # (B, C, H W)
            for layer, (directions, _) in self.slices.items()
        }

    def distance(self, statistics: Statistics) -> Tensor:
        errors = {}
        for layer, (_, source) in self.slices.items():
            distance = squared_wasserstein(statistics[layer], source, self.group)
            errors[layer] = distance / source.square().mean().clamp(min=TINY)
        return mean_over_layers(errors, self.layers)
