"""What is where in a photo."""

from torch import Tensor

from models import Features
from terms.base import LayerWeights, Statistics, Term, TermInputs, mean_over_layers, relative_error


class Content(Term):
    """What is where in a picture: the features at every position, of Gatys, Ecker and Bethge,
    "Image Style Transfer Using Convolutional Neural Networks", 2016, equation 1.

    The one exemplar is the photo, of the output's size. We depart from the paper: relative to the
    squared norm of the photo's features, mean over the layers, so that a weight means the same at
    any size.
    """

    needs_whole = "compares places one by one"

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        (photo,) = inputs.exemplars
        self.wanted = {layer: photo.features[layer].detach() for layer in layers}
        self.layers = layers

    def measure(self, output: Features) -> Statistics:
        return {layer: output[layer] for layer in self.wanted}

    def distance(self, statistics: Statistics) -> Tensor:
        errors = {
            layer: relative_error(statistics[layer], wanted)
            for layer, wanted in self.wanted.items()
        }
        return mean_over_layers(errors, self.layers)
