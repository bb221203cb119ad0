"""Distribution and covariance of the colour channels."""

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
    """Distribution of each colour channel of the pixels, and covariance of the channels.

    A Gram matrix fixes the mean products of features, so that mean and variance may drift in
    opposite directions: Risser, Wilmot and Barnes, "Stable and Controllable Neural Texture
    Synthesis and Style Transfer Using Histogram Losses", 2017. The term is the squared Wasserstein
    distance of the channels, relative to their variance, plus the relative error of their
    covariance. Unlike the histogram matching of that paper, it needs no bins and is differentiable.
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
        # (1, 3)
        mean = inputs.mix_statistics(lambda maps: {"mean": maps["image"].mean((2, 3))})["mean"]

        def spread(maps: Features) -> dict[str, Tensor]:
            """Return second moments about the mean of the mixture: those within an exemplar plus
            those of its mean."""
            image = maps["image"]
            offset = image.mean((2, 3)) - mean
            return {
                "covariance": self.measure(maps)["covariance"].mean + offset.mT * offset,
                "variance": image.var((2, 3), correction=0).mean() + offset.square().mean(),
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
        # Not divided among processes: for three rows, communication takes longer than sorting.
        transport = squared_wasserstein(values, self.source(values.shape[2])) / self.variance
        return transport + relative_error(statistics["covariance"].mean, self.covariance)
