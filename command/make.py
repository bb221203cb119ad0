"""One job -> one saved picture."""

import time
from dataclasses import replace
from typing import Any

from command.costs import BLOCKS
from command.display import Display, say
from command.interrupts import signals_held
from command.plan import Job
from command.processes import peak_bytes
from command.results import (
    CURVE,
    INTERRUPTED,
    RECORDED,
    Course,
    Failed,
    Net,
    Result,
    Saved,
    is_full,
    kept_apart,
    line_of,
    record_of,
    save,
    saved_error,
)
from command.resume import checkpoints_of
from engine.blocks import Parts
from engine.precision import EXACT, convolving
from engine.synthesis import Made, new_texture, steps_after_painting
from models import FILTER, LAYER, Extractor
from terms.process_group import SINGLE_PROCESS
from utils import give_back_freed_memory


def outcome_of(
    job: Job, net: Net, quiet: bool, progress: str, fail_fast: bool = False
) -> Result | Failed:
    """Run a job and return its result, or the error that ended it as `Failed`.

    Args:
        progress: as given to --progress.
        fail_fast: whether to raise the error instead.
    """
    try:
        with convolving(EXACT):
            return make_in_blocks(job, net, quiet, progress)
    except Exception as error:
        if fail_fast:
            raise
        return Failed.of(job.exemplar, error)


def make_in_blocks(job: Job, net: Net, quiet: bool, progress: str) -> Result:
    """Run a job as `make` does; when memory runs out, again in smaller blocks at all scales."""
    largest = job.spec.finest.side or max(job.spec.canvas.size) - 1
    for side in (side for side in BLOCKS if side <= largest):
        parts = (Parts(side),) * len(job.spec.parts)
        if parts == job.spec.parts:
            continue
        try:
            return make(job, net, quiet, progress)
        except Exception as error:
            if not is_full(error):
                raise
        say([f"{job.name}: out of memory, once more in blocks of {side} px"], quiet)
        give_back_freed_memory()
        job = replace(job, spec=replace(job.spec, parts=parts))
    return make(job, net, quiet, progress)


def make(job: Job, net: Net, quiet: bool, progress: str) -> Result:
    """One job -> one saved picture.

    Raises:
        KeyboardInterrupt: before the first step; after it, the picture as it stands is saved.
    """
    started = time.perf_counter()
    spec = replace(job.spec.to(net.device), precision=net.precision)
    trunk = Extractor(net.weights, net.name, job.trunk_layers, job.pool).to(net.device)
    if job.rescale and steps_after_painting(spec.steps, spec.repaint):  # painting needs no net
        trunk.rescale(spec.exemplars[0].image, FILTER if job.rescale == FILTER else LAYER)
    record = record_of(job, net)
    made = stopped = result = None
    with Display(job, record, quiet, progress) as display:
        try:
            made = new_texture(
                spec, trunk, display, checkpoints_of(job, record, display), display.went_back
            )
        except KeyboardInterrupt as error:
            if display.last is None:
                raise
            stopped = error
        try:
            with signals_held():
                result = saved_result(job, made, record, net, display)
        except KeyboardInterrupt as error:
            if result is None:
                say([line_of(error.__context__)])
                raise
            stopped = error
    return replace(result, seconds=time.perf_counter() - started, stopped=stopped)


def saved_result(
    job: Job, made: Made | None, record: dict[str, Any], net: Net, display: Display
) -> Result:
    """Save what a job has made; None is what was stopped, of which the picture as it stands is
    saved."""
    display.close()  # its preview leaves its room on the disk
    if display.last is not None:
        record["steps"] = display.last.step
    finished, group = made is not None, job.spec.group
    if made is None:
        # Other processes may be at another step.
        made, group = Made(display.picture(), None), SINGLE_PROCESS
        record[INTERRUPTED] = record["steps"]
    course = Course(display.phases, display.curve, peak_bytes(net.device))
    if points := course.points(RECORDED):
        record[CURVE] = points
    saved = Saved(job.save_path, record)
    if job.spec.group.rank == 0:  # the others have the same picture
        saved = save(kept_apart(job, record), made, record, net, group)
        if job.resume and finished:
            job.checkpoint_path.unlink(missing_ok=True)
    elif finished:
        saved_error(made.image, job, net, group)
    image = made.image.cpu()
    return Result(saved.path, image, saved.record, 0.0, None, course, saved.missing)
