"""The distribution of colours."""

from torch import Tensor

from models import Features
from terms.base import (
    TINY,
    LayerWeights,
    Samples,
    Scene,
    Statistics,
    Term,
    in_order,
    relative_error,
    squared_wasserstein,
)
from terms.gram import gram


class Histogram(Term):
    """The distribution of each colour channel of the pixels, and the covariance of the channels.

    Gram matrices fix products of features and leave colour and contrast free to drift against
    each other. Matched is the squared Wasserstein distance relative to the variance. Unlike a
    remapped histogram (Risser et al. 2017) it needs no bins and is differentiable as it stands.
    """

    whole = "sorts the values of all pixels"
    pixels = True
    unordered = True

    def __init__(self, scene: Scene, layers: LayerWeights) -> None:
        exemplar = scene.exemplar
        image = exemplar.image.detach()
        found = self.measure(exemplar.features)
        self.source = Samples(in_order(found["values"].detach())[0])  # (1, 3, H W)
        self.covariance = found["covariance"].mean.detach()
        self.variance = image.var((2, 3), correction=0).mean().clamp(min=TINY)

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
