"""A picture in [0, 1] -> named VGG features: the nets, their weights, the trunk, the extractor."""

import difflib
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import (
    NOWHERE,
    Sides,
    UserError,
    folded,
    inside,
    layout_on,
    open_regular,
    padded,
    resize,
    scaled,
    sweep,
    temporary_of,
)

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
DEFAULT_NET, BUNDLED_NET = "vgg19", "vgg16-caffe"
BUNDLE = Path(__file__).resolve().parent / "weights" / "vgg16_caffe.pth"
WIDTHS = (64, 128, 256, 512, 512)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (123.68, 116.779, 103.939)  # red, green, blue from 0 to 255
CAFFE, TORCHVISION = "caffe", "torchvision"
# Layout -> the mean that is subtracted from the pixels: red, green, blue from 0 to 255.
LAYOUTS = {CAFFE: CAFFE_MEAN, TORCHVISION: tuple(round(255 * x, 3) for x in IMAGENET_MEAN)}
# How the first kernels of the authors' VGG-16 and VGG-19 begin, and the hashes that the names of
# these files carry in PyTorch's format.
CAFFE_KERNELS = ((0.42947057, 0.373467, -0.06136011), (0.341195, 0.339992, -0.0448442))
CAFFE_HASHES = ("00b39a1b", "d01eb7cb")
KERNEL_TOLERANCE = 1e-3  # relative: float16 rounds by 5e-4
ZIP_MAGIC = b"PK\x03\x04"
MOST_WEIGHT = 1000.0  # nets have none above 100, and features would overflow
STALE = 3600  # s, since anything came of a download that is not going on any more
NETWORK_TIMEOUT = 10.0  # seconds without a byte, after which a server counts as unreachable
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


# ------------------------------------------------------------------------------------- weights


class Found(NamedTuple):
    """The weights of a net."""

    weights: Weights  # in torchvision's layout
    net: str  # a name in NETS
    layout: str = TORCHVISION  # a name in LAYOUTS: that of the file
    notes: list[str] = []  # what the user should hear


def load_weights(
    model: str | None,
    path: Path | None,
    layers: list[str],
    progress: bool = False,
    layout: str | None = None,
) -> Found:
    """Return the weights of a net's convolutions.

    With a `path` its file is read: a state dict of a VGG, whole or features only, whose names tell
    which net it is. Otherwise torchvision's weights come from its cache, into which they are
    downloaded once, and from then on from a features-only copy beside them. With neither path nor
    model, the bundled net stands in where `DEFAULT_NET` cannot be had.

    Args:
        layout: a name in `LAYOUTS`: which pixels the net at `path` expects; None recognises it.

    Raises:
        UserError: the file cannot be read, holds another net or lacks a layer; or the weights of
            a model that was asked for can be neither found nor downloaded.
    """
    if path is not None:
        found = _read_file(path, layout)
        net_name = model or found.net
        _check(found.weights, net_name, layers, path)
        return found._replace(net=net_name)
    net_name = model or DEFAULT_NET
    try:
        return _find_weights(net_name, layers, progress)
    except _Unreachable as error:
        if model is not None:
            raise UserError(
                f"{error}: connect to the network once, or give --weights PATH, "
                f"or --model {BUNDLED_NET}, which is bundled"
            ) from error
        try:
            found = _find_weights(BUNDLED_NET, layers, progress)
        except UserError as missing:
            raise UserError(f"{error}; bundled {missing}") from error
        return found._replace(notes=[f"{error}: using the bundled {BUNDLED_NET}"])


def likely_net(model: str | None, path: Path | None, layout: str | None = None) -> str:
    """Predict, without a download, which net `load_weights` returns for the same arguments.

    Raises:
        UserError: the file at `path` cannot be read, or holds no VGG.
    """
    if model is not None:
        return model
    if path is not None:
        return _read_file(path, layout).net
    cached = any(os.path.exists(file) for file in _cached(DEFAULT_NET))
    return DEFAULT_NET if cached else BUNDLED_NET


class _Unreachable(UserError):
    """Weights that the cache does not hold whole and that cannot be downloaded now."""


def _cached(model: str) -> tuple[Path, Path]:
    """Where torchvision keeps the weights of a net, and the features-only copy beside them."""
    cache = Path(torch.hub.get_dir()) / "checkpoints" / str(NETS[model].url).rsplit("/")[-1]
    return cache, cache.with_suffix(".features.pth")


def _find_weights(model: str, layers: list[str], progress: bool) -> Found:
    """Return the weights of a net that is bundled, cached or downloaded.

    A file of the cache that is damaged or lacks a layer is passed over and replaced: the copy by
    one of the whole file, the whole file by a download, which leaves it alone unless it succeeds.
    """
    url = NETS[model].url
    if url is None:
        return _read_layers(BUNDLE, model, layers)
    cache, copy = _cached(model)
    passed_over: list[str] = []
    for path in (copy, cache):
        if not os.path.exists(path):
            continue
        try:
            found = _read_layers(path, model, layers)
        except UserError as error:
            passed_over.append(str(error))
            continue
        if path is cache and found.layout == TORCHVISION:  # a copy says nothing of its layout
            _write_copy(found.weights, copy)
        notes = [f"{told}: using {cache.name} instead" for told in passed_over]
        return found._replace(notes=notes + found.notes)
    told = "; ".join(passed_over)
    try:
        _download(url, cache, progress)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another hash
        reason = getattr(error, "reason", None) or error
        raise _Unreachable(
            f"{told}; {model} cannot be downloaded again now ({reason})"
            if told
            else f"{model} is neither in {cache.parent} nor to be downloaded now ({reason})"
        ) from error
    found = _read_layers(cache, model, layers)
    _write_copy(found.weights, copy)
    return found._replace(notes=[f"{told}: downloaded again"] if told else [])


def _download(url: str, cache: Path, progress: bool) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    for half in cache.parent.glob(f"{cache.name}.*.partial"):
        with suppress(OSError):
            if time.time() - half.stat().st_mtime > STALE:
                half.unlink()
    with _network_timeout():
        # Checks the hash that the file's name carries; a half download never gets the name.
        torch.hub.download_url_to_file(url, str(cache), cache.stem.split("-")[1], progress)


def _write_copy(weights: Weights, copy: Path) -> None:
    """Keep the features alone beside torchvision's file, whose 548 MB would cost every run of a
    loop; where nothing may be written there, the run does without."""
    temporary = temporary_of(copy)
    with suppress(OSError, RuntimeError):
        sweep(copy.parent)
        torch.save(weights, temporary)
        os.replace(temporary, copy)
    with suppress(OSError):
        temporary.unlink()


@contextmanager
def _network_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_layers(path: Path, net_name: str, layers: list[str]) -> Found:
    weights, layout, notes = _read_weights(path)
    _check(weights, net_name, layers, path)
    return Found(weights, net_name, layout, notes)


def _read_file(path: Path, layout: str | None) -> Found:
    """Return the weights of a file that the user gives, and what is known of them."""
    with suppress(OSError, ValueError):
        told = os.stat(path)
        return _read_version(path, layout, told.st_mtime_ns, told.st_size)
    return _read_version(path, layout, 0, 0)  # which says what is wrong


@lru_cache(maxsize=1)  # read once to learn which net it is, and once more for its weights
def _read_version(path: Path, layout: str | None, changed: int, size: int) -> Found:
    weights, layout, notes = _read_weights(path, layout)
    return Found(weights, _guess_net(weights, path), layout, notes)


def _read_weights(path: Path, layout: str | None = None) -> tuple[Weights, str, list[str]]:
    """Return the convolutions of a state dict in torchvision's layout, the file's own layout, and
    what the user should hear of it."""
    weights, renamed = _read_state(path)
    notes: list[str] = []
    if layout is None:
        layout, sure = _recognised(path, weights, renamed)
        if not sure:
            (other,) = LAYOUTS.keys() - {layout}
            note = f"assumed {layout}'s layout; if that is wrong, give --weights_layout {other}"
            notes = [f"weights {path}: {note}"]
        elif layout == CAFFE:
            notes = [f"weights {path}: Caffe's layout (BGR, 0 to 255 less the mean), converted"]
    return (_from_caffe(weights) if layout == CAFFE else weights), layout, notes


def _read_state(path: Path) -> tuple[Weights, bool]:
    """Return the convolutions of a state dict under torchvision's names, and whether they had
    others. Tensors are copied, so that the rest of the file is freed.

    Both formats of `torch.save`: zip archives are mapped into memory, so that the rest is never
    read; files from before PyTorch 1.6, torchvision's VGG among them, can only be read whole.
    """
    try:
        with open_regular(path) as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        names = {name: key for key in state if (name := _torchvision_name(key, state))}
        weights = {name: state[key].clone() for name, key in names.items()}
    except Exception as error:  # as many kinds as there are ways to damage a file
        reason = getattr(error, "strerror", None) or "not a state dict, or not all of one"
        if isinstance(error, OSError) and error.strerror is None:
            reason = str(error)
        raise UserError(f"weights {path}: {reason}") from error
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"weights {path}: {name} is not a plain tensor")
        if not tensor.is_floating_point() or not (tensor.float().abs() <= MOST_WEIGHT).all():
            raise UserError(
                f"weights {path}: {name} holds numbers beyond -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}"
            )
    return weights, any(key.startswith("conv") for key in names.values())


def _torchvision_name(key: str, state: Mapping[str, Tensor]) -> str | None:
    """Torchvision's name for a tensor of a state dict; None if it belongs to no convolution.

    Known are `features.0.weight`; `0.weight`, of the features alone; and `conv1_1.weight`, as Gatys
    et al. name them.
    """
    if match := re.fullmatch(r"(?:features\.)?(\d+)\.(weight|bias)", key):
        return f"features.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"conv(\d_\d)\.(weight|bias)", key):
        deep = any(f"conv{block}_4.weight" in state for block in (3, 4, 5))
        index = layer_table(NETS["vgg19" if deep else "vgg16"]).get(f"relu{match[1]}")
        return None if index is None else f"features.{index}.{match[2]}"
    return None


def _recognised(path: Path, weights: Weights, renamed: bool) -> tuple[str, bool]:
    """Return the layout of a file's weights, and whether that is sure."""
    first = weights.get("features.0.weight", torch.zeros(0)).flatten()[:3].tolist()
    if any(
        np.allclose(first, kernel, KERNEL_TOLERANCE, 0)
        for kernel in CAFFE_KERNELS
        if len(first) == len(kernel)
    ) or any(name in path.name for name in CAFFE_HASHES):
        return CAFFE, True
    published = (Path(net.url).stem for net in NETS.values() if net.url)
    if path.resolve() == BUNDLE or any(name in path.name for name in published):
        return TORCHVISION, True
    return (CAFFE if renamed else TORCHVISION), False


def _from_caffe(weights: Weights) -> Weights:
    """Fold Caffe's preprocessing (BGR from 0 to 255, less `CAFFE_MEAN`) into the first convolution,
    so that it takes pixels as torchvision's do.

    Exact, since both are affine in the pixels: no border is padded with zeros.
    """
    weight, bias = (weights.get(f"features.0.{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None or weight.shape != (bias.numel(), 3, 3, 3):
        return weights  # `_check` says what is missing or has another shape
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    weight = weight.float().flip(1)
    shift = (weight * (255 * mean - torch.tensor(CAFFE_MEAN)).view(1, 3, 1, 1)).sum((1, 2, 3))
    return weights | {
        "features.0.weight": weight * (255 * std).view(1, 3, 1, 1),
        "features.0.bias": bias.float() + shift,
    }


def _guess_net(weights: Weights, path: Path) -> str:
    for name, net in NETS.items():
        table = {f"features.{i}.weight" for i in layer_table(net).values() if i is not None}
        if weights and {k for k in weights if k.endswith(".weight")} <= table:
            return name
    raise UserError(
        f"weights {path}: no VGG-19 or VGG-16 under the names features.0.weight, 0.weight or "
        "conv1_1.weight"
    )


def _check(weights: Weights, net_name: str, layers: list[str], path: Path) -> None:
    deepest = resolve_layers(layers, net_name)[-1]
    channels = 3
    for layer, index in layer_table(NETS[net_name]).items():
        if index is not None:
            wide = WIDTHS[int(layer[4]) - 1]
            for kind, shape in (("weight", (wide, channels, 3, 3)), ("bias", (wide,))):
                tensor = weights.get(f"features.{index}.{kind}")
                if tensor is None or tensor.shape != shape:
                    found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
                    raise UserError(
                        f"weights {path}: features.{index}.{kind} {found}, "
                        f"{net_name} needs {shape} for {layer}"
                    )
            channels = wide
        if layer == deepest:
            return


# ------------------------------------------------------------ convolution by Winograd's method

# 3x3 convolution by a quarter of the multiplications: minimal filtering F(4x4, 3x3).
#
# Winograd 1980, as Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, use
# it: Y = A' [(G w G') * (B' d B)] A makes a block of 4x4 outputs of a window of 6x6 inputs. Every
# factor is a matrix product here, over all channels of many windows at once, so that the arithmetic
# runs at the processor's full rate. The way back is the same steps transposed, in reverse.
#
# Relative errors are 1.3e-6 in float32, those of a direct convolution 0.6e-6. Blocks of 2x2 and 3x3
# are as exact as that, but save half as much: a step through conv4_1 takes 0.87 and 0.85 of its
# time by direct convolutions, with 4x4 0.74.

BLOCK, WINDOW = 4, 6  # px, sides of what is computed at once and of what that depends on
# Where the polynomials are evaluated, beside infinity. Barabasz et al. 2020, "Error analysis and
# improving the accuracy of Winograd convolution": 1.5 times as exact as 0, 1, -1, 2, -2.
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
WINDOWS_AT_ONCE = 256  # enough for products at full rate; what they hold stays in a cache


def _powers(columns: int) -> Tensor:
    """(6, columns): the powers 0, 1, ... of each point; of infinity the highest is all there is."""
    powers = torch.tensor(POINTS, dtype=torch.float64)[:, None] ** torch.arange(columns)
    infinity = torch.zeros(1, columns, dtype=torch.float64)
    infinity[0, -1] = 1
    return torch.cat((powers, infinity))


def _winograd_matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A' (16, 36), B' (36, 36) and G (36, 9), of windows, blocks and filters row by row.

    Multiplying polynomials is multiplying their values at six points (Toom and Cook); filtering
    is the transpose of that. Rows of B' are brought near to 1 by powers of two, which G takes back.
    """
    values, filters, inputs = _powers(BLOCK), _powers(3), torch.linalg.inv(_powers(WINDOW)).T
    scale = inputs.abs().sum(1, keepdim=True).log2().round().exp2()
    inputs, filters = inputs / scale, filters * scale
    a, b, g = (torch.kron(matrix, matrix) for matrix in (values, inputs, filters))
    return a.T.contiguous(), b, g


OF_PRODUCTS, OF_INPUTS, OF_FILTERS = _winograd_matrices()


def winograd_filters(weight: Tensor) -> Tensor:
    """The filters of a convolution, (K, C, 3, 3) -> (36, C, K)."""
    filters = weight.double().permute(2, 3, 1, 0).flatten(0, 1)
    return (OF_FILTERS @ filters.flatten(1)).view(-1, *filters.shape[1:]).to(weight.dtype)


def winograd(bordered: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
    """(B, C, H + 2, W + 2) -> (B, K, H, W), channels_last, as `F.conv2d` without padding.

    Args:
        filters: (36, C, K), from `winograd_filters`.
        bias: (K,).
    """
    B, C, height, width = bordered.shape
    down, across = _blocks_over(height - 2, width - 2)
    to_inputs, to_outputs = OF_INPUTS.to(bordered.dtype), OF_PRODUCTS.to(bordered.dtype)
    output = bordered.new_empty(B, down, BLOCK, across, BLOCK, len(bias))
    for rows in _rows_at_once(down, across):
        part = _rows_of(bordered, rows, BLOCK * across + 2, 2)
        windows = part.unfold(1, WINDOW, BLOCK).unfold(2, WINDOW, BLOCK).permute(4, 5, 0, 1, 2, 3)
        inputs = to_inputs @ windows.reshape(WINDOW**2, -1)
        products = torch.bmm(inputs.view(WINDOW**2, -1, C), filters)
        blocks = to_outputs @ products.view(WINDOW**2, -1)
        blocks = blocks.view(BLOCK, BLOCK, B, -1, across, len(bias)).permute(2, 3, 0, 4, 1, 5)
        torch.add(blocks, bias, out=output[:, rows])
    maps = output.view(B, BLOCK * down, BLOCK * across, -1).permute(0, 3, 1, 2)
    return maps[..., : height - 2, : width - 2].contiguous(memory_format=torch.channels_last)


def winograd_back(gradient: Tensor, filters: Tensor) -> Tensor:
    """The gradient by what `winograd` was given: (B, K, H, W) -> (B, C, H + 2, W + 2)."""
    B, K, height, width = gradient.shape
    down, across = _blocks_over(height, width)
    C = filters.shape[1]
    of_outputs, of_inputs = (m.to(gradient.dtype).T for m in (OF_PRODUCTS, OF_INPUTS))
    # Windows overlap: by two rows and columns they reach into the blocks below and to the right.
    # From the last rows up, what they add to is there already.
    total = gradient.new_empty(B, down + 1, BLOCK, across + 1, BLOCK, C)
    total[:, -1], total[..., -1, :, :] = 0, 0
    for rows in reversed(_rows_at_once(down, across)):
        part = _rows_of(gradient, rows, BLOCK * across)
        blocks = part.reshape(B, -1, BLOCK, across, BLOCK, K).permute(2, 4, 0, 1, 3, 5)
        products = of_outputs @ blocks.reshape(BLOCK**2, -1)
        inputs = torch.bmm(products.view(WINDOW**2, -1, K), filters.mT)
        windows = (of_inputs @ inputs.view(WINDOW**2, -1)).view(WINDOW, WINDOW, B, -1, across, C)
        windows = windows.permute(2, 3, 0, 4, 1, 5)
        below = slice(rows.start + 1, rows.stop + 1)
        total[:, rows, :, :-1] = windows[:, :, :BLOCK, :, :BLOCK]
        total[:, rows, :, 1:, :2] += windows[:, :, :BLOCK, :, BLOCK:]
        total[:, below, :2, :-1] += windows[:, :, BLOCK:, :, :BLOCK]
        total[:, below, :2, 1:, :2] += windows[:, :, BLOCK:, :, BLOCK:]
    maps = total.view(B, BLOCK * (down + 1), BLOCK * (across + 1), C).permute(0, 3, 1, 2)
    return maps[..., : height + 2, : width + 2]


def _blocks_over(height: int, width: int) -> tuple[int, int]:
    """How many blocks, down and across, cover outputs of that size."""
    return -(-height // BLOCK), -(-width // BLOCK)


def _rows_at_once(down: int, across: int) -> list[slice]:
    """Rows of windows that are taken at once."""
    step = -(-WINDOWS_AT_ONCE // across)
    return [slice(top, min(top + step, down)) for top in range(0, down, step)]


def _rows_of(maps: Tensor, rows: slice, width: int, more: int = 0) -> Tensor:
    """(B, C, h, w) -> (B, ., width, C): rows of blocks, and some more below them. With zeros below
    and to the right where sides are no multiples of a block, in these few rows alone."""
    height = BLOCK * (rows.stop - rows.start) + more
    part = maps[:, :, BLOCK * rows.start : BLOCK * rows.start + height]
    if part.shape[2:] != (height, width):
        part = F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2]))
    return part.permute(0, 2, 3, 1)


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

    def forward(self, x: Tensor, tile: str = "", open_sides: Sides = NOWHERE) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W), less a row or column on every side that is open."""
        x, bias = padded(x, tile, self.border, open_sides), self.bias.to(x.dtype)
        if self._transforms(x):
            return winograd(x, self._weights(winograd_filters, x), bias).relu_()
        return F.conv2d(x, self._weights(_laid_out, x), bias).relu_()

    def back(
        self, gradient: Tensor, output: Tensor, tile: str, open_sides: Sides = NOWHERE
    ) -> Tensor:
        """The gradient by the input, (B, C, H, W), from that by the output, which is used up, and
        the output."""
        torch.ops.aten.threshold_backward(gradient, output, 0, grad_input=gradient)
        if self._transforms(gradient):
            weights = self._weights(winograd_filters, gradient)
            gradient = winograd_back(gradient, weights)
        else:
            gradient = gradient.contiguous(memory_format=layout_on(gradient.device))
            gradient = F.conv2d(gradient, self._weights(_flipped, gradient), padding=2)
        return folded(gradient, tile, self.border, open_sides)

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
    return weight.contiguous(memory_format=layout_on(weight.device))


def _flipped(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (C, K, 3, 3): what a gradient is convolved with on its way back."""
    return _laid_out(weight.transpose(0, 1).flip(2, 3))


class AveragePool(nn.Module):
    """The mean of 2x2 features; a last odd row or column is left out."""

    def forward(self, x: Tensor, tile: str = "", open_sides: Sides = NOWHERE) -> Tensor:
        return F.avg_pool2d(x, 2)

    def back(self, gradient: Tensor, x: Tensor, tile: str, open_sides: Sides = NOWHERE) -> Tensor:
        """The gradient by the input, x, from that by the output."""
        return torch.ops.aten.avg_pool2d_backward(
            gradient, x, (2, 2), (2, 2), (0, 0), False, True, None
        )


class MaxPool(nn.Module):
    """The largest of 2x2 features; a last odd row or column is left out."""

    def forward(self, x: Tensor, tile: str = "", open_sides: Sides = NOWHERE) -> Tensor:
        return F.max_pool2d(x, 2)

    def back(self, gradient: Tensor, x: Tensor, tile: str, open_sides: Sides = NOWHERE) -> Tensor:
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

    around: Sides = NOWHERE  # px that lie around it: the halo, or all up to where the picture ends
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

    def surrounded(self, maps: Tensor, layer: str) -> Tensor:
        """What a stage gives of the part, with the halo that others know."""
        if self.exchange is None or layer != self.exchanged_after:
            return maps
        halo = self.halos[layer]
        above, below = self.exchange(maps[:, :, :halo], maps[:, :, -halo:])
        return torch.cat([x for x in (above, maps, below) if x.shape[2]], 2)

    def gathered(self, gradient: Tensor, layer: str) -> Tensor:
        """The gradient by what `surrounded` was given, from that by what it returned, of which it
        becomes a part: what was given has gradients where it went."""
        if self.exchange is None or layer != self.exchanged_after:
            return gradient
        own = inside(gradient, self.beyond(layer))
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
        tile: str = "",
        dtype: torch.dtype | None = None,
        cut: Cut = WHOLE,
    ) -> dict[str, Tensor]:
        """(B, 3, H, W), normalised -> the layers asked for, (B, C, h, w) each, without what lies
        around a picture that was cut out.

        Gradients are those of autograd to rounding; there is no second derivative.

        Args:
            tile: axes along which the maps go on where they began, of "x" and "y".
            dtype: to compute in; None means that of x, which the features have in any case.
        """
        dtype = dtype or x.dtype
        if torch.is_grad_enabled() and x.requires_grad:
            features = _Pass.apply(x, self, layers, tile, dtype, cut)
        else:
            features, _ = self.run(x, layers, tile, dtype, keep=False, cut=cut)
        return dict(zip(layers, features, strict=True))

    def run(
        self,
        x: Tensor,
        layers: Sequence[str],
        tile: str,
        dtype: torch.dtype,
        keep: bool,
        cut: Cut = WHOLE,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The layers asked for, and with `keep` what every stage needs on the way back."""
        features, kept, given = [], [], x.dtype
        x = x.to(dtype, memory_format=layout_on(x.device))
        for layer, stage in self.items():
            y = stage(x, tile, cut.open_sides)
            if keep:
                kept.append(y if isinstance(stage, Convolution) else x)
            x = cut.surrounded(y, layer)
            if layer in layers:
                features.append(inside(x, cut.beyond(layer)).to(given))
        return features, kept


class _Pass(torch.autograd.Function):
    """All stages there and back: normalised pixels -> features."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        trunk: Trunk,
        layers: Sequence[str],
        tile: str,
        dtype: torch.dtype,
        cut: Cut,
    ) -> tuple[Tensor, ...]:
        features, kept = trunk.run(x, layers, tile, dtype, keep=True, cut=cut)
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        ctx.trunk, ctx.layers, ctx.tile, ctx.given, ctx.cut = trunk, layers, tile, x.dtype, cut
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
                inside(gradient, beyond).add_(added)
            if gradient is not None:
                gradient = ctx.cut.gathered(gradient, layer)
                gradient = stage.back(gradient, kept, ctx.tile, ctx.cut.open_sides)
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
        tile: str = "",
        dtype: torch.dtype | None = None,
        around: Sides = NOWHERE,
        exchange: Exchange | None = None,
    ) -> Features:
        """(B, 3 or 1, H, W) in [0, 1] -> {"image": (B, 3, H, W), layer: (B, C, h, w), ...}.

        Along the axes in `tile`, "x", "y" or "xy", the picture goes on where it began. Sides that
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
        features = self.trunk(self._normalize(image), self.layers, tile, dtype, cut)
        return {"image": inside(image, around), **features}

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
        x = self._normalize(resize(exemplar, scaled(exemplar, factor)))
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
