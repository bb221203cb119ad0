"""Plan a request: read and check every input before slow work starts, and return jobs.

A job is frozen and holds all that determines a picture, except for the net and its weights. Later
modules do not read the flags that determine a picture.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from command import outputs
from command.arguments import NOT_RECORDED, VERSION, paired, recorded_flags
from command.canvas import (
    Pictures,
    axes_at,
    canvas_of,
    drawn_axes,
    guide_of,
    kept_pixels,
    output_size,
)
from command.effects import check_effects, chosen_by_kind
from command.files import FileState, file_state
from command.flags import CONTENT_LAYERS, CONTENT_WEIGHT, MOST_PICTURES, Request
from command.floor import FLOOR, floor_size
from command.maps import CarriedMap, alpha_map, read_map
from command.names import distinct_names, result_names
from command.outputs import PAGE, check_log, check_outputs, check_page, snapshot_of
from command.periods import period_notes, with_size
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
from engine.kinds import IN_COURSES, STOCHASTIC, Kind, is_uneven, kind_of
from engine.optimizers import LEARNING_RATES
from engine.orientation import missing_turns
from engine.painting import too_small
from engine.scales import with_margin
from engine.schedule import margin_of, sizes_of
from engine.spec import Spec, exemplar_of
from losses import BEST, LONG_RANGE_WEIGHT, MATCH_EVERY, METHODS, MOST_PAINTED, TERMS
from models import least_side, resolve_layers, stride
from terms.base import MAX_PATCHES, Canvas, Exemplar
from terms.gram import GRAM_LAYERS
from terms.valid import crop_to_valid, fill_invalid
from utils import (
    Size,
    UserError,
    available_bytes,
    prefixed,
    rotated_and_resized,
    scaled_size,
    size_of,
    size_text,
)

MIN_CROPPED_SIDE = 512  # px, shorter side from which an exemplar may be cropped to save memory
PREVIEW = "preview"  # key in the record that identifies a preview
GRAINS = {"y": "from top to bottom", "x": "from side to side"}


class Layers(NamedTuple):
    """The net that a request uses, and its layers."""

    net: str  # a name in `models.NETS`
    model: dict[str, float]  # layer of the texture model -> its weight
    content: list[str]
    trunk: list[str]  # all layers to compute: of model, content and terms


@dataclass(frozen=True)
class Job:
    """One picture to make: the paths of its files, and all that determines it but the net."""

    exemplar: Path  # picture of --gt_path; with --style_image, this is the content
    spec: Spec
    trunk_layers: list[str]  # layers to compute: of model, content and terms
    pool: str
    rescale: bool | str
    save_path: Path
    save_every: int | None  # steps between snapshots
    resume: bool  # whether checkpoints are written and resumed
    preview: bool  # whether a preview file is kept up to date
    maps: list[CarriedMap]
    kept: Tensor | None  # colours and alpha of the input, (1, 4, H, W), from `kept_pixels`
    alpha: CarriedMap | None  # of the exemplar, if it is transferred
    bits: int  # per channel, in the file
    grey: bool  # whether the file has one channel of colour
    repeat: str  # axes along which NAME_tiled repeats the picture; "": there is no such file
    exact_histogram: str | None  # a name in `engine.histogram.MATCHED`
    record: dict[str, Any]  # settings, to be embedded in the file
    existing: FileState | None = None  # the file at `save_path` when this job was planned

    @property
    def name(self) -> str:
        """Name of the job in messages."""
        return self.exemplar.name

    def saved_as(self, path: Path) -> "Job":
        """Return the job with another save_path in the same folder; maps are renamed with it."""
        old = len(self.save_path.stem)
        maps = [
            replace(one, path=one.path.with_name(path.stem + one.path.name[old:]))
            for one in self.maps
        ]
        return replace(self, save_path=path, maps=maps)

    def output_files(self) -> list[tuple[Path, Size]]:
        """Return the path and size of every picture that the job leaves, except for snapshots."""
        height, width = size = self.spec.canvas.size
        repeated = height * (1 + ("y" in self.repeat)), width * (1 + ("x" in self.repeat))
        tiled = [(outputs.tiled_path(self.save_path), repeated)] if self.repeat else []
        return [(self.save_path, size), *tiled, *((one.path, size) for one in self.maps)]


@dataclass(frozen=True)
class WorkItem:
    """One exemplar and seed: a job that is not yet planned."""

    exemplar: Path
    save_path: Path
    seed: int
    tile_set: Path | None = None  # path of its tile set, without a number; None: it is in no set

    @property
    def first_tile(self) -> Path | None:
        """Path of the first tile of its set, whose edges it gets; None if it is that tile itself or
        in no set."""
        first = self.tile_set and outputs.tile_path(self.tile_set, 1)
        return None if first == self.save_path else first


def work_items(request: Request) -> tuple[list[WorkItem], list[str]]:
    """Return an item for every exemplar and seed, and notes for the user.

    Raises:
        UserError: flags that contradict each other, a missing exemplar, more than MOST_PICTURES
            pictures, or an output that would overwrite an input, another output or a file that
            this program has not written.
    """
    check_effects(request)
    layers_of(request)
    paths, notes = exemplars_of(request)
    for path, times in Counter(paths).items():
        if times > 1:
            raise UserError(f"--gt_path {path}: given more than once")
    total = len(paths) * request.count * (request.tile_set or 1)
    if total > MOST_PICTURES:
        raise UserError(
            f"--count {request.count}: {total} pictures of {len(paths)} exemplars, allowed are "
            f"{MOST_PICTURES}"
        )
    items: dict[Path, WorkItem] = {}
    name_of = result_names(request, len(paths) > 1)
    for path, stem in zip(paths, distinct_names(paths), strict=True):
        for seed in range(request.seed, request.seed + request.count):
            save_path = name_of(stem, seed)
            check_suffix(save_path)
            if request.bits:
                check_bits(save_path, int(request.bits))
            for item in _items_of(request, path, save_path, seed):
                if item.save_path in items:
                    raise UserError(
                        f"--gt_path {path}: two exemplars would be saved as {item.save_path}"
                    )
                items[item.save_path] = item
    floors = [
        path
        for floor in tile_sets(items.values())
        for path in (floor, *outputs.map_paths(floor, request))
    ]
    check_outputs(request, paths, items, floors)
    for floor in floors:
        _check_own_file(floor, FLOOR, request.overwrite)
    _check_further_outputs(request, list(items), len(paths))
    return list(items.values()), notes


def _items_of(request: Request, exemplar: Path, save_path: Path, seed: int) -> list[WorkItem]:
    """Return the item of an exemplar and seed, or those of the tiles of its set.

    Tiles have seeds of their own, which no other set of this run has.
    """
    if request.tile_set is None:
        return [WorkItem(exemplar, save_path, seed)]
    return [
        WorkItem(exemplar, outputs.tile_path(save_path, n + 1), seed + n * request.count, save_path)
        for n in range(request.tile_set)
    ]


def tile_sets(items: Iterable[WorkItem]) -> dict[Path, list[Path]]:
    """Return the paths of the tiles of each set, by the path of its floor."""
    found: dict[Path, list[Path]] = {}
    for item in items:
        if item.tile_set is not None:
            found.setdefault(outputs.floor_path(item.tile_set), []).append(item.save_path)
    return found


def exemplars_of(request: Request) -> tuple[list[Path], list[str]]:
    """Return the path of every exemplar, and notes on files in folders that are skipped.

    Raises:
        UserError: a file is missing, or a folder has no picture.
    """
    held = request.pictures
    found = [
        ([Path(name)], []) if name in held else find_pictures(name) for name in request.gt_path
    ]
    return [path for paths, _ in found for path in paths], [n for _, notes in found for n in notes]


def _check_further_outputs(request: Request, results: list[Path], exemplars: int) -> None:
    """Raise UserError if a sheet, an animation, a report or a log cannot be written."""
    several = len(results) > 1
    snapshots = request.epoch // request.save_every if request.save_every else 0
    if request.sheet:
        check_sheet(request.sheet, len(results) + exemplars, 0 if several else snapshots)
        _check_own_file(request.sheet, SHEET, request.overwrite)
    if request.report:
        folders = sorted({str(path.parent) for path in results})
        if not any(Path(folder).resolve() == request.report.resolve() for folder in folders):
            raise UserError(
                f"--report {request.report}: this run saves pictures in {folders[0]}, give that"
            )
        check_page(request.report / PAGE)
    if request.animate:
        check_animation(request.animate, several, snapshots)
        _check_own_file(request.animate, ANIMATION, request.overwrite)
    if request.log:
        check_log(request.log)


def _check_own_file(path: Path, mark: str, overwrite: bool) -> None:
    """Raise UserError if a file exists that this program has not written for the same purpose.

    Args:
        mark: key that the record of such a file has.
        overwrite: whether any file may be replaced.
    """
    if path.exists() and not overwrite and mark not in record_at(path):
        raise UserError(f"{path}: another file is there, give --overwrite or another name")


def job_of(request: Request, item: WorkItem, max_pixels: float = math.inf) -> tuple[Job, list[str]]:
    """Read every picture, check every path and size, and return the job with notes for the user.

    Args:
        max_pixels: number of pixels above which the exemplar is cropped to its centre.

    Raises:
        UserError: a picture that cannot be read or used, or another file that would be overwritten.
    """
    pictures = Pictures(request.pictures)
    check_save_path(item.save_path)
    layers = layers_of(request)
    request = replace(request, seed=item.seed)
    if item.first_tile is not None:
        edges = str(item.first_tile)
        request = replace(request, edges_of=edges, asked=request.asked | {"edges_of": edges})
    existing = file_state(item.save_path)
    job = _job(request, layers, item, pictures, max_pixels)
    if request.save_every:
        for path in job.save_path.parent.glob("*"):  # nothing if the folder is missing
            if snapshot_of(path, request) == job.save_path:
                _check_own_file(path, "step", request.overwrite)
    if request.preview:
        _check_own_file(outputs.preview_path(job.save_path), PREVIEW, request.overwrite)
    for path, size in job.output_files():
        check_format(path, size)
    if item.tile_set is not None:
        check_format(outputs.floor_path(item.tile_set), floor_size(job.spec.canvas.size))
    inputs = pictures.inputs | ({str(request.weights): request.weights} if request.weights else {})
    hashes = {name: pictures.sha256(path) for name, path in inputs.items()}
    return replace(job, existing=existing, record=job.record | {"inputs": hashes}), pictures.notes


def _job(
    request: Request, layers: Layers, item: WorkItem, pictures: Pictures, max_pixels: float
) -> Job:
    path, save_path = item.exemplar, item.save_path
    name, exemplar, valid, content = _read_exemplar(request, path, pictures, max_pixels)
    step = stride(layers.trunk)
    request, notes = with_size(request, exemplar, valid, step)
    exemplars, canvas = _exemplars_and_canvas(request, exemplar, valid, content, pictures)
    pieces = [crop_to_valid(one.image, one.valid) for one in exemplars]
    kind = kind_of(pieces[0])
    request = _for_kind(request, kind, exemplars, canvas)
    weights, term_notes = term_weights(request, name, kind, canvas)
    notes += period_notes(name, pieces[0], kind, canvas, step) + term_notes
    if request.repaint or request.preset == BEST:
        notes.append(f"{name} is {kind.name}: {_recipe(request, kind)}")
    names = [name, *(other for other, _ in request.mix)]
    pictures.notes += notes + _notes_on_exemplars(names, pieces, canvas)
    spec = _spec(request, layers, exemplars, canvas, weights=weights, kind=kind)
    check_sizes(spec, layers.trunk, names)
    pictures.notes += _notes_on_canvas(request, spec, layers, item)
    bits, grey = _depth(request, path, save_path, pictures)
    return Job(
        exemplar=path,
        spec=spec,
        trunk_layers=layers.trunk,
        pool=request.pool,
        rescale=request.rescale,
        save_path=save_path,
        save_every=request.save_every,
        resume=request.resume,
        preview=request.preview,
        maps=[read_map(text, exemplars[0], request, save_path, pictures) for text in request.maps],
        kept=kept_pixels(request, path, canvas, save_path, pictures),
        alpha=alpha_map(path, exemplars[0], request, save_path, pictures)
        if request.alpha
        else None,
        bits=bits,
        grey=grey,
        repeat="" if item.tile_set else canvas.wrap,  # the floor shows more
        exact_histogram=request.exact_histogram,
        record=_record(request, spec, name, path),
    )


def _read_exemplar(
    request: Request, path: Path, pictures: Pictures, max_pixels: float
) -> tuple[str, Tensor, Tensor | None, Tensor | None]:
    """Read the exemplar and the content.

    Args:
        path: picture of --gt_path. With --style_image, this picture is the content, and that of
            --style_image is the exemplar.
        max_pixels: of the exemplar; of a larger one, the centre is used.

    Returns:
        The name of the exemplar; its pixels, (1, 3, H, W); the mask of its valid pixels,
        (1, 1, H, W), or None if all are valid; and the content, (1, 3, H, W), or None.
    """
    source = request.style_image or path
    name, content = pictures.find(source).name, None
    valid = None if request.alpha else pictures.opaque(source)
    exemplar = pictures.read(source).pixels if valid is not None else pictures.over_mean(source)
    if request.style_image:
        content = pictures.over_mean(path)
        if request.keep_color:
            exemplar = matched_colours(exemplar, content, valid)
    if exemplar[0, 0].numel() > max_pixels:
        exemplar = _center_crop(exemplar, max_pixels)
        valid = None if valid is None else _center_crop(valid, max_pixels)
        size = size_text(size_of(exemplar))
        pictures.notes.append(f"{name}: too large for the memory, its centre of {size} is used")
    return name, exemplar, valid, content


def _notes_on_exemplars(names: list[str], pieces: list[Tensor], canvas: Canvas) -> list[str]:
    """Return a note on each exemplar that is not uniform enough for a texture, unless guides or a
    photo determine where its parts go.

    Args:
        pieces: valid part of each exemplar, (1, 3, ., .).
    """
    if canvas.content is not None or canvas.guide is not None:
        return []
    return [
        f"{name} is perhaps no texture: its parts differ in colour and in detail, and the result "
        "will mix them; crop it to one material"
        for name, piece in zip(names, pieces, strict=True)
        if is_uneven(piece)
    ]


def _notes_on_canvas(request: Request, spec: Spec, layers: Layers, item: WorkItem) -> list[str]:
    """Return notes if the result is resized at the end, or if JPEG changes pixels that are to be
    exact."""
    notes, size = [], sizes_of(spec, layers.trunk)[-1][1]
    if size != with_margin(spec.canvas.size, margin_of(spec)):
        notes.append(
            f"{item.exemplar.name}: made at {size_text(size)}, then resized to tile exactly"
        )
    exact = []
    if spec.canvas.mask is not None or spec.canvas.edges is not None:
        exact.append("the pixels that are kept")
    if request.exact_histogram:
        exact.append("the values of --exact_histogram")
    if exact and item.save_path.suffix.lower() in (".jpg", ".jpeg"):
        changed = " and ".join(exact)
        notes.append(f"{item.save_path}: JPEG changes {changed}, .png does not")
    return notes


def _depth(request: Request, path: Path, save_path: Path, pictures: Pictures) -> tuple[int, bool]:
    """Return the bits per channel of the result, by default those of its deepest input, and whether
    it is grey, which it is if all inputs are grey."""
    names: list[str | Path] = [path, *(name for name, _ in request.mix)]
    others = request.style_image, request.init_picture, request.edges_of
    names += [name for name in others if name]
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


def can_crop(request: Request, job: Job) -> bool:
    """Return whether the exemplar can be cropped to save memory: it is large, the size of the
    output does not depend on it, and no guide, map or mask is aligned with it."""
    aligned = request.guide or request.maps or request.expand or request.mask
    sized = isinstance(request.size, tuple) or request.style_image is not None
    return sized and not aligned and min(size_of(job.spec.exemplars[0].image)) >= MIN_CROPPED_SIDE


def _center_crop(picture: Tensor, most: float) -> Tensor:
    """Crop (1, C, H, W) to its centre, to about `most` pixels and the same aspect ratio."""
    height, width = size_of(picture)
    part = math.sqrt(most / (height * width))
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
        kind=kind if request.repaint else STOCHASTIC,
    )


def _for_kind(
    request: Request, kind: Kind, exemplars: tuple[Exemplar, ...], canvas: Canvas
) -> Request:
    """Return the request with `repaint` 1 if the preset BEST paints this picture, else unchanged.

    Judges preferred painting for exemplars with rows, columns or a grain along an axis and, up to
    MOST_PAINTED times the exemplar's area, for all others. In larger paintings of the others
    objects recur more often; judges preferred painting and optimization about equally often there.
    Pictures with maps, several exemplars, or rotated or resized copies of one are painted at any
    size.
    """
    ordered = kind.regular or bool(kind.axis)
    larger = math.prod(canvas.size) > MOST_PAINTED * math.prod(size_of(exemplars[0].image))
    several = sum(len(one.views) for one in exemplars) > 1
    painted = ordered or not larger or canvas.has_maps or several
    return replace(request, repaint=1.0) if painted and chosen_by_kind(request) else request


def _recipe(request: Request, kind: Kind) -> str:
    """Return the part of a note that says how a texture of this kind is made, and the flag that
    changes it."""
    if not request.repaint:
        return f"optimised by {request.method} (--repaint 1 paints it with its pixels)"
    straight = ", rows and columns straight" if kind.regular else ""
    then = f", then optimised by {request.method}" if request.repaint < 1 else ""
    return (
        f"painted with its pixels{straight}{then} (--repaint {request.repaint:g}; "
        "--repaint 0 optimises without painting)"
    )


def _exemplars_and_canvas(
    request: Request,
    exemplar: Tensor,
    valid: Tensor | None,
    content: Tensor | None,
    pictures: Pictures,
) -> tuple[tuple[Exemplar, ...], Canvas]:
    """Return all exemplars with their rotated and resized copies, and the canvas, both with guides.

    Args:
        exemplar: (1, 3, H, W), the first one.
        valid: (1, 1, H, W), bool, its valid pixels; None: all.
        content: (1, 3, h, w) or None.
    """
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
    valid = _valid_outside_mask(exemplar, valid, canvas)
    exemplars = (
        exemplar_of(exemplar, rotations, request.patch_scales, rest, valid),
        *(exemplar_of(picture, share=share, valid=opaque) for picture, opaque, share in others),
    )
    variants = partial(rotated_and_resized, degrees=rotations, factors=request.patch_scales)
    mixed = [exemplar, *(picture for picture, *_ in others)]
    guide = guide_of(request, size, mixed, axes, variants, pictures)
    return (exemplars, canvas) if guide is None else guide.laid(exemplars, canvas)


def _valid_outside_mask(exemplar: Tensor, valid: Tensor | None, canvas: Canvas) -> Tensor | None:
    """Return the mask of the valid pixels of the exemplar, (1, 1, h, w), bool; None if all are
    valid.

    If the picture that is filled is the exemplar itself, pixels under --mask are not valid.

    Raises:
        UserError: no pixel is valid.
    """
    if canvas.mask is None or canvas.init is None or canvas.init.shape != exemplar.shape:
        return valid
    seen = torch.ones_like(canvas.mask) if valid is None else valid
    if not torch.equal(canvas.init.where(seen, 0), exemplar.where(seen, 0)):
        return valid
    valid = ~canvas.mask if valid is None else valid & ~canvas.mask
    if not valid.any():
        raise UserError("--mask: covers all of the exemplar, so there is no texture to take")
    return valid


def _shares(mix: Sequence[tuple[str, float | None]]) -> list[tuple[str, float]]:
    """Return the name and share of every --mix picture. Pictures without a share and the exemplar
    get equal shares of the rest.

    Raises:
        UserError: the given shares leave nothing for the exemplar.
    """
    rest = 1 - sum(share or 0 for _, share in mix)
    if rest <= 1e-6:
        raise UserError(f"--mix: shares that add up to {1 - rest:g} leave nothing for the exemplar")
    part = rest / (1 + sum(share is None for _, share in mix))
    return [(name, share or part) for name, share in mix]


def _record(request: Request, spec: Spec, exemplar: str, path: Path) -> dict[str, Any]:
    """Return the record that is embedded in the file: the flags as given, from which `--from`
    repeats the picture, and the settings that were derived from them."""
    record: dict[str, Any] = {"version": VERSION, "exemplar": exemplar}
    decided = [one.name for one in fields(request) if one.name not in NOT_RECORDED]
    record |= {name: getattr(request, name) for name in decided}
    asked = {k: v for k, v in request.asked.items() if k in recorded_flags()}
    record[ASKED] = asked | {"gt_path": named(path), "seed": request.seed}
    if request.style_image:
        record["content"] = path.name
        record["content_layers"] = spec.content_layers
        record["content_weight"] = spec.content_weight
    record |= spec.weights or {}
    layers = (spec.layers or {}).items()
    return record | {
        "gt_path": named(path),
        "exemplar_size": size_text(size_of(spec.exemplars[0].image)),
        "size": size_text(spec.canvas.size),
        "layers": [paired(layer, None if weight == 1 else weight) for layer, weight in layers],
        "lr": spec.lr or LEARNING_RATES[spec.optimizer],
    }


def check_sizes(spec: Spec, layers: list[str], names: Sequence[str]) -> None:
    """Raise UserError if an exemplar, a copy or the output is too small for the layers or for the
    patches of painting.

    Args:
        layers: all layers that are computed.
        names: file names of the exemplars.
    """
    with prefixed(f"{names[0]}: "):
        if spec.repaint and (fault := too_small(spec.exemplars, spec.canvas.size)):
            raise UserError(fault)
        coarsest = sizes_of(spec, layers)[0][0]
    least = least_side(layers)
    first, *others = spec.exemplars
    factor = coarsest[0] / first.image.shape[2]
    copies = f"--patch_rotations, --patch_scales: a copy of {names[0]}"
    checked = [(copies, view.image) for view in first.views[1:]]
    mixed = zip(names[1:], others, strict=True)
    checked += [(f"--mix {name}: it", other.image) for name, other in mixed]
    for name, image in checked:
        whole, size = size_of(image), scaled_size(image, factor)
        if min(size) < least:
            helps = factor < 1 and min(whole) >= least
            then = f"--scales 1, where it has {size_text(whole)}" if helps else "a larger picture"
            raise UserError(
                f"{name} becomes {size_text(size)} at the coarsest scale, allowed are sides of "
                f"{least} or more: give {then}"
            )


def check_copies(request: Request, exemplar: Tensor, rotations: Sequence[float]) -> None:
    """Raise UserError if the rotated and resized copies of (1, 3, H, W) do not fit into memory."""
    factors = sum(factor**2 for factor in request.patch_scales)
    copies = (1 + len(rotations)) * (1 + factors) - 1
    needed, free = 2 * copies * exemplar.nbytes, available_bytes(torch.device("cpu"))
    if needed > free:  # twice the copies, as each is computed from another of its size
        raise UserError(
            f"--patch_rotations, --patch_scales: the copies need {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free: give fewer or smaller copies"
        )


def given_weights(request: Request) -> dict[str, float]:
    """Return the weight of every term: that of its flag, otherwise the default of the method."""
    return dict.fromkeys(TERMS, 0.0) | METHODS[request.method].weights | request.terms


def term_weights(
    request: Request, name: str, kind: Kind, canvas: Canvas
) -> tuple[dict[str, float], list[str]]:
    """Return the weight of every term for an exemplar, and notes for the user.

    The spectrum is switched on for an exemplar with long-range order, and terms that the canvas
    rules out are switched off. By default, the cross-correlation is off in style transfer.

    Args:
        name: of the exemplar, for notes.
        kind: of the exemplar.
    """
    weights, notes = given_weights(request), []
    if canvas.content is not None and "crosscorrelation" not in request.terms:
        weights["crosscorrelation"] = 0.0  # the content has an arrangement of its own
    # Painting reproduces long-range order by itself.
    if "spectrum" not in request.terms and not request.repaint:
        if order := _long_range_order(kind, canvas):
            weights["spectrum"] = LONG_RANGE_WEIGHT
            on = f"--spectrum {LONG_RANGE_WEIGHT} is on, --spectrum 0 turns it off"
            notes = [f"{name} {order}: {on}"]
    off, cause = _unusable_global_terms(weights, canvas)
    told = [term for term in off if term == "spectrum" or term in request.terms]
    if told:
        off_note = f"{', '.join(told)}: off with {cause}, since computed on the whole picture"
        notes = [off_note] if "spectrum" in off else [*notes, off_note]
    return weights | dict.fromkeys(off, 0.0), notes


def _long_range_order(kind: Kind, canvas: Canvas) -> str:
    """Return a description of the long-range order of an exemplar, for a note; "" if the exemplar
    has no such order."""
    if kind.period != (0, 0):
        return f"is {kind.name}"
    if canvas.content is not None:
        return ""  # courses and grain would be imposed on the content
    if kind == IN_COURSES:
        return "is laid in courses"
    return f"has a grain that runs {GRAINS[kind.axis]}" if kind.axis else ""


def _unusable_global_terms(weights: dict[str, float], canvas: Canvas) -> tuple[list[str], str]:
    """Return the global terms that the canvas rules out, and what rules them out, for a note.

    With guides, whose regions have different textures, none of the three can be used. With a mask,
    the spectrum can leave out pixels that are kept; autocorrelation and cross-correlation cannot.
    """
    cause, terms = "", []
    if canvas.guide is not None:
        cause, terms = "guides", ["spectrum", "autocorrelation", "crosscorrelation"]
    elif canvas.mask is not None:
        cause, terms = "kept pixels", ["autocorrelation", "crosscorrelation"]
    return [term for term in terms if weights[term]], cause


def layers_of(request: Request) -> Layers:
    """Return the net that is likely to be used, and its layers.

    If no net is given, layers are looked up in the default net. If it lacks one of them and is not
    downloaded, they are looked up in the bundled net, which is used if the download fails.

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
    # Without its flag, the cross-correlation uses the layers of the rest of the loss.
    typed = request.terms.get("crosscorrelation")
    if typed or any(terms[name] for name in ("gram", "moments", "autocorrelation")):
        every.update(GRAM_LAYERS)
    model = {layer: weights[layer] for layer in layers}
    return Layers(net, model, content, resolve_layers(every, net))
