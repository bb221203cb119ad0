"""Bring a loss to its minimum over pictures in the box [0, 1]; knows no texture model.

Every picture whose loss and gradient are evaluated is one step, whichever optimiser asks for it.
A criterion that is renewed between steps judges the last picture again by the features that are
there already, which is no step. The box is part of the problem: a picture is saved in [0, 1], and
one that was optimised outside of it and clamped afterwards is another picture, with another loss.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.graphs import KIND, LARGEST, Measure, graphed
from models import Features

LBFGS_MEMORY = 20  # pairs of steps kept; 50 gave no smaller error and costs memory


class Objective(Protocol):
    """What is brought to its minimum: features -> losses (B,)."""

    match_every: int | None  # steps between renewals; None: there is nothing to renew

    def __call__(self, output: Features, /) -> Tensor: ...

    @property
    def generators(self) -> list[torch.Generator]: ...  # what renewals draw from

    def renew(self, output: Features, /) -> None: ...


# Of tensors, numbers and lists of both: all that decides how a run goes on.
State = dict[str, Any]
# Told, where a run can be gone on from, what gives the state there.
Keep = Callable[[Callable[[], State]], None]
Extract = Callable[[Tensor], Features]
Report = Callable[[int, Tensor, float], None]
WentBack = Callable[[int], None]
Numbers = Callable[[], list[float]]


def sent(values: Tensor) -> Numbers:
    """Some numbers on their way to the CPU; called, they are waited for and there."""
    if values.device.type != KIND:
        return values.cpu().tolist  # CPU-GPU sync point
    there = values.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def numbers() -> list[float]:
        arrived.synchronize()
        found: list[float] = there.tolist()
        return found

    return numbers


# Of an evaluator.
KEPT = (
    *("taken", "steps", "exact_steps", "settled", "losses", "renewed", "best", "best_loss"),
    "total",
)


class _OutOfSteps(Exception):
    """The evaluations that were paid for are used up."""


class _Evaluator:
    """The loss of a picture: counts the pictures seen, renews the criterion, remembers the best."""

    def __init__(
        self,
        extractor: Extract,
        criterion: Objective,
        steps: int,
        report: Report | None,
        quick: Extract | None = None,
        exact_steps: int = 0,
        tolerance: float = 0.0,
        late: int = 0,
        keep: Keep | None = None,
        went_back: WentBack | None = None,
    ) -> None:
        self.keep, self.went_back = keep, went_back
        self.exact, self.criterion, self.report = extractor, criterion, report
        self.extractor = extractor if quick is None or exact_steps >= steps else quick
        self.taken, self.steps, self.exact_steps = 0, steps, exact_steps
        self.match_every = criterion.match_every
        self.tolerance, self.settled = tolerance, False
        self.losses: list[float] = []  # of every step
        self.renewed: int | None = None  # after which step
        self.measure: Measure | None = None  # of pictures, as it is the fastest
        self.kept: tuple[Tensor, Features] | None = None  # the last picture, its graph to pixels
        self.best: Tensor | None = None
        self.best_loss = math.inf
        # Steps whose loss is on its way from the GPU, which need not wait for what is said of it.
        self.unread: deque[tuple[int, Tensor, Numbers]] = deque()
        self.late = late
        self.total = 0.0  # of the last step that was read

    def offer(self, state: Callable[[], State]) -> None:
        """Let a run be kept that goes on with a renewal, if there is anything to renew: what is
        held between renewals is no part of its state."""
        if self.keep is not None and self.left and (self.match_every is None or self.due):
            self.keep(lambda: self._state() | state())

    def _state(self) -> State:
        self.read()
        return {
            "evaluator": {name: getattr(self, name) for name in KEPT},
            "exact": self.extractor is self.exact,
            "generators": [one.get_state() for one in self.criterion.generators],
        }

    def go_on(self, state: State) -> None:
        """Take up a state that was kept."""
        for name in KEPT:
            setattr(self, name, state["evaluator"][name])
        if state["exact"]:
            self.extractor = self.exact
        for one, kept in zip(self.criterion.generators, state["generators"], strict=True):
            one.set_state(kept)

    @property
    def best_seen(self) -> Tensor:
        """(B, C, H, W): the best picture; there is one after the first step."""
        assert self.best is not None
        return self.best

    def go_back(self) -> Tensor:
        """The best picture seen; what came of the last step is worth nothing, nor what followed."""
        self.unread.clear()
        if self.went_back is not None:
            self.went_back(self.taken)
        return self.best_seen

    @property
    def due(self) -> bool:
        """Whether the criterion should take anew what it holds fixed, for the steps to come."""
        if self.match_every is None or not self.left:
            return False
        return self.renewed is None or self.taken - self.renewed >= self.match_every

    @property
    def left(self) -> int:
        """How many steps may still be taken."""
        return self.steps - self.taken

    def sharpen(self, at_once: bool = False) -> bool:
        """Look exactly from here on, where the last steps begin or at once.

        Returns whether that is new: losses that were seen before are another objective's then.
        """
        waits = self.left > self.exact_steps and not at_once
        if self.extractor is self.exact or waits:
            return False
        self.read()
        self.extractor, self.measure, self.best_loss = self.exact, None, math.inf
        return True

    def __call__(
        self, image: Tensor, renew: bool = False, keep: bool = False
    ) -> tuple[Tensor, Tensor, float]:
        """One step: (B, C, H, W) -> losses (B,), gradient (B, C, H, W), and the sum of the losses.

        Args:
            renew: renew the criterion for this picture first.
            keep: hold its features, as large as the step itself, where a renewal is due after it.
        """
        if not self.left:
            raise _OutOfSteps
        self.kept = None  # before the forward pass, since two graphs may not fit
        image = image.detach()
        if self.match_every is None:
            self.taken += 1
            if self.measure is None:
                self.measure = graphed(self._measure, image)
            found = self._judge(image, self.measure(image))
        else:
            image = image.requires_grad_()
            features = self.extractor(image)
            if renew:
                self._renew(features)
            self.taken += 1
            if keep and self.due:
                self.kept = image, features
            found = self._judge(image, self._measure_features(image, features))
        return found

    def _settle(self, loss: float) -> None:
        """Leave only a few steps, exact ones, where the loss has stopped falling.

        Medians over as many steps as matches are held for, at least: a step of a line search may
        go far up, and a renewal moves the loss by itself.
        """
        self.losses.append(loss if math.isfinite(loss) else math.inf)
        window = max(SETTLING, self.match_every or 0)
        if not self.tolerance or self.settled or len(self.losses) < 2 * window:
            return
        before = statistics.median(self.losses[-2 * window : -window])
        if statistics.median(self.losses[-window:]) >= (1 - self.tolerance) * before:
            self.steps = min(self.steps, self.taken + math.ceil(LAST_STEPS * self.taken))
            self.settled, self.exact_steps = True, self.left

    def renew_kept(self, image: Tensor) -> tuple[Tensor, Tensor, float]:
        """The last picture, under the criterion renewed for it: no step, as it was seen before."""
        if self.kept is None:  # a run that goes on
            image = image.detach().requires_grad_()
            self.kept = image, self.extractor(image)
        (image, features), self.kept = self.kept, None
        self._renew(features)
        return self._judge(image, self._measure_features(image, features))

    def _renew(self, features: Features) -> None:
        """Another objective, for which no earlier picture counts as the best."""
        self.read()
        self.criterion.renew(features)
        self.renewed, self.best_loss = self.taken, math.inf

    def _measure(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> losses (B,), gradient (B, C, H, W), and the sums of both (2,)."""
        image = image.detach().requires_grad_()
        return self._measure_features(image, self.extractor(image))

    def _measure_features(self, image: Tensor, features: Features) -> tuple[Tensor, ...]:
        losses = self.criterion(features)
        keep = self.kept is not None
        (gradient,) = torch.autograd.grad(losses.sum(), image, retain_graph=keep)
        losses = losses.detach()
        return losses, gradient, torch.stack((losses.sum(), gradient.sum()))

    def _judge(self, image: Tensor, measured: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, float]:
        losses, gradient, both = measured
        self.unread.append((self.taken, image.detach(), sent(both)))
        self.read(self.late)
        return losses, gradient, self.total

    def read(self, late: int = 0) -> None:
        """Judge the pictures whose losses were not read yet, but for so many of the last."""
        while len(self.unread) > late:
            step, image, numbers = self.unread.popleft()
            total, slope = numbers()
            self.total = total if math.isfinite(slope) else math.nan
            if self.total < self.best_loss:
                self.best, self.best_loss = image, self.total
            if self.best is None:
                raise FloatingPointError(f"the loss of the first picture is {self.total}")
            if step > len(self.losses):  # else it was judged before, by another criterion
                self._settle(self.total)
                if self.report:
                    self.report(step, self.best, self.best_loss)


def optimize(
    image: Tensor,
    extractor: Extract,
    criterion: Objective,
    steps: int,
    optimizer: str = "Adam",
    lr: float | None = None,
    report: Report | None = None,
    quick: Extract | None = None,
    exact_steps: int = 0,
    tolerance: float = 0.0,
    memory: int = LBFGS_MEMORY,
    keep: Keep | None = None,
    state: State | None = None,
    went_back: WentBack | None = None,
) -> Tensor:
    """The best of the pictures seen in `steps` evaluations or fewer, starting from `image`.

    Args:
        image: (B, C, H, W) in [0, 1]; it is not changed.
        extractor: pictures -> features.
        criterion: features -> losses (B,); their sum is minimised.
        steps: evaluations of loss and gradient; with 0 the picture comes back as it is.
        optimizer: a name in `OPTIMIZERS`.
        lr: step size; None means the optimiser's own default, `LEARNING_RATES`.
        report: called after every step with its number, from 1, the best picture and its loss.
        quick: what looks at pictures instead of `extractor`, less exactly; None: nothing does.
        exact_steps: for how many steps at the end it does not.
        tolerance: share of the loss which `SETTLING` steps must save, or a few exact ones, in the
            measure of `LAST_STEPS`, are the last; with 0 all steps are taken.
        memory: so many steps L-BFGS remembers, each with two pictures.
        keep: called wherever the run could be gone on from.
        state: what was kept of a run with the same arguments, which goes on from there and ends as
            it would have ended.
        went_back: called with the number of a step whose loss or gradient is not finite, from
            which Adam goes back to the best picture with half of its step size.

    Raises:
        FloatingPointError: the loss of `image` itself is not finite.
    """
    small = image.device.type == KIND and image[:, 0].numel() <= LARGEST
    late = LATE if small and optimizer in WAITS_FOR_NOTHING else 0
    evaluate = _Evaluator(
        extractor, criterion, steps, report, quick, exact_steps, tolerance, late, keep, went_back
    )
    if state is not None:
        evaluate.go_on(state)
    lr = LEARNING_RATES[optimizer] if lr is None else lr
    try:
        OPTIMIZERS[optimizer](evaluate, image, lr, memory, state)
    except _OutOfSteps:
        pass
    evaluate.read()
    return image if evaluate.best is None else evaluate.best


def _adam(evaluate: _Evaluator, image: Tensor, lr: float, _: int, state: State | None) -> None:
    """Adam (Kingma and Ba 2015) on the logarithm of the loss, projected onto the box.

    The loss falls by four orders of magnitude and its gradient with it. Adam divides by a mean of
    past gradients, so that on the loss itself the steps freeze soon after the start; on its
    logarithm the gradient keeps its size. A cosine decay follows the steps that are left.
    """
    first, second = torch.zeros_like(image), torch.zeros_like(image)
    age, losses, phase = 0, image.new_ones(len(image)), 0.0
    if state is not None:
        image, first, second, losses, age, phase, lr = state["adam"]
    while evaluate.left:
        evaluate.offer(partial(dict, adam=[image, first, second, losses, age, phase, lr]))
        rate = (1 + math.cos(math.pi * phase)) / 2
        phase += (1 - phase) / evaluate.left
        sharper, due, before = evaluate.sharpen(), evaluate.due, losses
        losses, gradient, total = evaluate(image, renew=due)
        if not math.isfinite(total):
            image, lr, age = evaluate.go_back(), lr / 2, 0
            first.zero_()
            second.zero_()
            continue
        if (sharper or due) and age:
            # What is remembered was divided by losses of another height.
            ratio = (before / losses.clamp(min=1e-12)).clamp(max=1e3).view(-1, 1, 1, 1)
            first.mul_(ratio)
            second.mul_(ratio.square())
        gradient = gradient / losses.clamp(min=torch.finfo(losses.dtype).tiny).view(-1, 1, 1, 1)
        age += 1
        # In place: of a large picture each of these takes hundreds of megabytes.
        first.lerp_(gradient, 1 - ADAM_BETA1)
        second.lerp_(gradient.square_(), 1 - ADAM_BETA2)
        deviation = gradient.copy_(second).div_(1 - ADAM_BETA2**age).sqrt_().add_(1e-12)
        direction = (first / (1 - ADAM_BETA1**age)).div_(deviation)
        image = (image - direction.mul_(lr * rate)).clamp_(0, 1)


def _lbfgs(
    evaluate: _Evaluator, image: Tensor, lr: float, memory: int, state: State | None
) -> None:
    """L-BFGS (Liu and Nocedal 1989) within the box by projection (Bertsekas 1982).

    Pixels that are at a bound and whose gradient pushes them out of the box are held; the others
    take the quasi-Newton step, are clamped, and a backtracking line search asks the clamped
    picture, not the free one, for a sufficient decrease (Armijo). The line search makes every
    accepted step a descent: it cannot diverge, and a value that is not finite is one more step
    that was too long.
    """
    history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=memory)
    if state is None:
        _, gradient, loss = evaluate(image, renew=evaluate.due)
    else:
        image, gradient, loss, pairs = state["lbfgs"]
        history.extend(map(tuple, pairs))
        if evaluate.due:
            _, gradient, loss = evaluate.renew_kept(image)
    while True:
        if evaluate.sharpen():
            # The curvature seen so far is kept: rounding hardly touches it.
            _, gradient, loss = evaluate(image)
        held = ((image <= 0) & (gradient > 0)) | ((image >= 1) & (gradient < 0))
        free_gradient = gradient.masked_fill(held, 0)
        direction = _quasi_newton(free_gradient, history).masked_fill_(held, 0)
        slope = (free_gradient * direction).sum()
        accepted = _line_search(evaluate, image, direction, gradient, slope, loss, lr)
        if accepted is None:
            if not history and evaluate.sharpen(at_once=True):
                _, gradient, loss = evaluate(image)
            elif not history and evaluate.match_every is None:
                return  # the gradient itself leads nowhere: a minimum
            elif not history:
                _, gradient, loss = evaluate(image, renew=True)
            history.clear()
            continue
        new_image, new_gradient, loss = accepted
        moved, gradient_change = new_image - image, new_gradient - gradient
        curvature = (moved * gradient_change).sum()
        if curvature > 1e-10 * gradient_change.square().sum():  # CPU-GPU sync point
            history.append((moved, gradient_change, 1 / curvature))
        image, gradient = new_image, new_gradient
        evaluate.offer(partial(dict, lbfgs=[image, gradient, loss, list(history)]))
        if evaluate.due:
            # The curvature seen so far is kept: it is the features', hardly the held matches'.
            _, gradient, loss = evaluate.renew_kept(image)


def _quasi_newton(gradient: Tensor, history: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The direction `-H gradient` by the two-loop recursion (Nocedal and Wright, algorithm 7.4)."""
    if not history:
        return gradient * (-LBFGS_FIRST_MOVE / gradient.abs().mean().clamp(min=1e-30))
    direction, weights = -gradient, []
    for moved, gradient_change, inverse_curvature in reversed(history):
        weights.append(inverse_curvature * (moved * direction).sum())
        direction = direction - weights[-1] * gradient_change
    _, gradient_change, inverse_curvature = history[-1]
    direction = direction / (inverse_curvature * gradient_change.square().sum())
    for (moved, gradient_change, inverse_curvature), weight in zip(
        history, reversed(weights), strict=True
    ):
        direction = (
            direction + (weight - inverse_curvature * (gradient_change * direction).sum()) * moved
        )
    return direction


def _line_search(
    evaluate: _Evaluator,
    image: Tensor,
    direction: Tensor,
    gradient: Tensor,
    slope: Tensor,
    loss: float,
    rate: float,
) -> tuple[Tensor, Tensor, float] | None:
    """The first picture along the clamped path that decreases the loss enough, or None.

    A `slope` along the direction that is not negative is seen together with the first trial's loss,
    since a GPU waits whenever the CPU asks it for a number: one trial is in vain then, which is
    rare.
    """
    for _ in range(LINE_SEARCH_TRIALS):
        trial = (image + rate * direction).clamp(0, 1)
        numbers = sent(torch.stack((slope, (gradient * (trial - image)).sum())))
        _, trial_gradient, trial_loss = evaluate(trial, keep=True)
        down, expected = numbers()
        if not down < 0:
            return None
        if trial_loss <= loss + 1e-4 * min(expected, 0):
            return trial, trial_gradient, trial_loss
        if math.isfinite(trial_loss):
            # The minimum of the parabola through both losses and the slope at the start.
            bend = trial_loss - loss - expected
            rate *= min(max(-expected / (2 * bend), 0.1), 0.5) if bend > 0 else 0.1
        else:
            rate *= 0.1
    return None


SETTLING = 20  # steps over which a loss must fall to be worth more of them
LAST_STEPS = 0.125  # of those that were taken until a loss stopped falling
ADAM_BETA1, ADAM_BETA2 = 0.95, 0.99
LBFGS_FIRST_MOVE = 0.05  # mean change of a pixel in the first step, when no curvature is known
LINE_SEARCH_TRIALS = 10
LATE = 8  # steps after which a GPU's losses are read, so that it always has work
WAITS_FOR_NOTHING = {"Adam"}  # whose next step does not turn on the loss; a line search's does
OPTIMIZERS = {"Adam": _adam, "LBFGS": _lbfgs}
LEARNING_RATES = {"Adam": 0.05, "LBFGS": 1.0}
