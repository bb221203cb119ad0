"""VGG feature extraction: the networks, their layers, the trunk and the extractor.

An extractor maps images in [0, 1] to a dictionary of feature maps by layer name. The trunk has a
backward pass of its own, which takes less time and memory than that of autograd.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import (
    NO_SIDES,
    Sides,
    UserError,
    crop,
    memory_format_for,
    pad,
    pad_backward,
    resize,
    scaled_size,
)
from weights import winograd

Weights = dict[str, Tensor]
Features = dict[str, Tensor]  # layer -> (B, C, h, w); "image" -> pixels, (B, 3, H, W)


class Net(NamedTuple):
    """Architecture of a VGG network, and where its weights are published."""

    blocks: tuple[int, ...]  # convolutions in each block
    url: str | None = None  # as in torchvision, whose import takes two seconds
    deepest: str = "pool5"  # last layer that is available


NETS = {
    "vgg19": Net((2, 2, 4, 4, 4), "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"),
    "vgg16": Net((2, 2, 3, 3, 3), "https://download.pytorch.org/models/vgg16-397923af.pth"),
    "vgg16-caffe": Net((2, 2, 3, 3, 3), deepest="relu5_1"),
}
WIDTHS = (64, 128, 256, 512, 512)  # channels in each block
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYER, FILTER = "layer", "filter"  # granularity of `Extractor.rescale`
RESCALE_SIDE = 256  # px: shorter side of the image on which mean activations are computed
RESCALE_CAP = 2.0  # largest gain of a filter relative to that of its layer


def layer_table(net: Net) -> dict[str, int | None]:
    """Map the name of every layer, in order, to the index of its convolution in torchvision's
    `features`.

    Names are `relu1_1 ... relu5_4` and `pool1 ... pool5`, up to `Net.deepest`. The index of a
    pooling layer is None.
    """
    table: dict[str, int | None] = {}
    index = 0
    for block, count in enumerate(net.blocks, 1):
        for i in range(1, count + 1):
            table[f"relu{block}_{i}"] = index
            index += 2  # convolution and ReLU
        table[f"pool{block}"] = None
        index += 1
    layers = list(table)
    return {layer: table[layer] for layer in layers[: 1 + layers.index(net.deepest)]}


def resolve_layers(names: Iterable[str], net_name: str) -> list[str]:
    """Return layer names in the order of the network, without duplicates.

    `conv4_1` is an alias of `relu4_1`, as in the programs of Gatys et al.: features after the ReLU.

    Raises:
        UserError: The network has no layer of a name. The message lists the closest names.
    """
    table = layer_table(NETS[net_name])
    wanted = set()
    for name in names:
        layer = name.lower().replace("conv", "relu", 1)
        if layer not in table:
            near = difflib.get_close_matches(layer, table, 3, 0.5) or ["relu1_1", "pool4"]
            raise UserError(f"{name!r}: {net_name} has no such layer; nearest: {' '.join(near)}")
        wanted.add(layer)
    return [layer for layer in table if layer in wanted]


def least_side(layers: list[str]) -> int:
    """Return the shortest image side in px for which the deepest of `layers` can be computed.

    Reflection padding needs two rows and two columns in the smallest map that is convolved.
    """
    return 2 ** max(int(layer[4]) for layer in layers)


def stride(layers: list[str]) -> int:
    """Return the distance in image px between adjacent positions of the deepest of `layers`."""
    return max(2 ** (int(layer[4]) - (not layer.startswith("pool"))) for layer in layers)


def width(layer: str) -> int:
    """Return the number of channels of a layer."""
    return WIDTHS[int(layer[4]) - 1]


def halos(layers: list[str], net_name: str, exchanged_after: str = "") -> dict[str, int]:
    """Return the halo of "image" and of every layer: the number of positions beyond each side of a
    tile that the deepest of `layers` depends on.

    Args:
        exchanged_after: Layer whose halo is received from other processes, so that earlier layers
            do not have to cover it. Default: none.
    """
    halo, found = 0, {}
    for layer, index in reversed(layers_until(layers, net_name)):
        found[layer] = halo
        if layer == exchanged_after:
            halo = 0
        halo = 2 * halo if index is None else halo + 1
    return {"image": halo, **found}


def middle_pooling(layers: list[str], net_name: str) -> str:
    """Return the middle one of the pooling layers before the deepest of `layers`, or "".

    With a single exchange of halos, after this layer, the halo of the image is the smallest.
    """
    before = [layer for layer, index in layers_until(layers, net_name)[:-1] if index is None]
    return before[len(before) // 2] if before else ""


def layers_until(layers: list[str], net_name: str) -> list[tuple[str, int | None]]:
    """Return the items of `layer_table` up to the deepest of `layers`."""
    table = list(layer_table(NETS[net_name]).items())
    deepest = resolve_layers(layers, net_name)[-1]
    return table[: [layer for layer, _ in table].index(deepest) + 1]


# --------------------------------------------------------------------------------------- trunk

# One autograd function with a backward pass written by hand. Autograd would save the input and the
# output of every operation, copy where it accumulates gradients, and use a slower convolution. Here
# only the output of each convolution's ReLU, and the input of each pooling, is saved.

Prepare = Callable[[Tensor], Tensor]

LEAST_CHANNELS = 128  # output channels from which Winograd's method is faster than a direct one


class Convolution(nn.Module):
    """3x3 convolution with padding, followed by ReLU. Weights are frozen.

    Features are padded by reflection or circularly: zero padding leaves a desaturated rim. Images
    are padded by replication instead: an image that is reflected about its outermost pixels has no
    slope there, so filters do not constrain these pixels, and optimisation fills them with beads.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """
        Args:
            weight: (K, C, 3, 3), any floating-point dtype; copied to float32.
            bias: (K,), likewise.
        """
        super().__init__()
        weight, bias = (tensor.to(torch.float32, copy=True) for tensor in (weight, bias))
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.border = "replicate" if weight.shape[1] == 3 else "reflect"
        self._ready: dict[tuple[Prepare, torch.dtype], tuple[object, Tensor]] = {}

    def forward(self, x: Tensor, wrap: str = "", open_sides: Sides = NO_SIDES) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W), one row or column less on each open side."""
        x, bias = pad(x, wrap, self.border, open_sides), self.bias.to(x.dtype)
        if self._uses_winograd(x):
            return winograd.conv2d_relu(x, self._weights(winograd.transform_filters, x), bias)
        return F.conv2d(x, self._weights(_in_fastest_format, x), bias).relu_()

    def back(
        self, gradient: Tensor, output: Tensor, wrap: str, open_sides: Sides = NO_SIDES
    ) -> Tensor:
        """Return the gradient with respect to the input, (B, C, H, W).

        Args:
            gradient: With respect to the output, (B, K, H, W); overwritten.
            output: Result of `forward`.
        """
        torch.ops.aten.threshold_backward(gradient, output, 0, grad_input=gradient)
        if self._uses_winograd(gradient):
            weights = self._weights(winograd.transform_filters, gradient)
            gradient = winograd.conv2d_backward(gradient, weights)
        else:
            gradient = gradient.contiguous(memory_format=memory_format_for(gradient.device))
            gradient = F.conv2d(gradient, self._weights(_flipped, gradient), padding=2)
        return pad_backward(gradient, wrap, self.border, open_sides)

    def _uses_winograd(self, x: Tensor) -> bool:
        """Whether to use Winograd's method: cuDNN chooses its own algorithm on a GPU, and 16-bit
        floats are too coarse."""
        exact = x.dtype in (torch.float32, torch.float64)
        return exact and x.device.type == "cpu" and len(self.weight) >= LEAST_CHANNELS

    def _weights(self, prepare: Prepare, x: Tensor) -> Tensor:
        """Return the weights prepared for inputs like x; cached until the weights change."""
        state = (self.weight.data_ptr(), self.weight._version)
        seen, weights = self._ready.get((prepare, x.dtype), (None, self.weight))
        if seen != state:
            weights = prepare(self.weight.to(x.dtype))
            self._ready[prepare, x.dtype] = state, weights
        return weights


def _in_fastest_format(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=memory_format_for(weight.device))


def _flipped(weight: Tensor) -> Tensor:
    """Return the kernel of the backward convolution: (K, C, 3, 3) -> (C, K, 3, 3)."""
    return _in_fastest_format(weight.transpose(0, 1).flip(2, 3))


class AveragePool(nn.Module):
    """2x2 average pooling; an odd last row or column is dropped."""

    def forward(self, x: Tensor, wrap: str = "", open_sides: Sides = NO_SIDES) -> Tensor:
        return F.avg_pool2d(x, 2)

    def back(self, gradient: Tensor, x: Tensor, wrap: str, open_sides: Sides = NO_SIDES) -> Tensor:
        """Return the gradient with respect to the input x from that to the output."""
        return torch.ops.aten.avg_pool2d_backward(
            gradient, x, (2, 2), (2, 2), (0, 0), False, True, None
        )


class MaxPool(nn.Module):
    """2x2 max pooling; an odd last row or column is dropped."""

    def forward(self, x: Tensor, wrap: str = "", open_sides: Sides = NO_SIDES) -> Tensor:
        return F.max_pool2d(x, 2)

    def back(self, gradient: Tensor, x: Tensor, wrap: str, open_sides: Sides = NO_SIDES) -> Tensor:
        """Return the gradient with respect to the input x from that to the output.

        The indices of the maxima are recomputed, at a hundredth of the cost of a convolution: saved
        as int64 they would take twice the memory of the maxima.
        """
        _, where = F.max_pool2d(x, 2, return_indices=True)
        return torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, x, (2, 2), (2, 2), (0, 0), (1, 1), False, where
        )


POOLS = {"avg": AveragePool, "max": MaxPool}


# Send the first and the last rows of feature maps to the processes that evaluate the tiles above
# and below; return what they send: as many rows, or none at the border of the image.
Exchange = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Cut(NamedTuple):
    """Position of a tile within a larger image.

    A side is open if the image continues beyond the halo on it. Feature maps are not padded on open
    sides, so that each convolution consumes one row or column of the halo.
    """

    around: Sides = NO_SIDES  # px beyond the tile: its halo, or fewer where the image ends
    halos: Mapping[str, int] = {}
    exchange: Exchange | None = None
    exchanged_after: str = ""  # layer whose halo above and below comes from an exchange

    @property
    def open_sides(self) -> Sides:
        """1 for each open side, else 0."""
        return Sides(*(int(px > 0 and px == self.halos["image"]) for px in self.around))

    def beyond(self, layer: str) -> Sides:
        """Return how many positions of a layer lie beyond the tile."""
        sides = zip(self.around, self.open_sides, strict=True)
        return Sides(
            *(self.halos[layer] if is_open else px // stride([layer]) for px, is_open in sides)
        )

    def exchange_halo(self, maps: Tensor, layer: str) -> Tensor:
        """Concatenate the maps of a layer with the halo received from other processes."""
        if self.exchange is None or layer != self.exchanged_after:
            return maps
        halo = self.halos[layer]
        above, below = self.exchange(maps[:, :, :halo], maps[:, :, -halo:])
        return torch.cat([x for x in (above, maps, below) if x.shape[2]], 2)

    def reduce_halo(self, gradient: Tensor, layer: str) -> Tensor:
        """Backward pass of `exchange_halo`: add the gradients of halos to the rows that they copy.

        Returns:
            A view of `gradient`, which is overwritten.
        """
        if self.exchange is None or layer != self.exchanged_after:
            return gradient
        own = crop(gradient, self.beyond(layer))
        halo = self.halos[layer]
        above, below = self.exchange(gradient[:, :, :halo], gradient[:, :, -halo:])
        own[:, :, : above.shape[2]] += above
        own[:, :, own.shape[2] - below.shape[2] :] += below
        return own


WHOLE = Cut()


class Trunk(nn.ModuleDict):
    """Sequence of convolutions and poolings, by the names of the layers that they compute."""

    def forward(
        self,
        x: Tensor,
        layers: Sequence[str],
        wrap: str = "",
        dtype: torch.dtype | None = None,
        cut: Cut = WHOLE,
    ) -> dict[str, Tensor]:
        """Return features by layer, (B, C, h, w) each, without the halo of a tile.

        Differentiable once.

        Args:
            x: Normalised images, (B, 3, H, W).
            layers: Names of the layers to return.
            wrap: Axes along which padding is circular: "", "x", "y" or "xy".
            dtype: Dtype of the computation; None means that of x. Features have the dtype of x.
            cut: Position of x within a larger image.
        """
        dtype = dtype or x.dtype
        if torch.is_grad_enabled() and x.requires_grad:
            features = _Pass.apply(x, self, layers, wrap, dtype, cut)
        else:
            features, _ = self.run(x, layers, wrap, dtype, keep=False, cut=cut)
        return dict(zip(layers, features, strict=True))

    def run(
        self, x: Tensor, layers: Sequence[str], wrap: str, dtype: torch.dtype, keep: bool, cut: Cut
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return features in the order of the stages, and with `keep` the tensor that the backward
        pass of each stage needs."""
        features, kept, given = [], [], x.dtype
        x = x.to(dtype, memory_format=memory_format_for(x.device))
        for layer, stage in self.items():
            y = stage(x, wrap, cut.open_sides)
            if keep:
                kept.append(y if isinstance(stage, Convolution) else x)
            x = cut.exchange_halo(y, layer)
            if layer in layers:
                features.append(crop(x, cut.beyond(layer)).to(given))
        return features, kept


class _Pass(torch.autograd.Function):
    """All stages as one autograd function."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        trunk: Trunk,
        layers: Sequence[str],
        wrap: str,
        dtype: torch.dtype,
        cut: Cut,
    ) -> tuple[Tensor, ...]:
        features, kept = trunk.run(x, layers, wrap, dtype, keep=True, cut=cut)
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        ctx.trunk, ctx.layers, ctx.wrap, ctx.given, ctx.cut = trunk, layers, wrap, x.dtype, cut
        return tuple(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """
        Args:
            gradients: With respect to the features; None for a layer that the loss does not use.
        """
        if torch.is_grad_enabled():  # clearer than the error of `once_differentiable`
            raise RuntimeError("the trunk has no second derivative: leave out create_graph=True")
        of_layer = dict(zip(ctx.layers, gradients, strict=True))
        stages = zip(ctx.trunk.items(), ctx.saved_tensors, strict=True)
        gradient: Tensor | None = None
        for (layer, stage), kept in reversed(list(stages)):
            added, beyond = of_layer.get(layer), ctx.cut.beyond(layer)
            if gradient is None and added is not None:
                borders = beyond.left, beyond.right, beyond.top, beyond.bottom
                gradient = F.pad(added.to(kept.dtype), borders)  # copy: overwritten later
            elif gradient is not None and added is not None:
                crop(gradient, beyond).add_(added)
            if gradient is not None:
                gradient = ctx.cut.reduce_halo(gradient, layer)
                gradient = stage.back(gradient, kept, ctx.wrap, ctx.cut.open_sides)
        return (None if gradient is None else gradient.to(ctx.given)), *[None] * 5


# ----------------------------------------------------------------------------------- extractor


class Extractor(nn.Module):
    """Frozen VGG network, truncated after the deepest layer that is needed.

    Computes in the memory format that is the fastest on the device.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, weights: Weights, net_name: str, layers: list[str], pool: str = "avg"
    ) -> None:
        """
        Args:
            weights: State dict as of torchvision, `features.{i}.{weight,bias}`, any float dtype.
            net_name: Key of `NETS`.
            layers: Names of layers as returned by `resolve_layers`.
            pool: Key of `POOLS`.
        """
        super().__init__()
        self.layers, self.halos = layers, halos(layers, net_name)
        self.exchanged_after = middle_pooling(layers, net_name)
        self.halos_exchanged = halos(layers, net_name, self.exchanged_after)
        self.trunk = Trunk()
        for layer, index in layers_until(layers, net_name):
            if index is None:
                self.trunk[layer] = POOLS[pool]()
            else:
                weight, bias = (weights[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
                self.trunk[layer] = Convolution(weight, bias)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def _normalize(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std

    def forward(
        self,
        image: Tensor,
        wrap: str = "",
        dtype: torch.dtype | None = None,
        around: Sides = NO_SIDES,
        exchange: Exchange | None = None,
    ) -> Features:
        """Return {"image": (B, 3, H, W), layer: (B, C, h, w), ...}.

        Args:
            image: (B, 3 or 1, H, W) in [0, 1].
            wrap: Axes along which padding is circular: "", "x", "y" or "xy". Features tile as well
                if the side is a multiple of `stride`.
            dtype: Dtype in which the network computes; None means that of the image.
            around: px on each side of a tile that belong to its halo and are not returned:
                `halos["image"]`, or fewer where the image ends. Tiles begin at multiples of
                `stride`.
            exchange: Exchange of halos with the processes that evaluate the tiles above and below
                at the same time. The halo is then `halos_exchanged["image"]`.
        """
        image = image.expand(-1, 3, -1, -1)  # so that the gradient of a grey image is grey
        cut = Cut(around, self.halos)
        if exchange is not None:
            cut = Cut(around, self.halos_exchanged, exchange, self.exchanged_after)
        features = self.trunk(self._normalize(image), self.layers, wrap, dtype, cut)
        return {"image": crop(image, around), **features}

    @torch.no_grad()
    def rescale(self, exemplar: Tensor, per: str = LAYER) -> None:
        """Scale the weights so that mean activations on an exemplar are 1, in place.

        Gatys et al., "Texture Synthesis Using Convolutional Neural Networks", 2015, section 2, in
        one pass: ReLU and pooling are positively homogeneous, so a filter is divided by its mean
        activation and the input weights of the next layer are multiplied by it. Features change by
        constant factors only.

        A layer whose activations are all 0 keeps its weights. Large exemplars are resized to
        `RESCALE_SIDE`, which hardly changes the means and bounds the memory.

        Args:
            exemplar: (1, 3, H, W) in [0, 1].
            per: "layer" scales each layer as a whole; losses relative to the exemplar's features do
                not change. "filter" scales each filter, as in the paper, which however takes the
                means over photographs: means over a single exemplar amplify what is rare in it. The
                gain of a filter is at most `RESCALE_CAP` times that of its layer; without this
                limit, rare features multiply the loss by ten orders of magnitude.
        """
        factor = min(1, RESCALE_SIDE / min(exemplar.shape[2:]))
        x = self._normalize(resize(exemplar, scaled_size(exemplar, factor)))
        gain_in = torch.ones(3, device=x.device)
        for stage in self.trunk.values():
            x = stage(x)
            if not isinstance(stage, Convolution):
                continue
            activation = x.mean((0, 2, 3))
            mean = activation.mean()
            unit = activation.clamp(min=mean / RESCALE_CAP) if per == FILTER else mean
            gain = torch.ones_like(activation) / (unit if mean > 0 else 1)
            stage.weight.mul_(gain[:, None, None, None] / gain_in[None, :, None, None])
            stage.bias.mul_(gain)
            gain_in = gain
