"""How exactly the net computes; pixels, statistics, sorting and losses are float32 in any case."""

import time
from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import UserError, memory_format_for

AUTO, EXACT = "auto", "fp32"
ROUGH: dict[str, torch.dtype | None] = {"tf32": None, "bf16": torch.bfloat16}  # what it computes in
PRECISIONS = (EXACT, *ROUGH)
TF32_SINCE = (8, 0)  # compute capability of a GPU
FEWEST = (1, 16, 8, 8)  # shape of the features that are convolved, where a device may take hundreds
# of times as long as it should
HOPELESS = 2.0  # times as slow as float32


def offered(device: torch.device) -> tuple[str, ...]:
    """What can be asked for on a device."""
    return {"cuda": PRECISIONS, "mps": (EXACT,)}.get(device.type, (EXACT, "bf16"))


def pick_precision(name: str, device: torch.device) -> str:
    """The precision of that name; AUTO means the one that the device's hardware is made for.

    That is known and not timed: a machine with other work would now pick one, now another, and
    the same command would make two pictures.

    Raises:
        UserError: the device does not have the one that was asked for.
    """
    if name == AUTO:
        return _made_for(device)
    if name not in offered(device):
        raise UserError(f"precision {name}: on {device} there is {', '.join(offered(device))}")
    return name


@cache
def usable(device: torch.device) -> tuple[str, ...]:
    """What a device has and is made for: without hardware for it, bfloat16 is up to 500 times as
    slow as float32, so never assume, but convolve a little and see."""
    allowed = HOPELESS * convolution_seconds(EXACT, FEWEST, device)
    rough = (name for name in offered(device) if name != EXACT)
    return EXACT, *(name for name in rough if convolution_seconds(name, FEWEST, device) < allowed)


def _made_for(device: torch.device) -> str:
    """TF32 where a GPU has it, and its error is not worth bfloat16's gain over that. On a processor
    runs in bfloat16 were no faster than in float32, whose convolutions take fewer products."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= TF32_SINCE:
        return "tf32"
    return EXACT


def convolution_seconds(name: str, shape: tuple[int, ...], device: torch.device) -> float:
    """Of a 3x3 convolution of features of that shape to as many, and its gradient: the fastest of
    three."""
    dtype, layout = ROUGH.get(name) or torch.float32, memory_format_for(device)
    features = torch.rand(shape).to(device, dtype, memory_format=layout).requires_grad_()
    weight = torch.rand(shape[1], shape[1], 3, 3).to(device, dtype).contiguous(memory_format=layout)
    with convolving(name):
        return min(_timed(features, weight) for _ in range(3))


def _timed(features: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    (gradient,) = torch.autograd.grad(F.conv2d(features, weight, padding=1).sum(), features)
    gradient.sum().item()  # CPU-GPU sync point
    return time.perf_counter() - started


def convolving(name: str) -> AbstractContextManager[None]:
    """Within it, a GPU multiplies float32 by TF32 where that is what was asked for, and only there:
    PyTorch lets it do so in convolutions unless told otherwise."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        True, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=name == "tf32"
    )
