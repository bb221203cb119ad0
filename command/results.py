"""What a job leaves behind: the picture with its record, its repeat, its maps, and one line."""

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
from engine.blocks import Blocks
from engine.stretching import stretch
from engine.synthesis import Made
from losses import Criterion
from models import Extractor, Weights, least_side, resolve_layers
from terms.base import Exemplar, TermInputs, View, equal_weights
from terms.gram import FIRST_LAYERS
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from terms.valid import NEARLY_ALL
from utils import LABELS, UserError


@dataclass(frozen=True)
class Net:
    """A net as it was found on this machine."""

    weights: Weights
    name: str
    told: str  # as records and the last line name it
    device: torch.device
    precision: str  # of `engine.precision.PRECISIONS`
    layout: str = TORCHVISION  # a name in `models.LAYOUTS`: that of the file


INTERRUPTED, CURVE = "interrupted at step", "curve"
RECORDED = 60  # points of the loss curve
AFTERWARDS = {"steps", "error", INTERRUPTED, CURVE}  # keys of a record known only when all is made


class Course(NamedTuple):
    """How a picture came to be."""

    phases: dict[str, float]  # seconds of painting, and of each scale
    curve: list[tuple[int, int, float]]  # step, scale, and the loss after that step
    peak: float  # bytes that the process had at most so far

    def points(self, most: int) -> list[tuple[int, int, float]]:
        """At most so many of the curve, evenly, the first and the last among them."""
        last = len(self.curve) - 1
        places = range(min(most, len(self.curve)))
        kept = [self.curve[round(i * last / max(1, len(places) - 1))] for i in places]
        return [(step, scale, float(f"{loss:.4g}")) for step, scale, loss in kept]


@dataclass(frozen=True)
class Result:
    """What became of a job."""

    path: Path
    image: Tensor  # (1, 3, H, W) in [0, 1], on the CPU
    record: dict[str, Any]
    seconds: float
    stopped: KeyboardInterrupt | None  # by which the picture is that of the steps until then
    course: Course | None = None  # None: it was there already
    missing: tuple[str, ...] = ()  # a line for each file beside it that could not be written

    @property
    def line(self) -> str:
        """What the command prints of it."""
        took = "finished before" if self.course is None else f"{self.seconds:.1f} s"
        return (
            f"{self.path}  {self.record['size']}  {took}  "
            f"Gram error {self.record['error']:.6f}  {self.record['net']}  "
            f"{self.record['precision']}"
        )


@dataclass(frozen=True)
class Failed:
    """A job among several of which nothing became."""

    exemplar: Path
    line: str

    @classmethod
    def of(cls, exemplar: Path, error: Exception) -> Failed:
        """Of an error; that of a bug is shown as one, though the others go on."""
        line = line_of(error)
        if line is None:
            with suppress(OSError):  # stderr may be full
                traceback.print_exception(error)
            line = f"{type(error).__name__}: {error}"
        return cls(exemplar, line if str(exemplar) in line else f"{exemplar}: {line}")


def line_of(error: BaseException | None) -> str | None:
    """What the user can do about an error; None of a bug."""
    if is_full(error):
        return "out of memory: give a lower --max_memory, for smaller blocks, or a smaller --size"
    if isinstance(error, FloatingPointError):
        return f"{error}: give --precision fp32, other --layers or other --weights"
    return str(error) if isinstance(error, UserError) else None


def is_full(error: BaseException | None) -> bool:
    """Whether an error is of memory that there is not."""
    # A GPU has an error of its own for this; the CPU's is known by its text alone.
    full = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return full or "can't allocate memory" in str(error)


def record_of(job: Job, net: Net) -> dict[str, Any]:
    """What a picture keeps of how it was made, as far as that is known before."""
    found = {"model": net.name, "precision": net.precision}
    if job.record["weights"]:
        found["weights_layout"] = net.layout
    asked = dict(sorted((job.record[ASKED] | found).items()))  # in whatever order it was typed
    more = {"net": net.told, "pixel_mean": LAYOUTS[net.layout], "device": str(net.device)}
    return job.record | found | more | {ASKED: asked}


def finished_before(job: Job) -> Result | None:
    """The picture that is there; None where it is damaged, which the user is told."""
    try:
        image, record = read_picture(job.save_path)[0], read_record(job.save_path)
    except UserError as error:
        say([f"{error}: it is made again"])
        return None
    return Result(job.save_path, image, record, 0.0, None)


def is_finished(job: Job, record: dict[str, Any], overwrite: bool) -> bool:
    """Whether a picture is there already, made from the same inputs as it would be made now.

    Args:
        record: of the picture that would be made, but for what is known only afterwards.

    Raises:
        UserError: another picture is there, which is not to be overwritten.
    """
    there = [path for path, _ in job.written() if path.exists()]
    found = record_at(job.save_path)
    ours = _says(found, record)
    if there and not ours and not overwrite:
        raise UserError(
            f"{there[0]}: another file is there, give --overwrite or another --save_path"
        )
    whole = len(there) == len(job.written()) and INTERRUPTED not in found
    return ours and whole and finite(found.get("error")) is not None  # which is what is known last


def _says(found: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether the record of a file is one, but for what is known only afterwards."""
    wanted = json.loads(json.dumps(record, default=str, skipkeys=True))
    return _before(found) == _before(wanted)


def _before(record: dict[str, Any]) -> dict[str, Any]:
    # Two commands that decide the same make the same picture, however they are typed.
    told = AFTERWARDS | {ASKED}
    return {name: value for name, value in record.items() if name not in told}


def finite(value: Any) -> float | None:
    """A value of a record, which anybody may have changed, if it is a number to be shown."""
    try:
        return value if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def kept_apart(job: Job, record: dict[str, Any]) -> Job:
    """The job, or where another run has saved another picture at its path since it was planned,
    one of the first free name beside that: neither is lost. The user is told.

    Args:
        record: of the picture, but for what is known only afterwards.
    """
    path = job.save_path
    if state_of(path) in (None, job.there) or _says(record_at(path), record):
        return job
    beside = (job.saved_as(path.with_stem(f"{path.stem}-{number}")) for number in count(2))
    free = next(one for one in beside if not any(os.path.lexists(to) for to, _ in one.written()))
    say([f"{path}: another run has saved a picture there, this one is {free.save_path}"])
    return free


class Saved(NamedTuple):
    """What became of a picture and of the files beside it."""

    path: Path
    record: dict[str, Any]  # as it is in the file
    missing: tuple[str, ...] = ()  # a line for each file beside it that could not be written


def save(
    job: Job, made: Made, record: dict[str, Any], net: Net, group: ProcessGroup = SINGLE_PROCESS
) -> Saved:
    """Save all that a job makes. The others of the group call `saved_error` meanwhile.

    The file is written once, with its own error in its record, so that a disk needs no room for
    two. Where it cannot go, as a disk is full or a folder has vanished, all of it goes to the
    folder for temporary files, and the user is told: a night's work is not lost for that.
    """
    path, carry = job.save_path, _carrier(job, made, net)
    image = visible = _of_file(job, made.image)
    try:
        there = as_saved(visible, path, job.bits)
        record = record | {"error": round(saved_error(there, job, net, group), 6)}
        image = _with_alpha(job, made.image, carry)
    finally:  # without its error or its alpha where memory runs out
        path = _saved(image, path, record, job.bits)
    missing = []
    for place, write in _beside(job, image, carry, record):
        try:
            write(place if path == job.save_path else path.with_name(place.name))
        except UserError as error:
            missing.append(str(error))
    return Saved(path, record, tuple(missing))


def _of_file(job: Job, image: Tensor) -> Tensor:
    """(1, 3, H, W) -> the channels of the file: grey stays grey under any method."""
    return image[:, :1] if job.grey else image


def _with_alpha(job: Job, image: Tensor, carry: Carry) -> Tensor:
    """(1, 3, H, W) -> the channels of the file, the last one the alpha that is kept or carried
    along, if there is one. Kept pixels have the colours under their alpha, which are not seen."""
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
    """Where the picture was saved."""
    try:
        save_picture(image, path, record, bits)
    except UserError as error:
        try:
            path = Path(tempfile.mkdtemp(prefix="synthesis-")) / path.name
        except OSError:  # nor is there any room for that
            raise error from None
        save_picture(image, path, record, bits)
        say([f"{error}: the picture is {path}"])
    return path


@torch.no_grad()
def saved_error(saved: Tensor, job: Job, net: Net, group: ProcessGroup = SINGLE_PROCESS) -> float:
    """Relative Gram error of a saved file: what clamping, 8 bits and compression cost is in it.

    Always of `FIRST_LAYERS`, as many of them as the sizes allow, in the net as it comes, so that
    pictures made with different settings compare.

    Args:
        saved: (1, 3, H, W), what is read from the file.
        group: all of which call this; the picture of the first counts.
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
    side = job.spec.finest.side
    look = Blocks(trunk, criterion, side, group) if side or group.size > 1 else trunk
    return criterion(look(saved)).item()


Beside = tuple[Path, Callable[[Path], None]]  # where a file goes, and what saves it there
Carry = Callable[[CarriedMap], Tensor]  # (1, C, H, W) of the output


def _beside(job: Job, image: Tensor, carry: Carry, record: dict[str, Any]) -> Iterator[Beside]:
    """The files that go with the picture, of which `image` has the channels in the file."""
    if tile := job.spec.canvas.tile:
        down, across = (2 if axis in tile else 1 for axis in "yx")
        repeat = image.repeat(1, 1, down, across)
        yield job.tiled_path, lambda to: save_picture(repeat, to, record, job.bits)
    for one in job.maps:
        yield one.path, partial(_save_map, one, carry(one), record)


def _carrier(job: Job, made: Made, net: Net) -> Carry:
    """What carries the exemplar's other maps along with the picture, each place from the exemplar
    as it is or as it was rotated and resized, whichever is nearer. Where is looked for once, when
    the first is asked for."""
    spec, device, tile = job.spec, made.image.device, job.spec.canvas.tile
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
            return maps.painted_from(made.painting)
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
