"""How a picture is made, once all about it is decided: painted, optimised, or both."""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from engine.blocks import Blocks, Parts
from engine.checkpoints import Checkpoints
from engine.colours import (
    colours_apart,
    is_grey,
    noise_like,
    with_chroma,
    with_colours,
    with_fine_detail,
)
from engine.kinds import STOCHASTIC, Kind
from engine.optimizers import LBFGS_MEMORY, LEARNING_RATES, State, WentBack, optimize
from engine.painting import MIN_SIDE, Painting, PaintingFrame, paint, pixels_laid, value_of
from engine.precision import EXACT, ROUGH, convolving
from engine.scales import pyramid, split_steps
from losses import MATCH_EVERY, Criterion
from models import Extractor, Features, least_side, stride
from terms.base import (
    MAX_PATCHES,
    Canvas,
    Exemplar,
    LayerWeights,
    Options,
    TermInputs,
    View,
    equal_weights,
)
from terms.content import Content
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from terms.valid import NEARLY_ALL, fill_invalid, select_valid
from utils import Size, give_back_freed_memory, resize, rotated_and_resized, scaled_size, size_of

DETAIL = 0.7  # of the standard deviation that the exemplar's detail has
PAINTING = 4  # steps at the finest scale that take about as long: 6 of gram, 3 of guided
STEP = 2000  # px that take as long as what a step costs at any size
CALMER = 0.08  # of Adam's step size, for a start that is worth keeping
# Of the deviation of the exemplar's colours. Of fifteen textures at 200x200 what was laid was 0.11
# apart at most, by chance 0.3 at half of that, and no eye minds either way; of photographs of
# several things 0.15 to 1.2, and there it does.
SHIFTED = 0.13
EXACT_STEPS = 0.125  # of the steps of a scale, the last ones: what is rough would decide them


@dataclass(frozen=True)
class Spec:
    """All that decides a picture, but for the net."""

    exemplars: tuple[Exemplar, ...]  # their views are pictures alone, at full size
    canvas: Canvas
    method: str = "gram"  # a name in `losses.METHODS`
    layers: LayerWeights | None = None  # of the model; None: all of the trunk's, equal weights
    weights: dict[str, float] | None = None  # of the terms beside it; None: the method's own
    match_every: int = MATCH_EVERY  # steps for which what is matched is held
    max_patches: int = MAX_PATCHES  # of a layer, for models that sample
    content_layers: tuple[str, ...] = ()
    content_weight: float = 0.0  # relative to that of model and terms together
    optimizer: str = "Adam"  # a name in `optimizers.OPTIMIZERS`
    steps: int = 1000  # evaluations of loss and gradient, over all scales
    lr: float | None = None  # step size; None: the optimiser's own
    memory: int = LBFGS_MEMORY  # steps that L-BFGS remembers
    scales: int | None = None  # how many; None: as many as the exemplar's size asks for
    repaint: float = 0.0  # share of the steps that go into painting with the exemplar's pixels
    kind: Kind = STOCHASTIC  # of the first exemplar, as far as painting asks for it
    tolerance: float = 0.0  # share of its loss that a scale must save, or it ends
    precision: str = EXACT  # of `engine.precision.PRECISIONS`
    parts: tuple[Parts, ...] = ()  # in which each scale is looked at, coarse to fine; (): whole
    group: ProcessGroup = SINGLE_PROCESS  # of processes that make it together
    seed: int = 0  # the same on one machine's CPU gives the same picture

    @property
    def finest(self) -> Parts:
        """How the finest scale is looked at."""
        return self.parts[-1] if self.parts else Parts()

    def to(self, device: torch.device) -> "Spec":
        """The same on another device."""
        exemplars = tuple(one.to(device) for one in self.exemplars)
        return replace(self, exemplars=exemplars, canvas=self.canvas.to(device))


@dataclass(frozen=True)
class Progress:
    """Where a synthesis stands after a step."""

    step: int  # 1 ... steps, over all scales; fewer where scales have converged before
    scale: int  # 1 ... scales
    scales: int
    fraction: float  # of the work that is done, 0 ... 1; a fine step is more work than a coarse one
    image: Tensor  # the best so far, (1, 3 or 1, H, W) in [0, 1]
    loss: float  # NaN while the picture is painted: nothing is optimised then


@dataclass(frozen=True)
class Made:
    """What has come of a synthesis."""

    image: Tensor  # (1, 3, height, width) in [0, 1]
    painting: Painting | None  # where its pixels are from, if it was painted
    shift: Size = (0, 0)  # rows and columns by which the painting was rolled to be the image


Report = Callable[[Progress], None]
Look = Callable[[Tensor, str, torch.dtype | None], Features]  # pixels, what tiles, computed in
Sizes = list[tuple[Size, Size]]  # (exemplar, output) of each scale


def new_texture(
    spec: Spec,
    trunk: Extractor,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
    went_back: WentBack | None = None,
) -> Made:
    """New texture like the exemplars.

    Painted with their pixels first, and then optimised at the finest scale alone, which brings
    back the grain and the colours that a mean of patches has lost; optimised coarse to fine from
    white noise where nothing is to be painted but detail. Where a content decides what is where,
    it is optimised first.

    Args:
        spec: on the trunk's device. Sides along which the output tiles are made as multiples of
            the net's stride.
        trunk: of the layers that the spec names and any that terms shall look at.
        report: called after every step.
        checkpoints: where states go that it can go on from; and if there is one from before, made
            of the same arguments, it goes on from that.
        went_back: called as `optimize` calls it, but once.

    Raises:
        UserError: exemplar or size too small for the layers, the scales or the patches.
    """
    tell = _Teller(report, checkpoints, went_back)
    if not spec.repaint:
        return _made(spec, coarse_to_fine(spec, trunk, tell), None)
    rest = steps_after_painting(spec.steps, spec.repaint)
    painted = spec.steps - rest
    size = sizes_of(spec, trunk.layers)[-1][1]
    split = PAINTING / (PAINTING + rest)

    def lay(begin: float, layout: Tensor | None) -> Painting:
        frames = _frames(spec, size, layout)
        while True:
            try:
                frame = next(frames)
            except StopIteration as end:
                return _in_exemplars_colours(spec, end.value)
            step = max(1, round(frame.work * painted)) + (rest if begin else 0)
            done, image = begin + split * frame.work, frame.image.clamp(0, 1)
            tell(Progress(step, frame.scale, frame.scales, done, image, math.nan))

    if spec.canvas.content is not None:
        first = replace(spec, steps=rest, repaint=0.0)
        layout = coarse_to_fine(first, trunk, tell, 1 - split) if rest else None
        painting = lay(1 - split, spec.canvas.content if layout is None else layout)
        return _made(spec, painting.image, painting)
    resumed = tell.resumed
    painting = lay(0.0, None) if resumed is None else Painting(*resumed["painting"])
    image = painting.image
    if rest:
        tell.known = {"painting": [image, painting.places, painting.views]}
        exemplar = size_of(spec.exemplars[0].image)
        finest = _Scale(1, 1, exemplar, size, spec.finest, rest, True, painted, split, 1.0)
        image = _optimised(spec, trunk, finest, image, tell)
    return _made(spec, image, painting)


class _Teller:
    """Tells of every step. What scales have left undone counts neither as steps nor as work, so
    that the time left is known from what has passed."""

    def __init__(
        self,
        report: Report | None,
        checkpoints: Checkpoints | None = None,
        went_back: WentBack | None = None,
    ) -> None:
        self.report, self.checkpoints, self.on_going_back = report, checkpoints, went_back
        self.resumed = None if checkpoints is None else checkpoints.resumed
        self.steps, self.work = 0, 0.0  # left undone so far, as `Progress` has them
        if self.resumed is not None:
            self.steps, self.work = self.resumed["undone"]
        self.known: State = {}  # of what the steps of a scale start from

    def keep(self, state: Callable[[], State]) -> None:
        """Offer a state of the optimiser, with all else that decides how the picture goes on."""
        if self.checkpoints is not None:
            undone = [self.steps, self.work]
            self.checkpoints.offer(lambda: self.known | {"undone": undone, "optimizer": state()})

    def go_on(self) -> State | None:
        """The state of the optimiser that was kept, once."""
        state, self.resumed = self.resumed, None
        return None if state is None else state["optimizer"]

    def __call__(self, progress: Progress) -> None:
        if self.report is not None:
            step, fraction = progress.step - self.steps, progress.fraction - self.work
            self.report(replace(progress, step=step, fraction=fraction / (1 - self.work)))

    def went_back(self, step: int) -> None:
        if self.on_going_back is not None:
            self.on_going_back(step)
            self.on_going_back = None

    def leave_out(self, steps: int, work: float) -> None:
        self.steps += steps
        self.work += work


def _in_exemplars_colours(spec: Spec, painting: Painting) -> Painting:
    """The painting with the exemplar's distribution of colours, as what was laid more often and a
    mean of patches shift it, unless something else decides which colours there are.

    Where much more or less was laid of some colours, as a picture shows but a part of what is no
    texture throughout, it is the distribution of what was laid: in the exemplar's shares, white
    that has no room would be hatched with the colours that are missing.
    """
    if spec.canvas.has_layout or len(spec.exemplars) > 1:
        return painting
    channels = 1 if _all_grey(spec) else 3
    image = painting.image[:, :channels]
    exemplar = select_valid(spec.exemplars[0].image, spec.exemplars[0].valid)[:, :channels]
    laid = pixels_laid(painting, spec.exemplars)[:, :channels]
    wanted = exemplar if colours_apart(laid, exemplar) < SHIFTED else laid
    return replace(painting, image=with_colours(image, wanted).expand(-1, 3, -1, -1))


def steps_after_painting(steps: int, repaint: float) -> int:
    """How many steps follow painting a picture, all of them at the finest scale."""
    return steps - round(repaint * steps)


def _made(spec: Spec, image: Tensor, painting: Painting | None) -> Made:
    image = _whole(spec.canvas, image)
    shift = (0, 0) if spec.canvas.has_layout else cut_at(image, spec.canvas.tile)
    return Made(image.roll(shift, (2, 3)), painting, shift)


@dataclass(frozen=True)
class _Scale:
    """Steps at one size."""

    number: int  # 1 ... count
    count: int
    source_size: Size
    size: Size
    parts: Parts
    steps: int
    paints: bool  # whether it starts from painted detail
    before: int  # steps that were taken before
    begin: float  # of the work, 0 ... 1
    end: float


def coarse_to_fine(spec: Spec, trunk: Extractor, tell: _Teller, end: float = 1.0) -> Tensor:
    """An optimised picture, from white noise, coarse to fine.

    The first scale starts from noise with the exemplars' mean and covariance of colours, every
    other one from the result of the scale before (Snelgrove 2017, Gonthier et al. 2022). We depart
    from them in that detail is added to it. That of the scales in between is noise like what the
    exemplar gains there: from a smooth start, fine structure grows along the net's pooling grid,
    and the grid is left to be seen. That of the finest scale is painted with the exemplar's
    patches: hatching and dark points have the Gram matrices of edges, and what starts there as
    noise ends as such.

    Args:
        end: the part of all work that is done then, for the report.

    Returns:
        (1, 3 or 1, h, w) in [0, 1], of the finest scale's size.
    """
    canvas, exemplar, valid = spec.canvas, spec.exemplars[0].image, spec.exemplars[0].valid
    scales = _scales(spec, trunk, end)
    generator = torch.Generator().manual_seed(spec.seed)
    image = noise_like(_pixels(spec.exemplars), scales[0].size, generator).clamp(0, 1)
    if not _all_grey(spec):
        image = image.expand(-1, 3, -1, -1)
    before = resize(exemplar, scales[0].source_size)
    for scale in scales:
        picture, resumed = resize(exemplar, scale.source_size), tell.resumed
        if resumed is not None and scale.number < resumed["scale"]:
            continue
        image = resize(image, scale.size, canvas.tile)
        if resumed is not None:
            image = resumed["start"]
            generator.set_state(resumed["generator"])
        elif scale.paints:
            image = _with_painted_detail(spec, image)
        elif scale.number > 1:
            gained = select_valid(picture - resize(before, scale.source_size), valid)
            image = (image + DETAIL * noise_like(gained, scale.size, generator)).clamp(0, 1)
        before = picture
        tell.known = {"scale": scale.number, "start": image, "generator": generator.get_state()}
        image = _optimised(spec, trunk, scale, image, tell)
    return image


def _pixels(exemplars: Sequence[Exemplar]) -> Tensor:
    """(1, 3, n, m): the pixels that count; of several exemplars as many as their shares ask for."""
    found = [select_valid(one.image, one.valid) for one in exemplars]
    if len(found) == 1:
        return found[0]
    flat = [pixels.flatten(2) for pixels in found]
    shares = [one.share for one in exemplars]
    most = min(pixels.shape[2] / share for pixels, share in zip(flat, shares, strict=True))
    counts = [max(1, int(share * most)) for share in shares]
    every = (
        pixels[..., torch.linspace(0, pixels.shape[2] - 1, count).long()]
        for pixels, count in zip(flat, counts, strict=True)
    )
    return torch.cat(list(every), 2)[..., None]


def _with_painted_detail(spec: Spec, image: Tensor) -> Tensor:
    canvas, layout = spec.canvas, image.expand(-1, 3, -1, -1)
    painted = value_of(_frames(spec, size_of(image), layout)).image
    return with_fine_detail(layout, painted, canvas.tile)


def _frames(
    spec: Spec, size: Size, layout: Tensor | None
) -> Generator[PaintingFrame, None, Painting]:
    return paint(
        spec.exemplars,
        spec.canvas,
        size=size,
        seed=spec.seed,
        kind=spec.kind,
        layout=layout,
        group=spec.group,
    )


def _all_grey(spec: Spec) -> bool:
    return all(is_grey(one.image) for one in spec.exemplars)


def _can_be_painted(spec: Spec) -> bool:
    sides = [side for one in spec.exemplars for view in one.views for side in size_of(view.image)]
    return min(*sides, *spec.canvas.size) >= MIN_SIDE


def _scales(spec: Spec, trunk: Extractor, end: float) -> list[_Scale]:
    """The sizes from coarse to fine, with their steps; a single one twice, for detail to be painted
    on the way."""
    sizes = sizes_of(spec, trunk.layers)
    parts = spec.parts or (Parts(),) * len(sizes)
    paints = _can_be_painted(spec)
    if paints and len(sizes) == 1:
        sizes, parts = sizes * 2, parts * 2
    shares = split_steps(spec.steps, len(sizes))
    scales, done, before = [], 0, 0
    for n, ((source_size, size), cut, steps) in enumerate(
        zip(sizes, parts, shares, strict=True), 1
    ):
        painting = paints and n == len(sizes) and steps > 0
        work = STEP + math.prod(size)
        begin = done + PAINTING * painting * work
        done = begin + steps * work
        scales.append(
            _Scale(n, len(sizes), source_size, size, cut, steps, painting, before, begin, done)
        )
        before += steps
    part = end / max(done, 1)
    return [replace(one, begin=one.begin * part, end=one.end * part) for one in scales]


def _optimised(spec: Spec, trunk: Extractor, scale: _Scale, image: Tensor, tell: _Teller) -> Tensor:
    """The picture (1, 3 or 1, h, w) after the steps of a scale."""
    canvas, lr = spec.canvas, spec.lr
    if _all_grey(spec):
        image = image[:, :1]
    image = _started(canvas, image, first=scale.number == 1 and not scale.paints)
    mask = canvas.mask_at(scale.size)
    if scale.paints and spec.optimizer == "Adam":
        lr = CALMER * (LEARNING_RATES["Adam"] if lr is None else lr)
    criterion = criterion_at(spec, trunk, scale.source_size, scale.size)
    look: Look = trunk
    large = scale.parts.cut(scale.size)
    if large or spec.group.size > 1:
        look = Blocks(trunk, criterion, scale.parts.side, spec.group, scale.parts.graphs)
    if large:
        give_back_freed_memory()  # that painting has left
    extract = partial(_extract, look, canvas.tile, mask)
    rough = ROUGH.get(spec.precision)
    quick = partial(extract, dtype=rough) if rough else None
    taken = 0

    def on_step(step: int, image: Tensor, loss: float) -> None:
        nonlocal taken
        taken = step
        if tell.report is not None:
            done = scale.begin + (scale.end - scale.begin) * step / scale.steps
            step += scale.before
            tell(Progress(step, scale.number, scale.count, done, image, loss))

    exact = math.ceil(EXACT_STEPS * scale.steps)
    with convolving(spec.precision):
        found = optimize(
            image,
            extract,
            criterion,
            scale.steps,
            spec.optimizer,
            lr,
            on_step,
            quick,
            exact,
            spec.tolerance,
            spec.memory,
            None if tell.checkpoints is None else tell.keep,
            tell.go_on(),
            lambda step: tell.went_back(step + scale.before),
        )
    undone = scale.steps - taken
    tell.leave_out(undone, (scale.end - scale.begin) * undone / max(1, scale.steps))
    return found


def sizes_of(spec: Spec, layers: list[str]) -> Sizes:
    """The sizes of (exemplar, output) from coarse to fine; raises UserError as `pyramid` does."""
    down, across = (stride(layers) if axis in spec.canvas.tile else 1 for axis in "yx")
    exemplar = size_of(spec.exemplars[0].image)
    return pyramid(exemplar, spec.canvas.size, spec.scales, least_side(layers), (down, across))


@torch.no_grad()
def criterion_at(spec: Spec, trunk: Extractor, source_size: Size, size: Size) -> Criterion:
    """What the output shall be like at one scale, from the exemplars resized to it."""
    factor = source_size[0] / spec.exemplars[0].image.shape[2]
    exemplars = tuple(_seen_by(trunk, one, factor) for one in spec.exemplars)
    inputs = TermInputs(exemplars, spec.canvas, Options(spec.seed, spec.max_patches, spec.group))
    layers = spec.layers or equal_weights(trunk.layers)
    criterion = Criterion(inputs, layers, spec.method, spec.weights, spec.match_every)
    if spec.canvas.content is not None:
        features = trunk(resize(spec.canvas.content, size, spec.canvas.tile))
        photo = TermInputs((Exemplar((View(features),)),))
        layers = equal_weights(spec.content_layers)
        criterion.add(spec.content_weight, Content(photo, layers), layers)
    return criterion


def _seen_by(trunk: Extractor, exemplar: Exemplar, factor: float) -> Exemplar:
    """An exemplar of pictures, resized, as one of features."""
    views = [
        replace(view, features=trunk(resize(view.image, scaled_size(view.image, factor))))
        for view in exemplar.views
    ]
    return replace(exemplar, views=tuple(views))


def exemplar_of(
    picture: Tensor,
    rotations: Sequence[float] = (),
    factors: Sequence[float] = (),
    share: float = 1.0,
    valid: Tensor | None = None,
) -> Exemplar:
    """A picture (1, 3, H, W) in [0, 1], and the same rotated by degrees and resized by factors.

    Args:
        valid: (1, 1, H, W) of bool, the pixels that count; None: all. The others are filled.
    """
    if valid is None:
        copies = [picture, *rotated_and_resized(picture, rotations, factors)]
        views = tuple(View({"image": image}) for image in copies)
        return Exemplar(views, share, tuple(rotations), tuple(factors))
    picture = fill_invalid(picture, valid)
    copies = [picture, *rotated_and_resized(picture, rotations, factors)]
    shares = [valid.float(), *rotated_and_resized(valid.float(), rotations, factors)]
    views = tuple(
        View({"image": image}, valid=part > NEARLY_ALL)
        for image, part in zip(copies, shares, strict=True)
    )
    return Exemplar(views, share, tuple(rotations), tuple(factors))


def _started(canvas: Canvas, image: Tensor, first: bool) -> Tensor:
    """What a scale starts from: `image`, noise or the scale before, or init where it counts."""
    init, mask = canvas.init_at(size_of(image)), canvas.mask_at(size_of(image))
    if init is None or not (first or mask is not None):
        return image
    if image.shape[1] == 1 and is_grey(init):
        init = init[:, :1]  # what is grey stays grey under any optimiser
    return init if mask is None else torch.where(mask, image, init)


def finished(canvas: Canvas, image: Tensor) -> Tensor:
    """(1, 3 or 1, h, w) of any scale -> (1, 3, H, W) of the canvas's size, with what was to be kept
    put back exactly, and a tile cut where that is free."""
    image = _whole(canvas, image)
    return image if canvas.has_layout else cut(image, canvas.tile)


def _whole(canvas: Canvas, image: Tensor) -> Tensor:
    image = resize(image, canvas.size, canvas.tile).expand(-1, 3, -1, -1)
    if canvas.mask is not None and canvas.init is not None:
        image = torch.where(canvas.mask, image, canvas.init)
    elif canvas.keep_color and canvas.content is not None:
        image = with_chroma(image, canvas.content)
    return image


def cut(image: Tensor, tile: str) -> Tensor:
    """(1, 3, H, W) that tiles -> the same, moved round until the step across is the mean one."""
    return image.roll(cut_at(image, tile), (2, 3))


def cut_at(image: Tensor, tile: str) -> Size:
    """By how many rows and columns to roll (1, 3, H, W) that tiles, for the step across its border
    to be the mean one.

    Where the repeat of a picture is cut is free; a row of large steps there looks like a seam.
    """
    shift = [0, 0]
    for i, (axis, dim) in enumerate((("y", 2), ("x", 3))):
        if axis in tile:
            steps = (image - image.roll(1, dim)).abs().transpose(0, dim).flatten(1).mean(1)
            shift[i] = -int((steps - steps.mean()).abs().argmin())
    return shift[0], shift[1]


def _extract(
    look: Look, tile: str, mask: Tensor | None, image: Tensor, dtype: torch.dtype | None = None
) -> Features:
    if mask is not None:
        image = torch.where(mask, image, image.detach())  # no gradient, so that it never moves
    return look(image, tile, dtype)
