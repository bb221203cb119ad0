"""Painting: synthesis from the exemplar's own pixels, coarse to fine.

Each round finds a similar source patch for every output patch and replaces every output pixel by
the mean over the patches that cover it (Kwatra et al., "Texture Optimization for Example-based
Synthesis", 2005). The search divides the distance between an output patch and a source patch by the
distance between that source patch and its nearest output patch. A source patch that is not used yet
has a large divisor and is preferred, so that all of the source is used (Granot et al., "Drop the
GAN", 2022). The coarsest scale starts from the best of several quilted layouts, or from a given
image.

Departures: patches are found by PatchMatch instead of by comparing all pairs; and the patches that
cover a pixel have the weight 1 / d^2, where d is the squared distance of output and source patch,
since with equal weights the mean is blurred where patches disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from engine.descriptors import PATCH
from engine.kinds import Kind
from engine.layouts import layout_cost, layout_count, quilt_layout, valid_size
from engine.levels import Atlas, Level, PaintingJob, generators
from engine.scales import COARSEST
from engine.searching import (
    PaintingState,
    paint_round,
    random_source_field,
    state_of_layout,
    upsample,
)
from engine.spec import Spec
from engine.voting import main_source, vote
from terms.base import Exemplar
from utils import Size, size_of, size_text

SCALE_RATIO = math.sqrt(2)  # of the sizes of successive scales
UNDERSHOOT = 1.2  # factor by which the coarsest scale may be smaller than `_scales` asks for
LAYOUT_SCALE = 0.49  # of the painting's size; a given layout is painted from this scale on
LAYOUT_WORK = 3  # of trying one layout, in rounds
MIN_SIDE = 2 * PATCH  # px, of exemplars and outputs


@dataclass(frozen=True)
class PaintingFrame:
    """A painting after a round, after a layout was tried, or at the end."""

    scale: int  # 1 ... scales, coarse to fine
    scales: int
    work: float  # share of the work of all scales that is done, 0 ... 1
    image: Tensor  # (1, 3, h, w) in [0, 1], at the size of the scale
    # (H, W) of int64: the source of each pixel, as index y * w + x into the atlas of all views;
    # None: the painting is not finished
    places: Tensor | None = None


@dataclass(frozen=True)
class _Scale:
    factor: float  # of the exemplars' size
    size: Size  # of the output
    rounds: int  # of search and vote


def paint(
    spec: Spec, size: Size, layout: Tensor | None = None, factor: float = 1.0
) -> Iterator[PaintingFrame]:
    """Paint an image with the pixels of exemplars, coarse to fine.

    Neither the resized exemplars nor the painting may be `too_small`.

    Args:
        spec: The processes of its group paint together; all of them call this function alike.
        size: Height and width of the painting.
        layout: (1, 3, ., .), image whose layout the painting keeps; scales below LAYOUT_SCALE are
            left out. None: the layout is `canvas.init` if there is one and no mask; otherwise it is
            quilted.
        factor: Factor by which the exemplars are resized, at most 1.

    Yields:
        A frame after each layout that is tried, and after each round; then the finished painting.
    """
    exemplars = spec.exemplars
    least = 0.0 if layout is None else LAYOUT_SCALE
    scales = _scales(exemplars, size, factor, spec.kind, least)
    if layout is None and spec.canvas.mask is None:
        layout = spec.canvas.init
    draws = generators(exemplars[0].image.device, spec.seed)
    job = PaintingJob(exemplars, spec.canvas, spec.kind, draws, layout, spec.group)
    total = sum(scale.rounds * scale.factor**2 for scale in scales)
    if layout is None:
        total += LAYOUT_WORK * scales[0].factor ** 2 * layout_count(scales[0].size)
    done, last = 0.0, None
    for number, scale in enumerate(scales, 1):
        level = Level(job, scale.factor, scale.size)
        for work, state in _states(level, last, scale.rounds):
            done += work
            frame = PaintingFrame(number, len(scales), min(1.0, done / total), state.image)
            yield frame
        last = state
    places = main_source(level, state.output_field, state.weights).to(job.device)
    yield replace(frame, image=state.image.to(job.device), places=places)


def _states(
    level: Level, state: PaintingState | None, rounds: int
) -> Iterator[tuple[float, PaintingState]]:
    """Yield the states of one scale, each with the work that it took.

    Args:
        level: Level of the scale.
        state: Last state of the coarser scale; None: this is the coarsest.
        rounds: Number of rounds.
    """
    work = level.factor**2
    if state is not None:
        state = upsample(level, state)
    elif level.job.layout is not None:
        state = state_of_layout(level, level.job.layout)
    else:
        source_field, tried = random_source_field(level), []
        for _ in range(layout_count(level.size)):
            field = quilt_layout(level)
            state = PaintingState(level.factor, field, source_field, vote(level, field))
            yield LAYOUT_WORK * work, state
            tried.append((layout_cost(level, field, state.image), state))
        _, state = min(tried, key=lambda pair: pair[0])
    for _ in range(rounds):
        state = paint_round(level, state)
        yield work, state


def source_colours(places: Tensor, exemplars: tuple[Exemplar, ...]) -> Tensor:
    """Return the colour of the main source pixel of each pixel of a painting, (1, 3, H, W)."""
    return Atlas(exemplars, 1.0).image[0].flatten(1)[:, places][None]


def too_small(exemplars: tuple[Exemplar, ...], size: Size, factor: float = 1.0) -> str:
    """Return, in words, which of the exemplars, resized by a factor, and the output has a side
    shorter than MIN_SIDE; "" if none has."""
    named = [("output", size)]
    for view in (view for one in exemplars for view in one.views):
        name = "exemplar" if view.valid is None else "opaque part of the exemplar"
        height, width = valid_size(view)
        named.append((name, (round(factor * height), round(factor * width))))
    for name, sides in reversed(named):
        if min(sides) < MIN_SIDE:
            return f"{name} of {size_text(sides)}, painting needs sides of {MIN_SIDE} or more"
    return ""


def _scales(
    exemplars: tuple[Exemplar, ...], size: Size, factor: float, kind: Kind, least: float
) -> list[_Scale]:
    """Return the scales from coarse to fine, without those below `least` times the size.

    At the coarsest scale, the shorter side of the first exemplar is about COARSEST px. For a
    regular texture it is twice that: one pixel of the coarsest scale covers several pixels of the
    result, and a displacement by that much is a visible step in a row of bricks. No side of the
    output is shorter than MIN_SIDE, and no side of an exemplar is shorter than
    MIN_SIDE / UNDERSHOOT.
    """
    sides = [factor * min(valid_size(view)) for one in exemplars for view in one.views]
    ratio = min(sides[0] / (COARSEST * (1 + kind.regular)), min(*sides, *size) / MIN_SIDE)
    count = max(0, math.floor(math.log(UNDERSHOOT * ratio, SCALE_RATIO)))
    scales = []
    for shrink in (SCALE_RATIO**-k for k in range(count, -1, -1)):
        if shrink >= least:
            height, width = (max(MIN_SIDE, round(shrink * side)) for side in size)
            rounds = rounds_at(shrink * factor * min(size_of(exemplars[0].image)))
            scales.append(_Scale(shrink * factor, (height, width), rounds))
    return scales


def rounds_at(side: float) -> int:
    """Return the number of rounds for an exemplar whose shorter side has `side` px.

    Coarse scales have more rounds, since rounds take little time there and decide the layout.
    """
    return 8 if side < 2 * COARSEST + 2 else 4 if side < 3 * COARSEST else 2
