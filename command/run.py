"""Run a request: plan its pictures one by one, make them in this process or in workers, and yield
their outcomes, each a `Result` or `Failed`, in order."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from command.arguments import VERSION, Request
from command.costs import (
    allowed_bytes,
    estimated_bytes,
    fits_within,
    is_tight,
    memory_note,
    tiled_to_fit,
    workloads_of,
)
from command.display import Notes, print_stderr
from command.effects import effect_notes
from command.floor import write_floors
from command.log import Log
from command.make import outcome_of
from command.plan import Job, WorkItem, can_crop, job_of, layers_of, tile_sets, work_items
from command.processes import keep_freed_memory, pick_device
from command.ranks import ProcessRank, process_group_of, process_rank
from command.results import Failed, Net, Result, finished_before, is_finished, record_of
from command.settings import made_by
from command.sheet import write_animation, write_sheet
from command.weights import load_weights
from command.workers import DEFAULT_WORKERS, MIN_PICTURES, Workers, is_small
from engine.precision import pick_precision
from engine.tiling import Tiling
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from utils import UserError, prefixed


def print_scores_or_report(request: Request) -> bool:
    """Print scores, or write a report and print its path, if the request is for one of these and
    not for pictures. Return whether it is.

    Raises:
        UserError: a picture that cannot be scored, or a report that cannot be written.
    """
    if request.score:
        from command.verdict import print_scores  # imported here for a short start-up

        print_scores(request)
    elif request.page_alone:
        from command.report import print_report

        print_report(request)
    else:
        return False
    return True


def run(
    request: Request, *, remake: bool = False, spawn: bool = False
) -> Iterator[Result | Failed]:
    """Make and save every picture of a request, and yield each outcome as soon as it is known.

    If one of several pictures fails, `Failed` is yielded and the next picture is made. A picture
    that an earlier run has saved with the same settings is not made again.

    Args:
        remake: whether pictures that an earlier run has saved are made again.
        spawn: whether to make small pictures in worker processes if `--workers` is not given.
            Workers lack terms and methods that the calling program has added.

    Raises:
        UserError: (1) The request is invalid; this is raised before slow work starts. (2) A picture
            cannot be made, and it is the only one or --split is given. (3) A floor, a sheet, an
            animation or a report cannot be written; this is raised after all pictures are saved.
        KeyboardInterrupt: after the outcome of the interrupted picture is yielded.
    """
    batch = batch_of(request)
    notes, log = Notes(batch.quiet), Log(request.log)
    notes.print(*batch.notes)
    planner = Planner(batch, notes)
    # A single picture is planned first, so that its errors precede a download of weights.
    first = planner.job(batch.items[0]) if batch.total == 1 and batch.items else None
    net, net_notes = net_of(request, batch.device, batch.precision, batch.quiet)
    notes.print(batch.device_note, *net_notes)
    log.begin(net)
    results: list[Path] = []
    failed: list[Failed] = []
    for outcome in outcomes_of(batch, planner.tasks(net, first, remake), net, spawn):
        if batch.group.rank == 0:
            log.add(outcome)
            if isinstance(outcome, Result):
                results.append(outcome.path)
                planner.saved.add(outcome.path)
                print_stderr(f"Synthesis.py: {line}" for line in outcome.write_errors)
            else:
                failed.append(outcome)
            yield outcome
    write_summaries(request, results, failed, batch.quiet, tile_sets(batch.items))


@dataclass(frozen=True)
class Batch:
    """The work items of this process, and the device, precision and memory to make them with."""

    request: Request
    items: list[WorkItem]
    total: int  # number of pictures, or of sets of tiles, of all processes
    notes: list[str | None]
    rank: ProcessRank
    group: ProcessGroup
    device: torch.device
    device_note: str | None
    precision: str  # in `engine.precision.PRECISIONS`
    allowed: float  # bytes of memory

    @property
    def quiet(self) -> bool:
        """Whether this process prints no notes: of several processes, only rank 0 does."""
        return self.request.quiet or self.rank.rank > 0

    @property
    def fail_fast(self) -> bool:
        """Whether the error of a picture ends the run, rather than being yielded as `Failed`.

        True for a single picture or set of tiles, and with --split: if one process went on to the
        next picture, the others would wait for it forever.
        """
        return self.total == 1 or self.request.split


def batch_of(request: Request) -> Batch:
    """Return the part of a request that this process makes.

    Raises:
        UserError: a flag, a path or a device that cannot be used.
    """
    rank = process_rank()
    device, device_note = pick_device(request.device, rank.local_rank)
    group = process_group_of(rank, device) if request.split else SINGLE_PROCESS
    if rank.world_size > 1 and not request.split:
        for flag in ("report", "sheet"):
            if getattr(request, flag):  # each process has some of the pictures only
                raise UserError(f"--{flag}: not with several processes without --split")
    with prefixed("--"):
        precision = pick_precision(request.precision, device)
    items, notes = work_items(request)
    per_set = request.tile_set or 1
    return Batch(
        request=request,
        items=items if request.split else _items_of_rank(items, rank, per_set),
        total=len(items) // per_set,
        notes=[
            *notes,
            *effect_notes(request, len(items)),
            made_by(request.from_picture, VERSION) if request.from_picture else None,
        ],
        rank=rank,
        group=group,
        device=device,
        device_note=device_note,
        precision=precision,
        allowed=allowed_bytes(request.max_memory, device, rank.local_world_size),
    )


def _items_of_rank(items: list[WorkItem], rank: ProcessRank, per_set: int) -> list[WorkItem]:
    """Return the items of one process. Sets of `per_set` successive items are assigned to the
    processes in turn."""
    return [one for i, one in enumerate(items) if i // per_set % rank.world_size == rank.rank]


class Planner:
    """Plans the work items of a batch, each when its turn comes, and prints their notes.

    Pictures of all jobs at once would not fit into memory.
    """

    def __init__(self, batch: Batch, notes: Notes) -> None:
        self.batch, self.notes = batch, notes
        self.saved: set[Path] = set()  # paths of the results so far

    def job(self, item: WorkItem) -> Job:
        """Return the job of an item and print its notes.

        Raises:
            UserError: an input or a size that cannot be used, or too little memory.
        """
        batch = self.batch
        if item.first_tile is not None and item.first_tile not in self.saved:
            raise UserError(
                f"{item.save_path}: not made, as the first tile is not saved as {item.first_tile}"
            )
        job, notes = planned(batch.request, item, batch.allowed, batch.group)
        self.notes.print(*notes)
        return job

    def tasks(self, net: Net, first: Job | None, remake: bool) -> Iterator[Job | Result | Failed]:
        """Yield a job for every item, or its outcome if an earlier run has saved the picture or
        planning fails.

        Args:
            first: job of the first item, if it is planned already.
            remake: whether pictures that an earlier run has saved are made again.
        """
        for item in self.batch.items:
            try:
                job, first = first or self.job(item), None
                record = record_of(job, net)
                finished = is_finished(job, record, self.batch.request.overwrite)
                task = (finished_before(job) if finished and not remake else None) or job
            except Exception as error:
                if self.batch.fail_fast:
                    raise
                yield Failed.of(item.exemplar, error)
            else:
                yield task


def outcomes_of(
    batch: Batch, tasks: Iterable[Job | Result | Failed], net: Net, spawn: bool
) -> Iterator[Result | Failed]:
    """Make the pictures of a batch in this process or in workers, and yield the outcomes in order.

    Args:
        tasks: jobs, and outcomes of items that need no job.
        spawn: as for `run`.
    """
    request, count = batch.request, worker_count(batch, spawn)
    here = partial(
        outcome_of, net=net, quiet=batch.quiet, progress=request.progress, fail_fast=batch.fail_fast
    )
    fits = partial(fits_in_worker, batch=batch, net=net.name, count=count)
    # Progress bars of several processes would overwrite each other.
    progress = "json" if request.progress == "json" else "lines"
    with Workers(count, net, batch.quiet, progress) as workers:
        yield from workers.outcomes(tasks, fits, here)


def worker_count(batch: Batch, spawn: bool) -> int:
    """Return the number of workers; 1 means that this process makes all pictures.

    Args:
        spawn: as for `run`.
    """
    if batch.fail_fast or batch.request.tile_set:  # further tiles are planned from the first
        return 1
    best = workers_at_best(batch.device, batch.rank, len(batch.items)) if spawn else 1
    return batch.request.workers or best


def workers_at_best(device: torch.device, rank: ProcessRank, pictures: int) -> int:
    """Return the number of workers with which small pictures are made fastest.

    Args:
        pictures: number of pictures of this process.
    """
    cpu = rank.world_size == 1 and device.type == "cpu"
    enough = pictures >= MIN_PICTURES and (os.cpu_count() or 1) >= DEFAULT_WORKERS
    return DEFAULT_WORKERS if cpu and enough else 1


def fits_in_worker(job: Job, batch: Batch, net: str, count: int) -> bool:
    """Return whether a worker may run a job.

    The job must fit into a worker's share of the memory, which is the allowed memory divided by
    `count`. Without --workers, the picture must also be small, since one large picture uses all
    cores.

    Args:
        net: name of the net.
        count: number of workers.
    """
    wanted = batch.request.workers is not None or is_small(job)
    return wanted and fits_within(workloads_of(job, net)[-1], batch.allowed / count)


def planned(
    request: Request, item: WorkItem, allowed: float, group: ProcessGroup
) -> tuple[Job, list[str | None]]:
    """Return the job of a work item, in tiles that fit into memory, and notes for the user.

    If none fit, the exemplar is cropped to its centre where `can_crop` allows it. As a side effect,
    the allocator of this process is set to keep freed memory or, if memory is tight, to return it
    to the system.

    Args:
        allowed: bytes of memory.

    Raises:
        UserError: as `job_of` does, or the job needs more memory.
    """
    net_name = layers_of(request).net
    job, notes = job_of(request, item)
    while True:
        works = [tiled_to_fit(work, allowed) for work in workloads_of(job, net_name)]
        if estimated_bytes(works[-1]) <= allowed or not can_crop(request, job):
            break
        pixels = job.spec.exemplars[0].image[0, 0].numel()
        job, notes = job_of(request, item, pixels / 2)
    keep_freed_memory(tight=any(is_tight(work, allowed) for work in works))
    tilings = tuple(Tiling(work.tile_side, work.graphs) for work in works)
    memory = works[-1].memory
    job = replace(job, spec=replace(job.spec, tilings=tilings, memory=memory, group=group))
    if group.rank:  # rank 0 writes the files of all ranks
        job = replace(job, save_every=None, preview=False)
    return job, [*notes, memory_note(job, works[-1], allowed)]


def net_of(
    request: Request, device: torch.device, precision: str, quiet: bool
) -> tuple[Net, list[str]]:
    """Load the net of a request, and return it with notes for the user.

    Raises:
        UserError: weights that cannot be read or used.
    """
    found = load_weights(
        request.model,
        request.weights,
        layers_of(request).trunk,
        progress=not quiet,
        layout=request.weights_layout,
    )
    label = f"{found.net} from {request.weights.name}" if request.weights else found.net
    return Net(found.weights, found.net, label, device, precision, found.layout), found.notes


class WriteError(UserError):
    """A floor, a sheet, an animation or a report could not be written; the pictures are saved."""


def write_summaries(
    request: Request,
    results: list[Path],
    failed: list[Failed],
    quiet: bool,
    sets: dict[Path, list[Path]],
) -> None:
    """Write the floors, the sheet, the animation and the report that the request asks for.

    Args:
        results: paths of the pictures; if there are none, nothing is written.
        sets: path of each floor -> those of its tiles. A floor is written if all tiles are made.

    Raises:
        WriteError: one of these files could not be written; the others are.
    """
    if not results:
        return
    tasks: list[Callable[[], None]] = [
        partial(write_floors, tiles, path, request)
        for path, tiles in sets.items()
        if set(tiles) <= set(results)
    ]
    if request.sheet:
        tasks.append(partial(write_sheet, results, request.sheet))
    if request.animate:
        tasks.append(partial(write_animation, results[0], request.animate))
    if request.report:
        from command.report import write_report  # imported here for a short start-up

        def report(folder: Path = request.report) -> None:
            print_stderr([f"report: {write_report(folder, quiet, failed)}"], quiet)

        tasks.append(report)
    errors = []
    for task in tasks:
        try:
            task()
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise WriteError("; ".join(errors))
