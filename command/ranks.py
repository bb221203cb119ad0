"""Which of several processes this one is, where torchrun or Slurm's srun has started them all."""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
from torch import distributed

from command.streams import settle
from terms.process_group import ProcessGroup
from utils import UserError

# The rank, how many there are, and the rank on this machine. Slurm's are those of a step: a script
# that runs in an allocation without srun has SLURM_NTASKS as well, and is alone.
VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
MEETING = timedelta(seconds=20)  # launchers start all processes at the same time
WAITING = timedelta(minutes=30)  # for one that is slower
BESIDE = ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE")  # of a machine: 8, 8(x4), 8,7


@dataclass(frozen=True)
class Place:
    """Where a process is among those that share a list of jobs; each takes every n-th of them.

    They need not know of each other: one that dies leaves the others' pictures as they are.
    """

    rank: int = 0
    count: int = 1
    local: int = 0  # on this machine, which is the GPU that it takes
    beside: int = 1  # how many there are on this machine


def process_group_of(own: Place, device: torch.device) -> ProcessGroup:
    """All processes, connected.

    Raises:
        UserError: there is one, or more than there are GPUs, or they do not find each other.
    """
    if own.count == 1:
        raise UserError(
            "--split: one process alone, start it by torchrun --nproc_per_node N -- Synthesis.py"
        )
    gpus = torch.cuda.device_count() if device.type == "cuda" else own.count
    if own.local >= gpus:
        raise UserError(
            f"--split: process {own.local + 1} of a machine with {gpus} GPUs, "
            "start one for each, or give --device cpu"
        )
    if not distributed.is_initialized():
        try:
            # Counts are added up on the CPU, whatever the device.
            _wait_for_the_first(own)
            kinds = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(
                kinds, rank=own.rank, world_size=own.count, timeout=MEETING
            )
        except (RuntimeError, ValueError, OSError) as error:
            told = str(error).partition("\n")[0]
            raise UserError(
                f"--split: the processes did not meet within {MEETING.seconds} s ({told})"
            ) from error
    # They meet at once or never, but one may be painting long after another.
    return ProcessGroup(own.rank, own.count, distributed.new_group(timeout=WAITING))


def _wait_for_the_first(own: Place) -> None:
    """Raise OSError where the process that the others meet at does not come, as PyTorch would wait
    for it several times as long and tell of that in many lines."""
    address = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if own.rank == 0 or not all(address):
        return
    last = time.monotonic() + MEETING.seconds
    while True:
        try:
            socket.create_connection(address, timeout=MEETING.seconds).close()
            return
        except OSError:
            if time.monotonic() > last:
                raise
        time.sleep(0.1)


def place(variables: Mapping[str, str] = os.environ) -> Place:
    """What the first launcher says that sets all its variables to whole numbers; else there is one
    process.

    Raises:
        UserError: they contradict each other. Each process would make every picture.
    """
    for names, beside in zip(VARIABLES, BESIDE, strict=True):
        try:
            found = Place(*(int(variables[name]) for name in names))
        except (KeyError, ValueError):
            continue
        if not (0 <= found.rank < found.count and found.local >= 0):
            said = " ".join(f"{name}={variables[name]}" for name in names)
            rank, count, local = names
            raise UserError(f"{said}: {rank} is from 0 to {count} - 1, {local} 0 or more")
        counted = re.match("[1-9][0-9]*", variables.get(beside, ""))
        return replace(found, beside=int(counted[0]) if counted else 1)
    return Place()


def tell_launcher(line: str) -> None:
    """Leave an error where torchrun looks for it, whose summary then says that line."""
    with suppress(KeyError, OSError):
        # As PyTorch's own `record` writes it: a line alone is shown too, but warned of.
        told = {"message": line, "extraInfo": {"timestamp": int(time.time())}}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": told}))


def leave(code: int) -> NoReturn:
    """Exit, whatever has become of stdout and stderr; at once where processes are connected, as
    the threads of a connection that lost its other end abort an orderly exit."""
    settle()
    if distributed.is_available() and distributed.is_initialized():
        os._exit(code)
    sys.exit(code)
