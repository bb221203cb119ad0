"""Features -> one number per picture: what it means for two pictures to be the same texture.

A term is built once from the features of the source, and is then called with the features of the
output: `term(output) -> (B,)`. Terms are zero at the source and never mix the pictures of a batch.
"""

import torch
from torch import Tensor

Features = dict[str, Tensor]

TINY = 1e-8  # keeps a flat exemplar, whose statistics are zero, from dividing by zero


def gram(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, C): products of feature maps, averaged over positions.

    Always in float32: in half precision deep layers overflow.
    """
    flat = features.float().movedim(1, -1).flatten(1, 2)  # (B, H W, C), a view in channels_last
    half = flat.detach().mT @ flat / flat.shape[1]
    # Both factors are the same tensor, so the gradient of one, made symmetric, is all of it; this
    # saves one of two large products on the way back.
    return half + (half - half.detach()).mT


def relative_error(output: Tensor, source: Tensor) -> Tensor:
    """(B, ...), (1, ...) -> (B,): squared distance over the squared norm of the source."""
    distance = (output - source).flatten(1).square().sum(1)
    return distance / source.square().sum().clamp(min=TINY)


class Gram:
    """The texture model of Gatys, Ecker and Bethge, "Texture Synthesis Using Convolutional Neural
    Networks", 2015, equations 2 to 4: the Gram matrix of every layer.

    We depart from equation 3 in the normalisation: each layer's error is relative to the norm of
    the source's Gram matrix, and the layers are averaged. The weights then carry over between
    nets, layers and sizes, and the loss reads as a relative error.
    """

    def __init__(self, source: Features, layers: list[str]) -> None:
        self.grams = {layer: gram(source[layer]).detach() for layer in layers}

    def __call__(self, output: Features) -> Tensor:
        errors = [
            relative_error(gram(output[layer]), wanted) for layer, wanted in self.grams.items()
        ]
        return torch.stack(errors).mean(0)


class Colour:
    """Mean colour, and covariance of the colour channels, of the pixels themselves.

    Gram matrices fix products of features and leave colour and contrast free to drift against
    each other; the moments of Galerne et al., "Scaling Painting Style Transfer", 2024, close
    this. We take them of the pixels only, which costs nothing and is where the drift is seen.
    """

    def __init__(self, source: Features) -> None:
        self.mean, self.covariance = (moment.detach() for moment in self._moments(source["image"]))

    @staticmethod
    def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
        mean = image.mean((2, 3), keepdim=True)
        return mean, gram(image - mean)

    def __call__(self, output: Features) -> Tensor:
        mean, covariance = self._moments(output["image"])
        return relative_error(mean, self.mean) + relative_error(covariance, self.covariance)


METHODS = {"gram": Gram}


class Criterion:
    """A texture model beside the colours: the sum that an optimiser brings to zero."""

    def __init__(self, method: str, source: Features, layers: list[str]) -> None:
        self.texture = METHODS[method](source, layers)
        self.colour = Colour(source)

    def __call__(self, output: Features) -> Tensor:
        """(B, ...) features -> (B,)."""
        return self.texture(output) + self.colour(output)
