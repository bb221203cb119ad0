"""The schedule of a synthesis: its stages with their sizes, steps and work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.optimizers import OPTIMIZERS
from engine.painting import too_small
from engine.scales import AFTER_PAINTING_RATIO, STEP_RATIO, Sizes, pyramid, split_steps, with_margin
from engine.spec import Spec
from engine.tiling import WHOLE, Tiling
from models import least_side, stride
from utils import Size, UserError, size_of

# Work of a painting, in steps at the finest scale. Measured: 6 steps of gram, 3 of guided.
PAINTING_WORK = 4
STEP_OVERHEAD = 2000  # px; work of a step that does not depend on the size of the picture
# Width of the margin in px, at most MARGIN_PART of the shorter side. The loss constrains pixels
# near the border less than others, so that optimization can tear objects there.
MARGIN, MARGIN_PART = 24, 1 / 8


@dataclass(frozen=True)
class Stage:
    """Part of a synthesis: painting, or optimization at one size."""

    source_size: Size  # of the first exemplar, resized for this stage
    size: Size  # of the output, with the margin
    steps: int
    scale: int = 1  # 1 ... scales, coarse to fine
    scales: int = 1
    tiling: Tiling = WHOLE
    paints_detail: bool = False  # whether the detail that it adds to the coarser one is painted
    is_painting: bool = False  # whether it paints; otherwise it optimizes

    def work(self, steps: float) -> float:
        """Return the work of the first `steps` steps, including that of painting the detail of the
        start. A whole painting stage counts as `PAINTING_WORK` optimization steps. The unit is
        the work of one step on one pixel."""
        step_work = STEP_OVERHEAD + math.prod(self.size)
        if self.is_painting:
            return PAINTING_WORK * step_work * steps / max(1, self.steps)
        return (steps + PAINTING_WORK * self.paints_detail) * step_work


@dataclass(frozen=True)
class Schedule:
    """Stages in the order in which they run."""

    stages: tuple[Stage, ...]

    def position(self, index: int, steps: float) -> tuple[int, float]:
        """Return the progress after the first `steps` steps of stage `index`: the number of steps
        taken in all stages so far, and the share of the total work that is done."""
        before = sum(stage.steps for stage in self.stages[:index])
        work = sum(stage.work(stage.steps) for stage in self.stages[:index])
        total = work + sum(stage.work(stage.steps) for stage in self.stages[index:])
        stage = self.stages[index]
        number = max(1, round(steps)) if stage.is_painting else int(steps)
        return before + number, (work + stage.work(steps)) / total if total else 1.0

    def with_steps(self, steps: Sequence[int]) -> "Schedule":
        """Return a copy in which the first stages have the given numbers of steps."""
        first = (replace(stage, steps=n) for stage, n in zip(self.stages, steps, strict=False))
        return Schedule((*first, *self.stages[len(steps) :]))


def schedule_of(spec: Spec, layers: list[str]) -> Schedule:
    """Return the schedule of a synthesis.

    The steps that optimize are spread over the scales. Painting comes before them or, if a content
    picture determines the layout, after them.

    Args:
        layers: layers of the network.

    Raises:
        UserError: the picture is painted, and `too_small` for that; see also `pyramid`.
    """
    sizes = sizes_of(spec, layers)
    if not spec.repaint:
        return Schedule(_scales(spec, sizes, spec.steps))
    if fault := too_small(spec.exemplars, sizes[-1][1]):
        raise UserError(fault)
    rest = steps_after_painting(spec.steps, spec.repaint)
    optimizing = _scales(spec, sizes, rest) if rest else ()
    painting = Stage(*sizes[-1], spec.steps - rest, is_painting=True)
    first = spec.starts_from_painting
    return Schedule((painting, *optimizing) if first else (*optimizing, painting))


def _scales(spec: Spec, sizes: Sizes, steps: int) -> tuple[Stage, ...]:
    """Return optimization stages, coarse to fine. A single scale that starts from noise becomes two
    stages of one size, so that the detail of the second can be painted."""
    tilings = spec.tilings or (WHOLE,) * len(sizes)
    if len(sizes) == 1 and not spec.starts_from_painting and _paintable(spec, *sizes[0]):
        sizes, tilings = sizes * 2, tilings * 2
    count = len(sizes)
    forms_detail = OPTIMIZERS[spec.optimizer].forms_detail and not spec.starts_from_painting
    first_painted = max(2, count if forms_detail else 2)
    stages = []
    ratio = AFTER_PAINTING_RATIO if spec.starts_from_painting else STEP_RATIO
    shares = split_steps(steps, count, ratio)
    for n, (sides, tiling, share) in enumerate(zip(sizes, tilings, shares, strict=True), 1):
        paints = n >= first_painted and share > 0 and _paintable(spec, *sides)
        stages.append(Stage(*sides, share, n, count, tiling, paints_detail=paints))
    return tuple(stages)


def _paintable(spec: Spec, source_size: Size, size: Size) -> bool:
    """Return whether exemplars and output of a stage are large enough for patches."""
    return not too_small(spec.exemplars, size, spec.factor_at(source_size))


def steps_after_painting(steps: int, repaint: float) -> int:
    """Return the number of steps that are left if painting takes the share `repaint` of all."""
    return steps - round(repaint * steps)


def margin_of(spec: Spec) -> Size:
    """Return the numbers of rows and columns beyond each border of the canvas, for a painting that
    is optimized. There are none along axes that repeat, nor with maps, which end at the border."""
    optimizes = spec.starts_from_painting and steps_after_painting(spec.steps, spec.repaint) > 0
    if not optimizes or spec.canvas.has_maps:
        return 0, 0
    width = min(MARGIN, int(MARGIN_PART * min(spec.canvas.size)))
    down, across = (0 if axis in spec.canvas.wrap else width for axis in "yx")
    return down, across


def sizes_of(spec: Spec, layers: list[str]) -> Sizes:
    """Return the sizes of (exemplar, output) from coarse to fine, as `pyramid` does. The output has
    the margin."""
    down, across = (stride(layers) if axis in spec.canvas.wrap else 1 for axis in "yx")
    exemplar = size_of(spec.exemplars[0].image)
    output = with_margin(spec.canvas.size, margin_of(spec))
    return pyramid(exemplar, output, spec.scales, least_side(layers), (down, across))
