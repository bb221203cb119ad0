"""The distribution of colours."""

from torch import Tensor

from models import Features
from terms.base import (
    TINY,
    LayerWeights,
    QuantileMixture,
    Statistics,
    Term,
    TermInputs,
    relative_error,
    sort_with_indices,
    squared_wasserstein,
)
from terms.gram import gram


class Histogram(Term):
    """The distribution of each colour channel of the pixels, and the covariance of the channels.

    Gram matrices fix products of features and leave colour and contrast free to drift against
    each other. Matched is the squared Wasserstein distance relative to the variance. Unlike a
    remapped histogram (Risser et al. 2017) it needs no bins and is differentiable as it stands.
    """

    needs_whole = "sorts the values of all pixels"
    uses_pixels = True
    permutation_invariant = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.source = QuantileMixture(
            [
                (share, sort_with_indices(view.image.detach().flatten(2))[0])
                for share, view in inputs.weighted_views
            ]
        )
        mean = inputs.mix_statistics(lambda maps: {"mean": maps["image"].mean((2, 3))})[
            "mean"
        ]  # (1, 3)

        def spread(maps: Features) -> dict[str, Tensor]:
            """Of a mixture it is that within its parts and that of their means."""
            image = maps["image"]
            apart = image.mean((2, 3)) - mean
            return {
                "covariance": self.measure(maps)["covariance"].mean + apart.mT * apart,
                "variance": image.var((2, 3), correction=0).mean() + apart.square().mean(),
            }

        found = inputs.mix_statistics(spread)
        self.covariance, self.variance = found["covariance"], found["variance"].clamp(min=TINY)

    def measure(self, output: Features) -> Statistics:
        image = output["image"]
        return {
            "values": image.flatten(2),
            "covariance": gram(image - image.mean((2, 3), keepdim=True)),
        }

    def distance(self, statistics: Statistics) -> Tensor:
        values = statistics["values"]
        # By several processes no faster: three rows, and each waits for the others.
        transport = squared_wasserstein(values, self.source(values.shape[2])) / self.variance
        return transport + relative_error(statistics["covariance"].mean, self.covariance)
