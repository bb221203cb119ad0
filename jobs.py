"""What the user asked for, read and checked before any slow work."""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from controls import CONTENT_LAYERS, CONTENT_WEIGHT, Controls, expanded, matched_colours
from guides import (
    FIELDS,
    Guide,
    Variants,
    axes_of_hue,
    axes_of_vectors,
    field,
    joined,
    missing_turns,
    orientation_guide,
    read_guide,
    which_exemplar,
)
from losses import LONG_RANGE_WEIGHT, METHODS
from models import DEFAULT_NET, least_side, resolve_layers, stride
from terms import GRAM_LAYERS, PERIODIC, TERMS, period
from utils import (
    UserError,
    check_save_path,
    find_picture,
    is_deep,
    pyramid,
    read_picture,
    read_vectors,
    turned_and_resized,
)


class Job(NamedTuple):
    """One picture to make: its exemplar, its controls, and where it goes."""

    name: str  # of the picture of --gt_path: the content's, where there is one
    exemplar_name: str
    exemplar: Tensor
    size: tuple[int, int]
    save_path: Path
    weights: dict[str, float]  # of the terms
    controls: Controls
    rotations: list[float]  # degrees, of the exemplar as more source
    maps: list[tuple[Path, Tensor, bool]]  # where each goes, (1, 3, h, w), whether of 16 bits

    @property
    def tiled_path(self) -> Path:
        """Where the repeat of a picture that tiles goes."""
        return self.save_path.with_stem(f"{self.save_path.stem}_tiled")

    def written(self) -> list[Path]:
        """Every file that this makes, but snapshots."""
        tiled = [self.tiled_path] if self.controls.tile else []
        return [self.save_path, *tiled, *(path for path, _, _ in self.maps)]


def plan(args: argparse.Namespace, layers: list[str]) -> tuple[list[Job], list[str]]:
    """Read every picture and check every path and size, before any slow work.

    Returns the jobs, and what was done to the pictures that the user should hear.

    Raises:
        UserError: whatever of these cannot be.
    """
    check_uses(args)
    pictures = Pictures()
    paths = [find_picture(name) for name in args.gt_path]
    jobs: list[Job] = []
    for path in paths:
        save_path = args.save_path
        if len(paths) > 1:
            save_path = save_path.with_stem(f"{save_path.stem}_{path.stem}")
        if save_path in (job.save_path for job in jobs):
            raise UserError(f"--gt_path {path}: two exemplars would be saved as {save_path}")
        check_save_path(save_path)
        jobs.append(_job(args, layers, path, save_path, pictures))
    written = [path for job in jobs for path in job.written()]
    for path in written:
        if any(path.exists() and path.samefile(read) for read in pictures.seen):
            raise UserError(f"--save_path {path}: that is an exemplar, give another name")
        if written.count(path) > 1:
            raise UserError(f"--save_path {path}: two pictures would be saved there")
    return jobs, pictures.notes


class Pictures:
    """Reads pictures, each once, and remembers what the user should hear of them."""

    def __init__(self) -> None:
        self.seen: dict[Path, Tensor] = {}
        self.notes: list[str] = []

    def read(self, name: str | Path) -> Tensor:
        """(1, 3, H, W) of a picture looked up as `find_picture` does."""
        path = find_picture(name)
        if path not in self.seen:
            self.seen[path], notes = read_picture(path)
            self.notes += notes
        return self.seen[path]


def _job(
    args: argparse.Namespace, layers: list[str], path: Path, save_path: Path, pictures: Pictures
) -> Job:
    exemplar, content, exemplar_name = pictures.read(path), None, path.name
    if args.style_image:
        content, exemplar = exemplar, pictures.read(args.style_image)
        exemplar_name = find_picture(args.style_image).name
        if args.keep_color:
            exemplar = matched_colours(exemplar, content)
    drawn = _drawn_axes(args.orientation, pictures)
    size = output_size(args, drawn, content, exemplar, pictures)
    rotations, wanted = args.patch_rotations, None
    if args.orientation:
        wanted = field(args.orientation, size) if drawn is None else _axes_at(drawn, size)
        rotations = rotations or missing_turns(exemplar, wanted)
    variants = partial(turned_and_resized, degrees=rotations, factors=args.patch_scales)
    controls = _controls(args, size, exemplar, content, pictures)
    controls = controls._replace(
        guide=_guide(args, size, exemplar, wanted, variants, pictures),
        mixed=tuple((pictures.read(name), share) for name, share in _shares(args.mix)),
    )
    sizes = scales_of(tuple(exemplar.shape[-2:]), size, args.scales, layers, args.tile)
    check_variants(variants, sizes[0][0], least_side(layers))
    for mixed in controls.mixed_at(sizes[0][0][0] / exemplar.shape[2]):
        if min(mixed.shape[2:]) < least_side(layers):
            raise UserError(
                f"--mix: an exemplar becomes {_told(mixed.shape[2:])} at the coarsest scale, "
                f"allowed are sides of {least_side(layers)} or more"
            )
    if sizes[-1][1] != size:
        pictures.notes.append(
            f"{path.name}: made at {_told(sizes[-1][1])}, then resized, to tile exactly"
        )
    if controls.free is not None and save_path.suffix.lower() in (".jpg", ".jpeg"):
        pictures.notes.append(f"{save_path}: JPEG changes what is kept, .png keeps it to the bit")
    weights, notes = term_weights(args, exemplar_name, exemplar)
    off, off_notes = _terms_of_the_whole(weights, controls)
    weights |= off
    pictures.notes += off_notes if "spectrum" in off else notes + off_notes
    maps = [_map(name, exemplar, save_path, pictures) for name in args.maps]
    return Job(
        path.name, exemplar_name, exemplar, size, save_path, weights, controls, rotations, maps
    )


def _terms_of_the_whole(
    weights: dict[str, float], controls: Controls
) -> tuple[dict[str, float], list[str]]:
    """What to make of the weights of terms that see the picture as a whole, and the line for it.

    The spectrum knows what a mask keeps and judges what is made alone; the autocorrelation cannot
    tell them apart. Guides ask different places for different things: beside them both are off.
    """
    if controls.guide is not None:
        beside, terms = "guides", ["spectrum", "autocorrelation"]
    elif controls.free is not None:
        beside, terms = "what is kept", ["autocorrelation"]
    else:
        return {}, []
    off = [term for term in terms if weights[term]]
    told = f"{', '.join(off)}: off beside {beside}, as it sees the picture as a whole"
    return dict.fromkeys(off, 0.0), [told] if off else []


def output_size(
    args: argparse.Namespace,
    drawn_axes: Tensor | None,
    content: Tensor | None,
    exemplar: Tensor,
    pictures: Pictures,
) -> tuple[int, int]:
    """(height, width) of the output, which all maps and pictures are then brought to.

    The first that is given of: --size, --expand, the picture whose kept pixels --mask names, the
    output map of the first --guide, the map of --orientation, --init, the content, the exemplar.
    """
    init = _init_picture(args, pictures)
    maps = [pictures.read(output) for _, output in args.guide]
    given = (init if args.mask else None, *maps, drawn_axes, init, content, exemplar)
    followed = next(picture for picture in given if picture is not None)
    return args.size or args.expand or tuple(followed.shape[-2:])


def _map(
    name: str, exemplar: Tensor, save_path: Path, pictures: Pictures
) -> tuple[Path, Tensor, bool]:
    found, path = pictures.read(name), find_picture(name)
    if found.shape != exemplar.shape:
        raise UserError(
            f"--maps {name}: {_told(found.shape[-2:])}, but the exemplar is "
            f"{_told(exemplar.shape[-2:])}"
        )
    goes = save_path.with_name(f"{save_path.stem}_{path.stem}.png")
    check_save_path(goes)
    return goes, found, is_deep(path)


def _init_picture(args: argparse.Namespace, pictures: Pictures) -> Tensor | None:
    return None if args.init in (None, "content", "noise") else pictures.read(args.init)


def _controls(
    args: argparse.Namespace,
    size: tuple[int, int],
    exemplar: Tensor,
    content: Tensor | None,
    pictures: Pictures,
) -> Controls:
    init = _init_picture(args, pictures)
    if args.init in (None, "content"):
        init = content
    free = None
    if args.expand:
        base = exemplar if init is None else init
        if any(new < old for new, old in zip(args.expand, base.shape[-2:], strict=True)):
            raise UserError(
                f"--expand {_told(args.expand)}: smaller than the picture, "
                f"{_told(base.shape[-2:])}, that it is to hold"
            )
        init, free = expanded(base, args.expand)
    if args.mask:
        free = pictures.read(args.mask).mean(1, keepdim=True) >= 0.5
        if free.shape[-2:] != init.shape[-2:]:
            raise UserError(
                f"--mask {args.mask}: {_told(free.shape[-2:])}, but --init {args.init} is "
                f"{_told(init.shape[-2:])}"
            )
        if not free.any():
            raise UserError(f"--mask {args.mask}: no pixel is white, so nothing may change")
    if free is not None and tuple(free.shape[-2:]) != size:
        flag = "--expand" if args.expand else f"--mask {args.mask}"
        raise UserError(
            f"--size {_told(size)}: {flag} keeps pixels of {_told(free.shape[-2:])} to the bit, "
            "which is the only size allowed"
        )
    names = args.content_layers or CONTENT_LAYERS
    layers = tuple(resolve_layers(names, args.model or DEFAULT_NET))
    weight = CONTENT_WEIGHT if args.content_weight is None else args.content_weight
    return Controls(args.tile, init, free, content, layers, weight, args.keep_color)


def _drawn_axes(spec: str | None, pictures: Pictures) -> Tensor | None:
    """Unit axes (1, 2, H, W) of a file, of its own size; None for degrees and for FIELDS.

    Raises:
        UserError: neither degrees nor a name nor a file that holds axes.
    """
    if spec is None or field(spec, (1, 1)) is not None:
        return None
    if Path(spec).suffix.lower() == ".npy":
        return axes_of_vectors(read_vectors(Path(spec)))
    try:
        return axes_of_hue(pictures.read(spec))
    except UserError as error:
        told = f"--orientation: neither degrees nor {', '.join(FIELDS)} nor a file"
        raise UserError(f"{told} ({error})") from error


def _axes_at(drawn: Tensor, size: tuple[int, int]) -> Tensor:
    """Unit axes resized; where opposite ones meet there is none."""
    if tuple(drawn.shape[-2:]) == size:
        return drawn
    return F.normalize(F.interpolate(drawn, size, mode="bilinear", antialias=True))


def _guide(
    args: argparse.Namespace,
    size: tuple[int, int],
    exemplar: Tensor,
    wanted: Tensor | None,
    variants: Variants,
    pictures: Pictures,
) -> Guide | None:
    guides = []
    for names in args.guide:
        if args.mix and names[0] == "mix":
            exemplars = [exemplar, *(pictures.read(name) for name, _ in args.mix)]
            return which_exemplar(exemplars, pictures.read(names[1]), names[1], size)
        source, output = (pictures.read(name) for name in names)
        if source.shape != exemplar.shape:
            raise UserError(
                f"--guide {names[0]}: {_told(source.shape[-2:])}, but the exemplar that it "
                f"describes is {_told(exemplar.shape[-2:])}"
            )
        guides.append(read_guide(source, output, names, variants, size))
    if wanted is not None:
        guides.append(orientation_guide(exemplar, wanted, variants))
    return joined(guides) if guides else None


def _shares(mix: list[tuple[str, float | None]]) -> list[tuple[str, float]]:
    """Shares where none is given: equal parts of the rest, of which the exemplar has one."""
    rest = 1 - sum(share or 0 for _, share in mix)
    if rest <= 1e-6:
        raise UserError(f"--mix: shares of {1 - rest:g} in all leave nothing for the exemplar")
    part = rest / (1 + sum(share is None for _, share in mix))
    return [(name, share or part) for name, share in mix]


def _told(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def scales_of(
    exemplar: tuple[int, int],
    size: tuple[int, int],
    scales: int | None,
    layers: list[str],
    tile: str,
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The sizes of (exemplar, output) from coarse to fine; raises UserError as `pyramid` does."""
    multiples = tuple(stride(layers) if axis in tile else 1 for axis in "yx")
    return pyramid(exemplar, size, scales, least_side(layers), multiples)


def check_variants(variants: Variants, coarsest: tuple[int, int], least: int) -> None:
    """Raise UserError when the exemplar, turned and resized, is too small for the layers."""
    for other in variants(torch.zeros(1, 1, *coarsest)):
        if min(other.shape[2:]) < least:
            raise UserError(
                f"--patch_rotations, --patch_scales: the exemplar becomes {_told(other.shape[2:])} "
                f"at the coarsest scale, allowed are sides of {least} or more"
            )


def given_weights(args: argparse.Namespace) -> dict[str, float]:
    """The weight of every term: what the user says, else the method's own."""
    given = {term: getattr(args, term) for term in TERMS if getattr(args, term) is not None}
    return dict.fromkeys(TERMS, 0.0) | METHODS[args.method].weights | given


def term_weights(
    args: argparse.Namespace, name: str, exemplar: Tensor
) -> tuple[dict[str, float], list[str]]:
    """The weight of every term for this exemplar, and what the user should hear of them."""
    weights = given_weights(args)
    if args.spectrum is None:
        clear, y, x = period(exemplar)
        if clear > PERIODIC:
            weights["spectrum"] = LONG_RANGE_WEIGHT
            note = (
                f"{name} repeats after {abs(x)} px across and {abs(y)} px down: "
                f"--spectrum {LONG_RANGE_WEIGHT} is on, --spectrum 0 turns it off"
            )
            whole = "; --tile keeps its order where --size holds whole repeats" if args.tile else ""
            return weights, [note + whole]
    return weights, []


def layers_of(args: argparse.Namespace, net: str) -> tuple[list[str], list[str]]:
    """The layers that the texture model looks at, and those that the extractor must have.

    Raises:
        UserError: a layer that the net does not have.
    """
    layers = resolve_layers(args.layers or METHODS[args.method].layers, net)
    weights = given_weights(args)
    every = set(layers)
    if any(weights[term] for term in ("gram", "moments", "autocorrelation")):
        every.update(GRAM_LAYERS)
    if args.style_image:
        every.update(args.content_layers or CONTENT_LAYERS)
    return layers, resolve_layers(every, net)


def check_uses(args: argparse.Namespace) -> None:
    """Raise UserError for a flag that nothing has a use for, rather than ignore it."""
    for flag in sorted({flag for method in METHODS.values() for flag in method.takes}):
        if getattr(args, flag) and flag not in METHODS[args.method].takes:
            takers = ", ".join(name for name, method in METHODS.items() if flag in method.takes)
            raise UserError(f"--{flag}: --method {args.method} has no use for it, but {takers}")
    if args.maps and args.mix:
        raise UserError("--maps: of one exemplar, leave out --mix")
    for flag, given in (
        ("keep_color", args.keep_color),
        ("init content", args.init == "content"),
        ("content_weight", args.content_weight is not None),
        ("content_layers", args.content_layers is not None),
    ):
        if given and not args.style_image:
            raise UserError(f"--{flag}: of use with --style_image only, which is missing")
    if args.mix and (args.orientation or args.patch_rotations or args.patch_scales):
        raise UserError("--mix: exemplars are mixed as they are, not turned or resized")
    if args.mix and args.guide and (len(args.guide) > 1 or args.guide[0][0] != "mix"):
        raise UserError("--mix: takes one --guide, mix OUTPUT_MAP")
    for name, share in args.mix:
        if share is not None and args.guide:
            raise UserError(
                f"--mix {name}:{share:g}: --guide mix gives the shares, leave out :{share:g}"
            )
    if args.mask and args.init in (None, "content", "noise"):
        raise UserError(f"--mask {args.mask}: say what is masked, --init PICTURE")
    if args.mask and args.expand:
        raise UserError(f"--expand masks what is new itself: leave out --mask {args.mask}")
    if args.style_image and (args.mask or args.expand):
        raise UserError("--style_image paints all of the picture: leave out --mask and --expand")
