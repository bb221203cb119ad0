"""The command line: every flag, its default, and what it means."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from PIL import Image

from controls import CONTENT_LAYERS, CONTENT_WEIGHT
from guides import FIELDS
from losses import LONG_RANGE_WEIGHT, METHODS
from models import BUNDLED_NET, DEFAULT_NET, NETS, POOLS
from optimizers import LEARNING_RATES, OPTIMIZERS
from terms import MATCH_EVERY, MAX_PATCHES
from utils import SUFFIXES

MAX_SIDE = 16383  # WebP's limit

TERM_HELP = {
    "gram": "Gram matrices",
    "histogram": "distribution of each colour channel, and their covariance",
    "moments": "mean and standard deviation of each filter",
    "spectrum": "power spectrum of the pixels, for what repeats; on by itself where the exemplar "
    f"does, at {LONG_RANGE_WEIGHT:g}",
    "autocorrelation": "autocorrelation of the features of the middle layer",
    "patches": "distribution of 7x7 patches of pixels, on three sizes",
    "tv": "total variation, for smooth pictures",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class Extend(argparse.Action):
    """Take the values of every use of a flag: the first use replaces the default.

    argparse's own "extend" would add to the default, and its "store" keeps the last use alone.
    """

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        said = getattr(namespace, self.dest)
        said = [] if said is self.default else said
        setattr(namespace, self.dest, [*said, *values])


def number(
    kind: type, least: float, unit: str, most: float | None = None
) -> Callable[[str], float]:
    """A parser of finite numbers from `least` to `most`, for argparse."""
    allowed = f"{least} or more" if most is None else f"{least} to {most}"

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


def parse_optimizer(text: str) -> str:
    """Return the optimiser's name for any case of it, hyphen or none; unknown ones as they are."""
    names = {name.lower(): name for name in OPTIMIZERS}
    return names.get(text.lower().replace("-", ""), text)


def parse_size(text: str) -> tuple[int, int]:
    """Return '512' as (512, 512) and '512x256', width first, as (256, 512).

    Raises argparse.ArgumentTypeError for anything but sides of 1 to MAX_SIDE pixels, and for more
    pixels in all than Pillow reads back.
    """
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.strip(), re.IGNORECASE)
    width, height = (int(side) for side in (match[1], match[2] or match[1])) if match else (0, 0)
    most = Image.MAX_IMAGE_PIXELS
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= most):
        allowed = f"N or WIDTHxHEIGHT, sides of 1 to {MAX_SIDE} pixels and {most} pixels in all"
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give {allowed}")
    return height, width


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


SCORE_FLAGS = ("score", "json", "gt_path", "quiet")  # all that has a meaning beside --score
PRESETS = {"best": {"optimizer": "LBFGS", "histogram": 0.5, "spectrum": 0.1, "patches": 10.0}}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments: what the user says, else what the preset says, else the defaults."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.score is not None:
        for name, value in vars(args).items():
            if name not in SCORE_FLAGS and value != parser.get_default(name):
                parser.error(f"--{name}: --score makes no picture and has no use for it")
    parser.set_defaults(**PRESETS.get(args.preset, {}))
    return parser.parse_args(argv)


def build_parser() -> Parser:
    """The parser of `Synthesis.py`, and the only place of defaults but for the methods' own."""
    parser = Parser(
        prog="Synthesis.py",
        usage="python Synthesis.py --gt_path leaf.jpg --epoch 1000\n"
        "       python Synthesis.py --gt_path pebbles.png --size 512x384 --optimizer LBFGS "
        "--save_path out/pebbles.png",
        description="A picture of a texture -> new texture of any size.",
        allow_abbrev=False,
    )
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())

    add = parser.add_argument_group("pictures").add_argument
    add(
        "--gt_path",
        "--image_path",
        nargs="+",
        action=Extend,
        default=["leaf.jpg"],
        metavar="PICTURE",
        help="exemplar(s), looked up as given, then in textures/; default leaf.jpg",
    )
    add(
        "--style_image",
        metavar="PICTURE",
        help="texture to paint --image_path in, which is then the content: style transfer",
    )
    add(
        "--save_path",
        default=Path("result.jpg"),
        metavar="FILE",
        type=Path,
        help=f"result, format by suffix ({' '.join(SUFFIXES)}); with several exemplars each one's "
        "name is added; default %(default)s",
    )
    add(
        "--save_every",
        type=number(int, 1, "a number of steps"),
        metavar="N",
        help="also save a snapshot beside the result every N steps; default none",
    )
    add(
        "--size",
        type=parse_size,
        metavar="N|WxH",
        help="of the output, in pixels; default the exemplar's",
    )

    add = parser.add_argument_group("control").add_argument
    add(
        "--tile",
        choices=("x", "y", "xy"),
        default="",
        help="seamless across, down or both ways; also saves NAME_tiled, the repeat; default none",
    )

    add(
        "--guide",
        nargs=2,
        action="append",
        default=[],
        metavar=("SOURCE_MAP", "OUTPUT_MAP"),
        help="what goes where: maps of the exemplar and of the output, of one colour per region, "
        "or grey for a progression; may be given again",
    )
    add(
        "--orientation",
        metavar="DEGREES|FIELD|FILE",
        help="axis along which the texture runs: degrees counter-clockwise from the horizontal, "
        f"{', '.join(FIELDS)}, a picture whose hue is twice the angle, or .npy of (2, H, W) with "
        "vectors to the right and down",
    )
    add(
        "--mix",
        nargs="+",
        action=Extend,
        type=parse_share,
        default=[],
        metavar="PICTURE[:SHARE]",
        help="other exemplars and their shares; --gt_path has the rest, equal parts where nothing "
        "is said. With --guide mix OUTPUT_MAP, colours from dark to light are --gt_path and these",
    )
    add(
        "--maps",
        nargs="+",
        action=Extend,
        default=[],
        metavar="PICTURE",
        help="other maps of the exemplar's material, carried along and saved as NAME_MAP.png",
    )
    add(
        "--init",
        metavar="noise|content|PICTURE",
        help="what the output starts from; default content with --style_image, else noise",
    )
    add(
        "--mask",
        metavar="PICTURE",
        help="with --init PICTURE: white is made anew, black stays as it is, to the bit",
    )
    add(
        "--expand",
        type=parse_size,
        metavar="N|WxH",
        help="grow --init PICTURE, default the exemplar, outwards to this size",
    )
    add(
        "--content_layers",
        nargs="+",
        action=Extend,
        metavar="LAYER",
        help="with --style_image: layers that keep the content; "
        f"default {' '.join(CONTENT_LAYERS)}",
    )
    add(
        "--content_weight",
        type=number(float, 0, "a weight"),
        metavar="WEIGHT",
        help="with --style_image: weight of the content, relative to that of texture model and "
        f"terms together, the same for any size; default {CONTENT_WEIGHT:g}",
    )
    add("--keep_color", action="store_true", help="with --style_image: keep the content's colours")

    add = parser.add_argument_group("texture model").add_argument
    presets = "; ".join(
        f"{name} means {' '.join(f'--{k} {v}' for k, v in flags.items())}"
        for name, flags in PRESETS.items()
    )
    add("--preset", choices=PRESETS, help=f"several flags in one, others go before it; {presets}")
    add(
        "--method",
        choices=METHODS,
        type=str.lower,
        default="gram",
        help="one of %(choices)s; default %(default)s",
    )
    add(
        "--layers",
        nargs="+",
        action=Extend,
        metavar="LAYER",
        help="conv4_1 or relu4_1 (both after the ReLU), pool4, ...; default "
        + "; ".join(f"{name} {' '.join(m.layers)}" for name, m in METHODS.items()),
    )
    add("--pool", choices=POOLS, default="avg", help="pooling in the net; default %(default)s")
    add(
        "--rescale",
        nargs="?",
        const=True,
        type=parse_bool,
        default=True,
        metavar="True|False",
        help="scale filters to unit mean activation on the exemplar; default %(default)s",
    )
    add("--no-rescale", dest="rescale", action="store_false", help="the same as --rescale False")

    add = parser.add_argument_group(
        "terms beside the texture model", "weights, relative to the model's; 0 means without"
    ).add_argument
    for name, what in TERM_HELP.items():
        defaults = {m: method.weights.get(name, 0) for m, method in METHODS.items()}
        told = ", ".join(f"{m} {weight:g}" for m, weight in defaults.items() if weight) or "0"
        add(
            f"--{name}",
            type=number(float, 0, "a weight"),
            metavar="WEIGHT",
            help=f"{what}; default {told}",
        )

    add = parser.add_argument_group("matching").add_argument
    add(
        "--match_every",
        type=number(int, 1, "a number of steps"),
        metavar="N",
        help="steps for which matches (swd: directions, guided: samples) are held; "
        f"default {MATCH_EVERY}",
    )
    add(
        "--patch_rotations",
        nargs="+",
        action=Extend,
        default=[],
        type=number(float, -360, "degrees", 360),
        metavar="DEGREES",
        help="cnnmrf, guided: also take patches from the exemplar at these angles; default none",
    )
    add(
        "--patch_scales",
        nargs="+",
        action=Extend,
        default=[],
        type=number(float, 0.1, "a factor", 10),
        metavar="FACTOR",
        help="cnnmrf, guided: also take patches from the exemplar resized by these; default none",
    )
    add(
        "--max_patches",
        type=number(int, 1, "a number of patches"),
        metavar="N",
        help="guided: most patches of a layer that are compared, of exemplar and output each; "
        f"default {MAX_PATCHES}",
    )

    add = parser.add_argument_group("net").add_argument
    add(
        "--model",
        choices=NETS,
        help=f"default {DEFAULT_NET}, and where it can be neither found nor downloaded the "
        f"bundled {BUNDLED_NET}",
    )
    add(
        "--weights",
        type=Path,
        metavar="PATH",
        help="state dict in torchvision's layout, whole or features only; default torchvision's",
    )
    add(
        "--device",
        metavar="DEVICE",
        help="cuda:0, cuda:1, ..., cpu; default cuda:0, or the CPU where there is none",
    )

    add = parser.add_argument_group("optimisation").add_argument
    add(
        "--optimizer",
        choices=OPTIMIZERS,
        type=parse_optimizer,
        default="Adam",
        help="%(choices)s; default %(default)s",
    )
    add(
        "--epoch",
        type=number(int, 1, "a number of steps"),
        default=1000,
        metavar="N",
        help="steps (evaluations of loss and gradient) over all scales; default %(default)s",
    )
    add(
        "--lr",
        type=number(float, 1e-12, "a step size"),
        metavar="RATE",
        help=f"step size, for Adam in units of the range [0, 1]; default {rates}",
    )
    add(
        "--scales",
        type=parse_scales,
        metavar="auto|N",
        help="how many sizes, coarse to fine by factors of two; default auto",
    )
    add(
        "--seed",
        type=number(int, 0, "a number"),
        default=0,
        metavar="N",
        help="of the noise to start from; default %(default)s",
    )
    parser.add_argument_group("output").add_argument(
        "--quiet", action="store_true", help="nothing on stderr but errors"
    )

    add = parser.add_argument_group("instead of a synthesis").add_argument
    add(
        "--score",
        metavar="PICTURE",
        help="print how far this picture is from the exemplar, beside how far the exemplar's two "
        "halves are from each other",
    )
    add("--json", action="store_true", help="with --score: print it as JSON")
    return parser
