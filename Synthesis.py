#!/usr/bin/env python3
"""Neural texture synthesis: a picture of a texture -> new texture of any size.

Parse what was asked for, plan it, make every picture coarse to fine, save it.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from command.requirements import check_requirements

if __name__ == "__main__":
    check_requirements()

from command.interrupts import (
    LINE,
    NOTHING,
    exit_code,
    signals_exit,
    signals_ignored,
    signals_raise,
)

if __name__ == "__main__":
    signals_exit()
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPU lacks, the CPU has

import torch
from torch import Tensor

from command.arguments import VERSION, Request, parse, request_of
from command.costs import (
    BLOCKS,
    Run,
    allowed_bytes,
    at_scales,
    cost_notes,
    estimated_bytes,
    fitting,
    is_surely_within,
    is_tight,
)
from command.display import Display, Notes, print_result, say
from command.log import Log
from command.plan import Job, Order, can_be_cut, job_of, layers_of, orders_of
from command.ranks import Place, leave, place, team_of, tell_launcher
from command.results import (
    CURVE,
    INTERRUPTED,
    RECORDED,
    Course,
    Failed,
    Net,
    Result,
    finished_before,
    is_finished,
    is_full,
    kept_apart,
    line_of,
    record_of,
    save,
    saved_error,
)
from command.resume import checkpoints_of
from command.settings import made_by
from command.sheet import write_animation, write_sheet
from command.workers import AT_ONCE, MANY, Workers, is_small
from engine.blocks import Parts
from engine.precision import EXACT, convolving, pick_precision
from engine.synthesis import Made, new_texture, steps_after_painting
from models import FILTER, LAYER, Extractor, load_weights
from terms.team import ALONE, Team
from utils import UserError, give_back_freed_memory, keep_freed_memory, peak_bytes, pick_device


def synthesize(gt_path: str = "leaf.jpg", **flags: Any) -> Tensor:
    """The very picture that the command makes of the same flags, saved where it would save it.

    `synthesize("leaf.jpg", size=(256, 512), epoch=300, save_path="wide.png")` is, but silent,
    `python Synthesis.py --gt_path leaf.jpg --size 512x256 --epoch 300 --save_path wide.png`.
    Flags are named as there; their values are Python's, or text as there.

    Returns:
        (1, 3, height, width) in [0, 1], on the CPU.

    Raises:
        UserError: what the command would say in one line.
    """
    return run_one(request_of(gt_path=gt_path, quiet=True, **flags)).image


def run_one(request: Request) -> Result:
    """What comes of a request for one picture; raises as `run` does."""
    (result,) = run(request)
    assert isinstance(result, Result)  # one that fails alone raises
    return result


def run(request: Request) -> Iterator[Result | Failed]:
    """Make and save what was asked for, picture by picture. What is there already, made in the
    same way, is taken as it is.

    Of several pictures one that cannot be made does not keep the others from it.

    Raises:
        UserError: whatever the user can fix, before any slow work.
        KeyboardInterrupt: at the picture after one that was interrupted.
    """
    own = place()
    quiet = request.quiet or own.rank > 0
    device, device_note = pick_device(request.device, own.local)
    team = team_of(own, device) if request.split else ALONE
    if request.report and own.count > 1 and not request.split:
        raise UserError(
            "--report: pictures of several processes are not made at one time, give it "
            "alone afterwards"
        )
    precision = pick_precision(request.precision, device)
    orders, left_out = orders_of(request)
    mine = orders if request.split else orders[own.rank :: own.count]
    allowed = allowed_bytes(request.max_memory, device, own.beside)
    notes, log = Notes(quiet), Log(request.log)
    notes.tell(*left_out)
    if request.from_picture:
        notes.tell(made_by(request.from_picture, VERSION))

    def ready(order: Order) -> Job:
        job, cost, heard = planned(request, order, allowed, team)
        notes.tell(*heard, *cost_notes([(job.name, cost)] * len(mine), allowed, device))
        return job

    alone = ready(orders[0]) if len(orders) == 1 and mine else None  # before weights are read
    net, found = net_of(request, device, precision, quiet)
    notes.tell(device_note, *found)
    log.begin(net)
    only = len(orders) == 1 or request.split  # the others would wait for one that fails

    def task(order: Order) -> Job | Result | Failed:
        try:
            job = alone or ready(order)
            finished = is_finished(job, record_of(job, net), request.overwrite)
            return (finished_before(job) if finished else None) or job
        except Exception as error:
            if only:
                raise
            return Failed.of(order.exemplar, error)

    count = 1 if only else request.workers or workers_at_best(device, own, len(mine))
    beside = "json" if request.progress == "json" else "lines"

    def fits(job: Job) -> bool:
        wanted = request.workers is not None or is_small(job)
        return wanted and is_surely_within(Run.of(job, net.name), allowed / count)

    def here(job: Job) -> Result | Failed:
        return outcome_of(job, net, quiet, request.progress, only)

    results: list[Path] = []
    failed: list[Failed] = []
    with Workers(count, net, quiet, beside) as workers:
        for outcome in workers.outcomes(map(task, mine), fits, here):
            if team.rank == 0:
                log.add(outcome)
                if isinstance(outcome, Result):
                    results.append(outcome.path)
                else:
                    failed.append(outcome)
                yield outcome
    show(request, results, failed, quiet)


def workers_at_best(device: torch.device, own: Place, pictures: int) -> int:
    """How many processes make pictures in the least time, as far as that is known."""
    # What uses this as a library may have methods of its own, that other processes do not know.
    alone = __name__ == "__main__" and own.count == 1 and device.type == "cpu"
    return AT_ONCE if alone and pictures >= MANY and (os.cpu_count() or 1) >= AT_ONCE else 1


def outcome_of(
    job: Job, net: Net, quiet: bool, progress: str, only: bool = False
) -> Result | Failed:
    """What becomes of a job.

    Args:
        only: whether there are no others, for which an error would be kept.
    """
    try:
        with convolving(EXACT):
            return make_in_blocks(job, net, quiet, progress)
    except Exception as error:
        if only:
            raise
        return Failed.of(job.exemplar, error)


def planned(
    request: Request, order: Order, allowed: float, team: Team
) -> tuple[Job, Run, list[str]]:
    """The job of an order in parts that fit what memory is allowed, what it costs at its finest
    scale, and what the user should hear. Of an exemplar that is too large the middle is used.

    From here on the process keeps what it frees, or gives it back, as the job needs it.
    """
    net_name = layers_of(request).net
    job, heard = job_of(request, order)
    while estimated_bytes(cost := fitting(Run.of(job, net_name), allowed)) > allowed:
        if not can_be_cut(request, job):
            break
        pixels = job.spec.exemplars[0].image[0, 0].numel()
        job, heard = job_of(request, order, pixels / 2)
    ways = at_scales(cost, allowed)
    keep_freed_memory(tight=any(is_tight(way, allowed) for way in ways))
    parts = tuple(Parts(way.block, way.graphs) for way in ways)
    spec = replace(job.spec, parts=parts, memory=cost.memory, team=team)
    job = replace(job, spec=spec, save_every=None if team.rank else job.save_every)
    return job, cost, heard


def show(request: Request, results: list[Path], failed: list[Failed], quiet: bool) -> None:
    """What was asked for beside pictures: a sheet, an animation, a page of those that were made."""
    if request.sheet and results:
        write_sheet(results, request.sheet)
    if request.animate and results:
        write_animation(results[0], request.animate)
    if request.report and results:
        from command.report import write_report  # only a run that uses it waits for it

        say([f"report: {write_report(request.report, quiet, failed)}"], quiet)


def net_of(
    request: Request, device: torch.device, precision: str, quiet: bool
) -> tuple[Net, list[str]]:
    """The net that was asked for, and what the user should hear of it."""
    found = load_weights(
        request.model,
        request.weights,
        layers_of(request).trunk,
        progress=not quiet,
        layout=request.weights_layout,
    )
    told = f"{found.net} from {request.weights.name}" if request.weights else found.net
    return Net(found.weights, found.net, told, device, precision, found.layout), found.notes


def make_in_blocks(job: Job, net: Net, quiet: bool, progress: str) -> Result:
    """As `make`, once more in smaller blocks as long as memory runs out, at all scales."""
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
    record, stopped = record_of(job, net), None
    with Display(job, record, quiet, progress) as display:
        try:
            made = new_texture(
                spec, trunk, display, checkpoints_of(job, record, display), display.went_back
            )
        except KeyboardInterrupt as error:
            if display.last is None:
                raise
            stopped, made = error, Made(display.picture(), None)
            record[INTERRUPTED] = display.last.step
    if display.last is not None:
        record["steps"] = display.last.step
    course = Course(display.phases, display.curve, peak_bytes(net.device))
    if points := course.points(RECORDED):
        record[CURVE] = points
    path = job.save_path
    team = ALONE if stopped else spec.team  # others may have been stopped at another step
    with signals_ignored():
        if spec.team.rank == 0:  # the others have the same picture
            path, record = save(kept_apart(job, record), made, record, net, team)
            if job.resume and not stopped:
                job.checkpoint_path.unlink(missing_ok=True)
        elif not stopped:
            saved_error(path, job, made.image, net, team)
    seconds = time.perf_counter() - started
    return Result(path, made.image.cpu(), record, seconds, stopped, course)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 where some of several pictures could not
    be made, 2 for the user's errors, 130, 143 or 129 for Ctrl-C, SIGTERM or SIGHUP."""
    keep_freed_memory()
    failed = made = 0
    interrupted = NOTHING
    try:
        request = parse(argv)
        if request.score:
            from command.verdict import print_scores  # only a run that uses it waits for it

            print_scores(request)
            return 0
        if request.page_alone:
            from command.report import print_report

            print_report(request)
            return 0
        if request.benchmark:
            from command.benchmark import print_benchmark

            print_benchmark(request, run_one)
            return 0
        if request.json:
            raise UserError("--json is the format of --score and --benchmark, which are missing")
        for result in run(request):
            if isinstance(result, Failed):
                failed += 1
                say([f"Synthesis.py: {result.line}"])
            else:
                made += 1
                print_result(result.line)
                interrupted = LINE if result.stopped else NOTHING
        if failed:
            say([f"Synthesis.py: {failed} of {failed + made} pictures could not be made"])
            return 1
    except KeyboardInterrupt as error:
        say([interrupted])
        return exit_code(error)
    except Exception as error:
        if (line := line_of(error)) is None:
            raise
        say([f"Synthesis.py: {line}"])
        tell_launcher(line)
        return 2
    return 0


if __name__ == "__main__":
    signals_raise()
    leave(main())
