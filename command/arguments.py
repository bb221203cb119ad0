"""The command line: every flag, its default and what it means; and the request that comes of it."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch

from command.kinds import GIVEN
from command.memory import Held
from command.pictures import MAX_SIDE, SUFFIXES
from command.settings import of_file, of_picture
from command.streams import put
from command.weights import BUNDLED_NET, DEFAULT_NET, LAYOUTS
from engine.optimizers import LEARNING_RATES, OPTIMIZERS, SETTLING
from engine.orientation import FIELDS
from engine.precision import AUTO, PRECISIONS
from engine.repaint import LEAST_SIDE
from engine.synthesis import CALMER
from losses import LONG_RANGE_WEIGHT, MATCH_EVERY, METHODS, PRESETS, TERMS
from models import FILTER, NETS, POOLS
from terms.base import MAX_PATCHES
from utils import UserError

# What a record does not hold, or what is not to be laid under a new picture: where things are,
# what does not change the picture, and where values come from.
NOT_RECORDED = {
    *("save_path", "save_every", "quiet", "max_memory", "split", "workers"),
    *("score", "report", "page_alone", "json"),
    *("count", "overwrite", "config", "from_picture", "progress", "log", "resume"),
    *("sheet", "animate", "preview", "asked", "typed", "pictures"),
}
NOT_LAID = NOT_RECORDED | {"terms", "device"}
VERSION = "0.3.0"
MOST_PICTURES = 100_000  # by one run
MOST_STEPS = 10**9  # months, at a hundred steps a second
MOST_WORKERS = 1024
LEAST_MEMORY = 1e6  # bytes; below it a unit was forgotten
BESIDE_SCORE = {"score", "json", "gt_path", "quiet", "config", "terms"}  # flags that it allows
MOVED = {"--benchmark": "run python docs/benchmark.py"}  # former flags -> what to do instead


FIRST = """A picture of a texture -> new texture of any size.

  python Synthesis.py --gt_path leaf.jpg --epoch 1000
  python Synthesis.py --gt_path pebbles.png --preset best --size 512x384 --save_path out/new.png
  python Synthesis.py --gt_path photos/ --tile xy --count 3 --save_path out/

  --gt_path PICTURE ...   what to make more of: files, folders, patterns; textures/ is looked in too
  --save_path FILE        result.jpg, if left out; out/ and out/{stem}_{seed}.png do as well
  --size WIDTHxHEIGHT     as large as the exemplar, if left out
  --preset best           with the exemplar's own pixels, the picture that people prefer
  --tile xy               seamless, to be repeated

--help all shows every flag, --help tile (or any other) one of them with an example.
"""
EXAMPLES = {
    "gt_path": "--gt_path a.jpg b.jpg photos/*.png --save_path out/",
    "style_image": "--image_path photo.jpg --style_image leaf.jpg --optimizer LBFGS --epoch 300",
    "save_path": "--gt_path leaf.jpg pebbles.png --count 2 --save_path out/{stem}_{seed}.png",
    "from_picture": "--from result.jpg --size 1024 --save_path larger.jpg",
    "config": "--config night.toml --gt_path leaf.jpg",
    "size": "--gt_path leaf.jpg --size 512x256",
    "tile": "--gt_path brick.png --preset best --tile xy --size 160x128",
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


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are the user's, like all others."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # No flag begins with a figure: `-4GB` is a value, and its own check names it.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        put(message)  # that of --help and --version

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As that of argparse, but for what is said of a flag that there is not."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown and unknown[0].startswith("-"):
            word = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(word, self.flags(), 1)
            hint = f"did you mean {near[0]}?" if near else ""
            hint = MOVED.get(word, hint)
            self.error(f"{word}: no such flag" + (f", {hint}" if hint else ""))
        if unknown:
            self.error(f"{unknown[0]}: which flag is it for? Pictures are given by --gt_path")
        return found

    def flags(self) -> dict[str, argparse.Action]:
        """Every flag as it is spelled."""
        return {name: action for action in self._actions for name in action.option_strings}


class _Help(argparse.Action):
    """`--help`: the first screen; `--help all`: every flag; `--help tile`: one of them."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if values is None:
            put(FIRST)
        elif values == "all":
            parser.print_help()
        else:
            flags = parser.flags()
            name = "--" + values.lstrip("-")
            if name not in flags:
                near = difflib.get_close_matches(name, flags, 1)
                parser.error(f"--help {values}: no such flag" + (f", {near[0]}?" if near else ""))
            formatter = parser.formatter_class(prog=parser.prog)
            formatter.add_argument(flags[name])
            put(formatter.format_help())
            if example := EXAMPLES.get(flags[name].dest):
                put(f"\n  python Synthesis.py {example}\n")
        parser.exit()


def number(kind: type, least: float, unit: str, most: float | None = None) -> Callable[[str], Any]:
    """A parser of finite numbers from `least` to `most`, for argparse."""
    allowed = f"{least} or more, below 2^63" if most is None else f"{least} to {most}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < 2**63 or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r}: give {unit} of {allowed}")
        return value

    return parse


def parse_scales(text: str) -> int | None:
    """Return None for 'auto', else the number."""
    return None if text.lower() == "auto" else number(int, 1, "auto, or a number")(text)


def parse_bytes(text: str) -> float:
    """Return '4GB', '4 g' or '4000m' as 4e9.

    Raises argparse.ArgumentTypeError for anything else, and for less than a megabyte.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmgt])?b?\s*", text, re.IGNORECASE)
    size = float(match[1]) * 1000 ** (" kmgt".index((match[2] or " ").lower())) if match else 0.0
    if not LEAST_MEMORY <= size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a size like 4GB or 800MB")
    return size


def parse_optimizer(text: str) -> str:
    """Return the optimiser's name for any case of it, hyphen or none; unknown ones as they are."""
    names = {name.lower(): name for name in OPTIMIZERS}
    return names.get(text.lower().replace("-", ""), text)


def parse_size(text: str) -> tuple[int, int]:
    """Return '512' as (512, 512) and '512x256', width first, as (256, 512).

    Raises argparse.ArgumentTypeError for anything but sides of 1 to MAX_SIDE pixels.
    """
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.strip(), re.IGNORECASE)
    width, height = (int(side) for side in (match[1], match[2] or match[1])) if match else (0, 0)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        allowed = f"N or WIDTHxHEIGHT, sides of 1 to {MAX_SIDE} pixels"
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give {allowed}")
    return height, width


def parse_save_path(text: str) -> Path:
    """Return the path; what ends as a folder does, 'out/', is one, whether there is one or not."""
    return Path(text) / "{stem}.png" if text.endswith("/") else Path(text)


def parse_share(text: str) -> tuple[str, float | None]:
    """Return 'b.jpg:0.3' as ('b.jpg', 0.3) and 'b.jpg' as ('b.jpg', None).

    Raises argparse.ArgumentTypeError for a share that is not between 0 and 1.
    """
    name, _, share = text.rpartition(":")
    try:
        value = float(share)
    except ValueError:
        return text, None
    if not name or not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give PICTURE:SHARE, the share between 0 and 1")
    return name, value


def parse_layer(text: str) -> tuple[str, float]:
    """Return 'conv4_1:0.5' as ('conv4_1', 0.5) and 'conv4_1' as ('conv4_1', 1.0).

    Raises argparse.ArgumentTypeError for a weight that is not a positive number.
    """
    name, colon, weight = text.partition(":")
    try:
        value = float(weight) if colon else 1.0
    except ValueError:
        value = math.nan
    if not name or not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give LAYER:WEIGHT, the weight above 0")
    return name, value


def parse_bool(text: str) -> bool:
    """Return True or False for the words for it; `type=bool` would read 'False' as true.

    Raises argparse.ArgumentTypeError for any other word.
    """
    word = text.strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: give True (yes, on, 1) or False (no, off, 0)")


def parse_rescale(text: str) -> bool | str:
    """Return True, False or 'filter'.

    Raises argparse.ArgumentTypeError for any other word.
    """
    if text.strip().lower() == FILTER:
        return FILTER
    try:
        return parse_bool(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give True, False or {FILTER}") from error


# ------------------------------------------------------------------------------------ the flags


def flag(
    group: str, help: str, *names: str, default: Any = None, told: str = "", **options: Any
) -> Any:
    """A field of `Request` that is a flag of the command.

    Args:
        group: under which heading `--help` shows it.
        help: what it means, in one sentence.
        names: of the flag; none means `--` and the field's name.
        default: the field's.
        told: how the default is told, where its value alone would not say it.
        options: as `ArgumentParser.add_argument` takes them.
    """
    return field(
        default=default,
        metadata={"group": group, "help": help, "names": names, "told": told, "options": options},
    )


def several(**options: Any) -> dict[str, Any]:
    """Options of a flag of one value or more, which may be given again for more of them."""
    return {"nargs": "+", "action": "extend"} | options


PICTURES, CONTROL, MODEL, TERM, MATCHING, NET, OPTIMISATION, OUTPUT, INSTEAD = (
    "pictures",
    "control",
    "texture model",
    "terms beside the texture model",
    "matching",
    "net",
    "optimisation",
    "output",
    "instead of a synthesis",
)
_rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())


@dataclass(frozen=True)
class Request:
    """What the user asked for, as the command line says it; nothing is read or checked yet."""

    gt_path: Sequence[str] = flag(
        PICTURES,
        "exemplars: files, looked up as given and then in textures/, folders or patterns (*)",
        "--gt_path",
        "--image_path",
        default=("leaf.jpg",),
        **several(metavar="PICTURE"),
    )
    style_image: str | None = flag(
        PICTURES,
        "texture to paint --image_path in, which is then the content: style transfer",
        metavar="PICTURE",
    )
    from_picture: Path | None = flag(
        PICTURES,
        "make that picture again, by the flags in its record; flags that are given beside it "
        "replace those",
        "--from",
        told="none",
        metavar="PICTURE",
        type=Path,
    )
    config: Path | None = flag(
        PICTURES,
        "a TOML file of flags (size = 512); the command line wins",
        told="none",
        metavar="FILE",
        type=Path,
    )
    save_path: Path = flag(
        PICTURES,
        f"result, format by suffix ({' '.join(SUFFIXES)}), a folder, or a pattern of {{stem}} and "
        "{seed}; with several exemplars or seeds those are added",
        default=Path("result.jpg"),
        metavar="FILE",
        type=parse_save_path,
    )
    save_every: int | None = flag(
        PICTURES,
        "also save a snapshot beside the result every N steps",
        told="none",
        type=number(int, 1, "a number of steps", MOST_STEPS),
        metavar="N",
    )
    size: tuple[int, int] | None = flag(
        PICTURES,
        "of the output, in pixels",
        told="the exemplar's, or that of the maps that describe the output",
        type=parse_size,
        metavar="N|WxH",
    )

    tile: str = flag(
        CONTROL,
        "seamless across, down or both ways; also saves NAME_tiled, the repeat",
        default="",
        told="none",
        choices=("x", "y", "xy"),
    )
    guide: Sequence[Sequence[str]] = flag(
        CONTROL,
        "what goes where: maps of the exemplar and of the output, of one colour per region, or "
        "grey for a progression; may be given again",
        default=(),
        told="none",
        nargs=2,
        action="append",
        metavar=("SOURCE_MAP", "OUTPUT_MAP"),
    )
    orientation: str | None = flag(
        CONTROL,
        "axis along which the texture runs: degrees counter-clockwise from the horizontal, "
        f"{', '.join(FIELDS)}, a picture whose hue is twice the angle, or .npy of (2, H, W) with "
        "vectors to the right and down",
        told="as it runs in the exemplar",
        metavar="DEGREES|FIELD|FILE",
    )
    mix: Sequence[tuple[str, float | None]] = flag(
        CONTROL,
        "other exemplars and their shares; --gt_path has the rest, equal parts where nothing is "
        "said. With --guide mix OUTPUT_MAP, colours from dark to light are --gt_path and these",
        default=(),
        told="none",
        **several(type=parse_share, metavar="PICTURE[:SHARE]"),
    )
    maps: Sequence[str] = flag(
        CONTROL,
        "other maps of the exemplar's material, made for the result as well, as NAME_MAP.png; KIND "
        f"is one of {', '.join(GIVEN)}; without it the name (a_rough.png), or else the pixels tell",
        default=(),
        told="none",
        **several(metavar="[KIND:]PICTURE"),
    )
    alpha: bool = flag(
        CONTROL,
        "make an alpha for the result from that of the exemplar, all of which is texture then; "
        "otherwise transparent pixels are no texture, and the result is opaque",
        default=False,
        told="off",
        action="store_true",
    )
    init: str | None = flag(
        CONTROL,
        "what the output starts from; transparent pixels of a picture are made anew",
        told="content with --style_image, else noise",
        metavar="noise|content|PICTURE",
    )
    mask: str | None = flag(
        CONTROL,
        "with --init PICTURE: white is made anew, black or transparent stays, to the bit",
        told="the transparent pixels of --init, or all",
        metavar="PICTURE",
    )
    expand: tuple[int, int] | None = flag(
        CONTROL,
        "grow --init PICTURE, or else the exemplar, outwards to this size",
        told="none",
        type=parse_size,
        metavar="N|WxH",
    )
    content_layers: Sequence[str] | None = flag(
        CONTROL,
        "with --style_image: layers that keep the content",
        told="conv4_1",
        **several(metavar="LAYER"),
    )
    content_weight: float | None = flag(
        CONTROL,
        "with --style_image: weight of the content, relative to that of texture model and terms "
        "together, the same for any size",
        told="0.05",
        type=number(float, 0, "a weight"),
        metavar="WEIGHT",
    )
    keep_color: bool = flag(
        CONTROL,
        "with --style_image: keep the content's colours",
        default=False,
        told="off",
        action="store_true",
    )

    preset: str | None = flag(
        MODEL,
        "several flags at once; flags given beside it override it; "
        + "; ".join(
            f"{name} means {' '.join(f'--{k} {v}' for k, v in flags.items())}"
            for name, flags in PRESETS.items()
        ),
        told="none",
        choices=tuple(PRESETS),
    )
    method: str = flag(MODEL, "", default="gram", type=str.lower)
    layers: Sequence[tuple[str, float]] | None = flag(
        MODEL,
        "layers of the method's loss: conv4_1 or relu4_1 (both after the ReLU), pool4, ...; "
        "weights are relative to the others, 1 if left out",
        told="; ".join(f"{name} {' '.join(m.layers)}" for name, m in METHODS.items()),
        **several(type=parse_layer, metavar="LAYER[:WEIGHT]"),
    )
    repaint: float = flag(
        MODEL,
        "paint the picture with the exemplar's own pixels in this share of the steps, first, and "
        "let the model polish that in the others: 0 is the model alone, 1 the pixels alone",
        default=0.0,
        type=number(float, 0, "a share", 1),
        metavar="SHARE",
    )
    pool: str = flag(MODEL, "pooling in the net", default="avg", choices=tuple(POOLS))
    rescale: bool | str = flag(
        MODEL,
        "scale the net to unit mean activation on the exemplar; True: each layer, which changes no "
        "loss, since losses are relative to the exemplar's features; filter: each filter, which "
        "weighs rare features more; --no-rescale is the same as --rescale False",
        default=True,
        nargs="?",
        const=True,
        type=parse_rescale,
        metavar="True|False|filter",
    )

    terms: dict[str, float] = field(default_factory=dict)  # weights that the user says

    match_every: int | None = flag(
        MATCHING,
        "steps for which matches (swd: directions, guided: samples) are held",
        told=str(MATCH_EVERY),
        type=number(int, 1, "a number of steps", MOST_STEPS),
        metavar="N",
    )
    patch_rotations: Sequence[float] = flag(
        MATCHING,
        "cnnmrf, guided, --repaint: also take patches from the exemplar at these angles",
        default=(),
        told="none",
        **several(type=number(float, -360, "degrees", 360), metavar="DEGREES"),
    )
    patch_scales: Sequence[float] = flag(
        MATCHING,
        "cnnmrf, guided, --repaint: also take patches from the exemplar resized by these",
        default=(),
        told="none",
        **several(type=number(float, 0.1, "a factor", 10), metavar="FACTOR"),
    )
    max_patches: int | None = flag(
        MATCHING,
        "guided: most patches of a layer that are compared, of exemplar and output each",
        told=str(MAX_PATCHES),
        type=number(int, 1, "a number of patches"),
        metavar="N",
    )

    model: str | None = flag(
        NET,
        "",
        told=f"{DEFAULT_NET}, and where it can be neither found nor downloaded the bundled "
        f"{BUNDLED_NET}",
        choices=tuple(NETS),
    )
    weights: Path | None = flag(
        NET,
        "state dict of a VGG-19 or VGG-16, whole or features only: torchvision's, one of Caffe "
        "(vgg19-d01eb7cb.pth), or Gatys' vgg_conv.pth",
        told="torchvision's",
        type=Path,
        metavar="PATH",
    )
    weights_layout: str | None = flag(
        NET,
        "with --weights: the pixels that the net expects; torchvision: RGB in [0, 1], normalised "
        "by ImageNet's mean and standard deviation; caffe: BGR in [0, 255] less a mean",
        told="recognised",
        choices=tuple(LAYOUTS),
    )
    device: str | None = flag(
        NET,
        "cuda:0, cuda:1, ..., mps (Apple's GPU), cpu",
        told="cuda:0, or the CPU where there is none",
        metavar="DEVICE",
    )
    precision: str = flag(
        NET,
        "in which the net computes; with bf16 the last steps of each scale are fp32, and what is "
        f"not the net always is; {AUTO} is what the device is made for",
        default=AUTO,
        choices=(AUTO, *PRECISIONS),
        type=str.lower,
    )

    optimizer: str = flag(
        OPTIMISATION, "", default="Adam", choices=tuple(OPTIMIZERS), type=parse_optimizer
    )
    epoch: int = flag(
        OPTIMISATION,
        "steps (evaluations of loss and gradient) over all scales",
        default=1000,
        type=number(int, 1, "a number of steps", MOST_STEPS),
        metavar="N",
    )
    tolerance: float = flag(
        OPTIMISATION,
        f"end a scale once {SETTLING} steps lower its error by less than this share, such as 0.1; "
        "0: take all steps",
        default=0.0,
        type=number(float, 0, "a share", 1),
        metavar="SHARE",
    )
    lr: float | None = flag(
        OPTIMISATION,
        "step size; that of Adam is in units of the range [0, 1] and decays to 0 over each scale. "
        f"Adam starts the finest scale with {CALMER:g} times this, because it starts from "
        f"painted detail; with exemplars or outputs that have a side below {LEAST_SIDE} px no "
        "detail is painted, and the full value is used",
        told=_rates,
        type=number(float, 1e-12, "a step size"),
        metavar="RATE",
    )
    scales: int | None = flag(
        OPTIMISATION,
        "how many sizes, coarse to fine by factors of two",
        told="auto",
        type=parse_scales,
        metavar="auto|N",
    )
    max_memory: float | None = flag(
        OPTIMISATION,
        "that a run may take, as in 4GB: what is larger is looked at block by block, the same to "
        "rounding",
        told="most of what is free",
        type=parse_bytes,
        metavar="SIZE",
    )
    split: bool = flag(
        OPTIMISATION,
        "all processes that torchrun or srun has started make each picture together, instead of "
        "every one another picture",
        default=False,
        told="off",
        action="store_true",
    )
    workers: int | None = flag(
        OPTIMISATION,
        "pictures that are made at the same time, each by a process, where they fit into memory",
        told="2 for many small ones on a CPU, else 1",
        type=number(int, 1, "a number of processes", MOST_WORKERS),
        metavar="N",
    )
    seed: int = flag(
        OPTIMISATION,
        "of the noise to start from",
        default=0,
        type=number(int, 0, "a number"),
        metavar="N",
    )

    bits: str | None = flag(
        OUTPUT,
        "bits a channel of the result; .png and .tif hold 8 or 16, .exr holds floats alone",
        told="as the exemplar came, where the format holds it",
        choices=("8", "16"),
    )
    count: int = flag(
        OUTPUT,
        "number of pictures of each exemplar, with --seed and the seeds that follow",
        default=1,
        type=number(int, 1, "a number of pictures", MOST_PICTURES),
        metavar="N",
    )
    resume: bool = flag(
        OUTPUT,
        "keep a checkpoint beside the result every half minute, and go on from it when the same "
        "command is run again after it was stopped",
        default=False,
        told="off",
        action="store_true",
    )
    overwrite: bool = flag(
        OUTPUT,
        "replace pictures that another command has made; what this one has made is finished, and "
        "stays",
        default=False,
        told="off",
        action="store_true",
    )
    quiet: bool = flag(
        OUTPUT, "nothing on stderr but errors", default=False, told="off", action="store_true"
    )

    sheet: Path | None = flag(
        OUTPUT,
        "also save an image to look at: exemplar, result, its 2x2 repeat and snapshots, or of many "
        "results all of them",
        told="none",
        metavar="FILE",
        type=Path,
    )
    animate: Path | None = flag(
        OUTPUT,
        "also save the snapshots of --save_every as an animation, .gif or .webp",
        told="none",
        metavar="FILE",
        type=Path,
    )
    preview: bool = flag(
        OUTPUT,
        "keep NAME.preview.png up to date while a picture is made",
        default=False,
        told="off",
        action="store_true",
    )
    progress: str = flag(
        OUTPUT,
        "text: a bar, or without a terminal a line a scale and a minute; json: on stderr a line of "
        "JSON a step",
        default="text",
        choices=("text", "json"),
    )
    log: Path | None = flag(
        OUTPUT,
        "append a line of JSON for each picture: its record, seconds, loss after each step, memory",
        told="none",
        metavar="FILE",
        type=Path,
    )

    score: str | None = flag(
        INSTEAD,
        "print how far this picture is from the exemplar, beside how far the exemplar's two "
        "halves are from each other, and what eyes hold against it",
        told="none",
        metavar="PICTURE",
    )
    report: Path | None = flag(
        INSTEAD,
        "write report.html into this folder of results: one page with all of them, their "
        "exemplars, scores, loss curves and commands; beside flags that make pictures, when these "
        "are made",
        told="none",
        metavar="FOLDER",
        type=Path,
    )
    page_alone: bool = False  # nothing is to be made for the report
    # Names of flags -> values: those typed now and those typed for the picture of --from; and the
    # names of the former. A preset counts as one flag, and flags of --config count as typed.
    asked: dict[str, Any] = field(default_factory=dict, compare=False)
    typed: frozenset[str] = field(default=frozenset(), compare=False)
    # Names in flags -> pictures in memory.
    pictures: Mapping[str, Held] = field(default_factory=dict, compare=False)
    json: bool = flag(
        INSTEAD, "with --score: print JSON", default=False, told="off", action="store_true"
    )

    @property
    def init_picture(self) -> str | None:
        """The picture of --init; None where it names none."""
        return None if self.init in ("noise", "content") else self.init


class _Weight(argparse.Action):
    """The weight of a term, kept under the term's name in `terms`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        given = getattr(namespace, "terms", {})
        namespace.terms = given | {self.dest: values}


def build_parser() -> Parser:
    """The parser of `Synthesis.py`. What the user leaves out is left out of its namespace."""
    parser = Parser(
        prog="Synthesis.py",
        usage="python Synthesis.py --gt_path leaf.jpg --epoch 1000\n"
        "       python Synthesis.py --gt_path pebbles.png --size 512x384 --optimizer LBFGS "
        "--save_path out/pebbles.png",
        description="A picture of a texture -> new texture of any size.",
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        *("-h", "--help"),
        nargs="?",
        action=_Help,
        metavar="all|FLAG",
        help="one screen; with all: every flag; with the name of a flag: what that does",
    )
    parser.add_argument(
        "--version", action="version", version=f"{VERSION}, PyTorch {torch.__version__}"
    )
    groups = {name: parser.add_argument_group(name) for name in (PICTURES, CONTROL, MODEL)}
    groups[TERM] = parser.add_argument_group(
        TERM, "weights, relative to the model's; 0 means without"
    )
    for name in (MATCHING, NET, OPTIMISATION, OUTPUT, INSTEAD):
        groups[name] = parser.add_argument_group(name)
    for one in fields(Request):
        if one.metadata:
            _add_flag(groups[one.metadata["group"]], one)
    groups[MODEL].add_argument(
        "--no-rescale", dest="rescale", action="store_false", help=argparse.SUPPRESS
    )
    for name, term in TERMS.items():
        defaults = {m: method.weights.get(name, 0) for m, method in METHODS.items()}
        told = ", ".join(f"{m} {weight:g}" for m, weight in defaults.items() if weight) or "0"
        if name == "spectrum":
            told += f", {LONG_RANGE_WEIGHT:g} for exemplars with long-range order"
        groups[TERM].add_argument(
            f"--{name}",
            action=_Weight,
            type=number(float, 0, "a weight"),
            metavar="WEIGHT",
            help=f"{term.help}; default {told}",
        )
    return parser


def _add_flag(group: argparse._ArgumentGroup, one: Any) -> None:
    options = dict(one.metadata["options"])
    help = one.metadata["help"]
    if one.name == "method":  # what there is may have grown since the class was made
        options["choices"] = tuple(METHODS)
        help = "; ".join(f"{name}: {method.help}" for name, method in METHODS.items())
    elif "choices" in options:
        help = "; ".join(filter(None, (help, "one of " + ", ".join(options["choices"]))))
    told = one.metadata["told"]
    if not told and one.default is not MISSING and one.default is not None:
        several = isinstance(one.default, tuple)
        told = " ".join(map(str, one.default)) if several else str(one.default)
    help = "; ".join(filter(None, (help, told and f"default {told}")))
    names = one.metadata["names"] or (f"--{one.name}",)
    group.add_argument(*names, dest=one.name, help=help.replace("%", "%%"), **options)


def parse(argv: list[str] | None = None) -> Request:
    """The request. Of a flag that has several values the first of these counts:

    1. what is typed now, on the command line, then in the file of --config
    2. what was typed for the picture of --from, as its record says
    3. the preset: the one that is typed now, else the one that was typed then, never both
    4. the default

    The net and the precision of the picture of --from count as typed for it, because their defaults
    depend on the machine.

    Values that were derived from other flags (the step size of an optimiser, the layers of a
    method, the size of an exemplar) are not reused: they are derived again.

    Raises:
        UserError: a flag that there is not, or a value that it does not take.
    """
    given = _namespace(argv)
    if "config" in given:
        given = _over(given, _checked(of_file(given["config"]), f"--config {given['config']}"))
    if "score" in given:
        for name in sorted((given | given["terms"]).keys() - BESIDE_SCORE):
            raise UserError(f"--{name}: --score makes no picture and has no use for it")
        if (count := len(given.get("gt_path", ()))) > 1:
            raise UserError(f"--score takes one exemplar, --gt_path has {count}")
    if "report" in given:
        alone = not given["terms"] and given.keys() <= {"report", "quiet", "terms", "config"}
        given = given | {"page_alone": alone}
    typed = frozenset(_values(given))
    if "from_picture" in given:
        path = given["from_picture"]
        asked = of_picture(path, recorded_flags(), typed)
        if asked.get("model") not in {None, *NETS}:
            raise UserError(
                f"--from {path}: its net, {asked['model']}, is no longer there; --model "
                f"{BUNDLED_NET} makes another picture by the same settings"
            )
        given = _over(given, _checked(asked, f"--from {path}"))
    preset = _checked(PRESETS.get(given.get("preset", ""), {}), "--preset")
    return Request(**_over(given, preset), asked=_values(given), typed=typed)


def _values(given: dict[str, Any]) -> dict[str, Any]:
    """Flags by name, those of terms among them."""
    return {name: value for name, value in given.items() if name != "terms"} | given["terms"]


def recorded_flags() -> set[str]:
    """The names of flags that a record holds and that make its picture again."""
    return {one.name for one in fields(Request)} - NOT_LAID | TERMS.keys()


def _namespace(argv: list[str] | None) -> dict[str, Any]:
    """The flags that are on the command line alone, and the weights of terms; UserError for an
    empty value, which a shell makes of a variable that is not set."""
    flag = ""
    for word in sys.argv[1:] if argv is None else argv:
        flag = word.partition("=")[0] if word.startswith("--") else flag
        if word in ("", f"{flag}="):
            raise UserError(f"{flag or 'an argument'}: an empty value")
    return {"terms": {}} | vars(build_parser().parse_args(argv))


def _over(given: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    """What is given, laid over other values."""
    return below | given | {"terms": below["terms"] | given["terms"]}


def _checked(flags: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Flags by name, as if they had been typed."""
    try:
        return _namespace(argv_of(flags))
    except (UserError, TypeError, ValueError, LookupError) as error:
        raise UserError(f"{where}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where}: a value is nested too deep") from error


def request_of(**flags: Any) -> Request:
    """The request of flags by name, with the command line's own checks.

    Sizes are (height, width) or text as at the command line, --guide a list of pairs.

    Raises:
        UserError: as `parse` does.
    """
    return parse(argv_of(flags))


def argv_of(flags: Mapping[str, Any]) -> list[str]:
    """The command line that says the same as flags by name with values of Python."""
    known = {one.name: one for one in fields(Request) if one.metadata}
    argv: list[str] = []
    for name, value in flags.items():
        spelled = known[name].metadata["names"] if name in known else ()
        flag = spelled[0] if spelled else f"--{name}"
        switch = name in known and known[name].metadata["options"].get("action") == "store_true"
        if value is None or value in ("", [], ()) or (switch and not value):
            continue
        if isinstance(value, list | tuple):
            _refuse_flags(value)
        if switch and value not in (True, False):  # as "no", which is no less true
            raise UserError(f"{flag}: {value!r}, allowed are true and false")
        if switch:
            argv.append(flag)
        elif name == "guide":
            argv += [text for pair in value for text in (flag, *map(str, pair))]
        elif name in ("mix", "layers"):
            argv += [flag, *(one if isinstance(one, str) else paired(*one) for one in value)]
        elif name in ("size", "expand") and not isinstance(value, str | int):
            argv.append(f"{flag}={value[1]}x{value[0]}")
        elif isinstance(value, list | tuple):
            argv += [flag, *map(str, value)]
        else:
            argv.append(f"{flag}={value}")
    return argv


def _refuse_flags(values: Sequence[Any]) -> None:
    """Raise UserError for a value among several that would be read as a flag."""
    for value in values:
        if isinstance(value, list | tuple):
            _refuse_flags(value)
        elif isinstance(value, str) and value.startswith("-"):
            raise UserError(f"{value!r}: a flag, not a value (a file of that name is ./{value})")


def paired(name: str, number: float | None) -> str:
    """Return a name and its share or weight as they are typed."""
    return name if number is None else f"{name}:{number!r}"
