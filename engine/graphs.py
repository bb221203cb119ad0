"""Loss and gradient of small pictures as one CUDA graph, launched as a whole."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CUDA = "cuda"  # type of the devices that have CUDA graphs
MAX_PIXELS = 512**2  # of a batch; more keep a GPU busy anyway, and a graph holds a step's memory
WARM_UP = 3  # calls before the capture, in which libraries choose algorithms and caches are filled
TOLERANCE = 1e-2  # relative to the largest value; sums by atomic additions vary between calls

Measure = Callable[[Tensor], tuple[Tensor, ...]]


def graphed(measure: Measure, image: Tensor) -> Measure:
    """Return a function that replays `measure` as one CUDA graph. Return `measure` itself if the
    picture is too large for a graph to be faster, if it cannot be captured, or if the graph's
    values differ.

    A graph repeats what the CPU decided and computed during the capture. Therefore it is tested on
    a picture other than the captured one.

    Args:
        measure: (B, C, H, W) -> tensors; everything else that it depends on must stay the same.
        image: a picture (B, C, H, W); the function takes pictures of its shape.
    """
    device = image.device
    if device.type != CUDA or len(image) * math.prod(image.shape[2:]) > MAX_PIXELS:
        return measure
    static, other = image.clone(), 1 - image
    try:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    wanted = measure(other)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                held = measure(static)
    except RuntimeError:  # an operation cannot be captured, or memory is short
        return measure

    def replayed(image: Tensor) -> tuple[Tensor, ...]:
        static.copy_(image)
        graph.replay()
        return tuple(x.clone() for x in held)  # the next replay overwrites them

    pairs = zip(replayed(other), wanted, strict=True)
    near = all((x - y).abs().max() <= TOLERANCE * y.abs().max() for x, y in pairs)
    return replayed if near else measure
