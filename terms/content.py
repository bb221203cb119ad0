"""Content loss: features at every position of a photo."""

from torch import Tensor

from models import Features
from terms.base import LayerWeights, Statistics, Term, TermInputs, mean_over_layers, relative_error


class Content(Term):
    """Content loss of Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional Neural
    Networks", 2016, equation 1: squared distance of the features at every position.

    The only exemplar is the photo, which has the size of the output. Departure from the paper: the
    distance is relative to the squared norm of the photo's features and averaged over the layers,
    so that a weight has the same effect at any size.
    """

    needs_whole = "compares positions one by one"

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        (photo,) = inputs.exemplars
        self.content = {layer: photo.features[layer].detach() for layer in layers}
        self.layers = layers

    def measure(self, output: Features) -> Statistics:
        return {layer: output[layer] for layer in self.content}

    def distance(self, statistics: Statistics) -> Tensor:
        errors = {
            layer: relative_error(statistics[layer], content)
            for layer, content in self.content.items()
        }
        return mean_over_layers(errors, self.layers)
