"""The flags of the command: their defaults, their help texts and the parsers of their values.

Each flag is a field of `Request` (type and default) and an entry of `FLAGS` (help and parser).
"""

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from command.kinds import GIVEN
from command.memory import Held
from command.pictures import MAX_SIDE, SUFFIXES
from command.weights import BUNDLED_NET, DEFAULT_NET, LAYOUTS
from engine.histogram import LUMINANCE, MATCHED
from engine.objective import CONVERGENCE_WINDOW
from engine.optimizers import LEARNING_RATES, OPTIMIZERS, Adam
from engine.orientation import FIELDS
from engine.painting import MIN_SIDE
from engine.precision import AUTO, PRECISIONS
from losses import MATCH_EVERY, METHODS, MOST_PAINTED, PRESETS
from models import FILTER, NETS, POOLS
from terms.base import MAX_PATCHES

CONTENT_LAYERS, CONTENT_WEIGHT = ("conv4_1",), 0.05  # of style transfer
MOST_PICTURES = 100_000  # by one run
MOST_STEPS = 10**9  # four months at a hundred steps per second
MOST_WORKERS = 1024
MOST_TILES = 64  # of a set
AUTO_SIZE = "auto:"  # prefix of a size near which one that holds whole repeats is taken
LEAST_MEMORY = 1e6  # bytes; a smaller number most likely lacks its unit


@dataclass(frozen=True)
class Request:
    """The flags as given by the user: files are not read and combinations not checked yet."""

    gt_path: Sequence[str] = ("leaf.jpg",)
    style_image: str | None = None
    from_picture: Path | None = None
    config: Path | None = None
    save_path: Path = Path("result.jpg")
    save_every: int | None = None
    size: tuple[int, int] | str | None = None  # str: AUTO_SIZE and N or WIDTHxHEIGHT

    tile: str = ""
    tile_set: int | None = None
    edges_of: str | None = None
    guide: Sequence[Sequence[str]] = ()
    orientation: str | None = None
    mix: Sequence[tuple[str, float | None]] = ()
    maps: Sequence[str] = ()
    alpha: bool = False
    init: str | None = None
    mask: str | None = None
    expand: tuple[int, int] | None = None
    content_layers: Sequence[str] | None = None
    content_weight: float | None = None
    keep_color: bool = False
    exact_histogram: str | None = None

    preset: str | None = None
    method: str = "gram"
    layers: Sequence[tuple[str, float]] | None = None
    repaint: float = 0.0
    pool: str = "avg"
    rescale: bool | str = True
    terms: dict[str, float] = field(default_factory=dict)  # weights given for terms, by name

    match_every: int | None = None
    patch_rotations: Sequence[float] = ()
    patch_scales: Sequence[float] = ()
    max_patches: int | None = None

    model: str | None = None
    weights: Path | None = None
    weights_layout: str | None = None
    device: str | None = None
    precision: str = AUTO

    optimizer: str = "Adam"
    epoch: int = 1000
    tolerance: float = 0.0
    lr: float | None = None
    scales: int | None = None
    max_memory: float | None = None
    split: bool = False
    workers: int | None = None
    seed: int = 0

    bits: str | None = None
    count: int = 1
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    sheet: Path | None = None
    animate: Path | None = None
    preview: bool = False
    progress: str = "text"
    log: Path | None = None

    score: str | None = None
    report: Path | None = None
    page_alone: bool = False  # --report without flags that make pictures
    # Flags by name: `asked` holds those given now and those recorded in the picture of --from,
    # `typed` the names of those given now. A preset counts as one flag; flags of --config count as
    # given now.
    asked: dict[str, Any] = field(default_factory=dict, compare=False)
    typed: frozenset[str] = field(default=frozenset(), compare=False)
    # Pictures in memory, by their names in flags.
    pictures: Mapping[str, Held] = field(default_factory=dict, compare=False)
    json: bool = False

    @property
    def init_picture(self) -> str | None:
        """The picture of --init; None where --init names none."""
        return None if self.init in ("noise", "content") else self.init


# ------------------------------------------------------------------------------------ the values


def number(kind: type, least: float, unit: str, most: float | None = None) -> Callable[[str], Any]:
    """Return a parser for argparse of finite numbers from `least` to `most`.

    Args:
        unit: Noun phrase for error messages, such as "a share".
    """
    allowed = f"from {least} to {most}" if most is not None else f"of at least {least}, below 2^63"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < 2**63 or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r}: give {unit} {allowed}")
        return value

    return parse


def parse_scales(text: str) -> int | None:
    """Return a number of scales; None for 'auto'."""
    return None if text.lower() == "auto" else number(int, 1, "auto, or a whole number")(text)


def parse_bytes(text: str) -> float:
    """Return a size in bytes: '4GB', '4 g' and '4000m' are 4e9.

    Raises:
        argparse.ArgumentTypeError: The text is not a size or is below LEAST_MEMORY.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmgt])?b?\s*", text, re.IGNORECASE)
    size = float(match[1]) * 1000 ** (" kmgt".index((match[2] or " ").lower())) if match else 0.0
    if not LEAST_MEMORY <= size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a size like 4GB or 800MB, at least 1MB")
    return size


def parse_optimizer(text: str) -> str:
    """Return the name of an optimiser, ignoring case and hyphens; unknown names are unchanged."""
    names = {name.lower(): name for name in OPTIMIZERS}
    return names.get(text.lower().replace("-", ""), text)


def parse_size(text: str) -> tuple[int, int]:
    """Return '512' as (512, 512) and '512x256', width first, as (256, 512).

    Raises:
        argparse.ArgumentTypeError: A side is not an integer from 1 to MAX_SIDE.
    """
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.strip(), re.IGNORECASE)
    width, height = (int(side) for side in (match[1], match[2] or match[1])) if match else (0, 0)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        allowed = f"N or WIDTHxHEIGHT, each from 1 to {MAX_SIDE} pixels"
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give {allowed}")
    return height, width


def parse_size_or_auto(text: str) -> tuple[int, int] | str:
    """Return a size as `parse_size` does; 'auto:' and a valid size is
    returned as text, stripped and in lower case.

    Raises:
        argparse.ArgumentTypeError: As `parse_size`.
    """
    word = text.strip().lower()
    if not word.startswith(AUTO_SIZE.rstrip(":")):
        return parse_size(text)
    try:
        parse_size(word.removeprefix(AUTO_SIZE))
    except argparse.ArgumentTypeError as error:
        allowed = f"{AUTO_SIZE}N or {AUTO_SIZE}WIDTHxHEIGHT, each from 1 to {MAX_SIDE} pixels"
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give {allowed}") from error
    return word


def parse_save_path(text: str) -> Path:
    """Return the path; text that ends with a slash is a folder, even if it does not exist yet."""
    return Path(text) / "{stem}.png" if text.endswith("/") else Path(text)


def parse_share(text: str) -> tuple[str, float | None]:
    """Return 'b.jpg:0.3' as ('b.jpg', 0.3) and 'b.jpg' as ('b.jpg', None).

    Raises:
        argparse.ArgumentTypeError: The share is not between 0 and 1, exclusive.
    """
    name, _, share = text.rpartition(":")
    try:
        value = float(share)
    except ValueError:
        return text, None
    if not name or not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give PICTURE:SHARE, SHARE between 0 and 1")
    return name, value


def parse_layer(text: str) -> tuple[str, float]:
    """Return 'conv4_1:0.5' as ('conv4_1', 0.5) and 'conv4_1' as ('conv4_1', 1.0).

    Raises:
        argparse.ArgumentTypeError: The weight is not a positive finite number.
    """
    name, colon, weight = text.partition(":")
    try:
        value = float(weight) if colon else 1.0
    except ValueError:
        value = math.nan
    if not name or not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give LAYER:WEIGHT, WEIGHT above 0")
    return name, value


def parse_bool(text: str, allowed: str) -> bool:
    """Return a boolean; `type=bool` would read 'False' as true.

    Args:
        allowed: Values of the flag, for the error message.

    Raises:
        argparse.ArgumentTypeError: The text is not true, yes, on, 1, false, no, off or 0.
    """
    word = text.strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: give {allowed}")


def parse_rescale(text: str) -> bool | str:
    """Return True, False or 'filter'.

    Raises:
        argparse.ArgumentTypeError: The text is none of these.
    """
    is_filter = text.strip().lower() == FILTER
    return FILTER if is_filter else parse_bool(text, f"True, False or {FILTER}")


def parse_exact_histogram(text: str) -> str | None:
    """Return a name in MATCHED ('True' means LUMINANCE), or None for 'off'.

    Raises:
        argparse.ArgumentTypeError: The text is none of these.
    """
    word = text.strip().lower().replace("colour", "color")
    if word in MATCHED:
        return word
    return LUMINANCE if parse_bool(text, f"{', '.join(MATCHED)} or off") else None


# ------------------------------------------------------------------------------------- the table


class Flag(NamedTuple):
    """The help text of a flag and its options for `argparse`."""

    help: str
    names: tuple[str, ...]  # as typed; () means "--" followed by the name of the field
    default: str  # as --help shows it; "" means the default of the field
    options: dict[str, Any]  # keyword arguments of `ArgumentParser.add_argument`


def flag(help: str, *names: str, default: str = "", **options: Any) -> Flag:
    """Return the entry of a flag with one value."""
    return Flag(help, names, default, options)


def several(help: str, *names: str, default: str = "", **options: Any) -> Flag:
    """Return the entry of a flag with one or more values; repeating the flag appends values."""
    return Flag(help, names, default, {"nargs": "+", "action": "extend"} | options)


def switch(help: str) -> Flag:
    """Return the entry of a flag without a value."""
    return Flag(help, (), "", {"action": "store_true"})


def weight(help: str, default: str) -> Flag:
    """Return the entry of a weight of the loss."""
    return flag(help, default=default, type=number(float, 0, "a weight"), metavar="WEIGHT")


def _count(help: str, most: int | None = None, *, least: int = 1, default: str = "") -> Flag:
    kind = number(int, least, "a whole number", most)
    return flag(help, default=default, type=kind, metavar="N")


def _file(help: str, *names: str, default: str = "", metavar: str = "FILE") -> Flag:
    return flag(help, *names, default=default, type=Path, metavar=metavar)


def _spelled(flags: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in flags.items())


# Headings of --help to which `command.arguments` adds flags.
MODEL, TERM = "texture model", "terms added to the texture model"
FLAGS: dict[str, dict[str, Flag]] = {}  # heading of --help -> name of a field -> its flag
FLAGS["pictures"] = {
    "gt_path": several(
        "exemplars: files (searched at the path given, then in textures/), folders or patterns "
        "such as photos/*.png",
        *("--gt_path", "--image_path"),
        metavar="PICTURE",
    ),
    "style_image": flag(
        "exemplar of style transfer; --image_path then gives the content", metavar="PICTURE"
    ),
    "from_picture": _file(
        "make a picture again with the flags in its embedded record; other flags override them",
        "--from",
        metavar="PICTURE",
    ),
    "config": _file(
        "read flags from a TOML file (lines such as size = 512); the command line overrides them"
    ),
    "save_path": flag(
        f"result: a file, whose suffix sets the format ({' '.join(SUFFIXES)}), a folder, or a "
        "pattern with {stem} of the exemplar and {seed}; with several exemplars or seeds, their "
        "stem or seed is appended to a file name",
        type=parse_save_path,
        metavar="FILE",
    ),
    "save_every": _count("also save a snapshot every N steps, beside the result", MOST_STEPS),
    "size": flag(
        "size of the output in pixels; auto:N, auto:WxH: the nearest one that holds whole repeats "
        "of a periodic exemplar",
        default="that of the exemplar, or of the maps that describe the output",
        type=parse_size_or_auto,
        metavar="N|WxH|auto:N",
    ),
}
FLAGS["control"] = {
    "tile": flag(
        "make the output seamless horizontally (x), vertically (y) or both (xy); also saves the "
        "output repeated as NAME_tiled",
        choices=("x", "y", "xy"),
    ),
    "tile_set": _count(
        "make N tiles that fit each other along every edge, NAME_1 to NAME_N, and NAME_floor, a "
        "floor of them in random order; implies --tile xy",
        MOST_TILES,
        least=2,
    ),
    "edges_of": flag(
        "with --tile xy: give the output the edges of this seamless tile, so that both fit each "
        "other along every edge",
        metavar="PICTURE",
    ),
    "guide": flag(
        "control maps of the exemplar and of the output: one colour for each region, or grey "
        "levels for a progression; may be given again",
        nargs=2,
        action="append",
        metavar=("SOURCE_MAP", "OUTPUT_MAP"),
    ),
    "orientation": flag(
        "direction of the texture: degrees counter-clockwise from the horizontal, "
        f"{', '.join(FIELDS)}, a picture whose hue is twice the angle, or a .npy file of shape "
        "(2, H, W) with vectors (right, down)",
        default="that of the exemplar",
        metavar="DEGREES|FIELD|FILE",
    ),
    "mix": several(
        "further exemplars and their shares; --gt_path gets the rest, and exemplars without a "
        "share get equal shares. With --guide mix OUTPUT_MAP, the colours of the map, from dark to "
        "light, select --gt_path and then these",
        type=parse_share,
        metavar="PICTURE[:SHARE]",
    ),
    "maps": several(
        "further maps of the exemplar's material, synthesised with the result and saved as "
        f"NAME_MAP.png; KIND is one of {', '.join(GIVEN)}, by default taken from the file name "
        "(a_rough.png), else from the pixels",
        metavar="[KIND:]PICTURE",
    ),
    "alpha": switch(
        "synthesise an alpha channel too, with the transparent pixels of the exemplar as texture; "
        "without --alpha they are ignored and the result is opaque"
    ),
    "init": flag(
        "initial output; transparent pixels of a picture are resynthesised",
        default="content with --style_image, else noise",
        metavar="noise|content|PICTURE",
    ),
    "mask": flag(
        "with --init PICTURE: white pixels are resynthesised, black and transparent ones are kept "
        "exactly",
        default="the transparent pixels of --init, or all",
        metavar="PICTURE",
    ),
    "expand": flag(
        "extend --init PICTURE, or else the exemplar, outwards to this size",
        type=parse_size,
        metavar="N|WxH",
    ),
    "content_layers": several(
        "with --style_image: layers of the content loss",
        default=" ".join(CONTENT_LAYERS),
        metavar="LAYER",
    ),
    "content_weight": weight(
        "with --style_image: weight of the content loss relative to the sum of all others, the "
        "same for all sizes",
        f"{CONTENT_WEIGHT:g}",
    ),
    "keep_color": switch("with --style_image: keep the colours of the content"),
    "exact_histogram": flag(
        "before saving, give the new pixels exactly the exemplar's distribution; "
        f"{LUMINANCE}, which may be left out: that of 0.299 R + 0.587 G + 0.114 B; color: those of "
        "red, green and blue separately; mean and standard deviation of the luminance are printed "
        "and recorded",
        default="off",
        nargs="?",
        const=LUMINANCE,
        type=parse_exact_histogram,
        metavar="|".join((*MATCHED, "off")),
    ),
}
FLAGS[MODEL] = {
    "preset": flag(
        "set of defaults, which flags given explicitly override; "
        + "; ".join(f"{name}: {_spelled(flags)}" for name, flags in PRESETS.items())
        + "; best paints (--repaint 1) instead of using its flags, except for some outputs of more "
        f"than {MOST_PAINTED} times the exemplar's area",
        choices=tuple(PRESETS),
    ),
    "method": flag("", type=str.lower),
    "layers": several(
        "layers of the method's loss, e.g. pool4 or conv4_1 (after its ReLU, the same as relu4_1), "
        "and their relative weights, by default 1",
        default="; ".join(f"{name} {' '.join(one.layers)}" for name, one in METHODS.items()),
        type=parse_layer,
        metavar="LAYER[:WEIGHT]",
    ),
    "repaint": flag(
        "fraction of the steps that paint, that is, copy pixels from the exemplar; in the others "
        "the texture model optimises the result: 0 uses the model alone, 1 paints only",
        type=number(float, 0, "a share", 1),
        metavar="SHARE",
    ),
    "pool": flag("pooling of the net", choices=tuple(POOLS)),
    "rescale": flag(
        "scale the weights of the net to unit mean activation on the exemplar; True: for each "
        "layer, which changes no loss, as losses are relative to the exemplar's features; filter: "
        "for each filter, which gives rare features more weight; --no-rescale is --rescale False",
        nargs="?",
        const=True,
        type=parse_rescale,
        metavar="True|False|filter",
    ),
}
FLAGS[TERM] = {}  # those of `losses.TERMS`, which may grow, are added by `command.arguments`
FLAGS["matching"] = {
    "match_every": _count(
        "steps between two searches for matches (swd: draws of directions; guided: draws of "
        "samples)",
        MOST_STEPS,
        default=str(MATCH_EVERY),
    ),
    "patch_rotations": several(
        "for cnnmrf, guided and --repaint: also take patches from copies of the exemplar rotated "
        "by these angles",
        type=number(float, -360, "degrees", 360),
        metavar="DEGREES",
    ),
    "patch_scales": several(
        "for cnnmrf, guided and --repaint: also take patches from copies of the exemplar resized "
        "by these factors",
        type=number(float, 0.1, "a factor", 10),
        metavar="FACTOR",
    ),
    "max_patches": _count(
        "for guided: maximum number of patches per layer that are compared, of the exemplar and of "
        "the output each",
        default=str(MAX_PATCHES),
    ),
}
FLAGS["net"] = {
    "model": flag(
        "",
        default=f"{DEFAULT_NET}, or the bundled {BUNDLED_NET} where {DEFAULT_NET} is neither "
        "cached nor can be downloaded",
        choices=tuple(NETS),
    ),
    "weights": _file(
        "state dict of a VGG-19 or VGG-16, whole or features only: torchvision's, Caffe's "
        "(vgg19-d01eb7cb.pth) or Gatys' (vgg_conv.pth)",
        default="torchvision's",
        metavar="PATH",
    ),
    "weights_layout": flag(
        "with --weights: input that the net expects; torchvision: RGB in [0, 1], normalised by "
        "ImageNet's mean and standard deviation; caffe: BGR in [0, 255] less the mean",
        default="detected",
        choices=tuple(LAYOUTS),
    ),
    "device": flag(
        "cuda:0, cuda:1, ..., mps (Apple's GPU) or cpu",
        default="cuda:0, or the CPU where there is no GPU",
    ),
    "precision": flag(
        "arithmetic of the net; with bf16 the last steps of each scale use fp32, and everything "
        f"outside the net always does; {AUTO}: the fastest that the device supports in hardware",
        choices=(AUTO, *PRECISIONS),
        type=str.lower,
    ),
}
FLAGS["optimisation"] = {
    "optimizer": flag("", choices=tuple(OPTIMIZERS), type=parse_optimizer),
    "epoch": _count("steps (evaluations of loss and gradient) over all scales", MOST_STEPS),
    "tolerance": flag(
        f"end a scale when {CONVERGENCE_WINDOW} steps lower its error by less than this share, "
        "e.g. 0.1; with 0 all steps are taken",
        type=number(float, 0, "a share", 1),
        metavar="SHARE",
    ),
    "lr": flag(
        "step size; Adam's is in units of the range [0, 1] and decays to 0 over each scale. "
        f"Adam starts the finest scale with {Adam.painted_lr:g} times this, as that scale begins "
        f"with painted detail; with exemplars or outputs that have a side below {MIN_SIDE} px no "
        "detail is painted, and the full value is used; with --repaint, every scale starts with "
        "the smaller value",
        default=", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items()),
        type=number(float, 1e-12, "a step size"),
        metavar="RATE",
    ),
    "scales": flag(
        "number of scales, coarse to fine by factors of two",
        default="auto",
        type=parse_scales,
        metavar="auto|N",
    ),
    "max_memory": flag(
        "memory limit, e.g. 4GB; a picture that needs more is evaluated in blocks, with the same "
        "result up to rounding",
        default="most of the free memory",
        type=parse_bytes,
        metavar="SIZE",
    ),
    "split": switch(
        "divide each picture, instead of the list of pictures, among the processes started by "
        "torchrun or srun"
    ),
    "workers": _count(
        "number of pictures made at the same time, each by its own process; fewer if memory is "
        "short",
        MOST_WORKERS,
        default="2 for many small pictures on a CPU, else 1",
    ),
    "seed": _count("seed of the initial noise", least=0),
}
FLAGS["output"] = {
    "bits": flag(
        "bits per channel of the result; .png and .tif hold 8 or 16, .exr only floats",
        default="those of the exemplar, where the format holds them",
        choices=("8", "16"),
    ),
    "count": _count(
        "number of pictures for each exemplar; seeds count up from --seed", MOST_PICTURES
    ),
    "resume": switch(
        "save a checkpoint beside the result every 30 s; the same command continues from it"
    ),
    "overwrite": switch(
        "replace existing pictures made by other commands; finished pictures of this command are "
        "kept"
    ),
    "quiet": switch("print nothing on stderr but errors"),
    "sheet": _file(
        "also save an overview as one image: exemplar, result, its 2x2 repeat and snapshots; with "
        "several results, each exemplar and its results"
    ),
    "animate": _file("also save the snapshots of --save_every as an animation, .gif or .webp"),
    "preview": switch("update NAME.preview.png while a picture is made"),
    "progress": flag(
        "text: a progress bar, or where stderr is no terminal a line for each scale and each "
        "minute; json: a line of JSON on stderr for each step",
        choices=("text", "json"),
    ),
    "log": _file(
        "append a line of JSON for each picture: record, seconds, loss curve, peak memory"
    ),
}
FLAGS["instead of a synthesis"] = {
    "score": flag(
        "print scores of this picture against --gt_path, the same scores of one half of the "
        "exemplar against the other, and a verdict in words",
        metavar="PICTURE",
    ),
    "report": _file(
        "write report.html into this folder of results: a page with pictures, exemplars, scores, "
        "loss curves and commands; if other flags ask for pictures, these are made first",
        metavar="FOLDER",
    ),
    "json": switch("with --score: print JSON"),
}
# What --help FLAG shows below a flag.
EXAMPLES = {
    "gt_path": "--gt_path a.jpg b.jpg photos/*.png --save_path out/",
    "style_image": "--image_path photo.jpg --style_image leaf.jpg --optimizer LBFGS --epoch 300",
    "save_path": "--gt_path leaf.jpg pebbles.png --count 2 --save_path out/{stem}_{seed}.png",
    "from_picture": "--from result.jpg --size 1024 --save_path larger.jpg",
    "config": "--config night.toml --gt_path leaf.jpg",
    "size": "--gt_path leaf.jpg --size 512x256",
    "tile": "--gt_path brick.png --preset best --tile xy --size 160x128",
    "tile_set": "--gt_path pebbles.png --preset best --tile_set 4 --save_path floor.png",
    "edges_of": "--gt_path brick.png --preset best --tile xy --edges_of tile.png",
    "expand": "--gt_path wood.png --expand 320x256",
    "init": "--gt_path damaged.png --init damaged.png --mask hole.png --method cnnmrf",
    "mask": "--gt_path damaged.png --init damaged.png --mask hole.png --method cnnmrf",
    "guide": "--gt_path lichen.png --guide here.png there.png --method cnnmrf",
    "orientation": "--gt_path wood.png --orientation circular --method cnnmrf",
    "mix": "--gt_path pebbles.png --mix leaf.jpg:0.3",
    "maps": "--gt_path pebbles.png --maps height.png normal.png --method cnnmrf",
    "alpha": "--gt_path leaves.png --alpha --preset best",
    "content_layers": "--image_path photo.jpg --style_image leaf.jpg --content_layers conv3_1",
    "content_weight": "--image_path photo.jpg --style_image leaf.jpg --content_weight 0.1",
    "keep_color": "--image_path photo.jpg --style_image leaf.jpg --keep_color",
    "exact_histogram": "--gt_path gravel.png --exact_histogram --save_path out/stimulus.png",
    "preset": "--gt_path leaf.jpg --preset best",
    "method": "--gt_path pebbles.png --method guided",
    "layers": "--gt_path leaf.jpg --layers conv1_1:2 conv2_1 conv3_1 conv4_1:0.5",
    "weights": "--gt_path leaf.jpg --weights vgg19-d01eb7cb.pth",
    "weights_layout": "--gt_path leaf.jpg --weights my_vgg.pth --weights_layout caffe",
    "repaint": "--gt_path leaf.jpg --repaint 0.5 --epoch 100",
    "patch_rotations": "--gt_path pebbles.png --method cnnmrf --patch_rotations 90 180 270",
    "patch_scales": "--gt_path pebbles.png --method cnnmrf --patch_scales 0.8 1.25",
    "max_memory": "--gt_path leaf.jpg --size 4096 --max_memory 4GB",
    "bits": "--gt_path leaf.jpg --bits 16 --save_path out/leaf.png",
    "count": "--gt_path leaf.jpg --count 5 --save_path out/",
    "score": "--score result.jpg --gt_path leaf.jpg",
    "report": "--report out",
}
FLAG_OF = {name: one for group in FLAGS.values() for name, one in group.items()}


def spelled(name: str) -> str:
    """Return a flag as it is typed: --from for from_picture, --tv for the term tv."""
    names = FLAG_OF[name].names if name in FLAG_OF else ()
    return names[0] if names else f"--{name}"
