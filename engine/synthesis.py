"""Synthesize a texture by painting, by optimization or by both, as a generator of frames."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from engine.edges import fitted
from engine.finish import cut_at, whole
from engine.objective import Extract, Objective, State
from engine.optimizers import Settings, Step, minimize
from engine.painting import paint
from engine.precision import ROUGH, convolving
from engine.scales import without_margin
from engine.schedule import Schedule, Stage, margin_of, schedule_of
from engine.spec import Spec
from engine.start import in_exemplars_colours, start_of
from engine.stretching import with_stretched_exemplars
from engine.tiling import TiledExtractor
from losses import METHODS, Criterion, at_finest_scale
from models import Extractor
from terms.base import Canvas, Exemplar, Options, TermInputs, View, equal_weights
from terms.content import Content
from utils import Size, give_back_freed_memory, resize, scaled_size

EXACT_SHARE = 0.125  # share of a scale's steps, the last ones, in float32 instead of bf16


@dataclass(frozen=True)
class Made:
    """The result of a synthesis."""

    image: Tensor  # (1, 3, height, width) in [0, 1]
    # (H, W) of int64: the sources of its pixels, as in `PaintingFrame`; None: it was not painted
    places: Tensor | None
    shift: Size = (0, 0)  # rows and columns by which the image was rolled
    # (1, 1, height, width) of bool: the other pixels are those of `Canvas.edges`; None: all are new
    inside: Tensor | None = None


@dataclass(frozen=True)
class Frame:
    """The state of a synthesis after a step."""

    step: int  # number of steps taken so far, over all scales
    scale: int  # 1 ... scales, coarse to fine
    scales: int
    work: float  # share of the total work that is done, in (0, 1]; a finer step is more work
    pixels: Tensor  # the best picture so far at this scale, (1, 3 or 1, h, w) in [0, 1]
    canvas: Canvas
    loss: float = math.nan  # of that picture; NaN while painting
    margin: Size = (0, 0)  # rows and columns of `pixels` beyond each border of the canvas
    places: Tensor | None = None  # (h, w), of the pixels of a painting, as in `PaintingFrame`
    went_back: bool = False  # whether Adam went back to the best picture after a non-finite loss
    # Returns the state from which `frames` resumes after this frame; to be called before the next
    # frame. None: the synthesis cannot resume here.
    state: Callable[[], State] | None = None

    @cached_property
    def made(self) -> Made:
        """The picture of this frame as it is saved, of the canvas's size."""
        canvas = self.canvas
        image = whole(canvas.to(self.pixels.device), self.pixels, self.margin)
        places = None if self.places is None else without_margin(self.places, self.margin)
        if canvas.edges is not None:  # such a canvas repeats and has no margin
            tile = fitted(image, canvas.edges.to(image.device), roll=not canvas.has_layout)
            return Made(tile.image, places, tile.shift, tile.inside)
        shift = (0, 0) if canvas.has_layout else cut_at(image, canvas.wrap)
        return Made(image.roll(shift, (2, 3)), places, shift)


def frames(spec: Spec, net: Extractor, state: State | None = None) -> Iterator[Frame]:
    """Synthesize a texture like the exemplars.

    Without painting, the picture is optimized coarse to fine from white noise. With painting, it is
    painted with the exemplars' pixels; the remaining steps optimize it coarse to fine, which
    removes seams. If a content picture determines the layout, optimization comes first and painting
    last.

    Args:
        spec: its tensors are on the device of the network. Sides along which the output repeats are
            rounded up to multiples of the network's stride; `Frame.made` has the canvas's size.
        net: its layers include those that the spec names and those of the additional terms.
        state: from a frame of a synthesis with the same arguments; the synthesis resumes after that
            frame and, on the CPU, gives the same picture bit for bit. None: it starts anew.

    Yields:
        A frame after each step; a frame of painting may count as several steps. The last frame
        holds the result.

    Raises:
        UserError: an exemplar or the size is too small for the layers, the scales or the patches.
        FloatingPointError: the loss of the start is not finite.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    run = _Run(spec, net, generator, schedule_of(spec, net.layers))
    first, image, painting = 0, None, None
    if state is not None:
        first = state["stage"]
        run = replace(run, schedule=run.schedule.with_steps(state["steps"]))
        generator.set_state(state["generator"])
    for index in range(first, len(run.schedule.stages)):
        if run.schedule.stages[index].is_painting:
            layout = spec.canvas.content if image is None else image
            painting = yield from _painted(run, index, layout)
        else:
            image, run = yield from _optimized(run, index, image, painting, state)
            state = None


@dataclass(frozen=True)
class _Run:
    """A synthesis and its schedule. A scale that converged early keeps only the steps it took."""

    spec: Spec
    net: Extractor
    generator: torch.Generator  # of noise
    schedule: Schedule

    def frame(self, index: int, steps: float, pixels: Tensor) -> Frame:
        """Return the frame after the first `steps` steps of a stage."""
        stage = self.schedule.stages[index]
        number, work = self.schedule.position(index, steps)
        canvas, margin = self.spec.canvas, margin_of(self.spec)
        return Frame(number, stage.scale, stage.scales, work, pixels, canvas, margin=margin)


def _painted(run: _Run, index: int, layout: Tensor | None) -> Generator[Frame, None, Tensor]:
    """Run a painting stage.

    Args:
        layout: (1, 3 or 1, h, w), the picture whose layout is kept; None: `paint` chooses the
            layout.

    Returns:
        The painting, (1, 3, h, w) in [0, 1].
    """
    stage = run.schedule.stages[index]
    is_last = index == len(run.schedule.stages) - 1
    spec = run.spec if is_last else with_stretched_exemplars(run.spec)
    for one in paint(spec, stage.size, layout):
        image = one.image.clamp(0, 1)
        if one.places is not None:
            image = in_exemplars_colours(run.spec, one.image, one.places)
        frame = run.frame(index, one.work * stage.steps, image)
        yield replace(frame, scale=one.scale, scales=one.scales, places=one.places)
    return image


def _optimized(
    run: _Run, index: int, image: Tensor | None, painting: Tensor | None, state: State | None
) -> Generator[Frame, None, tuple[Tensor, _Run]]:
    """Run an optimization stage.

    Args:
        image, painting: as in `start_of`.
        state: from a frame of this stage; None: the stage starts anew.

    Returns:
        The optimized picture, and the run with the steps that the stage took.
    """
    spec, stage = run.spec, run.schedule.stages[index]
    if state is None:
        stages = run.schedule.stages[: index + 1]
        minimizer, image = None, start_of(spec, stages, image, painting, run.generator)
    else:
        minimizer = state["minimizer"]
        image = minimizer["optimizer"]["image"]
    before = [one.steps for one in run.schedule.stages[:index]]
    at_start = {"stage": index, "steps": before, "generator": run.generator.get_state()}

    def frame(step: Step) -> Frame:
        def current() -> State:
            assert step.state is not None
            return at_start | {"minimizer": step.state()}

        return replace(
            run.frame(index, step.number, step.image),
            loss=step.loss,
            went_back=step.went_back,
            state=current if step.state else None,
        )

    objective = _objective(spec, run.net, stage)
    with convolving(spec.precision):
        steps = minimize(image, objective, _settings(spec, stage), minimizer)
        image, taken = yield from _mapped(steps, frame)
    if not stage.steps and index == len(run.schedule.stages) - 1:
        yield run.frame(index, 0, image)
    return image, replace(run, schedule=run.schedule.with_steps([*before, taken]))


def _mapped(
    steps: Generator[Step, None, tuple[Tensor, int]], function: Callable[[Step], Frame]
) -> Generator[Frame, None, tuple[Tensor, int]]:
    """Yield `function(step)` for each step; return the generator's value."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        yield function(step)


def _settings(spec: Spec, stage: Stage) -> Settings:
    return Settings(
        steps=stage.steps,
        optimizer=spec.optimizer,
        lr=spec.lr,
        is_painted=stage.paints_detail or spec.starts_from_painting,
        memory=spec.memory,
        exact_steps=math.ceil(EXACT_SHARE * stage.steps),
        tolerance=spec.tolerance,
    )


def _objective(spec: Spec, net: Extractor, stage: Stage) -> Objective:
    """Return the objective of a stage."""
    if stage.scale == stage.scales > 1:
        weights = METHODS[spec.method].weights if spec.weights is None else spec.weights
        spec = replace(spec, weights=at_finest_scale(weights))
    criterion = criterion_at(spec, net, stage.source_size, stage.size)
    extractor: Extractor | TiledExtractor = net
    is_tiled = stage.tiling.applies_to(stage.size)
    if is_tiled or spec.group.size > 1:
        extractor = TiledExtractor(net, criterion, stage.tiling, spec.group)
    if is_tiled:
        give_back_freed_memory()  # of painting
    mask = spec.canvas.mask_at(stage.size)

    def extract(image: Tensor, dtype: torch.dtype | None = None):
        if mask is not None:  # the gradient is 0 at pixels outside the mask
            image = torch.where(mask, image, image.detach())
        return extractor(image, spec.canvas.wrap, dtype)

    dtype = ROUGH.get(spec.precision)
    rough: Extract | None = partial(extract, dtype=dtype) if dtype else None
    return Objective(extract, criterion, rough=rough)


@torch.no_grad()
def criterion_at(spec: Spec, net: Extractor, source_size: Size, size: Size) -> Criterion:
    """Return the criterion of an output.

    Args:
        source_size: size of the first exemplar after resizing; the others are resized by the same
            factor.
        size: size of the output.
    """
    factor = spec.factor_at(source_size)
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
    """Return a copy of an exemplar that holds the features of its pictures resized by a factor."""
    views = [
        replace(view, features=net(resize(view.image, scaled_size(view.image, factor))))
        for view in exemplar.views
    ]
    return replace(exemplar, views=tuple(views))
