"""Device and memory of this process."""

import ctypes
import math
import re
from contextlib import suppress
from pathlib import Path

import torch

from utils import UserError

# M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of glibc's mallopt, in bytes.
MALLOC_OPTIONS = {-1: 2**31 - 1, -2: 2**26, -3: 2**31 - 1}
TIGHT_MALLOC_OPTIONS = {-1: 2**25, -2: 2**22, -3: 2**24}
OWN_STATUS = Path("/proc/self/status")


def pick_device(name: str | None, local: int = 0) -> tuple[torch.device, str | None]:
    """Return a device, and a note for the user or None.

    Args:
        name: "cpu", "cuda", "cuda:N" or "mps"; None means a GPU, or the CPU with a note.
        local: Number of the process on this machine, which chooses among several GPUs.

    Raises:
        UserError: This machine has no device of that name.
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
    # Not torch.device(name), which also accepts 'meta', 'cuda:7' and a dozen others.
    wanted = name.strip().lower()
    wanted = "cuda:0" if wanted == "cuda" else wanted
    if wanted not in devices:
        raise UserError(f"no device {name!r} on this machine, which has {', '.join(devices)}")
    return torch.device(wanted), None


def keep_freed_memory(tight: bool = False) -> None:
    """Keep freed memory in this process instead of returning it to the system. Needs glibc.

    Each step allocates and frees the same large tensors. By default glibc returns them to the
    system, which clears every page before reuse: a third of the time of a step at 1024x1024 on a
    virtual machine.

    Args:
        tight: Return large tensors to the system, as fragmentation can cost a third of the memory
            when an image is made tile by tile.
    """
    with suppress(OSError, TypeError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, number in (TIGHT_MALLOC_OPTIONS if tight else MALLOC_OPTIONS).items():
            mallopt(option, number)


def peak_bytes(device: torch.device) -> float:
    """Return the peak memory of this process in bytes, NaN if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not `resource.getrusage`, whose peak includes that of the parent before exec.
    peak = re.search(r"VmHWM:\s*(\d+) kB", OWN_STATUS.read_text() if OWN_STATUS.exists() else "")
    return 1024 * int(peak[1]) if peak else math.nan
