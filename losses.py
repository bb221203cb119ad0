"""Features -> one number per picture: what it means for two pictures to be the same texture.

A term is built once from the features of the source, and is then called with the features of the
output: `term(output) -> (B,)`. Terms are zero at the source and never mix the pictures of a batch.
"""

import torch
from torch import Tensor

Features = dict[str, Tensor]

GRAM_LAYERS = ["conv1_1", "conv2_1", "conv3_1", "conv4_1"]
COLOUR_WEIGHT = 0.1
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


def resampled(ascending: Tensor, count: int) -> Tensor:
    """(..., n) in ascending order -> (..., count): the same distribution in `count` quantiles."""
    if ascending.shape[-1] == count:
        return ascending
    steps = torch.arange(count, device=ascending.device, dtype=torch.float64) + 0.5
    position = (steps * (ascending.shape[-1] / count) - 0.5).clamp(0, ascending.shape[-1] - 1)
    low = position.long()
    high = (low + 1).clamp(max=ascending.shape[-1] - 1)
    share = (position - low).to(ascending.dtype)
    return torch.lerp(ascending[..., low], ascending[..., high], share)


class Colour:
    """The distribution of each colour channel of the pixels, and the covariance of the channels.

    Gram matrices fix products of features and leave colour and contrast free to drift against
    each other. Moments of all layers (Galerne et al., "Scaling Painting Style Transfer", 2024) hold
    the drift back; we fix the pixels' distributions instead, by the squared Wasserstein distance,
    in one dimension that of the sorted values (Rabin et al. 2011), relative to the variance.
    """

    def __init__(self, source: Features) -> None:
        image = source["image"].detach()
        self.ascending = image.flatten(2).sort(2).values  # (1, 3, H W)
        self.variance = image.var((2, 3), correction=0).mean().clamp(min=TINY)
        self.covariance = gram(image - image.mean((2, 3), keepdim=True))

    def __call__(self, output: Features) -> Tensor:
        image = output["image"]
        ascending = image.flatten(2).sort(2).values  # (B, 3, H W)
        wanted = resampled(self.ascending, ascending.shape[2])
        transport = (ascending - wanted).square().mean((1, 2)) / self.variance
        covariance = gram(image - image.mean((2, 3), keepdim=True))
        return transport + relative_error(covariance, self.covariance)


METHODS = {"gram": Gram}


class Criterion:
    """A texture model beside the colours: the sum that an optimiser brings to zero."""

    def __init__(self, method: str, source: Features, layers: list[str]) -> None:
        self.texture = METHODS[method](source, layers)
        self.colour = Colour(source)

    def __call__(self, output: Features) -> Tensor:
        """(B, ...) features -> (B,)."""
        return self.texture(output) + COLOUR_WEIGHT * self.colour(output)
