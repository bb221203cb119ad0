"""All pictures of a request: planned one by one, made here or by workers, in their order."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from command.arguments import VERSION, Request
from command.costs import (
    Workload,
    allowed_bytes,
    at_scales,
    cost_note,
    estimated_bytes,
    fitting,
    is_surely_within,
    is_tight,
    time_note,
)
from command.display import Notes, say
from command.effects import effect_notes
from command.log import Log
from command.make import outcome_of
from command.plan import Job, Order, can_be_cut, job_of, layers_of, orders_of
from command.processes import keep_freed_memory, pick_device
from command.ranks import Place, place, process_group_of
from command.results import Failed, Net, Result, finished_before, is_finished, record_of
from command.settings import made_by
from command.sheet import write_animation, write_sheet
from command.weights import load_weights
from command.workers import AT_ONCE, MANY, Workers, is_small
from engine.blocks import Parts
from engine.precision import pick_precision
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from utils import UserError


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


def run_one(request: Request) -> Result:
    """What comes of a request for one picture; raises as `run` does."""
    (result,) = run(request)
    assert isinstance(result, Result)  # one that fails alone raises
    return result


def run(request: Request, *, anew: bool = False, spawn: bool = False) -> Iterator[Result | Failed]:
    """Make and save what was asked for, picture by picture. What is there already, made in the
    same way, is taken as it is.

    Of several pictures one that cannot be made does not keep the others from it.

    Args:
        anew: whether what is there already, made in the same way, is made once more.
        spawn: whether small pictures may be made by other processes without `workers`: methods and
            terms that a program has added are not known there.

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

    best = workers_at_best(device, own, len(mine)) if spawn else 1
    count = 1 if only else request.workers or best
    beside = "json" if request.progress == "json" else "lines"

    def fits(job: Job) -> bool:
        wanted = request.workers is not None or is_small(job)
        return wanted and is_surely_within(Workload.of(job, net.name), allowed / count)

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
    alone = own.count == 1 and device.type == "cpu"
    return AT_ONCE if alone and pictures >= MANY and (os.cpu_count() or 1) >= AT_ONCE else 1


def planned(
    request: Request, order: Order, allowed: float, group: ProcessGroup
) -> tuple[Job, Workload, list[str]]:
    """The job of an order in parts that fit what memory is allowed, what it costs at its finest
    scale, and what the user should hear. Of an exemplar that is too large the middle is used.

    From here on the process keeps what it frees, or gives it back, as the job needs it.
    """
    net_name = layers_of(request).net
    job, heard = job_of(request, order)
    while estimated_bytes(cost := fitting(Workload.of(job, net_name), allowed)) > allowed:
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
