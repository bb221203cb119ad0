"""From what was asked for to jobs that are complete: everything read and checked before slow work.

Arguments end here. A job is frozen and holds all that decides a picture but the net's weights.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from command import outputs
from command.arguments import NOT_RECORDED, VERSION, paired, recorded_flags
from command.canvas import Pictures, axes_at, canvas_of, drawn_axes, guide_of, kept_of, output_size
from command.effects import check_effects
from command.flags import CONTENT_LAYERS, CONTENT_WEIGHT, MOST_PICTURES, Request
from command.maps import CarriedMap, alpha_map, read_map
from command.outputs import PAGE, check_log, check_outputs, check_page, snapshot_of
from command.pictures import (
    bits_saved,
    check_bits,
    check_format,
    check_save_path,
    check_suffix,
    find_pictures,
    record_at,
)
from command.settings import ASKED, named
from command.sheet import ANIMATION, SHEET, check_animation, check_sheet
from command.weights import DEFAULT_NET, likely_net
from engine.colours import matched_colours
from engine.kinds import IN_COURSES, STOCHASTIC, Kind, kind_of
from engine.optimizers import LEARNING_RATES
from engine.orientation import missing_turns
from engine.painting import check_sides
from engine.synthesis import Spec, exemplar_of, sizes_of
from losses import LONG_RANGE_WEIGHT, MATCH_EVERY, METHODS, TERMS
from models import least_side, resolve_layers
from terms.base import MAX_PATCHES, Canvas, Exemplar
from terms.gram import GRAM_LAYERS
from terms.valid import crop_to_valid, fill_invalid
from utils import (
    Size,
    UserError,
    available_bytes,
    rotated_and_resized,
    scaled_size,
    size_of,
    size_text,
)

LEAST_CUT = 512  # px, of the shorter side of an exemplar that is cut in half
FORMAT = re.compile(r"[0.]?[0-9]{0,2}[ds]?")  # of a field in --save_path
PREVIEW = "preview"  # what its record has, so that it is known again
GRAINS = {"y": "from top to bottom", "x": "from side to side"}


class Layers(NamedTuple):
    """What a request looks at in a net."""

    net: str  # a name in `models.NETS`
    model: dict[str, float]  # layers that the texture model looks at -> their weights
    content: list[str]
    trunk: list[str]  # all that the net is asked for, those of terms included


class FileState(NamedTuple):
    """Which file is at a path, and when it was written."""

    device: int
    inode: int
    changed: int  # ns
    size: int  # bytes


def state_of(path: Path) -> FileState | None:
    """The file at a path; None: there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return FileState(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


@dataclass(frozen=True)
class Job:
    """One picture to make: all that decides it, and where it goes."""

    exemplar: Path  # the picture of --gt_path
    spec: Spec
    trunk_layers: list[str]  # that the net is asked for: the model's and those of terms
    pool: str
    rescale: bool | str
    save_path: Path
    save_every: int | None  # steps between snapshots
    resume: bool  # whether there are checkpoints
    preview: bool  # whether the picture as it stands is kept up to date
    maps: list[CarriedMap]
    kept: Tensor | None  # (1, 4, H, W), colours and alpha of what stays as it is
    alpha: CarriedMap | None  # of the exemplar, where it is carried along
    bits: int  # of a channel of its file
    grey: bool  # whether its file has one channel
    record: dict[str, Any]  # kept inside the picture
    there: FileState | None = None  # the file at `save_path` when this was planned

    @property
    def name(self) -> str:
        """That it is told by."""
        return self.exemplar.name

    @property
    def tiled_path(self) -> Path:
        """Where the repeat of a picture that tiles goes."""
        return outputs.tiled_path(self.save_path)

    @property
    def checkpoint_path(self) -> Path:
        """Where what it can go on from goes."""
        return outputs.checkpoint_path(self.save_path)

    @property
    def preview_path(self) -> Path:
        """Where the picture as it stands goes."""
        return outputs.preview_path(self.save_path)

    def snapshot_path(self, step: int) -> Path:
        """Where the picture as it stands after a step goes."""
        return outputs.snapshot_path(self.save_path, step)

    def saved_as(self, path: Path) -> "Job":
        """The same, saved elsewhere in its folder."""
        old = len(self.save_path.stem)
        maps = [
            replace(one, path=one.path.with_name(path.stem + one.path.name[old:]))
            for one in self.maps
        ]
        return replace(self, save_path=path, maps=maps)

    def written(self) -> list[tuple[Path, Size]]:
        """Every file that this makes, but snapshots, and the size of the picture in it."""
        height, width = size = self.spec.canvas.size
        tile = self.spec.canvas.tile
        repeated = height * (1 + ("y" in tile)), width * (1 + ("x" in tile))
        tiled = [(self.tiled_path, repeated)] if tile else []
        return [(self.save_path, size), *tiled, *((one.path, size) for one in self.maps)]


@dataclass(frozen=True)
class Order:
    """What becomes a job when its turn comes, as the pictures of a night do not fit into memory."""

    exemplar: Path
    save_path: Path
    seed: int


def orders_of(request: Request) -> tuple[list[Order], list[str]]:
    """Every exemplar with every seed, where its picture goes, and what the user should hear.

    Raises:
        UserError: an exemplar that there is not, more pictures than MOST_PICTURES, or a file that
            would be written in place of an input, of another output or of what is not ours.
    """
    check_effects(request)
    check_uses(request)
    layers_of(request)
    paths, notes = exemplars_of(request)
    for path, times in Counter(paths).items():
        if times > 1:
            raise UserError(f"--gt_path {path}: given more than once")
    if len(paths) * request.count > MOST_PICTURES:
        raise UserError(
            f"--count {request.count}: of {len(paths)} exemplars, at most {MOST_PICTURES} pictures "
            "are made by one run"
        )
    orders: dict[Path, Order] = {}
    name_of = _result_names(request, len(paths) > 1)
    for path, stem in zip(paths, told_apart(paths), strict=True):
        for seed in range(request.seed, request.seed + request.count):
            save_path = name_of(stem, seed)
            if save_path in orders:
                raise UserError(f"--gt_path {path}: two exemplars would be saved as {save_path}")
            check_suffix(save_path)
            if request.bits:
                check_bits(save_path, int(request.bits))
            orders[save_path] = Order(path, save_path, seed)
    check_outputs(request, paths, orders)
    _check_beside(request, list(orders), len(paths))
    return list(orders.values()), notes


def exemplars_of(request: Request) -> tuple[list[Path], list[str]]:
    """Every exemplar, and what was left out of folders; raises UserError where there is none."""
    held = request.pictures
    found = [
        ([Path(name)], []) if name in held else find_pictures(name) for name in request.gt_path
    ]
    return [path for paths, _ in found for path in paths], [n for _, notes in found for n in notes]


def told_apart(paths: Sequence[Path]) -> list[str]:
    """A name for every exemplar: its stem, and where another one has that too, as much more of its
    suffix and folders as it takes: `wall_png`, `old_wall`, `old_wall_png`."""
    names = [path.stem for path in paths]
    longer = [_longer_names(path) for path in paths]
    while True:
        counts = Counter(names)
        found = [
            next(more, name) if counts[name] > 1 else name
            for name, more in zip(names, longer, strict=True)
        ]
        if found == names:  # all differ, or one is there twice
            return names
        names = found


def _longer_names(path: Path) -> Iterator[str]:
    stem, suffix = path.stem, path.suffix.removeprefix(".")
    yield f"{stem}_{suffix}"
    for folder in path.absolute().parents:
        stem = f"{folder.name}_{stem}"
        yield stem
        yield f"{stem}_{suffix}"


def _check_beside(request: Request, results: list[Path], exemplars: int) -> None:
    """Raise UserError where a sheet, an animation, a page or a log cannot be written."""
    several = len(results) > 1
    snapshots = request.epoch // request.save_every if request.save_every else 0
    if request.sheet:
        check_sheet(request.sheet, len(results) + exemplars, 0 if several else snapshots)
        _check_ours(request.sheet, SHEET, request.overwrite)
    if request.report:
        folders = sorted({str(path.parent) for path in results})
        if not any(Path(folder).resolve() == request.report.resolve() for folder in folders):
            raise UserError(
                f"--report {request.report}: this run saves pictures in {folders[0]}, give that"
            )
        check_page(request.report / PAGE)
    if request.animate:
        check_animation(request.animate, several, snapshots)
        _check_ours(request.animate, ANIMATION, request.overwrite)
    if request.log:
        check_log(request.log)


def _check_ours(path: Path, mark: str, overwrite: bool) -> None:
    """Raise UserError where a file is there that has not what records of such files have."""
    if path.exists() and not overwrite and mark not in record_at(path):
        raise UserError(f"{path}: another file is there, give --overwrite or another name")


def _result_names(request: Request, several: bool) -> Callable[[str, int], Path]:
    """A function (name of an exemplar, seed) -> where its picture goes: by the pattern that is
    given, or else told apart by what differs.

    Folders that are there are folders, whatever is in their names.

    Args:
        several: whether there are several exemplars.
    """
    given, added = request.save_path, several
    # False, too, of a name that cannot be.
    is_folder = os.path.isdir(given) or _names_a_folder(given, several or request.count > 1)
    if is_folder:
        folder, pattern = given, "{stem}.png"
    else:
        folder = next((one for one in given.parents if os.path.isdir(one)), Path(given.anchor))
        pattern = str(given.relative_to(folder))
    if "{" not in pattern:
        pattern = pattern.replace("}", "}}")
        pattern = str(Path(pattern).with_stem(Path(pattern).stem + "_{stem}" * added))
    _check_fields(request.save_path, pattern)
    counted = request.count > 1 and "{seed" not in pattern

    def name_of(stem: str, seed: int) -> Path:
        try:
            found = folder / pattern.format(stem=stem, seed=seed)
        except ValueError as error:
            raise _not_a_pattern(given) from error
        return found.with_stem(f"{found.stem}_{seed}") if counted else found

    return name_of


def _names_a_folder(path: Path, several: bool) -> bool:
    return several and not path.suffix and "{" not in path.name


def _check_fields(path: Path, pattern: str) -> None:
    """Raise UserError for other fields than stem and seed, and for widths of more than two
    figures, as of a thousand million spaces."""
    try:
        for _, name, spec, conversion in Formatter().parse(pattern):
            if name is not None and (
                name not in ("stem", "seed") or conversion or not FORMAT.fullmatch(spec or "")
            ):
                raise _not_a_pattern(path)
    except ValueError as error:  # a brace alone
        raise _not_a_pattern(path) from error


def _not_a_pattern(path: Path) -> UserError:
    return UserError(
        f"--save_path {path}: allowed in braces are stem and seed, as in {{stem}}_{{seed:03d}}.png"
    )


def plan(request: Request) -> tuple[list[Job], list[str]]:
    """All jobs of a request at once, and what was done to the pictures that the user should hear.

    Raises:
        UserError: as `orders_of` and `job_of` do.
    """
    orders, left_out = orders_of(request)
    found = [job_of(request, order) for order in orders]
    return [job for job, _ in found], left_out + [note for _, notes in found for note in notes]


def job_of(request: Request, order: Order, most: float = math.inf) -> tuple[Job, list[str]]:
    """Read every picture and check every path and size, before any slow work.

    Args:
        most: pixels of the exemplar; of a larger one its middle is taken.

    Returns the job, and what was done to the pictures that the user should hear.

    Raises:
        UserError: whatever of these cannot be.
    """
    pictures = Pictures(request.pictures)
    check_save_path(order.save_path)
    layers = layers_of(request)
    request = replace(request, seed=order.seed)
    there = state_of(order.save_path)
    job = _job(request, layers, order.exemplar, order.save_path, pictures, most)
    if request.save_every:
        folder = job.save_path.parent
        for path in folder.iterdir() if folder.is_dir() else ():
            if snapshot_of(path, request) == job.save_path:
                _check_ours(path, "step", request.overwrite)
    if request.preview:
        _check_ours(job.preview_path, PREVIEW, request.overwrite)
    for path, size in job.written():
        check_format(path, size)
    inputs = pictures.inputs | ({str(request.weights): request.weights} if request.weights else {})
    hashes = {name: pictures.sha256(path) for name, path in inputs.items()}
    return replace(job, there=there, record=job.record | {"inputs": hashes}), pictures.notes


def _job(
    request: Request, layers: Layers, path: Path, save_path: Path, pictures: Pictures, most: float
) -> Job:
    source = request.style_image or path
    exemplar_name, content = pictures.find(source).name, None
    valid = None if request.alpha else pictures.opaque(source)
    exemplar = pictures.read(source).pixels if valid is not None else pictures.over_mean(source)
    if request.style_image:
        content = pictures.over_mean(path)
        if request.keep_color:
            exemplar = matched_colours(exemplar, content, valid)
    whole = size_of(exemplar)
    exemplar = _middle(exemplar, most)
    valid = None if valid is None else _middle(valid, most)
    exemplars, canvas = _exemplars_and_canvas(request, exemplar, valid, content, pictures)
    piece = crop_to_valid(exemplars[0].image, exemplars[0].valid)
    weights, notes = term_weights(request, exemplar_name, piece, canvas)
    kind = kind_of(piece) if request.repaint else STOCHASTIC
    if request.repaint:
        notes.append(f"{exemplar_name} is {kind.name}: {_painted(request, kind)}")
    if size_of(exemplar) != whole:
        size = size_text(size_of(exemplar))
        notes.append(f"{exemplar_name}: all of it would not fit, its middle of {size} is used")
    pictures.notes += notes
    spec = _spec(request, layers, exemplars, canvas, weights, kind)
    check_sizes(spec, layers.trunk, [exemplar_name, *(name for name, _ in request.mix)])
    made_at = sizes_of(spec, layers.trunk)[-1][1]
    if made_at != canvas.size:
        pictures.notes.append(
            f"{path.name}: made at {size_text(made_at)}, then resized, to tile exactly"
        )
    bits, grey = _depth(request, path, save_path, pictures)
    if canvas.mask is not None and save_path.suffix.lower() in (".jpg", ".jpeg"):
        pictures.notes.append(f"{save_path}: JPEG changes the pixels that are kept, .png does not")
    return Job(
        path,
        spec,
        layers.trunk,
        request.pool,
        request.rescale,
        save_path,
        request.save_every,
        request.resume,
        request.preview,
        [read_map(name, exemplars[0], save_path, pictures) for name in request.maps],
        kept_of(request, path, canvas, save_path, pictures),
        alpha_map(path, exemplars[0], save_path, pictures) if request.alpha else None,
        bits,
        grey,
        _record(request, spec, exemplar_name, path),
    )


def _depth(request: Request, path: Path, save_path: Path, pictures: Pictures) -> tuple[int, bool]:
    """The bits of a channel of the result, and whether it is grey: as the pictures came that it is
    made of."""
    names: list[str | Path] = [path, *(name for name, _ in request.mix)]
    names += [request.style_image] if request.style_image else []
    names += [request.init_picture] if request.init_picture else []
    found = {name: pictures.read(name) for name in names}
    deepest = max(found, key=lambda name: found[name].bits)
    wanted = int(request.bits or min(16, found[deepest].bits))
    bits = bits_saved(save_path, wanted)
    if bits < wanted:
        name = Path(deepest).name
        pictures.notes.append(
            f"{save_path}: saved with {bits} bits, {name} has more; .png and .tif hold 16"
        )
    return bits, all(one.grey for one in found.values())


def can_be_cut(request: Request, job: Job) -> bool:
    """Whether half of the exemplar would do: it is large, and nothing else lies on it."""
    lies_on_it = request.guide or request.maps or request.expand or request.mask
    sized = request.size is not None or request.style_image is not None
    return sized and not lies_on_it and min(size_of(job.spec.exemplars[0].image)) >= LEAST_CUT


def _middle(picture: Tensor, most: float) -> Tensor:
    """(1, 3, H, W) -> the middle of it, of the same shape, of so many pixels at most."""
    height, width = size_of(picture)
    part = min(1.0, math.sqrt(most / (height * width)))
    h, w = round(height * part), round(width * part)
    top, left = (height - h) // 2, (width - w) // 2
    return picture[..., top : top + h, left : left + w]


def _spec(
    request: Request,
    layers: Layers,
    exemplars: tuple[Exemplar, ...],
    canvas: Canvas,
    weights: dict[str, float],
    kind: Kind,
) -> Spec:
    weight = request.content_weight
    return Spec(
        exemplars,
        canvas,
        method=request.method,
        layers=layers.model,
        weights=weights,
        match_every=request.match_every or MATCH_EVERY,
        max_patches=request.max_patches or MAX_PATCHES,
        content_layers=tuple(layers.content),
        content_weight=CONTENT_WEIGHT if weight is None else weight,
        optimizer=request.optimizer,
        steps=request.epoch,
        lr=request.lr,
        scales=request.scales,
        tolerance=request.tolerance,
        seed=request.seed,
        repaint=request.repaint,
        kind=kind,
    )


def _painted(request: Request, kind: Kind) -> str:
    """What follows from the kind of a texture, and how to change it."""
    straight = ", rows and columns straight" if kind.regular else ""
    polish = f", then polished by {request.method}" if request.repaint < 1 else ""
    return (
        f"painted with its pixels{straight}{polish} (--repaint {request.repaint:g}, "
        "--repaint 0 is the model alone)"
    )


def _exemplars_and_canvas(
    request: Request,
    exemplar: Tensor,
    valid: Tensor | None,
    content: Tensor | None,
    pictures: Pictures,
) -> tuple[tuple[Exemplar, ...], Canvas]:
    """Every exemplar with its copies, and the canvas, with what guides say of both."""
    drawn = drawn_axes(request.orientation, pictures)
    size = output_size(request, drawn, content, exemplar, pictures)
    axes, rotations = None, list(request.patch_rotations)
    if request.orientation:
        axes = axes_at(request.orientation, drawn, size)
        rotations = rotations or missing_turns(exemplar, axes)
    check_copies(request, exemplar, rotations)
    shares = _shares(request.mix)
    others = [(pictures.read(name).pixels, pictures.opaque(name), share) for name, share in shares]
    rest = 1 - sum(share for _, share in shares)
    grown = exemplar if valid is None else fill_invalid(exemplar, valid)
    canvas = canvas_of(request, size, grown, content, pictures)
    valid = _without_hole(exemplar, valid, canvas)
    exemplars = (
        exemplar_of(exemplar, rotations, request.patch_scales, rest, valid),
        *(exemplar_of(picture, share=share, valid=opaque) for picture, opaque, share in others),
    )
    variants = partial(rotated_and_resized, degrees=rotations, factors=request.patch_scales)
    mixed = [exemplar, *(picture for picture, *_ in others)]
    guide = guide_of(request, size, mixed, axes, variants, pictures)
    return (exemplars, canvas) if guide is None else guide.laid(exemplars, canvas)


def _without_hole(exemplar: Tensor, valid: Tensor | None, canvas: Canvas) -> Tensor | None:
    """(1, 1, h, w) of bool: what counts of an exemplar; what is to be made anew of that very
    picture does not.

    Raises:
        UserError: nothing is left.
    """
    if canvas.mask is None or canvas.init is None or canvas.init.shape != exemplar.shape:
        return valid
    seen = torch.ones_like(canvas.mask) if valid is None else valid
    if not torch.equal(canvas.init.where(seen, 0), exemplar.where(seen, 0)):
        return valid
    valid = ~canvas.mask if valid is None else valid & ~canvas.mask
    if not valid.any():
        raise UserError("--mask: all of the exemplar is made anew, so there is no texture to take")
    return valid


def _shares(mix: Sequence[tuple[str, float | None]]) -> list[tuple[str, float]]:
    """Shares where none is given: equal parts of the rest, of which the exemplar has one."""
    rest = 1 - sum(share or 0 for _, share in mix)
    if rest <= 1e-6:
        raise UserError(f"--mix: shares of {1 - rest:g} in all leave nothing for the exemplar")
    part = rest / (1 + sum(share is None for _, share in mix))
    return [(name, share or part) for name, share in mix]


def _record(request: Request, spec: Spec, exemplar: str, path: Path) -> dict[str, Any]:
    """What the picture's file keeps of how it was made: what was asked for, by which `--from` makes
    it again, and what was decided for it."""
    record: dict[str, Any] = {"version": VERSION, "exemplar": exemplar}
    decided = [one.name for one in fields(request) if one.name not in NOT_RECORDED | {"terms"}]
    record |= {name: getattr(request, name) for name in decided}
    asked = {k: v for k, v in request.asked.items() if k in recorded_flags()}
    record[ASKED] = asked | {"gt_path": named(path), "seed": request.seed}
    if request.style_image:
        record |= {
            "content": path.name,
            "content_layers": spec.content_layers,
            "content_weight": spec.content_weight,
        }
    return (
        record
        | (spec.weights or {})
        | {
            "gt_path": named(path),
            "exemplar_size": size_text(size_of(spec.exemplars[0].image)),
            "size": size_text(spec.canvas.size),
            "layers": [
                paired(layer, None if weight == 1 else weight)
                for layer, weight in (spec.layers or {}).items()
            ],
            "lr": spec.lr or LEARNING_RATES[spec.optimizer],
        }
    )


def check_sizes(spec: Spec, layers: list[str], names: Sequence[str]) -> None:
    """Raise UserError when exemplars, copies or output are too small for the layers, or for the
    patches that are painted.

    Args:
        names: of the files of the exemplars.
    """
    try:
        if spec.repaint:
            check_sides(spec.exemplars, spec.canvas.size)
        coarsest = sizes_of(spec, layers)[0][0]
    except UserError as error:
        raise UserError(f"{names[0]}: {error}") from error
    least = least_side(layers)
    first, *others = spec.exemplars
    factor = coarsest[0] / first.image.shape[2]
    copies = f"--patch_rotations, --patch_scales: a copy of {names[0]}"
    named = [(copies, view) for view in first.views[1:]]
    for name, other in zip(names[1:], others, strict=True):
        named += [(f"--mix {name}: it", view) for view in other.views]
    for name, view in named:
        whole, size = size_of(view.image), scaled_size(view.image, factor)
        if min(size) < least:
            helps = factor < 1 and min(whole) >= least
            then = f"--scales 1, where it has {size_text(whole)}" if helps else "a larger picture"
            raise UserError(
                f"{name} becomes {size_text(size)} at the coarsest scale, allowed are sides of "
                f"{least} or more: give {then}"
            )


def check_copies(request: Request, exemplar: Tensor, rotations: Sequence[float]) -> None:
    """Raise UserError where there is no memory for copies of (1, 3, H, W), turned and resized."""
    factors = sum(factor**2 for factor in request.patch_scales)
    copies = (1 + len(rotations)) * (1 + factors) - 1
    needed, free = 2 * copies * exemplar.nbytes, available_bytes(torch.device("cpu"))
    if needed > free:  # a copy and what it is computed from
        raise UserError(
            f"--patch_rotations, --patch_scales: making the copies takes {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} are free: give fewer, or smaller ones"
        )


def given_weights(request: Request) -> dict[str, float]:
    """The weight of every term: what the user says, else the method's own."""
    return dict.fromkeys(TERMS, 0.0) | METHODS[request.method].weights | request.terms


def term_weights(
    request: Request, name: str, exemplar: Tensor, canvas: Canvas
) -> tuple[dict[str, float], list[str]]:
    """The weight of every term for this exemplar, and what the user should hear of them."""
    weights, notes = given_weights(request), []
    # What is painted has the exemplar's order already.
    if "spectrum" not in request.terms and not request.repaint:
        order = _long_range_order(exemplar, canvas)
        if order:
            weights["spectrum"] = LONG_RANGE_WEIGHT
            on = f"--spectrum {LONG_RANGE_WEIGHT} is on, --spectrum 0 turns it off"
            repeats = "; --tile keeps its order where --size holds whole repeats"
            notes = [f"{name} {order}: {on}{repeats if canvas.tile else ''}"]
    off, off_notes = _terms_of_the_whole(weights, canvas)
    return weights | off, off_notes if "spectrum" in off else notes + off_notes


def _long_range_order(exemplar: Tensor, canvas: Canvas) -> str:
    """Describe the long-range order of an exemplar, for the note; "" if it has none."""
    kind = kind_of(exemplar)
    if kind.period != (0, 0):
        y, x = kind.period
        return f"repeats after {abs(x)} px across and {abs(y)} px down"
    if canvas.content is not None:
        return ""  # a painting has straight edges, whose order is not for the photo
    if kind == IN_COURSES:
        return "is laid in courses"
    return f"has a grain that runs {GRAINS[kind.axis]}" if kind.axis else ""


def _terms_of_the_whole(
    weights: dict[str, float], canvas: Canvas
) -> tuple[dict[str, float], list[str]]:
    """What to make of the weights of terms that see the picture as a whole, and the line for it.

    The spectrum knows what a mask keeps and judges what is made alone; the autocorrelation cannot
    tell them apart. Guides ask different places for different things: beside them both are off.
    """
    if canvas.guide is not None:
        beside, terms = "guides", ["spectrum", "autocorrelation"]
    elif canvas.mask is not None:
        beside, terms = "what is kept", ["autocorrelation"]
    else:
        return {}, []
    off = [term for term in terms if weights[term]]
    note = f"{', '.join(off)}: off beside {beside}, as it sees the picture as a whole"
    return dict.fromkeys(off, 0.0), [note] if off else []


def layers_of(request: Request) -> Layers:
    """Return the layers of the net that will run. Before a download, which may yet fail, layers of
    the default net and of the bundled one are allowed.

    Raises:
        UserError: a layer that the net does not have, or one with two weights.
    """
    net = likely_net(request.model, request.weights, request.weights_layout)
    if request.model is None and request.weights is None:
        with suppress(UserError):
            return _layers_in(DEFAULT_NET, request)
    return _layers_in(net, request)


def _layers_in(net: str, request: Request) -> Layers:
    weights: dict[str, float] = {}
    asked = request.layers or [(name, 1.0) for name in METHODS[request.method].layers]
    for name, weight in asked:
        (layer,) = resolve_layers([name], net)
        if weights.setdefault(layer, weight) != weight:
            raise UserError(
                f"--layers {name}: given twice, with weights {weights[layer]:g} and {weight:g}"
            )
    layers = resolve_layers(weights, net)
    content = resolve_layers(request.content_layers or CONTENT_LAYERS, net)
    every = {*layers, *(content if request.style_image else ())}
    terms = given_weights(request)
    if any(terms[name] for name in ("gram", "moments", "autocorrelation")):
        every.update(GRAM_LAYERS)
    model = {layer: weights[layer] for layer in layers}
    return Layers(net, model, content, resolve_layers(every, net))


def check_uses(request: Request) -> None:
    """Raise UserError for a flag that nothing has a use for, rather than ignore it."""
    if request.resume and request.split:
        raise UserError("--resume: not with --split, whose processes keep no checkpoints")
    if request.workers and request.split:
        raise UserError("--workers: not with --split, whose processes make one picture at a time")
    for flag in ("style_image", "mix", "init", "mask", "expand"):
        if request.alpha and getattr(request, flag):
            raise UserError(f"--alpha: belongs to one exemplar, leave out --{flag}")
    if request.maps and request.mix:
        raise UserError("--maps: belong to one exemplar, leave out --mix")
    if request.weights_layout and not request.weights:
        raise UserError("--weights_layout: requires --weights PATH")
    for flag, given in (
        ("keep_color", request.keep_color),
        ("init content", request.init == "content"),
        ("content_weight", request.content_weight is not None),
        ("content_layers", request.content_layers is not None),
    ):
        if given and not request.style_image:
            raise UserError(f"--{flag}: no effect without --style_image")
    if request.mix and (request.orientation or request.patch_rotations or request.patch_scales):
        raise UserError("--mix: exemplars are mixed as they are, not rotated or resized")
    if request.mix and request.guide and (len(request.guide) > 1 or request.guide[0][0] != "mix"):
        raise UserError("--mix: takes one --guide, mix OUTPUT_MAP")
    for name, share in request.mix:
        if share is not None and request.guide:
            raise UserError(
                f"--mix {name}:{share:g}: --guide mix gives the shares, leave out :{share:g}"
            )
    if request.mask and request.init_picture is None:
        raise UserError(f"--mask {request.mask}: requires --init PICTURE, which it masks")
    if request.mask and request.expand:
        raise UserError(f"--expand masks what is new itself: leave out --mask {request.mask}")
    if request.style_image and (request.mask or request.expand):
        raise UserError("--style_image paints all of the picture: leave out --mask and --expand")
