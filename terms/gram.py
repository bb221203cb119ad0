"""Gram matrices of features."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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

# First layer of each block; the reported Gram error uses these.
FIRST_LAYERS = ["conv1_1", "conv2_1", "conv3_1", "conv4_1"]
GRAM_LAYERS = sorted([*FIRST_LAYERS, "conv1_2", "conv2_2", "conv3_2", "conv3_3"])


def gram(features: Tensor) -> Sums:
    """Return the sum over positions of the products of all pairs of channels: (B, C, H, W) ->
    (B, C, C).

    Features are float32; in half precision the products of deep layers overflow.
    """
    flat = features.movedim(1, -1).flatten(1, 2)  # (B, H W, C), a view in channels_last
    half = flat.detach().mT @ flat
    # Both factors are the same tensor: the gradient through one of them, symmetrised, is the whole
    # gradient, and saves one of two large products in the backward pass.
    return Sums(half + (half - half.detach()).mT, flat.shape[1])


class Gram(Term):
    """Texture model of Gatys, Ecker and Bethge, "Texture Synthesis Using Convolutional Neural
    Networks", 2015, equations 1 to 3: Gram matrix of every layer.

    Departure from equation 2: the error of each layer is relative to the squared norm of the
    source's Gram matrix, and the layers are averaged. Weights then have the same effect for any
    network, layer and size, and the loss is a relative error.
    """

    permutation_invariant = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.layers = layers
        self.source = inputs.mix_statistics(lambda maps: {k: gram(maps[k]).mean for k in layers})
        self.norms = {k: x.square().sum().clamp(min=TINY) for k, x in self.source.items()}

    def measure(self, output: Features) -> Statistics:
        return {layer: gram(output[layer]) for layer in self.layers}

    def distance(self, statistics: Statistics) -> Tensor:
        errors = {
            layer: relative_error(statistics[layer].mean, source)
            for layer, source in self.source.items()
        }
        return mean_over_layers(errors, self.layers)

    def __call__(self, output: Features) -> Tensor:
        errors = {
            layer: _GramError.apply(output[layer], source, self.norms[layer])
            for layer, source in self.source.items()
        }
        return mean_over_layers(errors, self.layers)


class _GramError(torch.autograd.Function):
    """Relative squared error of a Gram matrix, |G - S|^2 / |S|^2 with G = F' F / N: (B, C, H, W),
    (1, C, C), () -> (B,).

    F are the features, (N, C) with N = H W; S is the Gram matrix of the source. The gradient with
    respect to F is 4 F (G - S) / (N |S|^2). The result equals `distance(measure(features))`, which
    takes autograd twenty passes over (C, C) instead of three.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, source: Tensor, norm: Tensor) -> Tensor:
        flat = features.movedim(1, -1).flatten(1, 2)  # (B, N, C)
        sources = source.expand(len(flat), -1, -1)
        difference = torch.baddbmm(sources, flat.mT, flat, beta=-1, alpha=1 / flat.shape[1])
        ctx.save_for_backward(features, difference, norm)
        entries = difference.flatten(1)
        return torch.linalg.vecdot(entries, entries) / norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, difference, norm = ctx.saved_tensors
        flat = features.movedim(1, -1).flatten(1, 2)
        factor = (gradient * (4 / flat.shape[1]) / norm).view(-1, 1, 1)
        products = flat @ (difference * factor)  # (B, N, C)
        return products.unflatten(1, features.shape[2:]).movedim(-1, 1), None, None
