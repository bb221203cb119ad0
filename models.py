"""A picture in [0, 1] -> named VGG features: the nets, their weights, the trunk, the extractor."""

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
Features = dict[str, Tensor]  # layer -> (B, C, h, w); "image" -> the pixels, (B, 3, H, W)


class Net(NamedTuple):
    """A VGG trunk: convolutions per block, and where its weights are."""

    blocks: tuple[int, ...]
    url: str | None = None  # torchvision's, written here since importing it takes two seconds
    deepest: str = "pool5"  # the last layer whose weights there are


NETS = {
    "vgg19": Net((2, 2, 4, 4, 4), "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"),
    "vgg16": Net((2, 2, 3, 3, 3), "https://download.pytorch.org/models/vgg16-397923af.pth"),
    "vgg16-caffe": Net((2, 2, 3, 3, 3), deepest="relu5_1"),
}
WIDTHS = (64, 128, 256, 512, 512)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYER, FILTER = "layer", "filter"  # what is scaled to unit mean activation
RESCALE_SIDE = 256  # px, shorter side on which means are taken; a photograph's need no more
RESCALE_CAP = 2.0  # a filter's gain is at most this many times the gain of its layer's mean


def layer_table(net: Net) -> dict[str, int | None]:
    """Every layer of a net in order -> the index of its convolution in torchvision's `features`.

    Layers are `relu1_1 ... relu5_4` and `pool1 ... pool5`, through `Net.deepest`; a pooling layer
    has no index.
    """
    table: dict[str, int | None] = {}
    index = 0
    for block, count in enumerate(net.blocks, 1):
        for i in range(1, count + 1):
            table[f"relu{block}_{i}"] = index
            index += 2  # a convolution and its ReLU
        table[f"pool{block}"] = None
        index += 1
    layers = list(table)
    return {layer: table[layer] for layer in layers[: 1 + layers.index(net.deepest)]}


def resolve_layers(names: Iterable[str], net_name: str) -> list[str]:
    """The layers asked for, in the net's order and without repeats.

    `conv4_1` means what the old programs meant by it, the features after its ReLU: `relu4_1`.

    Raises:
        UserError: a name that the net does not have; it is told the nearest ones.
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
    """The shortest picture side in px on which the deepest layer can still be computed.

    Reflected borders need two samples in each direction on the smallest map that is convolved.
    """
    block = max(int(layer.removeprefix("relu").removeprefix("pool")[0]) for layer in layers)
    return 2 * 2 ** (block - 1)


def stride(layers: list[str]) -> int:
    """How many px of the picture lie between two positions of the deepest layer."""
    return max(2 ** (int(layer[4]) - (not layer.startswith("pool"))) for layer in layers)


def halos(layers: list[str], net_name: str, exchanged_after: str = "") -> dict[str, int]:
    """How many positions around those of a part of the picture are to be known on every side, in
    "image" and every layer, for the deepest of `layers` to be known in that part.

    Args:
        exchanged_after: the layer whose halo is had from those who look at the parts around, so
            that what comes before need not lead to it; none by default.
    """
    halo, found = 0, {}
    for layer, index in reversed(_until(layers, net_name)):
        found[layer] = halo
        if layer == exchanged_after:
            halo = 0
        halo = 2 * halo if index is None else halo + 1
    return {"image": halo, **found}


def middle_pooling(layers: list[str], net_name: str) -> str:
    """Of the poolings before the deepest of `layers` the one in the middle, "" where there is none:
    with one exchange of halos, after it, there is the least to be known around a part."""
    before = [layer for layer, index in _until(layers, net_name)[:-1] if index is None]
    return before[len(before) // 2] if before else ""


def _until(layers: list[str], net_name: str) -> list[tuple[str, int | None]]:
    """The rows of `layer_table` up to the deepest of `layers`."""
    table = list(layer_table(NETS[net_name]).items())
    deepest = resolve_layers(layers, net_name)[-1]
    return table[: [layer for layer, _ in table].index(deepest) + 1]


# --------------------------------------------------------------------------------------- trunk

# One differentiable unit, its way back written by hand. Autograd keeps the input and the output of
# every operation, copies where it adds gradients up, and takes the slowest of the ways to convolve.
# Here each convolution keeps what its ReLU let through, and nothing else is kept.

Prepare = Callable[[Tensor], Tensor]

LEAST_CHANNELS = 128  # that come out, from which transforming windows costs less than it saves


class Convolution(nn.Module):
    """A 3x3 convolution of bordered maps, and its ReLU; frozen.

    Borders are reflected, as zeros leave a desaturated rim, or wrapped round. Those of a picture
    are its outermost pixels once more instead: mirrored about them, no picture has a slope there,
    and what no filter sees of them an optimiser fills with beads.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Copy (K, C, 3, 3) and (K,), of any float type, to float32."""
        super().__init__()
        weight, bias = (tensor.to(torch.float32, copy=True) for tensor in (weight, bias))
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.border = "replicate" if weight.shape[1] == 3 else "reflect"
        self._ready: dict[tuple[Prepare, torch.dtype], tuple[object, Tensor]] = {}

    def forward(self, x: Tensor, wrap: str = "", open_sides: Sides = NO_SIDES) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W), less a row or column on every side that is open."""
        x, bias = pad(x, wrap, self.border, open_sides), self.bias.to(x.dtype)
        if self._transforms(x):
            return winograd.conv2d(x, self._weights(winograd.transform_filters, x), bias).relu_()
        return F.conv2d(x, self._weights(_laid_out, x), bias).relu_()

    def back(
        self, gradient: Tensor, output: Tensor, wrap: str, open_sides: Sides = NO_SIDES
    ) -> Tensor:
        """The gradient by the input, (B, C, H, W), from that by the output, which is used up, and
        the output."""
        torch.ops.aten.threshold_backward(gradient, output, 0, grad_input=gradient)
        if self._transforms(gradient):
            weights = self._weights(winograd.transform_filters, gradient)
            gradient = winograd.conv2d_input(gradient, weights)
        else:
            gradient = gradient.contiguous(memory_format=memory_format_for(gradient.device))
            gradient = F.conv2d(gradient, self._weights(_flipped, gradient), padding=2)
        return pad_backward(gradient, wrap, self.border, open_sides)

    def _transforms(self, x: Tensor) -> bool:
        """Whether to convolve by Winograd's method: on a GPU cuDNN chooses its own, and halves of
        a float are too coarse for it."""
        exact = x.dtype in (torch.float32, torch.float64)
        return exact and x.device.type == "cpu" and len(self.weight) >= LEAST_CHANNELS

    def _weights(self, prepare: Prepare, x: Tensor) -> Tensor:
        """The weights as they are convolved with x, made anew only when changed or moved."""
        state = (self.weight.data_ptr(), self.weight._version)
        seen, weights = self._ready.get((prepare, x.dtype), (None, self.weight))
        if seen != state:
            weights = prepare(self.weight.to(x.dtype))
            self._ready[prepare, x.dtype] = state, weights
        return weights


def _laid_out(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=memory_format_for(weight.device))


def _flipped(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (C, K, 3, 3): what a gradient is convolved with on its way back."""
    return _laid_out(weight.transpose(0, 1).flip(2, 3))


class AveragePool(nn.Module):
    """The mean of 2x2 features; a last odd row or column is left out."""

    def forward(self, x: Tensor, wrap: str = "", open_sides: Sides = NO_SIDES) -> Tensor:
        return F.avg_pool2d(x, 2)

    def back(self, gradient: Tensor, x: Tensor, wrap: str, open_sides: Sides = NO_SIDES) -> Tensor:
        """The gradient by the input, x, from that by the output."""
        return torch.ops.aten.avg_pool2d_backward(
            gradient, x, (2, 2), (2, 2), (0, 0), False, True, None
        )


class MaxPool(nn.Module):
    """The largest of 2x2 features; a last odd row or column is left out."""

    def forward(self, x: Tensor, wrap: str = "", open_sides: Sides = NO_SIDES) -> Tensor:
        return F.max_pool2d(x, 2)

    def back(self, gradient: Tensor, x: Tensor, wrap: str, open_sides: Sides = NO_SIDES) -> Tensor:
        """The gradient by the input, x: where the largest were is found again, not kept, which
        costs a hundredth of a convolution and would be twice as many bytes as they are."""
        _, where = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(gradient, where, [2, 2], output_size=x.shape[2:])


POOLS = {"avg": AveragePool, "max": MaxPool}


# Rows of maps for who looks at the parts above and below -> the rows that they give in return, as
# many, or none where there is no such part.
Exchange = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Cut(NamedTuple):
    """How a picture was cut out of a larger one, with what lies around it.

    A side beyond which the larger one goes on is open: maps get no border there, and lose what no
    stage that follows has to know.
    """

    around: Sides = NO_SIDES  # px that lie around it: the halo, or all up to where the picture ends
    halos: Mapping[str, int] = {}
    exchange: Exchange | None = None
    exchanged_after: str = ""  # the layer whose halo is had by an exchange, above and below

    @property
    def open_sides(self) -> Sides:
        """1 where a side is open."""
        return Sides(*(int(px > 0 and px == self.halos["image"]) for px in self.around))

    def beyond(self, layer: str) -> Sides:
        """How many positions of a layer lie around it."""
        sides = zip(self.around, self.open_sides, strict=True)
        return Sides(
            *(self.halos[layer] if is_open else px // stride([layer]) for px, is_open in sides)
        )

    def exchange_halo(self, maps: Tensor, layer: str) -> Tensor:
        """What a stage gives of the part, with the halo that others know."""
        if self.exchange is None or layer != self.exchanged_after:
            return maps
        halo = self.halos[layer]
        above, below = self.exchange(maps[:, :, :halo], maps[:, :, -halo:])
        return torch.cat([x for x in (above, maps, below) if x.shape[2]], 2)

    def reduce_halo(self, gradient: Tensor, layer: str) -> Tensor:
        """Backward of `exchange_halo`: add the gradients of halos to the rows that they copy."""
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
    """Stages by the name of the layer that each gives, in the order in which they follow."""

    def forward(
        self,
        x: Tensor,
        layers: Sequence[str],
        wrap: str = "",
        dtype: torch.dtype | None = None,
        cut: Cut = WHOLE,
    ) -> dict[str, Tensor]:
        """(B, 3, H, W), normalised -> the layers asked for, (B, C, h, w) each, without what lies
        around a picture that was cut out.

        Gradients are those of autograd to rounding; there is no second derivative.

        Args:
            wrap: axes along which the maps go on where they began, of "x" and "y".
            dtype: to compute in; None means that of x, which the features have in any case.
        """
        dtype = dtype or x.dtype
        if torch.is_grad_enabled() and x.requires_grad:
            features = _Pass.apply(x, self, layers, wrap, dtype, cut)
        else:
            features, _ = self.run(x, layers, wrap, dtype, keep=False, cut=cut)
        return dict(zip(layers, features, strict=True))

    def run(
        self,
        x: Tensor,
        layers: Sequence[str],
        wrap: str,
        dtype: torch.dtype,
        keep: bool,
        cut: Cut = WHOLE,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The layers asked for, and with `keep` what every stage needs on the way back."""
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
    """All stages there and back: normalised pixels -> features."""

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
        """None stands for the gradient by a layer that no loss has looked at."""
        if torch.is_grad_enabled():  # `once_differentiable` would say nothing, or not what is wrong
            raise RuntimeError("the trunk has no second derivative: leave out create_graph=True")
        of_layer = dict(zip(ctx.layers, gradients, strict=True))
        stages = zip(ctx.trunk.items(), ctx.saved_tensors, strict=True)
        gradient: Tensor | None = None
        for (layer, stage), kept in reversed(list(stages)):
            added, beyond = of_layer.get(layer), ctx.cut.beyond(layer)
            if gradient is None and added is not None:
                borders = beyond.left, beyond.right, beyond.top, beyond.bottom
                gradient = F.pad(added.to(kept.dtype), borders)  # a copy: what follows changes it
            elif gradient is not None and added is not None:
                crop(gradient, beyond).add_(added)
            if gradient is not None:
                gradient = ctx.cut.reduce_halo(gradient, layer)
                gradient = stage.back(gradient, kept, ctx.wrap, ctx.cut.open_sides)
        return (None if gradient is None else gradient.to(ctx.given)), *[None] * 5


# ----------------------------------------------------------------------------------- extractor


class Extractor(nn.Module):
    """A picture -> its features at the layers asked for; frozen, cut after the deepest of them.

    Everything inside runs in the layout that is the fastest on its device.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, weights: Weights, net_name: str, layers: list[str], pool: str = "avg"
    ) -> None:
        """
        Args:
            weights: torchvision-style state dict, `features.{i}.{weight,bias}`, any float dtype.
            layers: names of `layer_table`, as `resolve_layers` returns them.
        """
        super().__init__()
        self.layers, self.halos = layers, halos(layers, net_name)
        self.exchanged_after = middle_pooling(layers, net_name)
        self.halos_exchanged = halos(layers, net_name, self.exchanged_after)
        self.trunk = Trunk()
        for layer, index in layer_table(NETS[net_name]).items():
            if index is None:
                self.trunk[layer] = POOLS[pool]()
            else:
                weight, bias = (weights[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
                self.trunk[layer] = Convolution(weight, bias)
            if layer == layers[-1]:
                break
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
        """(B, 3 or 1, H, W) in [0, 1] -> {"image": (B, 3, H, W), layer: (B, C, h, w), ...}.

        Along the axes in `wrap`, "x", "y" or "xy", the picture goes on where it began. Sides that
        are a multiple of `stride` then have features that do so too. With a `dtype` the net, and
        nothing else, computes in it.

        Args:
            around: px on the sides of a part of a picture that are there to be seen, and of which
                nothing is given: as many as `halos` has for "image", or all up to where the picture
                ends. Parts are cut at multiples of `stride`.
            exchange: between those who look at parts above each other at the same time; it is
                `halos_exchanged` then that says how many px are there to be seen.
        """
        image = image.expand(-1, 3, -1, -1)  # a grey picture stays grey under any optimiser
        cut = Cut(around, self.halos)
        if exchange is not None:
            cut = Cut(around, self.halos_exchanged, exchange, self.exchanged_after)
        features = self.trunk(self._normalize(image), self.layers, wrap, dtype, cut)
        return {"image": crop(image, around), **features}

    @torch.no_grad()
    def rescale(self, exemplar: Tensor, per: str = LAYER) -> None:
        """Scale the net to unit mean activation on the exemplar, (1, 3, H, W) in [0, 1].

        Gatys et al. 2015, section 2, in one pass: since ReLU and pooling are positively
        homogeneous, dividing a filter by its mean and multiplying the next layer's input weights by
        it leaves what the net computes unchanged up to these scales.

        Args:
            per: "layer": every layer as a whole, which leaves losses that are relative to the
                exemplar's features as they are. "filter": every filter, as in the paper; but the
                paper takes the means over photographs, and over a single exemplar they amplify
                what is rare in it. The gain of a filter is at most `RESCALE_CAP` times that of its
                layer, since an uncapped one multiplies the loss by ten orders of magnitude as soon
                as it fires.

        A layer that is dead altogether keeps its weights. Large exemplars are reduced to
        `RESCALE_SIDE`: the means hardly differ, and all of their features would fill the memory.
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
