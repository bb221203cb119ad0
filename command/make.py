"""Run a job: consume the frames of its synthesis and save the picture."""

import time
from dataclasses import replace
from typing import Any

from command.costs import TILE_SIDES
from command.display import Display, print_stderr
from command.histogram import luminance_note, with_histogram
from command.interrupts import defer_signals
from command.plan import Job
from command.processes import peak_bytes
from command.results import (
    CURVE,
    INTERRUPTED,
    RECORDED,
    Failed,
    Net,
    Result,
    RunStats,
    Saved,
    error_line,
    is_out_of_memory,
    record_of,
    save,
    saved_error,
    with_free_path,
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
    """Run a job and return its result, or `Failed` if an error ended it.

    Args:
        quiet: whether to print no notes and no progress.
        progress: "text", "lines" or "json"; see `Display`.
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
    """Run a job as `make` does. If memory runs out, repeat it with the next smaller tile at all
    scales."""
    largest = job.spec.finest_tiling.side or max(job.spec.canvas.size) - 1
    for side in (side for side in TILE_SIDES if side <= largest):
        tilings = (Tiling(side),) * len(job.spec.tilings)
        if tilings == job.spec.tilings:
            continue
        try:
            return make(job, net, quiet, progress)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        print_stderr([f"{job.name}: out of memory, repeated in tiles of {side} px"], quiet)
        give_back_freed_memory()
        job = replace(job, spec=replace(job.spec, tilings=tilings))
    return make(job, net, quiet, progress)


def make(job: Job, net: Net, quiet: bool, progress: str) -> Result:
    """Make one picture and save it.

    An interrupt after the first frame ends the synthesis: the picture of the last frame is saved
    and returned, and `Result.stopped` holds the KeyboardInterrupt.

    Raises:
        KeyboardInterrupt: before the first frame.
        FloatingPointError: the loss of the initial picture is not finite.
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
                checkpoints.save_if_due(frame)
        except KeyboardInterrupt as error:
            if display.last is None:
                raise
            stopped = error
        try:
            with defer_signals():
                display.close()  # removes the preview, which makes room on a full disk
                stats = RunStats(display.phases, display.curve, peak_bytes(net.device))
                assert display.last is not None  # a synthesis has at least one frame
                result = saved_result(job, display.last, record, net, stats, stopped is None)
                if stopped is None:
                    checkpoints.remove()
        except KeyboardInterrupt as error:
            if result is None:
                print_stderr([error_line(error.__context__)])
                raise
            stopped = error
    print_stderr([luminance_note(job, result.record)], quiet)
    return replace(result, seconds=time.perf_counter() - started, stopped=stopped)


def saved_result(
    job: Job, frame: Frame, record: dict[str, Any], net: Net, stats: RunStats, finished: bool
) -> Result:
    """Save the picture of the last frame and return it as the result.

    Args:
        finished: whether the run ended without an interrupt.
    """
    record["steps"] = frame.step
    if not finished:
        record[INTERRUPTED] = frame.step
    if points := stats.points(RECORDED):
        record[CURVE] = points
    saved, made = Saved(job.save_path, record), with_histogram(job, frame.made)
    if job.spec.group.rank == 0:  # the picture of the other ranks is the same
        group = job.spec.group if finished else SINGLE_PROCESS  # others may be at another step
        saved = save(with_free_path(job, record), made, record, net, group)
    elif finished:
        saved_error(made.image, job, net, job.spec.group)
    image = made.image.cpu()
    return Result(saved.path, image, saved.record, 0.0, None, stats, saved.write_errors)
