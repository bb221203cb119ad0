"""Save the files of a job: the picture with its record, the repeat of a seamless picture, maps."""

from __future__ import annotations

import json
import math
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from command.display import print_stderr
from command.files import file_state
from command.histogram import LUMINANCE, luminance_of
from command.maps import CarriedMap
from command.outputs import tiled_path
from command.pictures import as_saved, read_picture, read_record, record_at, save_picture
from command.plan import Job
from command.settings import ASKED
from command.weights import LAYOUTS
from engine import maps
from engine.synthesis import Made
from engine.tiling import TiledExtractor
from losses import Criterion
from models import Extractor, Weights, least_side, resolve_layers
from terms.base import Exemplar, TermInputs, View, equal_weights
from terms.gram import FIRST_LAYERS
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from utils import COLOUR, UserError


@dataclass(frozen=True)
class Net:
    """A net with its weights, and how it is run."""

    weights: Weights
    name: str
    label: str  # name in records and printed lines, with the file of --weights if given
    device: torch.device
    precision: str  # in `engine.precision.PRECISIONS`
    layout: str  # of the weights file, a key of `command.weights.LAYOUTS`


INTERRUPTED, CURVE = "interrupted at step", "curve"
RECORDED = 60  # points of the loss curve in a record
# Keys of a record that depend on the run.
FINAL_KEYS = {"steps", "error", INTERRUPTED, CURVE, LUMINANCE}


class RunStats(NamedTuple):
    """Time, loss and peak memory of a run."""

    phases: dict[str, float]  # phase -> s; phases are painting and each scale
    curve: list[tuple[int, int, float]]  # (step, scale, loss after the step)
    peak: float  # peak memory of the process so far, bytes

    def points(self, most: int) -> list[tuple[int, int, float]]:
        """Return at most `most` evenly spaced points of the curve, both ends included."""
        last = len(self.curve) - 1
        places = range(min(most, len(self.curve)))
        kept = [self.curve[round(i * last / max(1, len(places) - 1))] for i in places]
        return [(step, scale, float(f"{loss:.4g}")) for step, scale, loss in kept]


@dataclass(frozen=True)
class Result:
    """The picture of a job, finished or interrupted, as it was saved."""

    path: Path
    image: Tensor  # (1, 3, H, W) in [0, 1], on the CPU, before rounding
    record: dict[str, Any]
    seconds: float
    stopped: KeyboardInterrupt | None  # the interrupt, if the picture is unfinished
    stats: RunStats | None = None  # None if an earlier run has saved the picture
    write_errors: tuple[str, ...] = ()  # an error line per further file that could not be written

    @property
    def line(self) -> str:
        """The line that is printed on stdout."""
        time = "finished before" if self.stats is None else f"{self.seconds:.1f} s"
        return (
            f"{self.path}  {self.record['size']}  {time}  "
            f"Gram error {self.record['error']:.6f}  {self.record['net']}  "
            f"{self.record['precision']}"
        )


@dataclass(frozen=True)
class Failed:
    """The error that ended one of several jobs."""

    exemplar: Path
    line: str

    @classmethod
    def of(cls, exemplar: Path, error: Exception) -> Failed:
        """Return a `Failed` for an error. If the error is unexpected, print its traceback."""
        line = error_line(error)
        if line is None:
            with suppress(OSError):  # stderr may be full
                traceback.print_exception(error)
            line = f"{type(error).__name__}: {error}"
        return cls(exemplar, line if str(exemplar) in line else f"{exemplar}: {line}")


def error_line(error: BaseException | None) -> str | None:
    """Return the message to the user for an error; None for an unexpected error."""
    if is_out_of_memory(error):
        return "out of memory: give a lower --max_memory, for smaller tiles, or a smaller --size"
    if isinstance(error, FloatingPointError):
        return f"{error}: give --precision fp32, other --layers or other --weights"
    return str(error) if isinstance(error, UserError) else None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error means that memory ran out."""
    # On the CPU, PyTorch raises RuntimeError, which only its message identifies.
    full = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return full or "can't allocate memory" in str(error)


def record_of(job: Job, net: Net) -> dict[str, Any]:
    """Return the record of a picture without `FINAL_KEYS`."""
    found = {"model": net.name, "precision": net.precision}
    if job.record["weights"]:
        found["weights_layout"] = net.layout
    # Sorted, so that the bytes of the file do not depend on the order of flags.
    asked = dict(sorted((job.record[ASKED] | found).items()))
    more = {"net": net.label, "pixel_mean": LAYOUTS[net.layout], "device": str(net.device)}
    return job.record | found | more | {ASKED: asked}


def finished_before(job: Job) -> Result | None:
    """Return the picture that an earlier run has saved; if it is damaged, print a note and return
    None."""
    try:
        image, record = read_picture(job.save_path)[0], read_record(job.save_path)
    except UserError as error:
        print_stderr([f"{error}: it is made again"])
        return None
    return Result(job.save_path, image, record, 0.0, None)


def is_finished(job: Job, record: dict[str, Any], overwrite: bool) -> bool:
    """Return whether an earlier run has saved all files of a job, with the same inputs and
    settings.

    Args:
        record: of the picture, from `record_of`.

    Raises:
        UserError: an existing file is not a result of the same job, and --overwrite is not given.
    """
    existing = [path for path, _ in job.output_files() if path.exists()]
    found = record_at(job.save_path)
    ours = _matches(found, record)
    if existing and not ours and not overwrite:
        raise UserError(
            f"{existing[0]}: another file is there, give --overwrite or another --save_path"
        )
    whole = len(existing) == len(job.output_files()) and INTERRUPTED not in found
    # If memory runs out, a picture is saved without its error.
    return ours and whole and finite(found.get("error")) is not None


def _matches(found: dict[str, Any], record: dict[str, Any]) -> bool:
    """Return whether two records are equal but for `FINAL_KEYS` and the flags as given: different
    flags may result in the same settings."""
    wanted = json.loads(json.dumps(record, default=str, skipkeys=True))
    ignored = dict.fromkeys((*FINAL_KEYS, ASKED))
    return found | ignored == wanted | ignored


def finite(value: Any) -> float | None:
    """Return a value of a record if it is a finite number, else None. A record may be edited by
    hand."""
    try:
        return value if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def with_free_path(job: Job, record: dict[str, Any]) -> Job:
    """Return the job with a free save_path.

    If another run has saved another picture at save_path since the job was planned, a number is
    appended to the name and a note is printed.

    Args:
        record: of the picture; `FINAL_KEYS` are ignored.
    """
    path = job.save_path
    if file_state(path) in (None, job.existing) or _matches(record_at(path), record):
        return job
    renamed = (job.saved_as(path.with_stem(f"{path.stem}-{number}")) for number in count(2))
    free = next(
        one for one in renamed if not any(os.path.lexists(to) for to, _ in one.output_files())
    )
    print_stderr([f"{path}: another run has saved a picture there, this one is {free.save_path}"])
    return free


class Saved(NamedTuple):
    """What `save` has written."""

    path: Path
    record: dict[str, Any]  # as in the file
    write_errors: tuple[str, ...] = ()  # an error line per further file that could not be written


def save(
    job: Job, made: Made, record: dict[str, Any], net: Net, group: ProcessGroup = SINGLE_PROCESS
) -> Saved:
    """Save all files of a job.

    The picture is encoded and decoded first, so that its record can hold the error of the file. If
    the picture cannot be written, because the disk is full or the folder was removed, all files
    are written to a temporary folder, and a note is printed.

    Args:
        record: to embed, without "error".
        group: the other processes of the group call `saved_error` meanwhile.

    Raises:
        UserError: the temporary folder cannot be written either.
    """
    path, transfer = job.save_path, _map_transfer(job, made, net)
    image = _file_channels(job, made.image)
    try:
        saved = as_saved(image, path, job.bits)
        record = record | luminance_of(job, saved)
        record |= {"error": round(saved_error(saved, job, net, group), 6)}
        image = _with_alpha(job, made.image, transfer)
    finally:  # if memory runs out, the picture is saved without its error or alpha
        path = _saved(image, path, record, job.bits)
    write_errors = []
    for channels, to, kept, bits, kind in _further_files(job, image, transfer, record):
        try:
            to = to if path == job.save_path else path.with_name(to.name)
            save_picture(channels, to, kept, bits, kind)
        except UserError as error:
            write_errors.append(str(error))
    return Saved(path, record, tuple(write_errors))


def _file_channels(job: Job, image: Tensor) -> Tensor:
    """Return (1, 3, H, W), or (1, 1, H, W) if the file is grey."""
    return image[:, :1] if job.grey else image


def _with_alpha(job: Job, image: Tensor, transfer: MapTransfer) -> Tensor:
    """Return the channels of the file, (1, C, H, W): one or three colours, then alpha if it has
    alpha.

    Kept pixels get the colours of the input, even where the alpha of the input is 0.
    """
    if job.alpha is not None:
        alpha = transfer(job.alpha).clamp(0, 1)
    elif job.kept is not None:
        kept, alpha = job.kept.to(image).split((3, 1), 1)
        if job.spec.canvas.mask is not None:
            mask = job.spec.canvas.mask.to(image.device)
            image, alpha = torch.where(mask, image, kept), alpha.where(~mask, 1)
    else:
        return _file_channels(job, image)
    return torch.cat((_file_channels(job, image), alpha), 1)


def _saved(image: Tensor, path: Path, record: dict[str, Any], bits: int) -> Path:
    """Save a picture and return its path: `path`, or one in a temporary folder if `path` cannot be
    written."""
    try:
        save_picture(image, path, record, bits)
    except UserError as error:
        try:
            path = Path(tempfile.mkdtemp(prefix="synthesis-")) / path.name
        except OSError:  # report the first error
            raise error from None
        save_picture(image, path, record, bits)
        print_stderr([f"{error}: the picture is {path}"])
    return path


@torch.no_grad()
def saved_error(saved: Tensor, job: Job, net: Net, group: ProcessGroup = SINGLE_PROCESS) -> float:
    """Return the relative Gram error of a saved picture.

    It is measured on `FIRST_LAYERS`, or those of them for which both pictures are large enough,
    without --rescale and --pool, so that errors of different settings are comparable.

    Args:
        saved: (1, 3, H, W), as decoded from the file: clamped, rounded and compressed. Of several
            processes, rank 0 supplies the values, the others the shape.
        group: the processes that share the evaluation; all must call this.
    """
    original = job.spec.exemplars[0].views[0].to(net.device)
    saved = saved.to(net.device) if group.rank == 0 else torch.zeros_like(saved, device=net.device)
    group.all_reduce([saved])
    least = min(*saved.shape[-2:], *original.image.shape[-2:])
    layers = [
        layer for layer in resolve_layers(FIRST_LAYERS, net.name) if least_side([layer]) <= least
    ]
    trunk = Extractor(net.weights, net.name, layers).to(net.device)
    inputs = TermInputs((Exemplar((View(trunk(original.image), valid=original.valid),)),))
    criterion = Criterion(inputs, equal_weights(layers), weights={})
    tiling = job.spec.finest_tiling
    tiled = tiling.side is not None or group.size > 1
    extractor = TiledExtractor(trunk, criterion, tiling, group) if tiled else trunk
    return criterion(extractor(saved)).item()


MapTransfer = Callable[[CarriedMap], Tensor]  # map of the exemplar -> map of the output


def _further_files(
    job: Job, image: Tensor, transfer: MapTransfer, record: dict[str, Any]
) -> Iterator[tuple[Tensor, Path, dict[str, Any], int, str]]:
    """Yield the arguments of `save_picture` for the files of a job other than the picture: the
    repeat and the maps.

    Args:
        image: (1, C, H, W), as saved.
    """
    if job.repeat:
        down, across = (2 if axis in job.repeat else 1 for axis in "yx")
        yield image.repeat(1, 1, down, across), tiled_path(job.save_path), record, job.bits, COLOUR
    for one in job.maps:
        kept = {name: record[name] for name in ("version", "exemplar")}
        yield one.as_file(transfer(one)), one.path, kept, one.bits, one.kind


def _map_transfer(job: Job, made: Made, net: Net) -> MapTransfer:
    """Return a function that transfers a map of the exemplar to the output.

    Each pixel of the output takes the value at the pixel of the exemplar, or of a rotated or
    resized copy, that it was painted from; without painting, at the most similar one. This
    correspondence is computed once. With --edges_of, pixels outside the cut take the values of the
    map of that tile.
    """
    spec, device, tile = job.spec, made.image.device, job.spec.canvas.wrap
    views, canvas = spec.exemplars[0].to(device).views, spec.canvas.to(device)

    @cache
    def sources() -> tuple[list[tuple[Tensor, Tensor]], list[Tensor] | None]:
        """Return the correspondence with each view, and the masks of their valid pixels."""
        valid = [view.valid for view in views if view.valid is not None]
        if made.places is not None:
            found = maps.painted_correspondence(made.places, spec.exemplars)
        else:
            trunk = Extractor(net.weights, net.name, maps.LAYERS).to(device)
            output = trunk(made.image, tile)
            found = [
                maps.correspondence(output, trunk(one.image), tile, one.valid) for one in views
            ]
        return found, valid or None

    @torch.no_grad()
    def transfer(one: CarriedMap) -> Tensor:
        found, valid = sources()
        copies = [copy.to(device) for copy in one.copies]
        carried = maps.carried(copies, found, one.kind, tile, valid)
        size, shift = spec.canvas.size, made.shift if made.places is not None else (0, 0)
        carried = maps.finished(carried, size, shift, one.kind, tile)
        if made.inside is not None:
            assert one.edges is not None
            return carried.where(made.inside, one.edges.to(device))
        return maps.with_kept(carried, one.copies[0].to(device), views[0], canvas)

    return transfer
