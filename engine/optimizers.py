"""Optimizers of pictures within the box [0, 1]; independent of texture models.

Each evaluation of loss and gradient is one step, whichever optimizer makes it. The box is a
constraint of the problem, since a picture is saved in [0, 1]: clamping after an unconstrained
optimization would change the picture and its loss.

A new optimizer is a subclass of `Optimizer`, and an item of `OPTIMIZERS`.
"""

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from engine.graphs import CUDA, MAX_PIXELS
from engine.objective import Evaluator, Objective, State, start_reading

LBFGS_MEMORY = 20  # steps in the history; 50 gave no smaller error and cost memory
ADAM_BETA1, ADAM_BETA2 = 0.95, 0.99
LBFGS_FIRST_MOVE = 0.05  # mean change of a pixel in the first step, when no curvature is known
LINE_SEARCH_TRIALS = 10
LATE = 8  # steps by which the reading of losses is delayed, so that a GPU is always busy
READ_EVERY = 64  # steps after which all losses are read, so that a run can be resumed from there


class Optimizer:
    """An optimizer of pictures (B, C, H, W) in [0, 1]."""

    default_lr: ClassVar[float]
    # Factor of the step size where the start, or its fine detail, is painted
    painted_lr: ClassVar[float] = 1.0
    # Whether its first steps form detail anew: from noise, only that of the finest scale is painted
    forms_detail: ClassVar[bool] = False
    keeps_history: ClassVar[bool] = False  # whether it keeps `memory` pairs of pictures
    reads_losses = False  # whether each step depends on the loss of the step before
    converged = False  # whether it has found no step that decreases the loss

    def __init__(self, image: Tensor, *, lr: float, memory: int) -> None:
        raise NotImplementedError

    @property
    def may_rematch(self) -> bool:
        """Whether the next step may begin with a rematch of the criterion."""
        return True

    def step(self, evaluate: Evaluator) -> None:
        """Evaluate one picture and prepare the next one, in [0, 1].

        Call `evaluate.use_exact()` before `evaluate(image, rematch=evaluate.rematch_is_due)`. If
        the first returns True or a rematch is due, earlier losses and gradients are those of
        another objective. If the total loss is not finite, continue from `evaluate.go_back()`.
        """
        raise NotImplementedError

    def state_dict(self) -> State:
        """Return everything that determines the following steps."""
        return dict(vars(self))

    def load_state_dict(self, state: State) -> None:
        """Restore a state that `state_dict` has returned."""
        vars(self).update(state)


@dataclass(frozen=True)
class Settings:
    """Settings of a minimization."""

    steps: int  # evaluations of loss and gradient
    optimizer: str = "Adam"  # a name in `OPTIMIZERS`
    lr: float | None = None  # step size; None: the optimizer's `default_lr`
    # Whether the start, or its fine detail, is painted; the step size is then times `painted_lr`
    is_painted: bool = False
    memory: int = LBFGS_MEMORY  # steps in the history of L-BFGS; each takes two pictures of memory
    exact_steps: int = 0  # steps at the end that are exact, if the objective has a rough extractor
    tolerance: float = 0.0  # see `Evaluator`


class Step(NamedTuple):
    """The outcome of a step of `minimize`."""

    number: int  # from 1
    image: Tensor  # (B, C, H, W): the best picture so far
    loss: float  # of the best picture
    went_back: bool  # whether Adam went back to the best picture after a non-finite loss
    # Returns the state from which `minimize` resumes after this step; to be called before the next
    # step. None: it cannot resume here.
    state: Callable[[], State] | None


def minimize(
    image: Tensor, objective: Objective, settings: Settings, state: State | None = None
) -> Generator[Step, None, tuple[Tensor, int]]:
    """Minimize the sum of the losses of pictures.

    Args:
        image: the start, (B, C, H, W) in [0, 1]; it is not changed.
        objective: losses and gradient.
        settings: the optimizer and its settings.
        state: from a step of a run with the same arguments; the run resumes after that step and
            ends in the same pictures. None: it starts.

    Yields:
        Each step.

    Returns:
        The best pictures, (B, C, H, W), or the start if there are no steps; the number of steps.

    Raises:
        FloatingPointError: the loss of the start is not finite.
    """
    optimizer, evaluate = _begin(image, objective, settings)
    if state is not None:
        evaluate.load_state_dict(state["evaluator"])
        optimizer.load_state_dict(state["optimizer"])

    def current() -> State:
        return {"evaluator": evaluate.state_dict(), "optimizer": optimizer.state_dict()}

    while evaluate.left and not optimizer.converged:
        optimizer.step(evaluate)
        if evaluate.taken % READ_EVERY == 0 or not evaluate.left:
            evaluate.read()
        # The state lacks the matches of the criterion, so that the next step must rematch.
        rematch_follows = optimizer.may_rematch and evaluate.rematch_is_due
        is_complete = evaluate.match_every is None or rematch_follows
        resumable = evaluate.left and is_complete
        for number, best, loss in evaluate.tracker.take():
            is_last = number == evaluate.taken  # and no loss is left to be read
            state_here = current if resumable and is_last else None
            yield Step(number, best, loss, evaluate.went_back, state_here)
            evaluate.went_back = False
    found = evaluate.tracker.best
    return image if found is None else found, evaluate.taken


def _begin(image: Tensor, objective: Objective, settings: Settings) -> tuple[Optimizer, Evaluator]:
    kind = OPTIMIZERS[settings.optimizer]
    lr = kind.default_lr if settings.lr is None else settings.lr
    if settings.is_painted:
        lr *= kind.painted_lr
    optimizer = kind(image, lr=lr, memory=settings.memory)
    small = image.device.type == CUDA and image[:, 0].numel() <= MAX_PIXELS
    evaluate = Evaluator(
        objective,
        steps=settings.steps,
        exact_steps=settings.exact_steps,
        tolerance=settings.tolerance,
        late=LATE if small and not optimizer.reads_losses else 0,
    )
    return optimizer, evaluate


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015) on the logarithm of the loss, projected onto the box.

    During a run, the loss and its gradient decrease by four orders of magnitude. Adam divides the
    gradient by the root mean square of past gradients, which large early gradients dominate, so
    that steps on the loss itself would soon vanish. The gradient of the logarithm keeps its
    magnitude. The step size decays to 0 by a cosine over
    the remaining steps. After a loss or gradient that is not finite, the step size is halved, the
    moments are reset, and the best picture is the new start.
    """

    default_lr = 0.05
    painted_lr = 0.08
    forms_detail = True

    def __init__(self, image: Tensor, *, lr: float, memory: int = 0) -> None:
        self.image, self.lr = image, lr
        self.first, self.second = torch.zeros_like(image), torch.zeros_like(image)
        self.losses = image.new_ones(len(image))  # of the last step
        self.age = 0  # number of steps in the moments
        self.phase = 0.0  # of the cosine, 0 ... 1

    def step(self, evaluate: Evaluator) -> None:
        """Evaluate the picture and move it."""
        rate = (1 + math.cos(math.pi * self.phase)) / 2
        self.phase += (1 - self.phase) / evaluate.left
        is_exact_now, due, before = evaluate.use_exact(), evaluate.rematch_is_due, self.losses
        self.losses, gradient, total = evaluate(self.image, rematch=due)
        if not math.isfinite(total):
            self.image, self.lr, self.age = evaluate.go_back(), self.lr / 2, 0
            self.first.zero_()
            self.second.zero_()
            return
        if (is_exact_now or due) and self.age:
            # The gradients in the moments were divided by losses of another objective.
            ratio = (before / self.losses.clamp(min=1e-12)).clamp(max=1e3).view(-1, 1, 1, 1)
            self.first.mul_(ratio)
            self.second.mul_(ratio.square())
        tiny = torch.finfo(self.losses.dtype).tiny
        gradient = gradient / self.losses.clamp(min=tiny).view(-1, 1, 1, 1)
        self.age += 1
        # In place, since each tensor takes hundreds of megabytes for a large picture.
        self.first.lerp_(gradient, 1 - ADAM_BETA1)
        self.second.lerp_(gradient.square_(), 1 - ADAM_BETA2)
        deviation = gradient.copy_(self.second).div_(1 - ADAM_BETA2**self.age).sqrt_().add_(1e-12)
        direction = (self.first / (1 - ADAM_BETA1**self.age)).div_(deviation)
        self.image = (self.image - direction.mul_(self.lr * rate)).clamp_(0, 1)


class LBFGS(Optimizer):
    """L-BFGS (Liu and Nocedal 1989) within the box by projection (Bertsekas 1982).

    Pixels at a bound whose negative gradient points out of the box are held. The others take the
    quasi-Newton step and are clamped; a backtracking line search requires a sufficient decrease
    (Armijo) of the loss of the clamped picture. Every accepted step decreases the loss, so that the
    method cannot diverge; a step whose loss is not finite is shortened like any step that is too
    long.
    """

    default_lr = 1.0
    keeps_history = True
    reads_losses = True

    def __init__(self, image: Tensor, *, lr: float, memory: int = LBFGS_MEMORY) -> None:
        self.image, self.lr = image, lr  # the last picture that was accepted
        self.gradient: Tensor | None = None  # None: the picture must be evaluated
        self.loss = math.inf
        self.history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=memory)
        self.search: Search | None = None  # the line search in progress
        self.accepted = self.converged = self.stuck = False

    @property
    def may_rematch(self) -> bool:
        """Whether the last picture was accepted."""
        return self.accepted

    def step(self, evaluate: Evaluator) -> None:
        """Evaluate a picture: a trial of the line search or, if the objective has changed, the last
        accepted picture."""
        if self.gradient is None or self.stuck:
            rematch = evaluate.rematch_is_due or self.stuck
            _, self.gradient, self.loss = evaluate(self.image, rematch=rematch)
            self.stuck = False
            return
        if self.search is None:
            if self.accepted and evaluate.rematch_is_due:
                _, self.gradient, self.loss = evaluate.rematch_last(self.image)
            self.accepted = False
            if evaluate.use_exact():
                # The history is kept, since rounding hardly changes the curvature.
                _, self.gradient, self.loss = evaluate(self.image)
                return
            self.search = self._new_search(self.gradient)
        self._try(evaluate, self.search, self.gradient)

    def _new_search(self, gradient: Tensor) -> "Search":
        held = ((self.image <= 0) & (gradient > 0)) | ((self.image >= 1) & (gradient < 0))
        free = gradient.masked_fill(held, 0)
        direction = quasi_newton(free, self.history).masked_fill_(held, 0)
        return Search(direction, (free * direction).sum(), self.lr)

    def _try(self, evaluate: Evaluator, search: "Search", gradient: Tensor) -> None:
        """Evaluate a trial of the line search, and accept it or shorten the step.

        Each read makes the CPU wait for the GPU. The slope of the direction is therefore read only
        when the trial's loss is read too. In rare cases it is not negative; the trial is wasted.
        """
        trial = (self.image + search.rate * search.direction).clamp(0, 1)
        expected_change = (gradient * (trial - self.image)).sum()
        numbers = start_reading(torch.stack((search.slope, expected_change)))
        _, trial_gradient, loss = evaluate(trial, keep=True)
        slope, expected = numbers()
        if not slope < 0:
            self._fail(evaluate)
        elif loss <= self.loss + 1e-4 * min(expected, 0):
            self._accept(trial, trial_gradient, loss)
        else:
            rate = search.rate * _backtracking_factor(loss - self.loss, expected)
            self.search = search._replace(rate=rate, trials=search.trials + 1)
            if self.search.trials == LINE_SEARCH_TRIALS:
                self._fail(evaluate)

    def _accept(self, image: Tensor, gradient: Tensor, loss: float) -> None:
        assert self.gradient is not None  # during a line search
        moved, change = image - self.image, gradient - self.gradient
        curvature = (moved * change).sum()
        if curvature > 1e-10 * change.square().sum():  # CPU-GPU sync point
            self.history.append((moved, change, 1 / curvature))
        self.image, self.gradient, self.loss = image, gradient, loss
        self.search, self.accepted = None, True

    def _fail(self, evaluate: Evaluator) -> None:
        """End a line search that found no step. Of the following, do the first that is possible:
        clear the history, switch to exact evaluations, rematch. If none is, stop."""
        self.search = None
        if self.history:
            self.history.clear()
        elif evaluate.use_exact(at_once=True):
            self.gradient = None
        elif evaluate.match_every is None:
            self.converged = True  # not even the negative gradient leads to a decrease
        else:
            self.stuck = True

    def state_dict(self) -> State:
        search = None if self.search is None else list(self.search)
        return vars(self) | {"history": list(self.history), "search": search}

    def load_state_dict(self, state: State) -> None:
        history = deque(map(tuple, state["history"]), self.history.maxlen)
        search = state["search"] and Search(*state["search"])
        vars(self).update(state | {"history": history, "search": search})


class Search(NamedTuple):
    """A line search in progress."""

    direction: Tensor  # (B, C, H, W)
    slope: Tensor  # (): directional derivative of the loss
    rate: float  # factor of the direction in the next trial
    trials: int = 0  # number of failed trials


def quasi_newton(gradient: Tensor, history: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the direction `-H gradient` by the two-loop recursion (Nocedal and Wright, algorithm
    7.4).

    Args:
        gradient: (B, C, H, W).
        history: for each step, the change of the picture, the change of the gradient, and the
            reciprocal of their inner product.
    """
    if not history:
        return gradient * (-LBFGS_FIRST_MOVE / gradient.abs().mean().clamp(min=1e-30))
    direction, weights = -gradient, []
    for moved, gradient_change, inverse_curvature in reversed(history):
        weights.append(inverse_curvature * (moved * direction).sum())
        direction = direction - weights[-1] * gradient_change
    _, gradient_change, inverse_curvature = history[-1]
    direction = direction / (inverse_curvature * gradient_change.square().sum())
    pairs = zip(history, reversed(weights), strict=True)
    for (moved, gradient_change, inverse_curvature), weight in pairs:
        along = weight - inverse_curvature * (gradient_change * direction).sum()
        direction = direction + along * moved
    return direction


def _backtracking_factor(increase: float, expected: float) -> float:
    """Return the factor by which to shorten a step, in [0.1, 0.5].

    The shortened step ends at the minimum of the parabola that has the losses at the start and at
    the trial and the slope at the start. If the parabola has no minimum, the factor is 0.1.

    Args:
        increase: of the loss from the start to the trial.
        expected: first-order estimate of the increase, by the gradient at the start.
    """
    curvature = increase - expected
    if not math.isfinite(curvature) or curvature <= 0:
        return 0.1
    return min(max(-expected / (2 * curvature), 0.1), 0.5)


OPTIMIZERS: dict[str, type[Optimizer]] = {"Adam": Adam, "LBFGS": LBFGS}
LEARNING_RATES = {name: kind.default_lr for name, kind in OPTIMIZERS.items()}
