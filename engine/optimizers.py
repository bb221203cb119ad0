"""Optimizers of pictures within the box [0, 1]; independent of texture models.

Each evaluation of loss and gradient is one step, whichever optimizer makes it. The box is a part of
the problem: a picture is saved in [0, 1], and one that is optimized outside of it and clamped
afterwards is another picture, with another loss.

A new optimizer is a class with the methods of `Optimizer` and one line in `OPTIMIZERS`.
"""

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from engine.graphs import KIND, LARGEST
from engine.objective import Evaluator, Objective, State, sent

LBFGS_MEMORY = 20  # steps in the history; 50 gave no smaller error and cost memory
ADAM_BETA1, ADAM_BETA2 = 0.95, 0.99
LBFGS_FIRST_MOVE = 0.05  # mean change of a pixel in the first step, when no curvature is known
LINE_SEARCH_TRIALS = 10
LATE = 8  # steps by which reading the losses of a GPU is delayed, so that it is always busy
READ_EVERY = 64  # steps after which all losses of a GPU are read, for a checkpoint


class Optimizer(Protocol):
    """An optimizer of pictures (B, C, H, W) in [0, 1]."""

    default_lr: ClassVar[float]

    def __init__(self, image: Tensor, *, lr: float, memory: int) -> None: ...

    @property
    def reads_losses(self) -> bool:
        """Whether each step depends on the loss of the step before."""

    @property
    def converged(self) -> bool:
        """Whether no step leads to a smaller loss."""

    @property
    def may_rematch(self) -> bool:
        """Whether the next step may begin with a rematch of the criterion."""

    def step(self, evaluate: Evaluator) -> None:
        """Evaluate one picture and prepare the next one."""

    def state_dict(self) -> State:
        """Return all that determines the steps that follow."""

    def load_state_dict(self, state: State) -> None:
        """Restore a state of `state_dict`."""


@dataclass(frozen=True)
class Settings:
    """Settings of a minimization."""

    steps: int  # evaluations of loss and gradient
    optimizer: str = "Adam"  # a name in `OPTIMIZERS`
    lr: float | None = None  # step size; None: `LEARNING_RATES`
    memory: int = LBFGS_MEMORY  # steps in the history of L-BFGS, each of two pictures
    exact_steps: int = 0  # at the end, if the objective has a rough extractor
    tolerance: float = 0.0  # as `Evaluator` has it


class Step(NamedTuple):
    """The outcome of a step of `minimize`."""

    number: int  # from 1
    image: Tensor  # (B, C, H, W): the best picture so far
    loss: float  # of the best picture
    went_back: bool  # whether Adam went back to the best picture, after a loss that is not finite
    state: Callable[[], State] | None  # from which `minimize` can go on; valid until the next step


class Minimum(NamedTuple):
    """The result of `minimize`."""

    image: Tensor  # (B, C, H, W): the best of all pictures that were evaluated
    steps: int  # that were taken


def minimize(
    image: Tensor, objective: Objective, settings: Settings, state: State | None = None
) -> Generator[Step, None, Minimum]:
    """Minimize the sum of the losses of pictures.

    Args:
        image: (B, C, H, W) in [0, 1], the start; it is not changed.
        objective: loss and gradient.
        settings: with 0 steps the start is returned.
        state: of a step of a run with the same arguments: the run goes on from there, and ends in
            the same pictures.

    Yields:
        Each step.

    Returns:
        The best picture, or the start if there are no steps.

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
        # What the criterion holds between rematches is not a part of the state.
        rematches = evaluate.match_every is None or (optimizer.may_rematch and evaluate.due)
        resumable = evaluate.tracker.is_read and evaluate.left and rematches
        for reached in evaluate.tracker.take():
            state_here = current if resumable and reached.step == evaluate.taken else None
            yield Step(*reached, evaluate.went_back, state_here)
            evaluate.went_back = False
    best = evaluate.tracker.best
    return Minimum(image if best is None else best, evaluate.taken)


def _begin(image: Tensor, objective: Objective, settings: Settings) -> tuple[Optimizer, Evaluator]:
    lr = LEARNING_RATES[settings.optimizer] if settings.lr is None else settings.lr
    optimizer = OPTIMIZERS[settings.optimizer](image, lr=lr, memory=settings.memory)
    small = image.device.type == KIND and image[:, 0].numel() <= LARGEST
    evaluate = Evaluator(
        objective,
        steps=settings.steps,
        exact_steps=settings.exact_steps,
        tolerance=settings.tolerance,
        late=LATE if small and not optimizer.reads_losses else 0,
    )
    return optimizer, evaluate


class Adam:
    """Adam (Kingma and Ba 2015) on the logarithm of the loss, projected onto the box.

    The loss decreases by four orders of magnitude and its gradient with it. Adam divides by a mean
    of past gradients, so that on the loss itself the steps vanish soon after the start; on its
    logarithm the gradient keeps its size. The step size follows a cosine over the steps that are
    left. After a loss or gradient that is not finite it is halved, and the best picture is the new
    start.
    """

    default_lr: ClassVar[float] = 0.05
    reads_losses = False
    converged = False
    may_rematch = True

    def __init__(self, image: Tensor, *, lr: float, memory: int = 0) -> None:
        self.image, self.lr = image, lr
        self.first, self.second = torch.zeros_like(image), torch.zeros_like(image)
        self.losses = image.new_ones(len(image))  # of the last step
        self.age = 0  # steps in the moments
        self.phase = 0.0  # of the cosine, 0 ... 1

    def step(self, evaluate: Evaluator) -> None:
        """Evaluate the picture and move it."""
        rate = (1 + math.cos(math.pi * self.phase)) / 2
        self.phase += (1 - self.phase) / evaluate.left
        is_exact_now, due, before = evaluate.use_exact(), evaluate.due, self.losses
        self.losses, gradient, total = evaluate(self.image, rematch=due)
        if not math.isfinite(total):
            self.image, self.lr, self.age = evaluate.go_back(), self.lr / 2, 0
            self.first.zero_()
            self.second.zero_()
            return
        if (is_exact_now or due) and self.age:
            # The moments are of gradients that were divided by losses of another objective.
            ratio = (before / self.losses.clamp(min=1e-12)).clamp(max=1e3).view(-1, 1, 1, 1)
            self.first.mul_(ratio)
            self.second.mul_(ratio.square())
        tiny = torch.finfo(self.losses.dtype).tiny
        gradient = gradient / self.losses.clamp(min=tiny).view(-1, 1, 1, 1)
        self.age += 1
        # In place, since each of these takes hundreds of megabytes for a large picture.
        self.first.lerp_(gradient, 1 - ADAM_BETA1)
        self.second.lerp_(gradient.square_(), 1 - ADAM_BETA2)
        deviation = gradient.copy_(self.second).div_(1 - ADAM_BETA2**self.age).sqrt_().add_(1e-12)
        direction = (self.first / (1 - ADAM_BETA1**self.age)).div_(deviation)
        self.image = (self.image - direction.mul_(self.lr * rate)).clamp_(0, 1)

    def state_dict(self) -> State:
        return dict(vars(self))

    def load_state_dict(self, state: State) -> None:
        vars(self).update(state)


class LBFGS:
    """L-BFGS (Liu and Nocedal 1989) within the box by projection (Bertsekas 1982).

    Pixels that are at a bound, and whose gradient points out of the box, are held. The others take
    the quasi-Newton step and are clamped; a backtracking line search requires a sufficient decrease
    (Armijo) of the clamped picture. Each accepted step is a descent, so that the method cannot
    diverge; a loss that is not finite is one of a step that was too long.
    """

    default_lr: ClassVar[float] = 1.0
    reads_losses = True

    def __init__(self, image: Tensor, *, lr: float, memory: int = LBFGS_MEMORY) -> None:
        self.image, self.lr = image, lr  # the last picture that was accepted
        self.gradient: Tensor | None = None  # None: the picture must be evaluated
        self.loss = math.inf
        self.history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=memory)
        self.search: Search | None = None  # the line search that is going on
        self.accepted = self.converged = self.stuck = False

    @property
    def may_rematch(self) -> bool:
        """Whether the last picture was accepted."""
        return self.accepted

    def step(self, evaluate: Evaluator) -> None:
        """Evaluate a picture: a trial of the line search, or the last accepted picture where the
        objective has changed."""
        if self.gradient is None or self.stuck:
            _, self.gradient, self.loss = evaluate(self.image, rematch=evaluate.due or self.stuck)
            self.stuck = False
            return
        if self.search is None:
            if self.accepted and evaluate.due:
                _, self.gradient, self.loss = evaluate.rematch_last(self.image)
            self.accepted = False
            if evaluate.use_exact():
                # The history is kept: rounding hardly changes curvature.
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
        """Evaluate one picture on the clamped path, and accept it or shorten the step.

        Whether the direction descends is read together with the loss of the trial, since the CPU
        waits for a GPU whenever it reads a number. A trial is wasted then, which is rare.
        """
        trial = (self.image + search.rate * search.direction).clamp(0, 1)
        numbers = sent(torch.stack((search.slope, (gradient * (trial - self.image)).sum())))
        _, trial_gradient, loss = evaluate(trial, keep=True)
        down, expected = numbers()
        if not down < 0:
            self._fail(evaluate)
        elif loss <= self.loss + 1e-4 * min(expected, 0):
            self._accept(trial, trial_gradient, loss)
        else:
            rate = search.rate * _shortened(loss - self.loss, expected)
            self.search = search._replace(rate=rate, trials=search.trials + 1)
            if self.search.trials == LINE_SEARCH_TRIALS:
                self._fail(evaluate)

    def _accept(self, image: Tensor, gradient: Tensor, loss: float) -> None:
        assert self.gradient is not None  # where a line search is going on
        moved, change = image - self.image, gradient - self.gradient
        curvature = (moved * change).sum()
        if curvature > 1e-10 * change.square().sum():  # CPU-GPU sync point
            self.history.append((moved, change, 1 / curvature))
        self.image, self.gradient, self.loss = image, gradient, loss
        self.search, self.accepted = None, True

    def _fail(self, evaluate: Evaluator) -> None:
        """End a line search without a step: forget the history, or if there is none, change the
        objective or end."""
        self.search = None
        if self.history:
            self.history.clear()
        elif evaluate.use_exact(at_once=True):
            self.gradient = None
        elif evaluate.match_every is None:
            self.converged = True  # the gradient itself is no descent
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
    """A line search."""

    direction: Tensor  # (B, C, H, W)
    slope: Tensor  # (), of the loss along the direction
    rate: float  # of the next trial, relative to the direction
    trials: int = 0  # that have failed


def quasi_newton(gradient: Tensor, history: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the direction `-H gradient` by the two-loop recursion (Nocedal and Wright, algorithm
    7.4).

    Args:
        gradient: (B, C, H, W).
        history: of each step the change of the picture, that of the gradient, and the reciprocal of
            their product.
    """
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


def _shortened(increase: float, expected: float) -> float:
    """Return the factor of the step to the minimum of the parabola through the losses at the start
    and at a trial, and the slope at the start; 0.1 where there is none.

    Args:
        increase: of the loss at the trial.
        expected: the increase by the slope at the start.
    """
    bend = increase - expected
    if not math.isfinite(bend) or bend <= 0:
        return 0.1
    return min(max(-expected / (2 * bend), 0.1), 0.5)


OPTIMIZERS: dict[str, type[Optimizer]] = {"Adam": Adam, "LBFGS": LBFGS}
LEARNING_RATES = {name: kind.default_lr for name, kind in OPTIMIZERS.items()}
