"""Gram matrices: which features occur together."""

from torch import Tensor

from models import Features
from terms.base import (
    LayerWeights,
    Statistics,
    Sums,
    Term,
    TermInputs,
    mean_over_layers,
    relative_error,
)

# The first layer of each block; the reported error uses them.
FIRST_LAYERS = ["conv1_1", "conv2_1", "conv3_1", "conv4_1"]
GRAM_LAYERS = sorted([*FIRST_LAYERS, "conv1_2", "conv2_2", "conv3_2", "conv3_3"])


def gram(features: Tensor) -> Sums:
    """(B, C, H, W) -> sums of (B, C, C): products of feature maps at every position.

    In float32, as the trunk gives them: in half precision deep layers overflow.
    """
    flat = features.movedim(1, -1).flatten(1, 2)  # (B, H W, C), a view in channels_last
    half = flat.detach().mT @ flat
    # Both factors are the same tensor, so the gradient of one, made symmetric, is all of it; this
    # saves one of two large products on the way back.
    return Sums(half + (half - half.detach()).mT, flat.shape[1])


class Gram(Term):
    """The texture model of Gatys, Ecker and Bethge, "Texture Synthesis Using Convolutional Neural
    Networks", 2015, equations 2 to 4: the Gram matrix of every layer.

    We depart from equation 3 in the normalisation: each layer's error is relative to the norm of
    the source's Gram matrix, and the layers are averaged. The weights then carry over between
    nets, layers and sizes, and the loss reads as a relative error.
    """

    permutation_invariant = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.layers = layers
        self.wanted = inputs.mix_statistics(lambda maps: {k: gram(maps[k]).mean for k in layers})

    def measure(self, output: Features) -> Statistics:
        return {layer: gram(output[layer]) for layer in self.layers}

    def distance(self, statistics: Statistics) -> Tensor:
        errors = {
            layer: relative_error(statistics[layer].mean, wanted)
            for layer, wanted in self.wanted.items()
        }
        return mean_over_layers(errors, self.layers)
