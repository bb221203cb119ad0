"""Synthesis of a texture as a generator of frames: painted, optimized, or both."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from engine.finish import cut_at, whole
from engine.objective import Extract, Objective, State
from engine.optimizers import LEARNING_RATES, Settings, Step, minimize
from engine.painting import Painting, PaintingFrame
from engine.precision import ROUGH, convolving
from engine.schedule import Schedule, Stage, schedule_of
from engine.spec import Spec
from engine.start import (
    all_grey,
    in_exemplars_colours,
    noise,
    painted,
    with_given_pixels,
    with_noise_detail,
    with_painted_detail,
)
from engine.tiling import TiledExtractor
from losses import Criterion
from models import Extractor
from terms.base import Canvas, Exemplar, Options, TermInputs, View, equal_weights
from terms.content import Content
from utils import Size, give_back_freed_memory, resize, scaled_size

CALMER = 0.08  # of Adam's step size, where the start holds painted detail
EXACT_STEPS = 0.125  # share of the steps of a scale, at its end, that are never rough


@dataclass(frozen=True)
class Made:
    """The result of a synthesis."""

    image: Tensor  # (1, 3, height, width) in [0, 1]
    painting: Painting | None  # the sources of its pixels, if it was painted
    shift: Size = (0, 0)  # rows and columns by which the painting was rolled


@dataclass(frozen=True)
class Frame:
    """The state of a synthesis after a step."""

    step: int  # from 1, over all scales, without the steps that converged scales have left out
    scale: int  # 1 ... scales
    scales: int
    work: float  # share of all work that is done, in (0, 1]; fine steps are more work
    pixels: Tensor  # the best picture of the scale, (1, 3 or 1, h, w) in [0, 1]
    canvas: Canvas
    loss: float = math.nan  # of the best picture of the scale; NaN while painting
    painting: Painting | None = None
    went_back: bool = False  # whether Adam went back to the best picture: a loss was not finite
    # The state from which `frames` goes on after this frame; valid until the next one. None: it
    # cannot go on from here.
    state: Callable[[], State] | None = None

    @cached_property
    def made(self) -> Made:
        """The picture as it would be saved, of the canvas's size."""
        image, canvas = whole(self.canvas.to(self.pixels.device), self.pixels), self.canvas
        shift = (0, 0) if canvas.has_layout else cut_at(image, canvas.wrap)
        return Made(image.roll(shift, (2, 3)), self.painting, shift)


def frames(spec: Spec, net: Extractor, state: State | None = None) -> Iterator[Frame]:
    """Synthesize a texture like the exemplars.

    Without painting, the picture is optimized coarse to fine from white noise. With painting, it is
    painted with the exemplars' pixels, and the steps that are left optimize it at the finest scale,
    which restores the grain and the colours that a mean of patches loses. Where a content
    determines the layout, optimization precedes painting.

    Args:
        spec: on the device of the network. Sides along which the output tiles are made as multiples
            of the network's stride.
        net: with the layers that the spec names and those of the additional terms.
        state: of a frame of a synthesis with the same arguments: it goes on after that frame, and
            on the CPU ends in the same bytes.

    Yields:
        A frame after each step; while painting, a frame may count as several steps. The last one
        holds the result.

    Raises:
        UserError: an exemplar or the size is too small for the layers, the scales or the patches.
        FloatingPointError: the loss of the start is not finite.
    """
    run = _Run(spec, net, schedule_of(spec, net.layers))
    if not spec.repaint:
        yield from _from_noise(run, state)
    elif spec.canvas.content is None:
        yield from _painted_then_optimized(run, state)
    else:
        yield from _optimized_then_painted(run, state)


@dataclass(frozen=True)
class _Run:
    """A synthesis and its schedule, in which scales that have converged are shortened."""

    spec: Spec
    net: Extractor
    schedule: Schedule

    def frame(self, index: int, steps: float, pixels: Tensor) -> Frame:
        """Return the frame after so many steps of a stage."""
        stage = self.schedule.stages[index]
        number, work = self.schedule.position(index, steps)
        return Frame(number, stage.scale, stage.scales, work, pixels, self.spec.canvas)


# ------------------------------------------------------------------------------------- recipes

Optimized = Generator[Frame, None, tuple[Tensor, _Run]]  # returns the picture, and what was run


def _from_noise(run: _Run, state: State | None) -> Optimized:
    """Optimize a picture coarse to fine, from white noise.

    The first scale starts from noise with the exemplars' mean and covariance of colours, each other
    scale from the result of the scale before (Snelgrove 2017, Gonthier et al. 2022). We depart from
    them in that detail is added to it. At the scales between it is noise like the detail that the
    exemplar gains there: from a smooth start, fine structure grows along the grid of the network's
    pooling. At the finest scale it is painted with the exemplar's patches: hatching and dark points
    have the Gram matrices of edges, so that optimized noise ends as such.
    """
    spec, stages = run.spec, run.schedule.stages
    generator = torch.Generator().manual_seed(spec.seed)
    first = 0
    if state is not None:
        first, image = state["stage"], state["minimizer"]["optimizer"]["image"]
        run = replace(run, schedule=run.schedule.with_steps(state["steps"]))
        generator.set_state(state["generator"])
    for index, stage in enumerate(stages):
        if index < first or stage.is_painting:
            continue
        if state is None:
            if index == 0:
                image = noise(spec, stage.size, generator)
            image = resize(image, stage.size, spec.canvas.wrap)
            if stage.paints_detail:
                image = with_painted_detail(spec, image)
            elif index > 0:
                image = with_noise_detail(spec, image, stages[index - 1], stage, generator)
            image = _start(spec, stage, image)
        drawn = {"generator": generator.get_state()}
        image, run = yield from _optimized(run, index, image, state, known=drawn)
        state = None
    return image, run


def _painted_then_optimized(run: _Run, state: State | None) -> Optimized:
    """Paint a picture with the exemplars' pixels, and optimize it at the finest scale."""
    if state is None:
        painting = yield from _painted(run, 0)
    else:
        painting = Painting(*state["painting"])
    image = painting.image
    if len(run.schedule.stages) > 1:
        if state is None:
            image = _start(run.spec, run.schedule.stages[1], image)
        known = {"painting": [painting.image, painting.places, painting.views]}
        image, run = yield from _optimized(run, 1, image, state, known=known, painting=painting)
    return image, run


def _optimized_then_painted(run: _Run, state: State | None) -> Optimized:
    """Optimize a picture coarse to fine, and paint one of its layout with the exemplars' pixels."""
    layout, last = run.spec.canvas.content, len(run.schedule.stages) - 1
    if last > 0:
        layout, run = yield from _from_noise(run, state)
    painting = yield from _painted(run, last, layout)
    return painting.image, run


# -------------------------------------------------------------------------------------- stages


def _painted(
    run: _Run, index: int, layout: Tensor | None = None
) -> Generator[Frame, None, Painting]:
    """Run a painting stage.

    Args:
        layout: (1, 3 or 1, h, w), the picture whose layout is kept; None: the layout is made too.
    """
    stage, last = run.schedule.stages[index], None

    def frame(one: PaintingFrame) -> Frame:
        nonlocal last
        found = run.frame(index, one.work * stage.steps, one.image.clamp(0, 1))
        last = replace(found, scale=one.scale, scales=one.scales)
        return last

    painting = yield from _each(painted(run.spec, stage.size, layout), frame)
    painting = in_exemplars_colours(run.spec, painting)
    assert last is not None  # painting takes at least one round
    yield replace(last, pixels=painting.image, painting=painting)
    return painting


def _optimized(
    run: _Run,
    index: int,
    image: Tensor,
    state: State | None,
    *,
    known: State,
    painting: Painting | None = None,
) -> Optimized:
    """Run an optimization stage.

    Args:
        image: (1, 3 or 1, h, w) in [0, 1], of the stage's size: the start.
        state: of a frame of this stage.
        known: further items of the states of its frames.
        painting: the start, if it was painted.
    """
    spec, stage = run.spec, run.schedule.stages[index]
    known = known | {"stage": index, "steps": [one.steps for one in run.schedule.stages[:index]]}

    def frame(step: Step) -> Frame:
        def current() -> State:
            assert step.state is not None
            return known | {"minimizer": step.state()}

        return replace(
            run.frame(index, step.number, step.image),
            loss=step.loss,
            painting=painting,
            went_back=step.went_back,
            state=current if step.state else None,
        )

    objective, minimizer = _objective(spec, run.net, stage), state and state["minimizer"]
    with convolving(spec.precision):
        steps = minimize(image, objective, _settings(spec, stage), minimizer)
        image, taken = yield from _each(steps, frame)
    if not stage.steps and index == len(run.schedule.stages) - 1:
        yield replace(run.frame(index, 0, image), painting=painting)
    return image, replace(run, schedule=run.schedule.ended(index, taken))


X = TypeVar("X")
Y = TypeVar("Y")
R = TypeVar("R")


def _each(steps: Generator[X, None, R], of: Callable[[X], Y]) -> Generator[Y, None, R]:
    """Yield what a function makes of each item of a generator; return what that returns."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            found: R = end.value
            return found
        yield of(step)


def _start(spec: Spec, stage: Stage, image: Tensor) -> Tensor:
    """Return the pixels (1, 3 or 1, h, w) that a stage starts from."""
    if all_grey(spec):
        image = image[:, :1]
    first = stage.scale == 1 and not (stage.paints_detail or stage.after_painting)
    return with_given_pixels(spec.canvas, image, everywhere=first)


def _settings(spec: Spec, stage: Stage) -> Settings:
    lr = spec.lr
    if (stage.paints_detail or stage.after_painting) and spec.optimizer == "Adam":
        lr = CALMER * (LEARNING_RATES["Adam"] if lr is None else lr)
    return Settings(
        steps=stage.steps,
        optimizer=spec.optimizer,
        lr=lr,
        memory=spec.memory,
        exact_steps=math.ceil(EXACT_STEPS * stage.steps),
        tolerance=spec.tolerance,
    )


def _objective(spec: Spec, net: Extractor, stage: Stage) -> Objective:
    """Return the loss of the stage's pictures."""
    criterion = criterion_at(spec, net, stage.source_size, stage.size)
    extractor: Extractor | TiledExtractor = net
    is_tiled = stage.tiling.applies_to(stage.size)
    if is_tiled or spec.group.size > 1:
        extractor = TiledExtractor(net, criterion, stage.tiling, spec.group)
    if is_tiled:
        give_back_freed_memory()  # that painting has left
    parametrization = Parametrization(spec.canvas.mask_at(stage.size))

    def extract(variable: Tensor, dtype: torch.dtype | None = None):
        return extractor(parametrization.image(variable), spec.canvas.wrap, dtype)

    dtype = ROUGH.get(spec.precision)
    rough: Extract | None = partial(extract, dtype=dtype) if dtype else None
    return Objective(extract, criterion, rough=rough)


@dataclass(frozen=True)
class Parametrization:
    """The picture as a function of the variable of an optimizer."""

    mask: Tensor | None  # (1, 1, h, w) of bool: the pixels that may change; None: all

    def image(self, variable: Tensor) -> Tensor:
        """Return (1, 3 or 1, h, w); pixels outside of the mask have no gradient and never move."""
        if self.mask is None:
            return variable
        return torch.where(self.mask, variable, variable.detach())


@torch.no_grad()
def criterion_at(spec: Spec, net: Extractor, source_size: Size, size: Size) -> Criterion:
    """Return the criterion of an output of some size, from the exemplars resized to another."""
    factor = source_size[0] / spec.exemplars[0].image.shape[2]
    exemplars = tuple(_with_features(net, one, factor) for one in spec.exemplars)
    inputs = TermInputs(exemplars, spec.canvas, Options(spec.seed, spec.max_patches, spec.group))
    layers = spec.layers or equal_weights(net.layers)
    criterion = Criterion(inputs, layers, spec.method, spec.weights, spec.match_every)
    if spec.canvas.content is not None:
        features = net(resize(spec.canvas.content, size, spec.canvas.wrap))
        photo = TermInputs((Exemplar((View(features),)),))
        layers = equal_weights(spec.content_layers)
        criterion.add(spec.content_weight, Content(photo, layers), layers)
    return criterion


def _with_features(net: Extractor, exemplar: Exemplar, factor: float) -> Exemplar:
    """Return an exemplar of pictures as one of the features of the resized pictures."""
    views = [
        replace(view, features=net(resize(view.image, scaled_size(view.image, factor))))
        for view in exemplar.views
    ]
    return replace(exemplar, views=tuple(views))
