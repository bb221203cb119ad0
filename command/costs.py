"""What a run takes of memory and time, estimated before it starts.

Memory is counted in floats a pixel: from the widths and strides of the net, and from what is kept
of every operation until the way back. Time is the arithmetic of the net and of matching, at the
rate at which the machine was just seen to convolve. Constants that are no such counts are named and
explained here, and nowhere else.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from command.plan import Job
from engine.optimizers import LBFGS_MEMORY
from engine.painting import MAX_DESCRIPTORS
from engine.precision import EXACT, convolution_seconds
from engine.scales import split_steps
from engine.synthesis import PAINTING, Sizes, sizes_of, steps_after_painting
from losses import MATCH_EVERY, METHODS, whole_layers_of
from models import NETS, WIDTHS, halos, layer_table, resolve_layers
from terms.base import MAX_PATCHES, SORT_CHUNK, equal_weights
from terms.cnnmrf import CNNMRF
from terms.gram import FIRST_LAYERS
from terms.guided import Guided
from terms.matching import CHUNK_BYTES
from terms.patches import PATCH_DIRECTIONS, PATCH_LEVELS
from terms.sliced import Sliced
from terms.spectrum import SPECTRUM_PADDING
from utils import Size, UserError, available_bytes, size_text
from weights.winograd import WINDOW

FLOAT = 4  # bytes
PROGRAM_BYTES = 750e6  # interpreter, libraries, their scratch and the weights, before any picture
BLOCKWISE_BYTES = 150e6  # more by blocks: scratch of libraries for each of their sizes
PICTURE = 30  # floats a pixel: a picture as read, resized and normalised, or the output's, the best
# so far, its gradient and the two means of Adam
PAIR = 6  # floats a pixel that L-BFGS keeps of a step: how the picture and its gradient changed
PAINTED = 40  # floats a pixel while it is painted: where patches and pixels are from, in numbers of
# 8 bytes, and the mean of what is laid
DESCRIBED = 35  # the same, of patches that are described at once
HISTOGRAM = 10  # floats a pixel: values, how far they are to move, the covariance of channels
RANKED = 10  # floats a value of a channel while it is sorted for that
SORTED = 4  # floats a value costs while it is sorted for its way back: the whole number that is
# sorted in its place (int64), the sorted one, and how far it is to move
SORTING = 5  # the same where it is only sorted: itself twice, that whole number, and the sorted one
SPECTRUM = 3 * SPECTRUM_PADDING**2  # floats a pixel of a padded window of three channels
LAGS = 14  # floats a feature: padded complex spectra of the autocorrelation and their gradients
TRANSFORMED = (WINDOW / 3) ** 2  # of a filter's numbers, where windows are transformed
COPIES = 2  # of the largest layer's patches while they are scored: themselves and their gradient

# Of the time that the net's arithmetic takes by the convolution that is timed: all of a step. What
# is not arithmetic costs less than what the trunk saves by transforming windows.
OVERHEAD = 0.9
SLOWER = {"swd": 1.1, "guided": 0.4, "patches": 0.75}
SLOWEST = 1e10  # operations a second that any machine makes: shorter runs are not worth a probe
PROBE = (1, 64, 128, 128)  # shape of the features that are convolved to see how fast that is

WHOLE = 2  # floats a feature of a layer that is put together from blocks, and its gradient
MEMORIES = (LBFGS_MEMORY, 10, 5)  # of L-BFGS, that are tried; with fewer Adam is the better one
BLOCKS = (1024, 512, 256)  # px, sides that are tried
SURE = 1.2  # times the estimate of a run, which it hardly ever needs
HOLES = 1.4  # times the estimate of a run by blocks, where what is freed is kept
MOST = 0.9  # of what is free, as the system needs some and estimates are what they are

LARGE = 0.5  # part of the available memory that is worth a line
LONG = 300  # seconds that are worth a line


class Run(NamedTuple):
    """All of a synthesis that decides what it costs."""

    net: str
    layers: Sequence[str]  # that the extractor has
    scales: Sizes  # of (exemplar, output), coarse to fine
    looked_at: Sequence[str]  # layers, by the texture model
    method: str = "gram"
    terms: Sequence[str] = ("histogram",)  # beside it
    optimizer: str = "Adam"
    steps: int = 1000
    sources: float = 1.0  # pixels of the exemplar, its copies and other exemplars over its own
    match_every: int = MATCH_EVERY
    max_patches: int = MAX_PATCHES
    repaint: float = 0.0
    whole: Sequence[str] = ()  # layers that some term cannot look at block by block
    block: int | None = None  # px, a side of what is looked at at once; None: the whole picture
    graphs: int = 1  # of blocks that are kept for the way back
    memory: int = LBFGS_MEMORY  # steps that L-BFGS remembers

    @classmethod
    def of(cls, job: Job, net: str) -> "Run":
        """What a job will be, in a net of that name."""
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
        """Steps of the optimiser at every scale: after painting all of them are at the finest."""
        if self.repaint:
            coarser = [0] * (len(self.scales) - 1)
            return [*coarser, steps_after_painting(self.steps, self.repaint)]
        return split_steps(self.steps, len(self.scales))


class _Stage(NamedTuple):
    """A convolution with its ReLU, or a pooling."""

    layer: str
    channels: int
    area: float  # positions a pixel of the picture
    before: float  # features a pixel of the picture that go in
    flops: float  # a pixel of the picture, forwards; 0 for a pooling

    @property
    def after(self) -> float:
        """Features a pixel of the picture that come out."""
        return self.channels * self.area


def _stages(net: str, layers: Sequence[str]) -> Iterator[_Stage]:
    """The net, cut after the deepest of the layers."""
    deepest = resolve_layers(layers, net)[-1]
    channels, area = 3, 1.0
    for layer, index in layer_table(NETS[net]).items():
        before, wide = channels * area, channels
        if index is None:
            area /= 4
        else:
            wide = WIDTHS[int(layer[4]) - 1]
        yield _Stage(
            layer, wide, area, before, 0 if index is None else 2 * 9 * channels * wide * area
        )
        channels = wide
        if layer == deepest:
            return


def trunk_flops(net: str, layers: Sequence[str]) -> float:
    """Arithmetic a pixel of the picture, forwards; as much again is needed on the way back."""
    return sum(stage.flops for stage in _stages(net, layers))


def _passing(net: str, layers: Sequence[str]) -> float:
    """Floats a pixel at the peak of a pass without gradients that keeps these layers."""
    peak = kept = 0.0
    layers, inside = resolve_layers(layers, net), False
    for stage in _stages(net, layers):
        padded = stage.before if stage.flops else 0
        peak = max(peak, kept + stage.before * (not inside) + padded + stage.after)
        inside = stage.layer in layers
        kept += stage.after * inside
    return peak


def _stepping(net: str, layers: Sequence[str]) -> float:
    """Floats a pixel at the peak of loss and gradient.

    The gradients by the layers that are looked at are there to the end of the way back, as the
    graph is. Beside them a stage has those of its output and its input.
    """
    gradients = passed = 0.0
    for stage in _stages(net, layers):
        gradients += stage.after if stage.layer in layers else 0
        passed = max(passed, stage.before + stage.after)
    return _graph(net, layers) + gradients + passed


def _graph(net: str, layers: Sequence[str]) -> float:
    """Floats a pixel that are kept for the way back: what every convolution let through."""
    stages = _stages(net, layers)
    return sum(stage.after for stage in stages if stage.flops or stage.layer in layers)


def estimated_bytes(run: Run) -> float:
    """The peak of the resident memory of a whole run, the program itself included.

    It is reached at the finest scale: either while the exemplar's features are computed, at the
    start of that scale or for the error of the saved file, or while its detail is painted, or on
    the way back of a step.
    """
    pixels = math.prod(run.scales[-1][1])
    painted = FLOAT * (PAINTED * pixels + DESCRIBED * min(pixels, MAX_DESCRIPTORS))
    return PROGRAM_BYTES + max(_exemplar_bytes(run), painted, _step_bytes(run))


def _exemplar_bytes(run: Run) -> float:
    floats = _floats(run)
    kept = sum(floats[layer] for layer in run.layers)
    sorts = kept + SORTING * PATCH_DIRECTIONS if "patches" in run.terms else 0
    if METHODS[run.method].kind is Sliced:  # at the first step, when other features are gone
        sorts = max(sorts, SORTING * max(floats[layer] for layer in run.looked_at))
    whole = max(_passing(run.net, run.layers), sorts) + _held(run)
    judged = _passing(run.net, FIRST_LAYERS) + PICTURE
    pixels = math.prod(run.scales[-1][0])
    return FLOAT * max(pixels * whole, pixels * judged + _filters(run.net, FIRST_LAYERS))


def _filters(net: str, layers: Sequence[str]) -> float:
    """Floats of a net that is built beside another: `PROGRAM_BYTES` has one of them.

    Its filters, the same transformed, and two more of the largest while these are made.
    """
    sizes = [stage.flops / (2 * stage.area) for stage in _stages(net, layers)]
    return sum(sizes) * (1 + TRANSFORMED) + 2 * max(sizes) * TRANSFORMED


def _step_bytes(run: Run) -> float:
    exemplar, output = run.scales[-1]
    floats, pixels = _floats(run), math.prod(output)
    window = [min(sides) for sides in zip(exemplar, output, strict=True)]
    windows = math.prod(math.ceil(2 * a / b - 1) for a, b in zip(output, window, strict=True))
    whole = run.block is None
    terms = {
        # By blocks they are not there yet while it sorts.
        "histogram": HISTOGRAM + whole * RANKED * min(3, max(1, SORT_CHUNK / pixels)),
        # Two more windows are being transformed.
        "spectrum": SPECTRUM * (windows + 2) * math.prod(window) / math.prod(output),
        "autocorrelation": LAGS * floats[run.layers[len(run.layers) // 2]],
        "patches": SORTED * PATCH_DIRECTIONS * PATCH_LEVELS,
    }
    per_pixel = PICTURE + sum(terms.get(name, 0) for name in run.terms)
    more = sum(floats[layer] for layer in run.layers) if "moments" in run.terms else 0
    at_once = _stepping(run.net, run.layers) + more
    at_once += (run.graphs - 1) * (_graph(run.net, run.layers) + more)
    if not whole:
        per_pixel += WHOLE * sum(floats[layer] for layer in run.whole)
    if run.method != "gram":  # sorted or laid over, the output's features cost the same
        per_pixel += SORTED * sum(floats[layer] for layer in run.looked_at)
    if run.optimizer == "LBFGS":
        per_pixel += PAIR * min(run.memory, run.steps_at[-1])
    held = math.prod(exemplar) * _held(run)
    floats_held = pixels * per_pixel + _seen_at_once(run) * at_once + held
    return FLOAT * floats_held + _matching_bytes(run) + (0 if whole else BLOCKWISE_BYTES)


def _seen_at_once(run: Run) -> int:
    """Pixels whose features are there at the same time."""
    pixels = math.prod(run.scales[-1][1])
    if run.block is None:
        return pixels
    return min(pixels, (run.block + 2 * halos(list(run.layers), run.net)["image"]) ** 2)


def _floats(run: Run) -> dict[str, float]:
    """Features of every layer, in floats a pixel of the picture."""
    return {stage.layer: stage.after for stage in _stages(run.net, run.layers)}


def _held(run: Run) -> float:
    """Floats a pixel of the exemplar that are held through all steps of the finest scale."""
    floats = _floats(run)
    copies = sum(floats[layer] for layer in run.layers) * (run.sources - 1)
    seen = sum(floats[layer] for layer in run.looked_at) * run.sources * (run.method != "gram")
    return PICTURE + copies + seen


def _matching_bytes(run: Run) -> float:
    kind = METHODS[run.method].kind
    sizes = [_matched(run, layer, *run.scales[-1]) for layer in run.looked_at]
    if kind is CNNMRF:
        return max(min(CHUNK_BYTES, 3 * FLOAT * n * m) for n, m, _ in sizes)
    if kind is Guided:
        held = sum(m * floats for _, m, floats in sizes)
        return FLOAT * (held + COPIES * max(n * floats for n, _, floats in sizes))
    return 0.0


def _matched(run: Run, layer: str, exemplar: Size, output: Size) -> tuple[float, float, float]:
    """How many patches of output and of source a layer has, and the floats that are compared."""
    (stage,) = (stage for stage in _stages(run.net, run.layers) if stage.layer == layer)
    n, m = (stage.area * math.prod(size) for size in (output, exemplar))
    if METHODS[run.method].kind is not Guided:
        return n, m * run.sources, stage.channels
    n, m = (min(run.max_patches, positions / Guided.stride**2) for positions in (n, m))
    return n, m, stage.channels * Guided.patch**2


def estimated_flops(run: Run) -> float:
    """The arithmetic of a whole run, with what takes as long as so much of it."""
    through, judging = (trunk_flops(run.net, layers) for layers in (run.layers, FIRST_LAYERS))
    slower = OVERHEAD + sum(SLOWER.get(name, 0) for name in (run.method, *run.terms))
    total = judging * sum(map(math.prod, run.scales[-1]))
    total += PAINTING * 2 * through * slower * math.prod(run.scales[-1][1])
    for (exemplar, output), steps in zip(run.scales, run.steps_at, strict=True):
        total += through * run.sources * math.prod(exemplar)
        total += 2 * through * slower * math.prod(output) * steps
        for layer in run.looked_at:
            n, m, floats = _matched(run, layer, exemplar, output)
            if METHODS[run.method].kind is CNNMRF:
                total += 2 * n * m * floats * math.ceil(steps / run.match_every)
            elif METHODS[run.method].kind is Guided:
                total += 4 * n * m * floats * steps  # products, and on the way back
    return total


def convolution_rate(device: torch.device) -> float:
    """Arithmetic a second of a 3x3 convolution and its gradient, the best of three."""
    flops = 2 * 2 * 9 * PROBE[1] * math.prod(PROBE)
    return flops / convolution_seconds(EXACT, PROBE, device)


def allowed_bytes(asked: float | None, device: torch.device, beside: int = 1) -> float:
    """What the peak of a run may be, the program included: what was asked for, or else most of
    what is free, shared by so many processes; they take the GPUs of a machine one after the
    other."""
    free = PROGRAM_BYTES + available_bytes(device)  # the program itself is there already
    sharing = math.ceil(beside / (torch.cuda.device_count() if device.type == "cuda" else 1))
    return MOST * free / sharing if asked is None else min(asked, free)


def fitting(run: Run, allowed: float) -> Run:
    """The same by the largest blocks with which it surely takes no more than what is allowed, the
    whole picture before all, and L-BFGS with a shorter memory before it is refused; where nothing
    does, by what takes least. What is left goes into graphs of blocks, which are seen once then."""
    sides = [side for side in BLOCKS if side**2 < math.prod(run.scales[-1][1])]
    memories = MEMORIES if run.optimizer == "LBFGS" else (run.memory,)
    ways = [run._replace(block=b, graphs=1, memory=m) for m in memories for b in (None, *sides)]
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


def is_surely_within(run: Run, allowed: float) -> bool:
    """Whether a run takes no more than what is allowed, should it be more than is estimated."""
    return SURE * estimated_bytes(run) <= allowed


def at_scales(run: Run, allowed: float) -> list[Run]:
    """A run up to each of its scales: to the coarse ones by what fits of them, which leave more
    room for whole pictures and graphs, and to the finest as it is."""
    ends = range(1, len(run.scales))
    return [*(fitting(run._replace(scales=run.scales[:n]), allowed) for n in ends), run]


def is_tight(run: Run, allowed: float) -> bool:
    """Whether what a run frees has to go back to the system for it to keep to what is allowed."""
    return run.block is not None and HOLES * estimated_bytes(run) > allowed


def cost_note(name: str, run: Run, allowed: float) -> str | None:
    """A line where a run needs much of the memory, else None.

    Args:
        name: name of the exemplar.
        allowed: the bytes that the run's peak may have.

    Raises:
        UserError: it needs more.
    """
    size = estimated_bytes(run._replace(graphs=1))  # what is needed
    exemplar, output = run.scales[-1]
    blocks = "" if run.block is None else f" in blocks of {run.block} px"
    needed = (
        f"{name}: {size_text(output)} from an exemplar of {size_text(exemplar)} needs about "
        f"{_told_bytes(size)} of memory{blocks}, {_told_bytes(allowed)} are allowed"
    )
    if size > allowed:
        raise UserError(f"{needed}: give {_smaller(run)}")
    if run.memory < LBFGS_MEMORY:
        needed += f", L-BFGS remembers {run.memory} steps instead of {LBFGS_MEMORY}"
    return f"{needed}, less will do with {_smaller(run)}" if size > LARGE * allowed else None


def time_note(run: Run, count: int, device: torch.device) -> str | None:
    """A line where that many runs like this one take long, else None."""
    flops = count * estimated_flops(run)
    if flops <= LONG * SLOWEST:
        return None
    seconds = flops / convolution_rate(device)  # should no scale converge before its last step
    several = f" for {count} pictures" if count > 1 else ""
    less = f"less with a smaller {'--epoch' if any(run.steps_at) else '--size'}"
    return f"this may take {_duration(seconds)}{several}, {less}" if seconds > LONG else None


def _smaller(run: Run) -> str:
    """What makes the peak of the memory smaller, for the user."""
    ways = ["a smaller exemplar"]
    if _step_bytes(run) > _exemplar_bytes(run):
        ways = ["a smaller --size"]
        if run.optimizer == "LBFGS":
            ways.append("--optimizer Adam")
    if run.method != "gram":
        ways.append("--method gram")
    return " or ".join(ways)


def _told_bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 100 else f"{round(minutes / 60)} hours"
