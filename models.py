"""A picture in [0, 1] -> named VGG features: the nets, their weights, the extractor."""

import difflib
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch
from torch import Tensor, nn

from utils import UserError, padded, resize, scaled

Weights = dict[str, Tensor]
Features = dict[str, Tensor]  # layer -> (B, C, h, w); "image" -> the pixels, (B, 3, H, W)


class Net(NamedTuple):
    """A VGG trunk: convolutions per block, and where its weights are."""

    blocks: tuple[int, ...]
    url: str | None = None  # torchvision's, written here since importing it takes two seconds


NETS = {
    "vgg19": Net((2, 2, 4, 4, 4), "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"),
    "vgg16": Net((2, 2, 3, 3, 3), "https://download.pytorch.org/models/vgg16-397923af.pth"),
    "vgg16-hed": Net((2, 2, 3, 3, 3)),
}
DEFAULT_NET, BUNDLED_NET = "vgg19", "vgg16-hed"
BUNDLE = Path(__file__).resolve().parent / "weights" / "vgg16_hed.pth"
POOLS = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}
WIDTHS = (64, 128, 256, 512, 512)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ZIP_MAGIC = b"PK\x03\x04"
NETWORK_TIMEOUT = 10.0  # seconds without a byte, after which a server counts as unreachable
RESCALE_SIDE = 256  # px, shorter side on which means are taken; a photograph's need no more
RESCALE_CAP = 2.0  # a filter's gain is at most this many times the gain of its layer's mean


def layer_table(net: Net) -> dict[str, int | None]:
    """Every layer of a net in order -> the index of its convolution in torchvision's `features`.

    Layers are `relu1_1 ... relu5_4` and `pool1 ... pool5`; a pooling layer has no index.
    """
    table: dict[str, int | None] = {}
    index = 0
    for block, count in enumerate(net.blocks, 1):
        for i in range(1, count + 1):
            table[f"relu{block}_{i}"] = index
            index += 2  # a convolution and its ReLU
        table[f"pool{block}"] = None
        index += 1
    return table


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


# ------------------------------------------------------------------------------------- weights


def load_weights(
    model: str | None, path: Path | None, layers: list[str], progress: bool = False
) -> tuple[Weights, str, list[str]]:
    """The weights of a net's convolutions, the name of the net, and what the user should hear.

    With a `path` its file is read: any torchvision-style state dict, whole or features only, and
    its shapes tell which net it is. Otherwise torchvision's weights come from its cache, into
    which they are downloaded once, and from then on from a features-only copy beside them. With
    neither path nor model, the bundled net stands in where `DEFAULT_NET` cannot be had.

    Raises:
        UserError: the file cannot be read, holds another net or lacks a layer; or the weights of
            a model that was asked for can be neither found nor downloaded.
    """
    if path is not None:
        weights = _read_weights(path)
        net_name = model or _guess_net(weights, path)
        _check(weights, net_name, layers, path)
        return weights, net_name, []
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
            weights, net_name, _ = _find_weights(BUNDLED_NET, layers, progress)
        except UserError as missing:
            raise UserError(f"{error}; bundled {missing}") from error
        return weights, net_name, [f"{error}: using the bundled {BUNDLED_NET}"]


class _Unreachable(UserError):
    """Weights that the cache does not hold whole and that cannot be downloaded now."""


def _find_weights(model: str, layers: list[str], progress: bool) -> tuple[Weights, str, list[str]]:
    """What `load_weights` returns, of a net that is bundled, cached or downloaded.

    A file of the cache that is damaged or lacks a layer is passed over and replaced: the copy by
    one of the whole file, the whole file by a download, which leaves it alone unless it succeeds.
    """
    url = NETS[model].url
    if url is None:
        return _read_layers(BUNDLE, model, layers), model, []
    cache = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/")[-1]
    copy = cache.with_suffix(".features.pth")
    passed_over: list[str] = []
    for path in (copy, cache):
        if not os.path.exists(path):
            continue
        try:
            weights = _read_layers(path, model, layers)
        except UserError as error:
            passed_over.append(str(error))
            continue
        if path is cache:
            _write_copy(weights, copy)
        return weights, model, [f"{told}: using {cache.name} instead" for told in passed_over]
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
    weights = _read_layers(cache, model, layers)
    _write_copy(weights, copy)
    return weights, model, [f"{told}: downloaded again"] if told else []


def _download(url: str, cache: Path, progress: bool) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    with _network_timeout():
        # Checks the hash that the file's name carries; a half download never gets the name.
        torch.hub.download_url_to_file(url, str(cache), cache.stem.split("-")[1], progress)


def _write_copy(weights: Weights, copy: Path) -> None:
    """Keep the features alone beside torchvision's file, whose 548 MB would cost every run of a
    loop; where nothing may be written there, the run does without."""
    temporary = copy.with_name(f".{uuid4().hex}.tmp")
    with suppress(OSError, RuntimeError):
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


def _read_weights(path: Path) -> Weights:
    """The `features.*` tensors of a state dict, copied, so that the rest of the file is freed.

    Both formats of `torch.save`: zip archives are mapped into memory, so that the rest is never
    read; files from before PyTorch 1.6, torchvision's VGG among them, can only be read whole.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        weights = {k: v.clone() for k, v in state.items() if k.startswith("features.")}
    except Exception as error:  # as many kinds as there are ways to damage a file
        reason = getattr(error, "strerror", None) or "not a state dict, or not all of one"
        raise UserError(f"weights {path}: {reason}") from error
    return weights


def _read_layers(path: Path, net_name: str, layers: list[str]) -> Weights:
    weights = _read_weights(path)
    _check(weights, net_name, layers, path)
    return weights


def _guess_net(weights: Weights, path: Path) -> str:
    for name, net in NETS.items():
        table = {f"features.{i}.weight" for i in layer_table(net).values() if i is not None}
        if weights and {k for k in weights if k.endswith(".weight")} <= table:
            return name
    raise UserError(f"weights {path}: neither a VGG-19 nor a VGG-16 in torchvision's layout")


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


# ----------------------------------------------------------------------------------- extractor


class Extractor(nn.Module):
    """A picture -> its features at the layers asked for; frozen, cut after the deepest of them.

    Borders are reflected before every convolution, as zeros leave a desaturated rim, or wrapped
    round. Before the first one the outermost pixels are repeated instead: mirrored about them, no
    picture has a slope there, and what no filter sees of them an optimiser fills with beads.
    Everything inside runs in channels_last, the faster layout on CPU and GPU alike.
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
        self.layers = layers
        self.trunk = nn.Sequential()
        channels = 3
        remaining = set(layers)
        for layer, index in layer_table(NETS[net_name]).items():
            if not remaining:
                break
            if index is None:
                self.trunk.add_module(layer, POOLS[pool](2))
            else:
                weight = weights[f"features.{index}.weight"]
                conv = nn.utils.skip_init(nn.Conv2d, channels, len(weight), 3)
                conv.load_state_dict({"weight": weight, "bias": weights[f"features.{index}.bias"]})
                self.trunk.add_module(layer.replace("relu", "conv"), conv)
                self.trunk.add_module(layer, nn.ReLU(inplace=True))
                channels = len(weight)
            remaining.discard(layer)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def _normalize(self, image: Tensor) -> Tensor:
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, image: Tensor, tile: str = "") -> Features:
        """(B, 3 or 1, H, W) in [0, 1] -> {"image": (B, 3, H, W), layer: (B, C, h, w), ...}.

        Along the axes in `tile`, "x", "y" or "xy", the picture goes on where it began. Sides that
        are a multiple of `stride` then have features that do so too.
        """
        image = image.expand(-1, 3, -1, -1)  # a grey picture stays grey under any optimiser
        features = {"image": image}
        x = self._normalize(image)
        for name, module in self.trunk.named_children():
            x = module(_bordered(x, tile) if isinstance(module, nn.Conv2d) else x)
            if name in self.layers:
                features[name] = x
        return features

    @torch.no_grad()
    def rescale(self, exemplar: Tensor) -> None:
        """Scale every filter to unit mean activation on the exemplar, (1, 3, H, W) in [0, 1].

        Gatys et al. 2015, section 2, in one pass: ReLU and pooling being positively homogeneous,
        dividing a filter by its mean and multiplying the next layer's input weights by it leaves
        what the net computes unchanged up to these scales. We depart from the paper for rare
        filters, whose gain is capped at `RESCALE_CAP` times that of their layer's mean: an
        uncapped one multiplies the loss by ten orders of magnitude as soon as it fires. A layer
        that is dead altogether keeps its weights. Large exemplars are looked at in fewer pixels,
        `RESCALE_SIDE`, as the means hardly differ and all of their features would fill the memory.
        """
        factor = min(1, RESCALE_SIDE / min(exemplar.shape[2:]))
        x = self._normalize(resize(exemplar, scaled(exemplar, factor)))
        gain_in = torch.ones(3, device=x.device)
        for module in self.trunk:
            if not isinstance(module, nn.Conv2d):
                x = module(x)
                continue
            x = module(_bordered(x, ""))
            activation = x.relu().mean((0, 2, 3))
            floor = activation.mean() / RESCALE_CAP
            gain = 1 / activation.clamp(min=floor) if floor > 0 else torch.ones_like(activation)
            module.weight *= gain[:, None, None, None] / gain_in[None, :, None, None]
            module.bias *= gain  # type: ignore[operator]  # every convolution of a VGG has one
            gain_in = gain


def _bordered(x: Tensor, tile: str) -> Tensor:
    """What a convolution is given: one more row and column on every side of pixels or features."""
    return padded(x, tile, "replicate" if x.shape[1] == 3 else "reflect")
