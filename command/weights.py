"""Find, download, cache, read and recognise files of VGG weights."""

import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from command.files import ROOT, FileState, file_state, open_regular, save_bytes, sweep
from models import IMAGENET_MEAN, IMAGENET_STD, NETS, Weights, layer_table, layers_until, width
from utils import UserError, prefixed, reason_of

DEFAULT_NET, BUNDLED_NET = "vgg19", "vgg16-caffe"
BUNDLE = ROOT / "weights" / "vgg16_caffe.pth"
CAFFE_MEAN = (123.68, 116.779, 103.939)  # red, green and blue, from 0 to 255
CAFFE, TORCHVISION = "caffe", "torchvision"
# Mean that each layout subtracts from the pixels: red, green and blue, from 0 to 255.
LAYOUTS = {CAFFE: CAFFE_MEAN, TORCHVISION: tuple(round(255 * x, 3) for x in IMAGENET_MEAN)}
# First values of the first kernels of the authors' VGG-16 and VGG-19, and the hashes in the names
# of these files in PyTorch's format.
CAFFE_KERNELS = ((0.42947057, 0.373467, -0.06136011), (0.341195, 0.339992, -0.0448442))
CAFFE_HASHES = ("00b39a1b", "d01eb7cb")
KERNEL_TOLERANCE = 1e-3  # relative: float16 rounds by 5e-4
ZIP_MAGIC = b"PK\x03\x04"
MOST_WEIGHT = 1000.0  # published weights are below 100; features of larger ones overflow
STALE = 3600  # s: age after which a partial download is considered stale
NETWORK_TIMEOUT = 10.0  # s without data after which a server is considered unreachable


class LoadedWeights(NamedTuple):
    """Weights of a network."""

    weights: Weights  # in torchvision's layout
    net: str  # key of NETS
    layout: str = TORCHVISION  # key of LAYOUTS: layout of the file
    notes: list[str] = []  # for the user


def load_weights(
    model: str | None,
    path: Path | None,
    layers: list[str],
    *,
    progress: bool = False,
    layout: str | None = None,
) -> LoadedWeights:
    """Return the weights of the convolutions of a network.

    Without a path, torchvision's weights are downloaded once into its cache; later runs read a copy
    beside them that holds the convolutions alone.

    Args:
        model: Key of `NETS`. None means the network of the file at `path`; without a path,
            `DEFAULT_NET` or, if its weights are not available, `BUNDLED_NET`.
        path: State dict of a VGG, with or without the classifier.
        layers: Names of layers as returned by `resolve_layers`, whose weights must be present.
        progress: Show a progress bar while downloading.
        layout: Key of `LAYOUTS`: layout of the file at `path`. None recognises it.

    Raises:
        UserError: The file cannot be read, holds another network or lacks a layer; or the weights
            of `model` are neither cached nor can be downloaded.
    """
    if path is not None:
        found = _read_file(path, layout, file_state(path))
        net_name = model or found.net
        _check(found.weights, net_name, layers, path)
        return found._replace(net=net_name)
    try:
        return _find_weights(model or DEFAULT_NET, layers, progress)
    except _Unreachable as error:
        if model is not None:
            raise UserError(
                f"{error}: connect to the network once, or give --weights PATH, "
                f"or --model {BUNDLED_NET}, which is bundled"
            ) from error
        with prefixed(f"{error}; bundled "):
            found = _find_weights(BUNDLED_NET, layers, progress)
        return found._replace(notes=[f"{error}: using the bundled {BUNDLED_NET}"])


def likely_net(model: str | None, path: Path | None, layout: str | None = None) -> str:
    """Predict the network that `load_weights` returns, without downloading anything.

    Raises:
        UserError: The file at `path` cannot be read or is not a VGG.
    """
    if model is not None:
        return model
    if path is not None:
        return _read_file(path, layout, file_state(path)).net
    cached = any(os.path.exists(file) for file in _cache_paths(DEFAULT_NET))
    return DEFAULT_NET if cached else BUNDLED_NET


class _Unreachable(UserError):
    """Weights are missing or damaged in the cache and cannot be downloaded."""


def _cache_paths(model: str) -> tuple[Path, Path]:
    """Return the paths of torchvision's cached weights and of the copy of the convolutions."""
    cache = Path(torch.hub.get_dir()) / "checkpoints" / str(NETS[model].url).rsplit("/")[-1]
    return cache, cache.with_suffix(".features.pth")


def _find_weights(model: str, layers: list[str], progress: bool) -> LoadedWeights:
    """Return the bundled, cached or downloaded weights of a network.

    A cached file that is damaged or lacks a layer is replaced: the copy by the convolutions of the
    whole file, the whole file by a download if that succeeds.
    """
    url = NETS[model].url
    if url is None:
        return _read_layers(BUNDLE, model, layers)
    cache, copy = _cache_paths(model)
    passed_over: list[str] = []
    for path in (copy, cache):
        if not os.path.exists(path):
            continue
        try:
            found = _read_layers(path, model, layers)
        except UserError as error:
            passed_over.append(str(error))
            continue
        if path is cache and found.layout == TORCHVISION:  # a copy does not store its layout
            _write_copy(found.weights, copy)
        notes = [f"{fault}: using {cache.name} instead" for fault in passed_over]
        return found._replace(notes=notes + found.notes)
    faults = "; ".join(passed_over)
    try:
        _download(url, cache, progress)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another hash
        reason = getattr(error, "reason", None) or error
        raise _Unreachable(
            f"{faults}; {model} cannot be downloaded again now ({reason})"
            if faults
            else f"{model} is not in {cache.parent} and cannot be downloaded now ({reason})"
        ) from error
    found = _read_layers(cache, model, layers)
    _write_copy(found.weights, copy)
    return found._replace(notes=[f"{faults}: downloaded again"] if faults else [])


def _download(url: str, cache: Path, progress: bool) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    for half in cache.parent.glob(f"{cache.name}.*.partial"):
        with suppress(OSError):
            if time.time() - half.stat().st_mtime > STALE:
                half.unlink()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        # Checks the hash in the name; a partial download has another name.
        torch.hub.download_url_to_file(url, str(cache), cache.stem.split("-")[1], progress)
    finally:
        socket.setdefaulttimeout(before)


def _write_copy(weights: Weights, copy: Path) -> None:
    """Save the convolutions beside torchvision's file, whose 548 MB take longer to read. Does
    nothing if the folder is not writable."""
    sweep(copy.parent)
    file = BytesIO()
    torch.save(weights, file)
    with suppress(UserError):
        save_bytes(file.getbuffer(), copy)


def _read_layers(path: Path, net_name: str, layers: list[str]) -> LoadedWeights:
    found = _read_weights(path, None, net_name)
    _check(found.weights, net_name, layers, path)
    return found


@lru_cache(maxsize=1)  # for `likely_net`, then for `load_weights`
def _read_file(path: Path, layout: str | None, state: FileState | None) -> LoadedWeights:
    """Return the weights of a file given by the user, whose state tells its versions apart."""
    return _read_weights(path, layout, None)


def _read_weights(path: Path, layout: str | None, net_name: str | None) -> LoadedWeights:
    """Return the convolutions of a file.

    Args:
        layout: as for `load_weights`.
        net_name: Key of `NETS`. None recognises it.
    """
    weights, renamed = _read_state(path)
    notes: list[str] = []
    if layout is None:
        layout, sure = _recognise_layout(path, weights, renamed)
        if not sure:
            (other,) = LAYOUTS.keys() - {layout}
            note = f"assumed {layout}'s layout; if that is wrong, give --weights_layout {other}"
            notes = [f"weights {path}: {note}"]
        elif layout == CAFFE:
            notes = [f"weights {path}: Caffe's layout (BGR, 0 to 255 less the mean), converted"]
    if layout == CAFFE:
        weights = _from_caffe(weights)
    return LoadedWeights(weights, net_name or _guess_net(weights, path), layout, notes)


def _read_state(path: Path) -> tuple[Weights, bool]:
    """Return the convolutions of a state dict under torchvision's names, and whether the file has
    other names.

    Tensors are copied so that the rest of the file is freed. Zip archives are mapped into memory,
    so that the rest is not read; files in the format before PyTorch 1.6, as torchvision's VGG are,
    can only be read whole.
    """
    try:
        with open_regular(path) as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        names = {name: key for key in state if (name := _torchvision_name(key, state))}
        weights = {name: state[key].clone() for name, key in names.items()}
    except Exception as error:  # damaged files raise many types
        known = isinstance(error, OSError)
        reason = reason_of(error) if known else "not a state dict, or incomplete"
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
    """Return torchvision's name of a tensor, or None if it does not belong to a convolution.

    Accepts `features.0.weight`, `0.weight` (of `features` alone) and `conv1_1.weight` (Gatys et
    al.).
    """
    if match := re.fullmatch(r"(?:features\.)?(\d+)\.(weight|bias)", key):
        return f"features.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"conv(\d_\d)\.(weight|bias)", key):
        deep = any(f"conv{block}_4.weight" in state for block in (3, 4, 5))
        index = layer_table(NETS["vgg19" if deep else "vgg16"]).get(f"relu{match[1]}")
        return None if index is None else f"features.{index}.{match[2]}"
    return None


def _recognise_layout(path: Path, weights: Weights, renamed: bool) -> tuple[str, bool]:
    """Return the layout of the weights of a file, and whether it is certain."""
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
    """Fold Caffe's preprocessing (BGR from 0 to 255 minus `CAFFE_MEAN`) into the first convolution,
    which then takes pixels normalised as for torchvision.

    Exact, as both are affine in the pixels and no convolution pads with zeros.
    """
    weight, bias = (weights.get(f"features.0.{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None or weight.shape != (bias.numel(), 3, 3, 3):
        return weights  # `_check` raises
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
        f"weights {path}: not a VGG-19 or VGG-16, whose first weight is named features.0.weight, "
        "0.weight or conv1_1.weight"
    )


def _check(weights: Weights, net_name: str, layers: list[str], path: Path) -> None:
    channels = 3
    for layer, index in layers_until(layers, net_name):
        if index is not None:
            wide = width(layer)
            for kind, shape in (("weight", (wide, channels, 3, 3)), ("bias", (wide,))):
                tensor = weights.get(f"features.{index}.{kind}")
                if tensor is None or tensor.shape != shape:
                    found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
                    raise UserError(
                        f"weights {path}: features.{index}.{kind} {found}, "
                        f"{net_name} needs {shape} for {layer}"
                    )
            channels = wide
