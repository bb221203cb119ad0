#!/usr/bin/env python3
"""Neural texture synthesis: a picture of a texture -> new texture of any size.

Parse what was asked for, plan it, make every picture coarse to fine, save it.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from command.interrupts import EXIT_CODE, LINE, ctrl_c_exits, ctrl_c_ignored, ctrl_c_raises

if __name__ == "__main__":
    ctrl_c_exits()
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPU lacks, the CPU has

import torch
from torch import Tensor

from command.arguments import Request, parse, request_of
from command.costs import Run, allowed_bytes, cost_notes, fitting
from command.display import Display, say
from command.plan import Job, plan
from command.ranks import leave, place, team_of, tell_launcher
from command.results import Net, Result, save
from engine.blocks import ALONE
from engine.precision import EXACT, convolving, pick_precision
from engine.synthesis import Made, new_texture, steps_after_painting
from models import DEFAULT_NET, Extractor, load_weights
from utils import UserError, keep_freed_memory, pick_device


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
    (result,) = run(request_of(gt_path=gt_path, quiet=True, **flags))
    return result.image


def run(request: Request) -> Iterator[Result]:
    """Make and save what was asked for, picture by picture.

    Raises:
        UserError: whatever the user can fix, before any slow work.
        KeyboardInterrupt: at the picture after one that was interrupted.
    """
    own = place()
    quiet = request.quiet or own.rank > 0
    device, device_note = pick_device(request.device, own.local)
    team = team_of(own, device) if request.split else ALONE
    precision = pick_precision(request.precision, device)
    jobs, picture_notes = plan(request)
    allowed = allowed_bytes(request.max_memory, device, own.beside)
    net = request.model or DEFAULT_NET
    costs = [(job.name, fitting(Run.of(job, net), allowed)) for job in jobs]
    notes = [device_note, *picture_notes, *cost_notes(costs, allowed, device)]
    weights, name, net_notes = load_weights(
        request.model, request.weights, jobs[0].trunk_layers, progress=not quiet
    )
    say([*notes, *net_notes], quiet)
    told = f"{name} from {request.weights.name}" if request.weights else name
    if any(cost.block is not None for _, cost in costs):
        keep_freed_memory(large=True)
    pairs = list(zip(jobs, costs, strict=True))
    for job, (_, cost) in pairs if request.split else pairs[own.rank :: own.count]:
        job = replace(job, spec=replace(job.spec, block=cost.block, memory=cost.memory, team=team))
        if team.rank:
            job = replace(job, save_every=None)
        with convolving(EXACT):
            result = make(job, Net(weights, name, told, device, precision), quiet)
        if team.rank == 0:
            yield result
        if result.interrupted:
            raise KeyboardInterrupt


def make(job: Job, net: Net, quiet: bool) -> Result:
    """One job -> one saved picture.

    Raises:
        KeyboardInterrupt: before the first step; after it, the picture as it stands is saved.
    """
    started = time.perf_counter()
    spec = replace(job.spec.to(net.device), precision=net.precision)
    trunk = Extractor(net.weights, net.name, job.trunk_layers, job.pool).to(net.device)
    if job.rescale and steps_after_painting(spec.steps, spec.repaint):  # painting needs no net
        trunk.rescale(spec.exemplars[0].image)
    record = job.record | {"net": net.told, "device": str(net.device), "precision": net.precision}
    interrupted = False
    with Display(job, record, quiet) as display:
        try:
            made = new_texture(spec, trunk, display)
        except KeyboardInterrupt:
            if display.last is None:
                raise
            interrupted, made = True, Made(display.picture(), None)
            record["interrupted at step"] = display.last.step
    if display.last is not None:
        record["steps"] = display.last.step
    if spec.team.rank == 0:  # the others have the same picture
        with ctrl_c_ignored():
            record = save(job, made, record, net)
    return Result(
        job.save_path, made.image.cpu(), record, time.perf_counter() - started, interrupted
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for the user's errors, 130 for Ctrl-C."""
    keep_freed_memory()
    try:
        request = parse(argv)
        if request.score:
            from command.verdict import print_scores  # only a run that uses it waits for it

            print_scores(request)
            return 0
        if request.benchmark:
            from command.benchmark import print_benchmark

            print_benchmark(request, run)
            return 0
        if request.json:
            raise UserError("--json is the format of --score and --benchmark, which are missing")
        for result in run(request):
            print(result.line, flush=True)
    except KeyboardInterrupt:
        print(LINE, file=sys.stderr)
        return EXIT_CODE
    except (UserError, RuntimeError, MemoryError) as error:
        told = str(error)
        # A GPU has an error of its own for this; the CPU's is known by its text alone.
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if full or "can't allocate memory" in told:
            told = "out of memory: give a smaller --size"
        elif not isinstance(error, UserError):
            raise
        print(f"Synthesis.py: {told}", file=sys.stderr)
        tell_launcher(told)
        return 2
    return 0


if __name__ == "__main__":
    ctrl_c_raises()
    leave(main())
