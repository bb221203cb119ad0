"""The device and the memory of this process."""

import ctypes
import math
import re
from contextlib import suppress
from pathlib import Path

import torch

from utils import UserError

# Trim threshold, top pad, mmap threshold; where it is tight, what is large goes back to the system.
MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 2**26, -3: 2**31 - 1}
TIGHT_MALLOC_OPTIONS = {-1: 2**25, -2: 2**22, -3: 2**24}
OWN_STATUS = Path("/proc/self/status")


def pick_device(name: str | None, local: int = 0) -> tuple[torch.device, str | None]:
    """Return the device of that name; None means a GPU, or the CPU and a note that says so.

    Of several GPUs it is cuda:0, and for the processes that share a machine one after the other.

    Raises UserError when a device that was asked for is not on this machine.
    """
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    if name is None:
        if "cuda:0" in devices:
            return torch.device(f"cuda:{local % torch.cuda.device_count()}"), None
        return torch.device("cpu"), "no CUDA device on this machine, running on the CPU"
    # Compared with names, never parsed: torch.device takes 'meta', 'cuda:7' and a dozen more.
    wanted = name.strip().lower()
    wanted = "cuda:0" if wanted == "cuda" else wanted
    if wanted not in devices:
        raise UserError(f"no device {name!r} on this machine, which has {', '.join(devices)}")
    return torch.device(wanted), None


def keep_freed_memory(tight: bool = False) -> None:
    """Have this process keep what it frees, where the C library is glibc.

    A step takes and frees the same large tensors over and over. By default glibc hands them back
    to the system, which clears every page of them before it hands them out again: a third of the
    time of a step at 1024x1024 on a virtual machine. What is kept has holes, though, up to a third
    of it where a picture is made block by block; where memory is `tight`, whatever has a value a
    pixel of a large picture goes back.
    """
    with suppress(OSError, TypeError, AttributeError):  # no such library, or another one
        mallopt = ctypes.CDLL(None).mallopt
        for option, number in (TIGHT_MALLOC_OPTIONS if tight else MALLOC_OPTIONS).items():
            mallopt(option, number)


def peak_bytes(device: torch.device) -> float:
    """The most memory that this process has had so far, NaN where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not the peak that `resource` knows, which starts from that of the process before.
    peak = re.search(r"VmHWM:\s*(\d+) kB", OWN_STATUS.read_text() if OWN_STATUS.exists() else "")
    return 1024 * int(peak[1]) if peak else math.nan
