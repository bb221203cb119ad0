#!/usr/bin/env python3
"""Neural texture synthesis: a picture of a texture -> new texture of any size.

Parse what was asked for, plan it, make every picture coarse to fine, save it.
"""

if __name__ == "__main__":  # before anything else opens a file or takes time
    from command.start import explain_imports, open_streams, signals_exit

    open_streams()
    signals_exit()
    explain_imports()

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPU lacks, the CPU has

import torch
from torch import Tensor

from command.arguments import VERSION, Request, parse, request_of
from command.costs import (
    BLOCKS,
    Run,
    allowed_bytes,
    at_scales,
    cost_note,
    estimated_bytes,
    fitting,
    is_surely_within,
    is_tight,
    time_note,
)
from command.display import Display, Notes, print_result, say
from command.effects import effect_notes
from command.interrupts import exit_code, signals_end, signals_held, signals_raise
from command.log import Log
from command.memory import in_memory, names_one
from command.plan import Job, Order, can_be_cut, job_of, layers_of, orders_of
from command.processes import keep_freed_memory, peak_bytes, pick_device
from command.ranks import Place, leave, place, process_group_of, tell_launcher
from command.results import (
    CURVE,
    INTERRUPTED,
    RECORDED,
    Course,
    Failed,
    Net,
    Result,
    Saved,
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
from command.start import LINE, NOTHING
from command.weights import load_weights
from command.workers import AT_ONCE, MANY, Workers, is_small
from engine.blocks import Parts
from engine.precision import EXACT, convolving, pick_precision
from engine.synthesis import Made, new_texture, steps_after_painting
from models import FILTER, LAYER, Extractor
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from utils import UserError, give_back_freed_memory


def synthesize(
    gt_path: Any = None, *, save_path: str | Path | None = None, quiet: bool = True, **flags: Any
) -> Tensor | list[Tensor]:
    """Make new texture from Python: the same picture as the command makes of the same flags.

    `synthesize("leaf.jpg", size=(256, 512), epoch=300, save_path="wide.png")` is
    `python Synthesis.py --gt_path leaf.jpg --size 512x256 --epoch 300 --save_path wide.png`.

    Args:
        gt_path: exemplar: a path, a folder, a pattern or a picture in memory, or a list of these. A
            picture in memory is a PIL picture, an array of shape (H, W, 3) or (H, W), or a tensor
            of shape (1, 3, H, W) or (3, H, W), of uint8, uint16 or floats in [0, 1]. Default: as at
            the command line.
        save_path: path of the result. Default: nothing is written.
        quiet: whether notes and progress are left out on stderr. Default: True.
        flags: all other flags of the command by name, as Python values or text. Sizes are
            (height, width). style_image, init, mask, guide, mix and maps also take pictures in
            memory.

    Returns:
        (1, 3, height, width) in [0, 1], on the CPU, before it is rounded to the levels of a file;
        for a list, a folder, a pattern, or `count` of 2 or more, a list of these, in the order of
        exemplars and seeds. Each call makes its pictures anew.

    Raises:
        UserError: an error that the command would print in one line; of several pictures, that of
            the first that cannot be made.
        KeyboardInterrupt: after the unfinished picture is saved, where there is a save_path.
    """
    named, pictures = in_memory({"gt_path": gt_path, **flags})
    request = request_of(save_path=save_path, quiet=quiet, **named)
    request = replace(request, pictures=pictures)
    instead = {"score": request.score, "json": request.json}
    for flag, given in (instead | {"report": request.page_alone}).items():
        if given:
            raise UserError(f"--{flag}: makes no picture, use the command line")
    if "save_path" in request.typed:
        made = _images(request)
    else:
        for flag in ("save_every", "preview", "resume", "maps", "report"):
            if getattr(request, flag):
                raise UserError(f"--{flag}: writes files beside the result, give save_path")
        with TemporaryDirectory() as folder:  # the error is that of a saved file
            made = _images(replace(request, save_path=Path(folder) / "{stem}_{seed}.png"))
    one = len(request.gt_path) == 1 and request.count == 1 and not isinstance(gt_path, list | tuple)
    return made[0] if one and names_one(request.gt_path[0], pictures) else made


def _images(request: Request) -> list[Tensor]:
    found = []
    for result in run(request, anew=True):
        if isinstance(result, Failed):
            raise UserError(result.line)
        found.append(result.image)
    return found


def run_one(request: Request) -> Result:
    """What comes of a request for one picture; raises as `run` does."""
    (result,) = run(request)
    assert isinstance(result, Result)  # one that fails alone raises
    return result


def run(request: Request, anew: bool = False) -> Iterator[Result | Failed]:
    """Make and save what was asked for, picture by picture. What is there already, made in the
    same way, is taken as it is.

    Of several pictures one that cannot be made does not keep the others from it.

    Args:
        anew: whether what is there already, made in the same way, is made once more.

    Raises:
        UserError: whatever the user can fix, before any slow work.
        KeyboardInterrupt: at the picture after one that was interrupted.
    """
    own = place()
    quiet = request.quiet or own.rank > 0
    device, device_note = pick_device(request.device, own.local)
    group = process_group_of(own, device) if request.split else SINGLE_PROCESS
    if request.report and own.count > 1 and not request.split:
        raise UserError(
            "--report: several processes end at different times, run --report alone afterwards"
        )
    precision = pick_precision(request.precision, device)
    orders, left_out = orders_of(request)
    mine = orders if request.split else orders[own.rank :: own.count]
    allowed = allowed_bytes(request.max_memory, device, own.beside)
    notes, log = Notes(quiet), Log(request.log)
    notes.tell(*left_out, *effect_notes(request, len(orders)))
    time_told = False
    if request.from_picture:
        notes.tell(made_by(request.from_picture, VERSION))

    def ready(order: Order) -> Job:
        nonlocal time_told
        job, cost, heard = planned(request, order, allowed, group)
        notes.tell(*heard, cost_note(job.name, cost, allowed))
        if not time_told and (note := time_note(cost, len(mine) - mine.index(order), device)):
            time_told = True  # of the list; the next picture's estimate is hardly another one
            notes.tell(note)
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
            return (finished_before(job) if finished and not anew else None) or job
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
            if group.rank == 0:
                log.add(outcome)
                if isinstance(outcome, Result):
                    results.append(outcome.path)
                    say(f"Synthesis.py: {line}" for line in outcome.missing)
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
    request: Request, order: Order, allowed: float, group: ProcessGroup
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
    spec = replace(job.spec, parts=parts, memory=cost.memory, group=group)
    job = replace(job, spec=spec)
    if group.rank:  # the first writes for all
        job = replace(job, save_every=None, preview=False)
    return job, cost, heard


class Unwritten(UserError):
    """A file that was asked for beside pictures, which are saved, could not be written."""


def show(request: Request, results: list[Path], failed: list[Failed], quiet: bool) -> None:
    """Write what was asked for beside pictures: a sheet, an animation, a page of those that were
    made.

    Raises:
        Unwritten: one of them could not be; the others are.
    """
    if not results:
        return
    tasks: list[Callable[[], object]] = []
    if request.sheet:
        tasks.append(partial(write_sheet, results, request.sheet))
    if request.animate:
        tasks.append(partial(write_animation, results[0], request.animate))
    if request.report:
        from command.report import write_report  # only a run that uses it waits for it

        tasks.append(partial(write_report, request.report, quiet, failed))
    errors = []
    for task in tasks:
        try:
            if page := task():
                say([f"report: {page}"], quiet)
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise Unwritten("; ".join(errors))


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
        made, group = (
            Made(display.picture(), None),
            SINGLE_PROCESS,
        )  # others may stand at another step
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


def instead(request: Request) -> bool:
    """Print what is asked for in place of pictures; returns whether there was something."""
    if request.score:
        from command.verdict import print_scores  # only a run that uses it waits for it

        print_scores(request)
    elif request.page_alone:
        from command.report import print_report

        print_report(request)
    elif request.json:
        raise UserError("--json is the format of --score, which is missing")
    else:
        return False
    return True


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 where some of several pictures could not
    be made or a file beside one could not be written, 2 for the user's errors, 130, 143 or 129 for
    Ctrl-C, SIGTERM or SIGHUP."""
    failed = made = code = 0
    interrupted = NOTHING
    try:
        signals_raise()
        keep_freed_memory()
        request = parse(argv)
        if instead(request):
            return 0
        for result in run(request):
            if isinstance(result, Failed):
                failed += 1
                say([f"Synthesis.py: {result.line}"])
            else:
                made += 1
                print_result(result.line)
                interrupted = LINE
            if isinstance(result, Failed) or result.missing:
                code = 1
        if failed:
            say([f"Synthesis.py: {failed} of {failed + made} pictures could not be made"])
    except KeyboardInterrupt as error:
        say([interrupted])
        return exit_code(error)
    except Exception as error:
        if (line := line_of(error)) is None:
            raise
        say([f"Synthesis.py: {line}"])
        tell_launcher(line)
        return 1 if isinstance(error, Unwritten) else 2
    return code


if __name__ == "__main__":
    code = main()
    signals_end()
    leave(code)
