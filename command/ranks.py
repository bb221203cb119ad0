"""The rank of this process among those that torchrun or Slurm's srun has started."""

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

from command.streams import drop_unwritable
from terms.process_group import ProcessGroup
from utils import UserError

# Rank, world size and local rank. Slurm's SLURM_NTASKS is not used: it is also set for a single
# process that runs in an allocation without srun.
VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE")  # "8", "8(x4)" or "8,7"
RENDEZVOUS_TIMEOUT = timedelta(seconds=20)  # launchers start all processes at the same time
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # one process may paint much longer than another


@dataclass(frozen=True)
class ProcessRank:
    """The rank of a process among those of a launcher.

    With --split, the processes share each picture. Otherwise process `rank` makes every
    `world_size`-th picture, and the processes do not communicate.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the processes on this machine; index of the GPU
    local_world_size: int = 1  # number of processes on this machine


def process_group_of(own: ProcessRank, device: torch.device) -> ProcessGroup:
    """Connect the processes of --split and return their group.

    Raises:
        UserError: there is a single process, a machine has more processes than GPUs, or the
            processes do not connect within RENDEZVOUS_TIMEOUT.
    """
    if own.world_size == 1:
        raise UserError(
            "--split: one process alone, start N by torchrun --nproc_per_node N -- Synthesis.py"
        )
    gpus = torch.cuda.device_count() if device.type == "cuda" else own.world_size
    if own.local_rank >= gpus:
        raise UserError(
            f"--split: process {own.local_rank + 1} of a machine with {gpus} GPUs, "
            "start one for each, or give --device cpu"
        )
    if not distributed.is_initialized():
        try:
            _wait_for_rank_0(own)
            # Gloo for the CPU: counts are summed there even if the device is a GPU.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(
                backend, rank=own.rank, world_size=own.world_size, timeout=RENDEZVOUS_TIMEOUT
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"--split: the processes did not connect within {RENDEZVOUS_TIMEOUT.seconds} s "
                f"({reason})"
            ) from error
    group = distributed.new_group(timeout=COLLECTIVE_TIMEOUT)
    return ProcessGroup(own.rank, own.world_size, group)


def _wait_for_rank_0(own: ProcessRank) -> None:
    """Wait until rank 0 accepts connections.

    `init_process_group` waits several times as long as its timeout, and prints many lines.

    Raises:
        OSError: rank 0 does not accept connections within RENDEZVOUS_TIMEOUT.
    """
    address = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if own.rank == 0 or not all(address):
        return
    last = time.monotonic() + RENDEZVOUS_TIMEOUT.seconds
    while True:
        try:
            socket.create_connection(address, timeout=RENDEZVOUS_TIMEOUT.seconds).close()
            return
        except OSError:
            if time.monotonic() > last:
                raise
        time.sleep(0.1)


def process_rank(variables: Mapping[str, str] = os.environ) -> ProcessRank:
    """Return the rank of this process from the environment variables of its launcher.

    The launcher is the first in `VARIABLES` whose variables are all integers. Without a launcher,
    the process is rank 0 of 1.

    Raises:
        UserError: a rank is out of range.
    """
    for names, local_size in zip(VARIABLES, LOCAL_SIZES, strict=True):
        try:
            own = ProcessRank(*(int(variables[name]) for name in names))
        except (KeyError, ValueError):
            continue
        if not (0 <= own.rank < own.world_size and own.local_rank >= 0):
            text = " ".join(f"{name}={variables[name]}" for name in names)
            rank, world_size, local_rank = names
            raise UserError(f"{text}: {rank} is from 0 to {world_size} - 1, {local_rank} 0 or more")
        counted = re.match("[1-9][0-9]*", variables.get(local_size, ""))
        return replace(own, local_world_size=int(counted[0]) if counted else 1)
    return ProcessRank()


def report_to_launcher(line: str) -> None:
    """Write an error to the error file of torchrun, which shows it in its summary."""
    with suppress(KeyError, OSError):
        # The format of `torch.distributed.elastic.multiprocessing.errors.record`. torchrun shows
        # plain text as well, but with a warning.
        message = {"message": line, "extraInfo": {"timestamp": int(time.time())}}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": message}))


def exit_process(code: int) -> NoReturn:
    """Exit with a code, even if stdout or stderr cannot be written.

    A process in a process group exits without clean-up: threads of the group would abort it when
    another process has ended.
    """
    drop_unwritable()
    if distributed.is_available() and distributed.is_initialized():
        os._exit(code)
    sys.exit(code)
