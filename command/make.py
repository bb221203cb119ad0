"""From a job to a saved picture: the loop over the frames of a synthesis."""

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
from command.resume import Checkpoints
from engine.precision import EXACT, convolving
from engine.schedule import steps_after_painting
from engine.synthesis import Frame, frames
from engine.tiling import Tiling
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
            return make_in_tiles(job, net, quiet, progress)
    except Exception as error:
        if fail_fast:
            raise
        return Failed.of(job.exemplar, error)


def make_in_tiles(job: Job, net: Net, quiet: bool, progress: str) -> Result:
    """Run a job as `make` does; when memory runs out, again with smaller tiles at all scales."""
    largest = job.spec.finest_tiling.side or max(job.spec.canvas.size) - 1
    for side in (side for side in BLOCKS if side <= largest):
        tilings = (Tiling(side),) * len(job.spec.tilings)
        if tilings == job.spec.tilings:
            continue
        try:
            return make(job, net, quiet, progress)
        except Exception as error:
            if not is_full(error):
                raise
        say([f"{job.name}: out of memory, once more in tiles of {side} px"], quiet)
        give_back_freed_memory()
        job = replace(job, spec=replace(job.spec, tilings=tilings))
    return make(job, net, quiet, progress)


def make(job: Job, net: Net, quiet: bool, progress: str) -> Result:
    """Make one picture and save it.

    Raises:
        KeyboardInterrupt: before the first frame; after it, the picture of the last one is saved.
    """
    started = time.perf_counter()
    spec = replace(job.spec.to(net.device), precision=net.precision)
    extractor = Extractor(net.weights, net.name, job.trunk_layers, job.pool).to(net.device)
    if job.rescale and steps_after_painting(spec.steps, spec.repaint):  # painting needs no net
        extractor.rescale(spec.exemplars[0].image, FILTER if job.rescale == FILTER else LAYER)
    record = record_of(job, net)
    stopped = result = None
    with Display(job, record, quiet, progress) as display:
        try:
            checkpoints = Checkpoints(job, record, display)
            for frame in frames(spec, extractor, checkpoints.state):
                display.show(frame)
                checkpoints.offer(frame)
        except KeyboardInterrupt as error:
            if display.last is None:
                raise
            stopped = error
        try:
            with signals_held():
                display.close()  # removes the preview, which frees its room on the disk
                course = Course(display.phases, display.curve, peak_bytes(net.device))
                assert display.last is not None  # there is a frame in any case
                result = saved_result(job, display.last, record, net, course, stopped is None)
                if stopped is None:
                    checkpoints.remove()
        except KeyboardInterrupt as error:
            if result is None:
                say([line_of(error.__context__)])
                raise
            stopped = error
    return replace(result, seconds=time.perf_counter() - started, stopped=stopped)


def saved_result(
    job: Job, frame: Frame, record: dict[str, Any], net: Net, course: Course, finished: bool
) -> Result:
    """Save the picture of the last frame.

    Args:
        finished: whether the run was not interrupted.
    """
    record["steps"] = frame.step
    if not finished:
        record[INTERRUPTED] = frame.step
    if points := course.points(RECORDED):
        record[CURVE] = points
    saved = Saved(job.save_path, record)
    if job.spec.group.rank == 0:  # the others have the same picture
        group = job.spec.group if finished else SINGLE_PROCESS  # others may stand at another step
        saved = save(kept_apart(job, record), frame.made, record, net, group)
    elif finished:
        saved_error(frame.made.image, job, net, job.spec.group)
    image = frame.made.image.cpu()
    return Result(saved.path, image, saved.record, 0.0, None, course, saved.missing)
