"""Loss and gradient of a picture as one CUDA graph, where launching kernels takes the time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

KIND = "cuda"  # of the devices that have such graphs
LARGEST = 512**2  # px of a batch; more keep a GPU busy, and a graph holds a step's memory
WARM_UP = 3  # calls in which libraries choose their ways and what stays the same is found
ALIKE = 1e-2  # of the largest value: sums of atomics differ from call to call

Measure = Callable[[Tensor], tuple[Tensor, ...]]


def graphed(measure: Measure, image: Tensor) -> Measure:
    """The same as one CUDA graph for pictures of the shape of `image`; where that is of no use, or
    would not measure the same, `measure` itself.

    What a graph does is fixed when it is captured: what the CPU decides or computes on the way
    stays as it was then. So what it says of another picture is compared.

    Args:
        measure: (B, C, H, W) -> tensors; what else it depends on must stay the same.
    """
    device = image.device
    if device.type != KIND or len(image) * math.prod(image.shape[2:]) > LARGEST:
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
    except RuntimeError:  # something that cannot be captured, or no memory for it
        return measure

    def replayed(image: Tensor) -> tuple[Tensor, ...]:
        static.copy_(image)
        graph.replay()
        return tuple(x.clone() for x in held)  # as the next replay writes over them

    pairs = zip(replayed(other), wanted, strict=True)
    return replayed if all(_alike(x, y) for x, y in pairs) else measure


def _alike(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= ALIKE * wanted.abs().max())
