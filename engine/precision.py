"""How exactly the net computes; pixels, statistics, sorting and losses are float32 in any case."""

import math
import time
from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Convolution
from utils import UserError, layout_on

AUTO, EXACT = "auto", "fp32"
ROUGH: dict[str, torch.dtype | None] = {"tf32": None, "bf16": torch.bfloat16}  # what it computes in
PRECISIONS = (EXACT, *ROUGH)
WORTH = 2.0  # times as fast the net must be for its error to be worth it
# The net's own convolution, so wide and of so many px a side, is timed: large enough for a device's
# arithmetic to be seen, not how long it takes to start; and what is nearly as fast costs no error.
WIDTH, SIDE, GPU_SIDE = 256, 32, 128
FEWEST = (1, 16, 8, 8)  # shape of the features that are convolved before, where a device may take
# hundreds of times as long as it should
HOPELESS = 2.0  # times as slow as float32


def offered(device: torch.device) -> tuple[str, ...]:
    """What can be asked for on a device."""
    return {"cuda": PRECISIONS, "mps": (EXACT,)}.get(device.type, (EXACT, "bf16"))


def pick_precision(name: str, device: torch.device) -> str:
    """The precision of that name; AUTO means the fastest one that is worth its error here.

    Raises:
        UserError: the device does not have the one that was asked for.
    """
    if name == AUTO:
        return _fastest(device)
    if name not in offered(device):
        raise UserError(f"--precision {name}: on {device} there is {', '.join(offered(device))}")
    return name


@cache
def usable(device: torch.device) -> tuple[str, ...]:
    """What a device has and is made for: without hardware for it, bfloat16 is up to 500 times as
    slow as float32, so never assume, but convolve a little and see."""
    allowed = HOPELESS * convolution_seconds(EXACT, FEWEST, device)
    rough = (name for name in offered(device) if name != EXACT)
    return EXACT, *(name for name in rough if convolution_seconds(name, FEWEST, device) < allowed)


@cache
def _fastest(device: torch.device) -> str:
    """Of what is usable, from the most exact on, the last that is worth it over the one before: the
    same in every run, though seconds differ."""
    if usable(device) == (EXACT,):
        return EXACT
    best, least = EXACT, math.inf
    for name in usable(device):
        seconds = stage_seconds(name, device)
        if least > WORTH * seconds:
            best, least = name, seconds
    return best


def stage_seconds(name: str, device: torch.device) -> float:
    """Of one stage of the net there and back, as it computes on that device: the fastest of
    four, as what else a machine does only slows it down."""
    generator = torch.Generator().manual_seed(0)
    side = GPU_SIDE if device.type == "cuda" else SIDE
    weight = torch.rand(WIDTH, WIDTH, 3, 3, generator=generator)
    stage = Convolution(weight, torch.zeros(WIDTH)).to(device)
    maps = torch.rand(1, WIDTH, side, side, generator=generator)
    maps = maps.to(device, ROUGH.get(name) or torch.float32, memory_format=layout_on(device))

    def there_and_back() -> float:
        started = time.perf_counter()
        found = stage(maps)
        stage.back(found.clone(), found, "")[0, 0, 0, 0].item()  # CPU-GPU sync point
        return time.perf_counter() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other while the machine has other work
    try:
        with torch.no_grad(), convolving(name):
            there_and_back()  # weights are made ready, and libraries
            return min(there_and_back() for _ in range(4))
    finally:
        torch.set_num_threads(threads)


def convolution_seconds(name: str, shape: tuple[int, ...], device: torch.device) -> float:
    """Of a 3x3 convolution of features of that shape to as many, and its gradient: the fastest of
    three."""
    dtype, layout = ROUGH.get(name) or torch.float32, layout_on(device)
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
