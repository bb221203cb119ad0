"""Memory of a synthesis, estimated before it starts, and the tiles that it therefore needs.

The estimate counts floats per pixel from the widths and strides of the net, and is within a third
of measured peaks. If memory runs out all the same, the run is repeated in smaller tiles.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from command.plan import Job
from engine.optimizers import LBFGS_MEMORY, OPTIMIZERS
from engine.schedule import sizes_of
from engine.searching import MAX_DESCRIPTORS
from losses import METHODS, at_finest_scale, whole_layers_of
from models import halos, layers_until, stride, width
from terms.base import equal_weights
from terms.cnnmrf import CNNMRF
from terms.guided import Guided
from terms.matching import CHUNK_BYTES
from terms.patches import PATCH_DIRECTIONS, PATCH_LEVELS
from terms.spectrum import SPECTRUM_PADDING
from utils import Size, UserError, available_bytes, size_text

FLOAT = 4  # bytes
PROGRAM_BYTES = 750e6  # interpreter, libraries and weights, before any picture
ERROR_NET_BYTES = 110e6  # the net that measures the error of the saved file
TILING_BYTES = 150e6  # workspaces of libraries for tiles of different sizes

# Floats per pixel; "per feature": per float of a layer's features.
PICTURE = 30  # a picture as read, resized and normalised, and the optimiser's copies and gradient
PAIR = 6  # one step in the L-BFGS history: differences of the picture and of its gradient
PAINTED = 40  # painting: coordinates (int64) and accumulated colours
DESCRIBED = 35  # painting, per patch whose descriptor is computed at the same time
LAGS = 14  # per feature: padded complex spectra of the autocorrelation and their gradients
SORTED = 4  # per feature: sorting with gradients, the keys being int64
SORTING = 5  # per feature: sorting without gradients
WHOLE = 2  # per feature: a layer assembled from tiles, and its gradient
TERMS = {
    "histogram": 20,  # sorting three channels, at once or one after another, with gradients
    "spectrum": 12 * SPECTRUM_PADDING**2,  # four padded windows of three channels
    "patches": SORTED * PATCH_DIRECTIONS * PATCH_LEVELS,
}

MEMORIES = (LBFGS_MEMORY, 10, 5)  # steps in the L-BFGS history, tried in this order
TILE_SIDES = (1024, 512, 256)  # px, sides of tiles, tried in this order
SAFETY_FACTOR = 1.2  # a run hardly ever needs more than this times the estimate
FRAGMENTATION = 1.4  # the same for tiles if freed memory is kept, which leaves gaps
DEFAULT_SHARE = 0.9  # of the free memory, used by default
LARGE_SHARE = 0.5  # of the allowed memory, above which a note is printed


class Workload(NamedTuple):
    """What determines the memory of a synthesis at one scale."""

    exemplar: Size
    output: Size
    # Floats per pixel of the exemplar
    measured: float  # while its statistics are computed
    held: float  # in every step
    # Floats per pixel of the output
    kept: float  # with and without tiles
    whole: float  # of layers that a term needs whole, assembled from tiles
    # Floats per pixel of a tile, or of the output if there are none
    graph: float
    backward: float
    halo: int = 0  # px on each side of a tile that are evaluated with it
    matching: float = 0.0  # bytes
    uses_history: bool = False  # whether the optimiser keeps a history of steps
    memory: int = LBFGS_MEMORY  # steps in the history
    tile_side: int | None = None  # px; None: no tiles
    graphs: int = 1  # number of tiles whose graphs are kept

    @property
    def pixels(self) -> int:
        """Number of pixels of the output."""
        return math.prod(self.output)


def workloads_of(job: Job, net: str) -> list[Workload]:
    """Return the workloads of the scales of a job, coarse to fine, without tiles.

    Args:
        net: name of the net.
    """
    spec, layers = job.spec, job.trunk_layers
    features = features_per_pixel(net, layers)
    every, largest = sum(features[layer] for layer in layers), max(features.values())
    graph = sum(floats for layer, floats in features.items() if not layer.startswith("pool"))
    method_layers = spec.layers or equal_weights(layers)
    matched = sum(features[layer] for layer in method_layers) * (spec.method != "gram")
    weights = spec.weights or {}
    terms = {name for name, weight in weights.items() if weight}
    views = [view.image[0, 0].numel() for one in spec.exemplars for view in one.views]
    sources = sum(views) / views[0]
    held = PICTURE + every * (sources - 1) + matched * sources
    kept = PICTURE + SORTED * matched + sum(TERMS.get(name, 0) for name in terms)
    if "autocorrelation" in terms:
        kept += LAGS * features[layers[len(layers) // 2]]
    content = spec.content_layers if spec.canvas.content is not None else ()
    divided = spec.canvas.output_regions is not None

    def whole(used: Mapping[str, float]) -> float:
        found = whole_layers_of(spec.method, used, method_layers, layers, divided)
        return WHOLE * sum(features[layer] for layer in {*found, *content} & features.keys())

    sizes = sizes_of(spec, layers)
    coarse = Workload(
        *sizes[-1],
        measured=max(SORTING * largest, every) + held,
        held=held,
        kept=kept,
        whole=whole(weights),
        graph=graph + every * ("moments" in terms),
        # Gradients of the layers, and of input and output of the largest convolution.
        backward=every + 2 * largest,
        halo=halos(layers, net)["image"],
        matching=_matching_bytes(spec.method, method_layers, sizes[-1], spec.max_patches),
        uses_history=OPTIMIZERS[spec.optimizer].keeps_history,
    )
    if len(sizes) == 1:
        return [coarse]
    finest = coarse._replace(whole=whole(at_finest_scale(weights)))
    return [*(coarse._replace(exemplar=one, output=out) for one, out in sizes[:-1]), finest]


def features_per_pixel(net: str, layers: list[str]) -> dict[str, float]:
    """Return the floats per pixel of each layer of the net, up to the deepest of `layers`."""
    return {layer: width(layer) / stride([layer]) ** 2 for layer, _ in layers_until(layers, net)}


def _matching_bytes(
    method: str, layers: Iterable[str], sizes: tuple[Size, Size], max_patches: int
) -> float:
    """Return the bytes of matching patches of exemplar and output of these sizes."""
    kind = METHODS[method].kind
    if kind is CNNMRF:
        return CHUNK_BYTES
    if kind is not Guided:
        return 0.0
    held = largest = 0.0
    for layer in layers:
        area, floats = (stride([layer]) * Guided.stride) ** 2, width(layer) * Guided.patch**2
        source, output = (min(max_patches, math.prod(size) / area) for size in sizes)
        held += FLOAT * source * floats
        largest = max(largest, 2 * FLOAT * output * floats)  # patches and their gradient
    return held + largest


def estimated_bytes(work: Workload) -> float:
    """Return the estimated peak of the resident memory of the process, in bytes.

    It is reached when the statistics of the exemplar are computed, in painting, or in a step.
    """
    exemplar = math.prod(work.exemplar)
    measuring = max(ERROR_NET_BYTES, FLOAT * exemplar * work.measured)
    painting = PAINTED * work.pixels + DESCRIBED * min(work.pixels, MAX_DESCRIPTORS)
    kept, evaluated, workspaces = work.kept, work.pixels, 0.0
    if work.uses_history:
        kept += PAIR * work.memory
    if work.tile_side is not None:
        kept += work.whole
        evaluated = min(work.pixels, (work.tile_side + 2 * work.halo) ** 2)
        workspaces = TILING_BYTES
    step = exemplar * work.held + work.pixels * kept
    step += evaluated * (work.graphs * work.graph + work.backward)
    stepping = FLOAT * step + work.matching + workspaces
    return PROGRAM_BYTES + max(measuring, FLOAT * painting, stepping)


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
    memories = MEMORIES if work.uses_history else (work.memory,)
    ways = [work._replace(tile_side=b, memory=m) for m in memories for b in (None, *sides)]
    way = next((way for way in ways if fits_within(way, allowed)), min(ways, key=estimated_bytes))
    if way.tile_side is None:
        return way
    count = math.prod(math.ceil(side / way.tile_side) for side in way.output)
    fit = bisect_right(
        range(1, count + 1),
        allowed,
        key=lambda graphs: FRAGMENTATION * estimated_bytes(way._replace(graphs=graphs)),
    )
    return way._replace(graphs=max(1, fit))


def fits_within(work: Workload, allowed: float) -> bool:
    """Return whether SAFETY_FACTOR times the estimated peak fits into the allowed bytes."""
    return SAFETY_FACTOR * estimated_bytes(work) <= allowed


def is_tight(work: Workload, allowed: float) -> bool:
    """Return whether the workload fits only if freed memory is returned to the system."""
    return work.tile_side is not None and FRAGMENTATION * estimated_bytes(work) > allowed


def memory_note(job: Job, work: Workload, allowed: float) -> str | None:
    """Return a note if a job needs more than LARGE_SHARE of the allowed memory, else None.

    Args:
        work: the workload of its finest scale.
        allowed: bytes.

    Raises:
        UserError: it needs more than the allowed memory.
    """
    size = estimated_bytes(work._replace(graphs=1))
    tiles = "" if work.tile_side is None else f" in tiles of {work.tile_side} px"
    needed = (
        f"{job.name}: {size_text(work.output)} from an exemplar of {size_text(work.exemplar)} "
        f"needs about {size / 1e9:.3g} GB of memory{tiles}, {allowed / 1e9:.3g} GB are allowed"
    )
    smaller = "a smaller --size or exemplar"
    smaller += ", --optimizer Adam" * work.uses_history
    smaller += ", --method gram" * (job.spec.method != "gram")
    if size > allowed:
        raise UserError(f"{needed}: give {smaller}")
    if work.memory < LBFGS_MEMORY:
        needed += f", L-BFGS keeps a history of {work.memory} steps instead of {LBFGS_MEMORY}"
    return f"{needed}; less with {smaller}" if size > LARGE_SHARE * allowed else None
