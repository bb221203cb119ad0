"""Memory and time of a synthesis, estimated before it starts.

Memory is counted in floats per pixel, from the widths and strides of the net, and is within 25 % of
measured peaks. If memory runs out all the same, a run is repeated in smaller tiles. Time is the
number of operations of the net and of matching, divided by the measured rate of a convolution.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from command.display import duration
from command.plan import Job
from engine.optimizers import LBFGS_MEMORY
from engine.precision import EXACT, convolution_seconds
from engine.scales import STEP_RATIO, Sizes, split_steps
from engine.schedule import PAINTING_WORK, sizes_of, step_ratio, steps_after_painting
from engine.searching import MAX_DESCRIPTORS
from losses import MATCH_EVERY, METHODS, at_finest_scale, whole_layers_of
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
ERROR_NET_BYTES = 110e6  # the net that measures the error of the saved file
TILING_BYTES = 150e6  # workspaces of libraries for tiles of different sizes

# Floats per pixel of the output; "per feature": per float of a layer's features.
PICTURE = 30  # a picture as read, resized and normalised, and the optimiser's copies and gradient
PAIR = 6  # one step in the L-BFGS history: differences of the picture and of its gradient
PAINTED = 40  # painting: coordinates (int64) and accumulated colours
DESCRIBED = 35  # painting, per patch whose descriptor is computed at the same time
HISTOGRAM = 20  # sorting three channels, at once or one after another, with gradients
SPECTRUM = 12 * SPECTRUM_PADDING**2  # four padded windows of three channels
LAGS = 14  # per feature: padded complex spectra of the autocorrelation and their gradients
SORTED = 4  # per feature: sorting with gradients, the keys being int64
SORTING = 5  # per feature: sorting without gradients
WHOLE = 2  # per feature: a layer assembled from tiles, and its gradient

# Time of a step in units of the operations of the net; methods and terms add to OVERHEAD.
OVERHEAD = 0.9  # below 1: Winograd convolutions need fewer operations than are counted
SLOWER = {"swd": 1.1, "guided": 0.4, "patches": 0.75}
SLOWEST = 1e10  # operations per second of the slowest machine; short runs skip the measurement
PROBE = (1, 64, 128, 128)  # (B, C, H, W), input of the convolution that is timed

MEMORIES = (LBFGS_MEMORY, 10, 5)  # steps in the L-BFGS history, tried in this order
TILE_SIDES = (1024, 512, 256)  # px, sides of tiles, tried in this order
SAFETY_FACTOR = 1.2  # a run hardly ever needs more than this times the estimate
FRAGMENTATION = 1.4  # the same for tiles if freed memory is kept, which leaves gaps
DEFAULT_SHARE = 0.9  # of the free memory, used by default

LARGE_SHARE = 0.5  # of the allowed memory, above which a note is printed
LONG_SECONDS = 300  # above which a note is printed


class Workload(NamedTuple):
    """Properties of a synthesis that determine its memory and time."""

    net: str
    layers: Sequence[str]  # all that are computed
    scales: Sizes  # (height, width) of exemplar and output at each scale, coarse to fine
    method_layers: Sequence[str]
    method: str = "gram"
    terms: Sequence[str] = ("histogram",)  # those with a nonzero weight
    optimizer: str = "Adam"
    steps: int = 1000
    sources: float = 1.0  # pixels of all exemplars and copies / those of the first exemplar
    match_every: int = MATCH_EVERY
    max_patches: int = MAX_PATCHES
    repaint: float = 0.0
    step_ratio: float = STEP_RATIO  # of the steps of successive scales
    # Layers that a term needs whole, assembled from tiles, at the finest scale and at the others.
    whole: Sequence[str] = ()
    whole_if_coarse: Sequence[str] = ()
    tile_side: int | None = None  # px; None: the picture is evaluated as a whole
    graphs: int = 1  # number of tiles whose graphs are kept
    memory: int = LBFGS_MEMORY  # steps in the L-BFGS history

    @classmethod
    def of(cls, job: Job, net: str) -> "Workload":
        """Return the workload of a job with the net of that name."""
        spec = job.spec
        pixels = [view.image[0, 0].numel() for one in spec.exemplars for view in one.views]
        weights, every = spec.weights or {}, job.trunk_layers
        divided = spec.canvas.output_regions is not None
        method_layers = spec.layers or equal_weights(every)
        sizes = sizes_of(spec, every)
        content = set(spec.content_layers if spec.canvas.content is not None else ())

        def whole(terms: Mapping[str, float]) -> list[str]:
            """Return the layers needed whole by the method, terms of these weights, or content."""
            found = whole_layers_of(spec.method, terms, method_layers, every, divided)
            return [layer for layer in every if layer in found | content]

        return cls(
            net,
            every,
            sizes,
            list(method_layers),
            spec.method,
            [name for name, weight in weights.items() if weight],
            spec.optimizer,
            spec.steps,
            sum(pixels) / pixels[0],
            spec.match_every,
            spec.max_patches,
            spec.repaint,
            step_ratio(spec),
            whole(at_finest_scale(weights) if len(sizes) > 1 else weights),
            whole(weights),
        )

    @property
    def steps_at(self) -> list[int]:
        """Steps of the optimiser at each scale."""
        steps = steps_after_painting(self.steps, self.repaint)
        return split_steps(steps, len(self.scales), self.step_ratio)

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
    """Return the floating-point operations per pixel of a forward pass; a backward pass to the
    picture takes as many."""
    total, channels = 0.0, 3
    for layer, floats in _features(net, layers).items():
        if not layer.startswith("pool"):
            total += 2 * 9 * channels * floats
            channels = WIDTHS[int(layer[4]) - 1]
    return total


def estimated_bytes(work: Workload) -> float:
    """Return the estimated peak of the resident memory of the process, in bytes.

    It is reached at the finest scale: when features of the exemplar are computed, in painting, or
    in a step.
    """
    painted = PAINTED * work.pixels + DESCRIBED * min(work.pixels, MAX_DESCRIPTORS)
    return PROGRAM_BYTES + max(_exemplar_bytes(work), FLOAT * painted, _step_bytes(work))


def _exemplar_bytes(work: Workload) -> float:
    features = _features(work.net, work.layers)
    kept = sum(features[layer] for layer in work.layers)
    if "patches" in work.terms:
        kept += SORTING * PATCH_DIRECTIONS
    # Input, padded input and output of the largest convolution, or the sorting of a layer.
    passing = (SORTING if METHODS[work.method].kind is Sliced else 3) * max(features.values())
    held = max(passing, kept) + _held(work, features)
    return max(ERROR_NET_BYTES, FLOAT * math.prod(work.scales[-1][0]) * held)


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
    # Graphs, gradients of the layers, gradients of input and output of the largest convolution.
    at_once = work.graphs * graph + kept + 2 * max(features.values())
    evaluated, blockwise = work.pixels, 0.0
    if work.tile_side is not None:
        halo = halos(list(work.layers), work.net)["image"]
        evaluated = min(work.pixels, (work.tile_side + 2 * halo) ** 2)
        floats += WHOLE * sum(features[layer] for layer in work.whole)
        blockwise = TILING_BYTES
    total = work.pixels * floats + evaluated * at_once
    total += math.prod(work.scales[-1][0]) * _held(work, features)
    matching, _ = _matching(work, *work.scales[-1])
    return FLOAT * total + matching + blockwise


def _held(work: Workload, features: dict[str, float]) -> float:
    """Return the floats per pixel of the exemplar that are kept during all steps."""
    copies = sum(features[layer] for layer in work.layers) * (work.sources - 1)
    matched = sum(features[layer] for layer in work.method_layers) * work.sources
    return PICTURE + copies + matched * (work.method != "gram")


def _matching(work: Workload, exemplar: Size, output: Size) -> tuple[float, float]:
    """Return the bytes and the operations of one matching of patches in all layers."""
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
    """Return the time of a synthesis, expressed as floating-point operations of a convolution."""
    slower = OVERHEAD + sum(SLOWER.get(name, 0) for name in (work.method, *work.terms))
    step = 2 * trunk_flops(work.net, work.layers) * slower  # per pixel
    total = PAINTING_WORK * step * work.pixels
    every = work.match_every if METHODS[work.method].kind is CNNMRF else 1
    for (exemplar, output), steps in zip(work.scales, work.steps_at, strict=True):
        _, search = _matching(work, exemplar, output)
        total += step * math.prod(output) * steps + search * math.ceil(steps / every)
    return total


def convolution_rate(device: torch.device) -> float:
    """Measure the operations per second of a 3x3 convolution and its gradient, the best of three
    runs."""
    flops = 2 * 2 * 9 * PROBE[1] * math.prod(PROBE)
    return flops / convolution_seconds(EXACT, PROBE, device)


def allowed_bytes(limit: float | None, device: torch.device, processes: int = 1) -> float:
    """Return the memory in bytes that this process may use, PROGRAM_BYTES included.

    Args:
        limit: of --max_memory, in bytes. Default: an equal share of DEFAULT_SHARE of the free
            memory.
        processes: number of processes on this machine, distributed evenly over its GPUs.
    """
    free = PROGRAM_BYTES + available_bytes(device)  # the program is loaded
    sharing = math.ceil(processes / (torch.cuda.device_count() if device.type == "cuda" else 1))
    return DEFAULT_SHARE * free / sharing if limit is None else min(limit, free)


def tiled_to_fit(work: Workload, allowed: float) -> Workload:
    """Return the workload in the largest tiles that fit into the allowed bytes.

    The whole picture is tried first, then smaller and smaller tiles, then the same with a shorter
    L-BFGS history. If nothing fits, the workload with the smallest peak is returned. Memory that
    remains is used to keep the graphs of some tiles, which are then evaluated once instead of
    twice.
    """
    sides = [side for side in TILE_SIDES if side**2 < work.pixels]
    memories = MEMORIES if work.optimizer == "LBFGS" else (work.memory,)
    ways = [
        work._replace(tile_side=b, graphs=1, memory=m) for m in memories for b in (None, *sides)
    ]
    way = next((way for way in ways if fits_within(way, allowed)), min(ways, key=estimated_bytes))
    if way.tile_side is None:
        return way
    count = math.prod(math.ceil(side / way.tile_side) for side in way.scales[-1][1])
    fit = bisect_right(
        range(1, count + 1),
        allowed,
        key=lambda graphs: FRAGMENTATION * estimated_bytes(way._replace(graphs=graphs)),
    )
    return way._replace(graphs=max(1, fit))


def fits_within(work: Workload, allowed: float) -> bool:
    """Return whether SAFETY_FACTOR times the estimated peak fits into the allowed bytes."""
    return SAFETY_FACTOR * estimated_bytes(work) <= allowed


def workloads_at_scales(work: Workload, allowed: float) -> list[Workload]:
    """Return the workload of each scale, coarse to fine: coarser scales in the largest tiles that
    fit, the finest as given."""
    coarse = work._replace(whole=work.whole_if_coarse)
    ends = range(1, len(work.scales))
    return [*(tiled_to_fit(coarse._replace(scales=work.scales[:n]), allowed) for n in ends), work]


def is_tight(work: Workload, allowed: float) -> bool:
    """Return whether the workload fits only if freed memory is returned to the system."""
    return work.tile_side is not None and FRAGMENTATION * estimated_bytes(work) > allowed


def cost_note(name: str, work: Workload, allowed: float) -> str | None:
    """Return a note if the workload needs more than LARGE_SHARE of the allowed memory, else None.

    Args:
        name: of the job, for the note.
        allowed: bytes.

    Raises:
        UserError: it needs more than the allowed memory.
    """
    size = estimated_bytes(work._replace(graphs=1))
    exemplar, output = work.scales[-1]
    tiles = "" if work.tile_side is None else f" in tiles of {work.tile_side} px"
    needed = (
        f"{name}: {size_text(output)} from an exemplar of {size_text(exemplar)} needs about "
        f"{size / 1e9:.3g} GB of memory{tiles}, {allowed / 1e9:.3g} GB are allowed"
    )
    smaller = "a smaller --size or exemplar"
    smaller += ", --optimizer Adam" * (work.optimizer == "LBFGS")
    smaller += ", --method gram" * (work.method != "gram")
    # It assembles whole layers from tiles, except at the finest of several scales.
    if "crosscorrelation" in work.terms and work.tile_side is not None and len(work.scales) == 1:
        smaller += ", --crosscorrelation 0"
    if size > allowed:
        raise UserError(f"{needed}: give {smaller}")
    if work.memory < LBFGS_MEMORY:
        needed += f", L-BFGS keeps a history of {work.memory} steps instead of {LBFGS_MEMORY}"
    return f"{needed}; less with {smaller}" if size > LARGE_SHARE * allowed else None


def time_note(work: Workload, count: int, device: torch.device) -> str | None:
    """Return a note if `count` such workloads may take more than LONG_SECONDS, else None."""
    flops = count * estimated_flops(work)
    if flops <= LONG_SECONDS * SLOWEST:
        return None
    seconds = flops / convolution_rate(device)  # an upper bound: scales may converge early
    several = f" for {count} pictures" if count > 1 else ""
    less = f"less with a smaller {'--epoch' if any(work.steps_at) else '--size'}"
    return f"this may take {duration(seconds)}{several}, {less}" if seconds > LONG_SECONDS else None
