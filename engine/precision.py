"""Precision of the network's convolutions; everything else is computed in float32."""

import time
from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import UserError, memory_format_for

AUTO, EXACT = "auto", "fp32"
# Precisions and the dtype of their features; None: float32, whose products are computed in TF32.
ROUGH: dict[str, torch.dtype | None] = {"tf32": None, "bf16": torch.bfloat16}
PRECISIONS = (EXACT, *ROUGH)
TF32_SINCE = (8, 0)  # least compute capability of a GPU with TF32
# (B, C, H, W) of the features in a timed convolution, which may be very slow
TRIAL_SHAPE = (1, 16, 8, 8)
MAX_SLOWDOWN = 2.0  # largest time of a usable precision, relative to that of float32


def offered(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that can be asked for on a device."""
    return {"cuda": PRECISIONS, "mps": (EXACT,)}.get(device.type, (EXACT, "bf16"))


def pick_precision(name: str, device: torch.device) -> str:
    """Return the precision of a name. AUTO is TF32 on a GPU with hardware for it, else float32.

    AUTO does not depend on timings, which vary with the load of the machine: the same command could
    make different pictures. It is never bfloat16: on a GPU, its gain over TF32 is not worth its
    error; on a CPU, it was no faster than float32, whose convolutions need fewer products.

    Raises:
        UserError: the device does not offer the precision.
    """
    if name == AUTO:
        has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= TF32_SINCE
        return "tf32" if has_tf32 else EXACT
    if name not in offered(device):
        raise UserError(f"precision {name}: on {device} there is {', '.join(offered(device))}")
    return name


@cache
def usable(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that are fast enough on a device, by the time of a small convolution.
    On a device without hardware for it, bfloat16 is up to 500 times as slow as float32."""
    allowed = MAX_SLOWDOWN * convolution_seconds(EXACT, device)
    rough = (name for name in offered(device) if name != EXACT)
    fast = (name for name in rough if convolution_seconds(name, device) < allowed)
    return EXACT, *fast


def convolution_seconds(name: str, device: torch.device) -> float:
    """Return the seconds that a small 3x3 convolution and its gradient take, in the fastest of 3
    runs.

    Args:
        name: a name in `PRECISIONS`.
    """
    dtype, layout = ROUGH.get(name) or torch.float32, memory_format_for(device)
    features = torch.rand(TRIAL_SHAPE).to(device, dtype, memory_format=layout).requires_grad_()
    channels = TRIAL_SHAPE[1]
    weight = torch.rand(channels, channels, 3, 3).to(device, dtype, memory_format=layout)
    with convolving(name):
        return min(_timed(features, weight) for _ in range(3))


def _timed(features: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    (gradient,) = torch.autograd.grad(F.conv2d(features, weight, padding=1).sum(), features)
    gradient.sum().item()  # CPU-GPU sync point
    return time.perf_counter() - started


def convolving(name: str) -> AbstractContextManager[None]:
    """Return a context in which convolutions of float32 use TF32 only if `name` is "tf32". Outside
    it, PyTorch uses TF32 by default."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        True, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=name == "tf32"
    )
