"""Save the results of a job: the picture with its record, its repeat, and its maps."""

from __future__ import annotations

import json
import math
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from command.display import say
from command.maps import CarriedMap
from command.pictures import as_saved, read_picture, read_record, record_at, save_picture
from command.plan import Job, state_of
from command.settings import ASKED
from command.weights import LAYOUTS, TORCHVISION
from engine import maps
from engine.stretching import stretch
from engine.synthesis import Made
from engine.tiling import TiledExtractor
from losses import Criterion
from models import Extractor, Weights, least_side, resolve_layers
from terms.base import Exemplar, TermInputs, View, equal_weights
from terms.gram import FIRST_LAYERS
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from terms.valid import NEARLY_ALL
from utils import LABELS, UserError


@dataclass(frozen=True)
class Net:
    """A net with its weights, and how it is run."""

    weights: Weights
    name: str
    label: str  # name in records and in the line of a result
    device: torch.device
    precision: str  # of `engine.precision.PRECISIONS`
    layout: str = TORCHVISION  # of the weights file, a name in `models.LAYOUTS`


INTERRUPTED, CURVE = "interrupted at step", "curve"
RECORDED = 60  # points of the loss curve in a record
AFTERWARDS = {"steps", "error", INTERRUPTED, CURVE}  # keys that are known only at the end


class Course(NamedTuple):
    """Time, loss and memory of a run."""

    phases: dict[str, float]  # seconds of painting, and of each scale
    curve: list[tuple[int, int, float]]  # step, scale, loss after that step
    peak: float  # peak memory of the process so far, bytes

    def points(self, most: int) -> list[tuple[int, int, float]]:
        """Return at most `most` evenly spaced points of the curve, with the first and the last."""
        last = len(self.curve) - 1
        places = range(min(most, len(self.curve)))
        kept = [self.curve[round(i * last / max(1, len(places) - 1))] for i in places]
        return [(step, scale, float(f"{loss:.4g}")) for step, scale, loss in kept]


@dataclass(frozen=True)
class Result:
    """The picture of a job that ended or was interrupted."""

    path: Path
    image: Tensor  # (1, 3, H, W) in [0, 1], on the CPU
    record: dict[str, Any]
    seconds: float
    stopped: KeyboardInterrupt | None  # the interrupt, if the picture is unfinished
    course: Course | None = None  # None: saved by an earlier run
    missing: tuple[str, ...] = ()  # an error line per further file that could not be written

    @property
    def line(self) -> str:
        """The line that the command prints."""
        time = "finished before" if self.course is None else f"{self.seconds:.1f} s"
        return (
            f"{self.path}  {self.record['size']}  {time}  "
            f"Gram error {self.record['error']:.6f}  {self.record['net']}  "
            f"{self.record['precision']}"
        )


@dataclass(frozen=True)
class Failed:
    """A job that failed, one of several."""

    exemplar: Path
    line: str

    @classmethod
    def of(cls, exemplar: Path, error: Exception) -> Failed:
        """Return the failure of an error. The traceback of an unexpected error is printed."""
        line = line_of(error)
        if line is None:
            with suppress(OSError):  # stderr may be full
                traceback.print_exception(error)
            line = f"{type(error).__name__}: {error}"
        return cls(exemplar, line if str(exemplar) in line else f"{exemplar}: {line}")


def line_of(error: BaseException | None) -> str | None:
    """Return the line that tells the user how to correct an error; None for an unexpected error."""
    if is_full(error):
        return "out of memory: give a lower --max_memory, for smaller blocks, or a smaller --size"
    if isinstance(error, FloatingPointError):
        return f"{error}: give --precision fp32, other --layers or other --weights"
    return str(error) if isinstance(error, UserError) else None


def is_full(error: BaseException | None) -> bool:
    """Whether an error means that memory ran out."""
    # PyTorch has a class for this error on a GPU; on the CPU only the message tells.
    full = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return full or "can't allocate memory" in str(error)


def record_of(job: Job, net: Net) -> dict[str, Any]:
    """Return the record of a picture, without the keys that are known only at the end."""
    found = {"model": net.name, "precision": net.precision}
    if job.record["weights"]:
        found["weights_layout"] = net.layout
    asked = dict(sorted((job.record[ASKED] | found).items()))  # independent of the order of flags
    more = {"net": net.label, "pixel_mean": LAYOUTS[net.layout], "device": str(net.device)}
    return job.record | found | more | {ASKED: asked}


def finished_before(job: Job) -> Result | None:
    """Return the saved picture of a job. Print a note and return None if it is damaged."""
    try:
        image, record = read_picture(job.save_path)[0], read_record(job.save_path)
    except UserError as error:
        say([f"{error}: it is made again"])
        return None
    return Result(job.save_path, image, record, 0.0, None)


def is_finished(job: Job, record: dict[str, Any], overwrite: bool) -> bool:
    """Whether the picture of a job is saved already, made from the same inputs and settings.

    Args:
        record: of the picture, without the keys that are known only at the end.

    Raises:
        UserError: another file exists that must not be overwritten.
    """
    existing = [path for path, _ in job.written() if path.exists()]
    found = record_at(job.save_path)
    ours = _matches(found, record)
    if existing and not ours and not overwrite:
        raise UserError(
            f"{existing[0]}: another file is there, give --overwrite or another --save_path"
        )
    whole = len(existing) == len(job.written()) and INTERRUPTED not in found
    return ours and whole and finite(found.get("error")) is not None  # written last


def _matches(found: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether the record in a file equals `record`, except for the keys that are ignored."""
    wanted = json.loads(json.dumps(record, default=str, skipkeys=True))
    return _without_ignored(found) == _without_ignored(wanted)


def _without_ignored(record: dict[str, Any]) -> dict[str, Any]:
    # Different flags that result in the same settings make the same picture.
    ignored = AFTERWARDS | {ASKED}
    return {name: value for name, value in record.items() if name not in ignored}


def finite(value: Any) -> float | None:
    """Return a value of a record, which may be edited by hand, if it is a finite number."""
    try:
        return value if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def kept_apart(job: Job, record: dict[str, Any]) -> Job:
    """Return the job, with the next free name and a note if another run has saved
    another picture at its path since the job was planned.

    Args:
        record: of the picture, without the keys that are known only at the end.
    """
    path = job.save_path
    if state_of(path) in (None, job.existing) or _matches(record_at(path), record):
        return job
    beside = (job.saved_as(path.with_stem(f"{path.stem}-{number}")) for number in count(2))
    free = next(one for one in beside if not any(os.path.lexists(to) for to, _ in one.written()))
    say([f"{path}: another run has saved a picture there, this one is {free.save_path}"])
    return free


class Saved(NamedTuple):
    """Paths and errors of the files of a saved picture."""

    path: Path
    record: dict[str, Any]  # as in the file
    missing: tuple[str, ...] = ()  # an error line per further file that could not be written


def save(
    job: Job, made: Made, record: dict[str, Any], net: Net, group: ProcessGroup = SINGLE_PROCESS
) -> Saved:
    """Save all files of a job. The other processes of the group call `saved_error` meanwhile.

    The picture is written once, with its own error in its record. If it cannot be written, because
    the disk is full or the folder was removed, all files go to the folder for temporary files, and
    a note is printed.
    """
    path, carry = job.save_path, _carrier(job, made, net)
    image = visible = _of_file(job, made.image)
    try:
        saved = as_saved(visible, path, job.bits)
        record = record | {"error": round(saved_error(saved, job, net, group), 6)}
        image = _with_alpha(job, made.image, carry)
    finally:  # if memory runs out, the picture is saved without its error or alpha
        path = _saved(image, path, record, job.bits)
    missing = []
    for file, write in _beside(job, image, carry, record):
        try:
            write(file if path == job.save_path else path.with_name(file.name))
        except UserError as error:
            missing.append(str(error))
    return Saved(path, record, tuple(missing))


def _of_file(job: Job, image: Tensor) -> Tensor:
    """Return the channels of the file of (1, 3, H, W): one if the inputs are grey."""
    return image[:, :1] if job.grey else image


def _with_alpha(job: Job, image: Tensor, carry: Carry) -> Tensor:
    """Return the channels of the file of (1, 3, H, W), with alpha if it is kept or carried along.

    Kept pixels get the colours of the input, including those under zero alpha.
    """
    if job.alpha is not None:
        alpha = carry(job.alpha).clamp(0, 1)
    elif job.kept is not None:
        kept, alpha = job.kept.to(image).split((3, 1), 1)
        if job.spec.canvas.mask is not None:
            mask = job.spec.canvas.mask.to(image.device)
            image, alpha = torch.where(mask, image, kept), alpha.where(~mask, 1)
    else:
        return _of_file(job, image)
    return torch.cat((_of_file(job, image), alpha), 1)


def _saved(image: Tensor, path: Path, record: dict[str, Any], bits: int) -> Path:
    """Save a picture and return its path, which is in a temporary folder if `path` fails."""
    try:
        save_picture(image, path, record, bits)
    except UserError as error:
        try:
            path = Path(tempfile.mkdtemp(prefix="synthesis-")) / path.name
        except OSError:  # the temporary folder cannot be written either
            raise error from None
        save_picture(image, path, record, bits)
        say([f"{error}: the picture is {path}"])
    return path


@torch.no_grad()
def saved_error(saved: Tensor, job: Job, net: Net, group: ProcessGroup = SINGLE_PROCESS) -> float:
    """Return the relative Gram error of a saved file, after clamping, rounding and compression.

    It is computed on `FIRST_LAYERS`, or as many of them as the sizes allow, with the original
    weights and pooling, so that the errors of different settings are comparable.

    Args:
        saved: (1, 3, H, W), read from the file.
        group: all of its processes call this; the picture of rank 0 counts.
    """
    exemplar = job.spec.exemplars[0].image.to(net.device)
    saved = saved.to(exemplar) if group.rank == 0 else torch.zeros_like(saved, device=net.device)
    group.all_reduce([saved])
    least = min(*saved.shape[-2:], *exemplar.shape[-2:])
    layers = [
        layer for layer in resolve_layers(FIRST_LAYERS, net.name) if least_side([layer]) <= least
    ]
    trunk = Extractor(net.weights, net.name, layers).to(net.device)
    valid = job.spec.exemplars[0].valid
    valid = None if valid is None else valid.to(net.device)
    inputs = TermInputs((Exemplar((View(trunk(exemplar), valid=valid),)),))
    criterion = Criterion(inputs, equal_weights(layers), weights={})
    tiling = job.spec.finest_tiling
    tiled = tiling.side is not None or group.size > 1
    extractor = TiledExtractor(trunk, criterion, tiling, group) if tiled else trunk
    return criterion(extractor(saved)).item()


Beside = tuple[Path, Callable[[Path], None]]  # path of a further file, function that saves it
Carry = Callable[[CarriedMap], Tensor]  # map of the exemplar -> (1, C, H, W) of the output


def _beside(job: Job, image: Tensor, carry: Carry, record: dict[str, Any]) -> Iterator[Beside]:
    """Yield the further files of a picture.

    Args:
        image: (1, C, H, W), the channels of the file.
    """
    if tile := job.spec.canvas.wrap:
        down, across = (2 if axis in tile else 1 for axis in "yx")
        repeat = image.repeat(1, 1, down, across)
        yield job.tiled_path, lambda to: save_picture(repeat, to, record, job.bits)
    for one in job.maps:
        yield one.path, partial(_save_map, one, carry(one), record)


def _carrier(job: Job, made: Made, net: Net) -> Carry:
    """Return a function that carries a map of the exemplar along with the picture.

    Each pixel of the output takes its value from the best match in the exemplar or its rotated and
    resized copies. The correspondence is computed once, for the first map.
    """
    spec, device, tile = job.spec, made.image.device, job.spec.canvas.wrap
    views, canvas = spec.exemplars[0].to(device).views, spec.canvas.to(device)

    @cache
    def valid() -> list[Tensor] | None:
        found = [view.valid for view in views if view.valid is not None] or None
        if made.painting is None or found is None:
            return found
        return [stretch(one.float(), spec.seed) > NEARLY_ALL for one in found]

    @cache
    def found() -> list[tuple[Tensor, Tensor]]:
        if made.painting is not None:
            return maps.painted_correspondence(made.painting)
        trunk = Extractor(net.weights, net.name, maps.LAYERS).to(device)
        output = trunk(made.image, tile)
        return [maps.correspondence(output, trunk(one.image), tile, one.valid) for one in views]

    @torch.no_grad()
    def carry(one: CarriedMap) -> Tensor:
        copies, labels = [copy.to(device) for copy in one.copies], one.kind == LABELS
        if made.painting is not None:
            copies = [stretch(copy, spec.seed, labels) for copy in copies]
        carried = maps.carried(copies, found(), one.kind, tile, valid())
        size, shift = spec.canvas.size, made.shift if made.painting is not None else (0, 0)
        carried = maps.finished(carried, size, shift, one.kind, tile)
        return maps.with_kept(carried, one.copies[0].to(device), views[0], canvas)

    return carry


def _save_map(one: CarriedMap, carried: Tensor, record: dict[str, Any], to: Path) -> None:
    kept = {name: record[name] for name in ("version", "exemplar")}
    replace(one, path=to).save(carried, kept)
