"""Memory and time of a synthesis, estimated before it starts.

Memory is counted in floats per pixel, from the widths and strides of the net. Time is the
arithmetic of the net and of matching at the rate of a convolution that is timed. Estimates of
memory are within 25 % of measured peaks; where they are not, a run is repeated in smaller blocks.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch

from command.display import duration
from command.plan import Job
from engine.optimizers import LBFGS_MEMORY
from engine.precision import EXACT, convolution_seconds
from engine.scales import Sizes, split_steps
from engine.schedule import PAINTING_WORK, sizes_of, steps_after_painting
from engine.searching import MAX_DESCRIPTORS
from losses import MATCH_EVERY, METHODS, whole_layers_of
from models import NETS, WIDTHS, halos, layer_table, resolve_layers
from terms.base import MAX_PATCHES, equal_weights
from terms.cnnmrf import CNNMRF
from terms.guided import Guided
from terms.matching import CHUNK_BYTES
from terms.patches import PATCH_DIRECTIONS, PATCH_LEVELS
from terms.sliced import Sliced
from terms.spectrum import SPECTRUM_PADDING
from utils import Size, UserError, available_bytes, size_text

FLOAT = 4  # bytes
PROGRAM_BYTES = 750e6  # interpreter, libraries and weights, before any picture
JUDGING_BYTES = 110e6  # the second net, which measures the error of the saved file
BLOCKWISE_BYTES = 150e6  # scratch of libraries for blocks of different sizes

# Floats per pixel of the output or, where said, per feature.
PICTURE = 30  # a picture as read, resized and normalised, and the optimiser's copies and gradient
PAIR = 6  # one step that L-BFGS remembers: differences of the picture and of its gradient
PAINTED = 40  # painting: coordinates (int64) and accumulated colours
DESCRIBED = 35  # painting, for patches whose descriptors are computed at once
HISTOGRAM = 20  # sorting three channels, or one after the other, with gradients
SPECTRUM = 12 * SPECTRUM_PADDING**2  # four padded windows of three channels
LAGS = 14  # per feature: padded complex spectra of the autocorrelation and their gradients
SORTED = 4  # per feature: sorting with gradients, the keys being int64
SORTING = 5  # per feature: sorting without gradients
WHOLE = 2  # per feature: a layer assembled from blocks, and its gradient

# Time of a step relative to the net's arithmetic, and what methods and terms add to it.
OVERHEAD = 0.9  # below 1, since Winograd's convolutions take fewer operations than are counted
SLOWER = {"swd": 1.1, "guided": 0.4, "patches": 0.75}
SLOWEST = 1e10  # operations a second that any machine reaches; shorter runs are not timed
PROBE = (1, 64, 128, 128)  # shape of the features whose convolution is timed

MEMORIES = (LBFGS_MEMORY, 10, 5)  # of L-BFGS, tried in this order
BLOCKS = (1024, 512, 256)  # px, sides of blocks, tried in this order
SURE = 1.2  # times the estimate: what a run hardly ever exceeds
HOLES = 1.4  # times the estimate: the same for blocks where freed memory is kept by the process
MOST = 0.9  # of the free memory is used by default

LARGE = 0.5  # share of the allowed memory above which the user is told
LONG = 300  # seconds above which the user is told


class Workload(NamedTuple):
    """What decides the memory and time of a synthesis."""

    net: str
    layers: Sequence[str]  # of the extractor
    scales: Sizes  # of (exemplar, output), coarse to fine
    method_layers: Sequence[str]
    method: str = "gram"
    terms: Sequence[str] = ("histogram",)  # with a weight
    optimizer: str = "Adam"
    steps: int = 1000
    sources: float = 1.0  # pixels of all exemplars and copies over those of the first exemplar
    match_every: int = MATCH_EVERY
    max_patches: int = MAX_PATCHES
    repaint: float = 0.0
    whole: Sequence[str] = ()  # layers that are assembled from blocks for some term
    block: int | None = None  # side in px; None: the whole picture is evaluated at once
    graphs: int = 1  # blocks whose graphs are kept
    memory: int = LBFGS_MEMORY  # steps that L-BFGS remembers

    @classmethod
    def of(cls, job: Job, net: str) -> "Workload":
        """Return the workload of a job in a net of that name."""
        spec = job.spec
        pixels = [view.image[0, 0].numel() for one in spec.exemplars for view in one.views]
        weights, every = spec.weights or {}, job.trunk_layers
        divided = spec.canvas.output_regions is not None
        looked_at = spec.layers or equal_weights(every)
        whole = whole_layers_of(spec.method, weights, looked_at, every, divided)
        content = set(spec.content_layers if spec.canvas.content is not None else ())
        return cls(
            net,
            job.trunk_layers,
            sizes_of(spec, job.trunk_layers),
            list(looked_at),
            spec.method,
            [name for name, weight in weights.items() if weight],
            spec.optimizer,
            spec.steps,
            sum(pixels) / pixels[0],
            spec.match_every,
            spec.max_patches,
            spec.repaint,
            [layer for layer in every if layer in whole | content],
        )

    @property
    def steps_at(self) -> list[int]:
        """Steps of the optimiser at each scale; after painting, all are at the finest."""
        if self.repaint:
            coarser = [0] * (len(self.scales) - 1)
            return [*coarser, steps_after_painting(self.steps, self.repaint)]
        return split_steps(self.steps, len(self.scales))

    @property
    def pixels(self) -> int:
        """Pixels of the output at the finest scale."""
        return math.prod(self.scales[-1][1])


def _features(net: str, layers: Sequence[str]) -> dict[str, float]:
    """Return the floats per pixel of each layer of the net, up to the deepest of `layers`."""
    deepest = resolve_layers(layers, net)[-1]
    found, channels, area = {}, 3, 1.0
    for layer, index in layer_table(NETS[net]).items():
        if index is None:  # a pooling
            area /= 4
        else:
            channels = WIDTHS[int(layer[4]) - 1]
        found[layer] = channels * area
        if layer == deepest:
            break
    return found


def trunk_flops(net: str, layers: Sequence[str]) -> float:
    """Return the operations per pixel of a forward pass; a backward pass takes as many."""
    total, channels = 0.0, 3
    for layer, floats in _features(net, layers).items():
        if not layer.startswith("pool"):
            total += 2 * 9 * channels * floats
            channels = WIDTHS[int(layer[4]) - 1]
    return total


def estimated_bytes(work: Workload) -> float:
    """Return the peak of the resident memory of the process.

    It is reached at the finest scale: while features of the exemplar are computed, while the
    picture is painted, or in a step.
    """
    painted = PAINTED * work.pixels + DESCRIBED * min(work.pixels, MAX_DESCRIPTORS)
    return PROGRAM_BYTES + max(_exemplar_bytes(work), FLOAT * painted, _step_bytes(work))


def _exemplar_bytes(work: Workload) -> float:
    features = _features(work.net, work.layers)
    kept = sum(features[layer] for layer in work.layers)
    if "patches" in work.terms:
        kept += SORTING * PATCH_DIRECTIONS
    # Input, padded input and output of the largest convolution, or a layer while it is sorted.
    passing = (SORTING if METHODS[work.method].kind is Sliced else 3) * max(features.values())
    held = max(passing, kept) + _held(work, features)
    return max(JUDGING_BYTES, FLOAT * math.prod(work.scales[-1][0]) * held)


def _step_bytes(work: Workload) -> float:
    features = _features(work.net, work.layers)
    terms = {
        "histogram": HISTOGRAM,
        "spectrum": SPECTRUM,
        "autocorrelation": LAGS * features[work.layers[len(work.layers) // 2]],
        "patches": SORTED * PATCH_DIRECTIONS * PATCH_LEVELS,
    }
    floats = PICTURE + sum(terms.get(name, 0) for name in work.terms)
    if work.method != "gram":
        floats += SORTED * sum(features[layer] for layer in work.method_layers)
    if work.optimizer == "LBFGS":
        floats += PAIR * min(work.memory, work.steps_at[-1])
    kept = sum(features[layer] for layer in work.layers)
    graph = sum(n for layer, n in features.items() if not layer.startswith("pool"))
    graph += kept if "moments" in work.terms else 0
    # Gradients of the layers, and of input and output of the largest convolution.
    at_once = work.graphs * graph + kept + 2 * max(features.values())
    evaluated, blockwise = work.pixels, 0.0
    if work.block is not None:
        halo = halos(list(work.layers), work.net)["image"]
        evaluated = min(work.pixels, (work.block + 2 * halo) ** 2)
        floats += WHOLE * sum(features[layer] for layer in work.whole)
        blockwise = BLOCKWISE_BYTES
    total = work.pixels * floats + evaluated * at_once
    total += math.prod(work.scales[-1][0]) * _held(work, features)
    matching, _ = _matching(work, *work.scales[-1])
    return FLOAT * total + matching + blockwise


def _held(work: Workload, features: dict[str, float]) -> float:
    """Return the floats per pixel of the exemplar that are held through all steps."""
    copies = sum(features[layer] for layer in work.layers) * (work.sources - 1)
    matched = sum(features[layer] for layer in work.method_layers) * work.sources
    return PICTURE + copies + matched * (work.method != "gram")


def _matching(work: Workload, exemplar: Size, output: Size) -> tuple[float, float]:
    """Return the bytes and the operations of one search for matches in all layers."""
    kind, held, largest, flops = METHODS[work.method].kind, 0.0, 0.0, 0.0
    for layer in work.method_layers if kind in (CNNMRF, Guided) else ():
        floats, area = WIDTHS[int(layer[4]) - 1], 4.0 ** (1 - int(layer[4]))
        n, m = area * math.prod(output), area * math.prod(exemplar)
        if kind is CNNMRF:
            largest = max(largest, min(CHUNK_BYTES, 3 * FLOAT * n * m * work.sources))
            flops += 2 * n * m * work.sources * floats
        else:
            n, m = (min(work.max_patches, x / Guided.stride**2) for x in (n, m))
            floats *= Guided.patch**2
            held += FLOAT * m * floats
            largest = max(largest, 2 * FLOAT * n * floats)  # patches and their gradient
            flops += 4 * n * m * floats  # forward and backward
    return held + largest, flops


def estimated_flops(work: Workload) -> float:
    """Return the operations of a synthesis, and what takes as long as so many of them."""
    slower = OVERHEAD + sum(SLOWER.get(name, 0) for name in (work.method, *work.terms))
    step = 2 * trunk_flops(work.net, work.layers) * slower  # per pixel
    total = PAINTING_WORK * step * work.pixels
    every = work.match_every if METHODS[work.method].kind is CNNMRF else 1
    for (exemplar, output), steps in zip(work.scales, work.steps_at, strict=True):
        _, search = _matching(work, exemplar, output)
        total += step * math.prod(output) * steps + search * math.ceil(steps / every)
    return total


def convolution_rate(device: torch.device) -> float:
    """Return the operations a second of a 3x3 convolution and its gradient, the best of three."""
    flops = 2 * 2 * 9 * PROBE[1] * math.prod(PROBE)
    return flops / convolution_seconds(EXACT, PROBE, device)


def allowed_bytes(limit: float | None, device: torch.device, beside: int = 1) -> float:
    """Return the memory that a process may use, the program included.

    Args:
        limit: of --max_memory; None means most of the free memory.
        beside: processes that share this machine, and its GPUs one after the other.
    """
    free = PROGRAM_BYTES + available_bytes(device)  # the program itself is loaded already
    sharing = math.ceil(beside / (torch.cuda.device_count() if device.type == "cuda" else 1))
    return MOST * free / sharing if limit is None else min(limit, free)


def fitting(work: Workload, allowed: float) -> Workload:
    """Return the workload in the largest blocks that fit: the whole picture first, and L-BFGS with
    a shorter memory last. Where nothing fits, return the one with the smallest peak. Memory that is
    left keeps graphs of blocks, each of which is then evaluated once instead of twice."""
    sides = [side for side in BLOCKS if side**2 < work.pixels]
    memories = MEMORIES if work.optimizer == "LBFGS" else (work.memory,)
    ways = [work._replace(block=b, graphs=1, memory=m) for m in memories for b in (None, *sides)]
    way = next(
        (way for way in ways if is_surely_within(way, allowed)), min(ways, key=estimated_bytes)
    )
    if way.block is None:
        return way
    count = math.prod(math.ceil(side / way.block) for side in way.scales[-1][1])
    fit = bisect_right(
        range(1, count + 1),
        allowed,
        key=lambda graphs: HOLES * estimated_bytes(way._replace(graphs=graphs)),
    )
    return way._replace(graphs=max(1, fit))


def is_surely_within(work: Workload, allowed: float) -> bool:
    """Return whether the workload fits even if its peak is SURE times the estimate."""
    return SURE * estimated_bytes(work) <= allowed


def at_scales(work: Workload, allowed: float) -> list[Workload]:
    """Return the workload at each scale: coarse ones in the blocks that fit there, the finest as
    given."""
    ends = range(1, len(work.scales))
    return [*(fitting(work._replace(scales=work.scales[:n]), allowed) for n in ends), work]


def is_tight(work: Workload, allowed: float) -> bool:
    """Return whether freed memory has to go back to the system for the workload to fit."""
    return work.block is not None and HOLES * estimated_bytes(work) > allowed


def cost_note(name: str, work: Workload, allowed: float) -> str | None:
    """Return a line where the workload needs much of the allowed memory, else None.

    Args:
        name: of the exemplar.

    Raises:
        UserError: it needs more than is allowed.
    """
    size = estimated_bytes(work._replace(graphs=1))
    exemplar, output = work.scales[-1]
    blocks = "" if work.block is None else f" in blocks of {work.block} px"
    needed = (
        f"{name}: {size_text(output)} from an exemplar of {size_text(exemplar)} needs about "
        f"{size / 1e9:.3g} GB of memory{blocks}, {allowed / 1e9:.3g} GB are allowed"
    )
    smaller = "a smaller --size or exemplar"
    smaller += ", --optimizer Adam" * (work.optimizer == "LBFGS")
    smaller += ", --method gram" * (work.method != "gram")
    if size > allowed:
        raise UserError(f"{needed}: give {smaller}")
    if work.memory < LBFGS_MEMORY:
        needed += f", L-BFGS remembers {work.memory} steps instead of {LBFGS_MEMORY}"
    return f"{needed}; {smaller} need less" if size > LARGE * allowed else None


def time_note(work: Workload, count: int, device: torch.device) -> str | None:
    """Return a line where `count` such workloads take long, else None."""
    flops = count * estimated_flops(work)
    if flops <= LONG * SLOWEST:
        return None
    seconds = flops / convolution_rate(device)  # an upper bound where scales converge early
    several = f" for {count} pictures" if count > 1 else ""
    less = f"less with a smaller {'--epoch' if any(work.steps_at) else '--size'}"
    return f"this may take {duration(seconds)}{several}, {less}" if seconds > LONG else None
