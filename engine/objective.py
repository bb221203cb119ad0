"""The objective of an optimization, its evaluations, and the best picture among them."""

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.graphs import CUDA, Measure, graphed
from losses import Criterion
from models import Features

CONVERGENCE_WINDOW = 20  # steps; a loss that does not decrease over them has converged
LAST_STEPS = 0.125  # number of steps after convergence, relative to that before it
# Attributes of an evaluator that are part of its state.
STATE_FIELDS = ("taken", "steps", "exact_steps", "rematched", "settled")

State = dict[str, Any]  # tensors, numbers, and dictionaries and lists of these
Extract = Callable[[Tensor], Features]
Pending = Callable[[], list[float]]  # waits for numbers to arrive on the CPU and returns them


class Measured(NamedTuple):
    """The objective at a picture."""

    losses: Tensor  # (B,)
    gradient: Tensor  # (B, C, H, W), of the sum of the losses
    sums: Tensor  # (2,): of the losses and of the gradient; not finite if any value is not


class Objective:
    """The losses of pictures and their gradient.

    Args:
        extract: pictures (B, C, H, W) -> features.
        criterion: features -> losses (B,).
        rough: a faster and less exact `extract`, such as one in bfloat16, which is used until
            `use_exact` is called.
    """

    def __init__(
        self, extract: Extract, criterion: Criterion, *, rough: Extract | None = None
    ) -> None:
        self.exact, self.criterion = extract, criterion
        self.extract = rough or extract
        self._measure: Measure | None = None  # captured as a CUDA graph where that is faster
        self._kept: tuple[Tensor, Features] | None = None  # the last picture and its graph

    @property
    def is_exact(self) -> bool:
        """Whether pictures are evaluated by `extract`."""
        return self.extract is self.exact

    def use_exact(self) -> None:
        """Evaluate pictures by `extract` from now on."""
        self.extract, self._measure = self.exact, None

    def __call__(self, image: Tensor, *, rematch: bool = False, keep: bool = False) -> Measured:
        """Evaluate pictures (B, C, H, W).

        Args:
            rematch: whether to rematch the criterion for these pictures first.
            keep: whether to keep the features and their autograd graph, so that `rematched` needs
                no forward pass. The graph takes as much memory as the evaluation.
        """
        self._kept = None  # before the forward pass, since two graphs may not fit
        if self.criterion.match_every is None:
            if self._measure is None:
                self._measure = graphed(self._measured, image)
            return Measured(*self._measure(image))
        image = image.detach().requires_grad_()
        features = self.extract(image)
        if rematch:
            self.criterion.rematch(features)
        if keep:
            self._kept = image, features
        return self._of_features(image, features, keep)

    def rematched(self, image: Tensor) -> Measured:
        """Rematch the criterion for the last picture and evaluate it again. If its graph was kept,
        there is no forward pass."""
        if self._kept is None:
            image = image.detach().requires_grad_()
            self._kept = image, self.extract(image)
        (image, features), self._kept = self._kept, None
        self.criterion.rematch(features)
        return self._of_features(image, features)

    def _measured(self, image: Tensor) -> tuple[Tensor, ...]:
        image = image.detach().requires_grad_()
        return self._of_features(image, self.extract(image))

    def _of_features(self, image: Tensor, features: Features, keep: bool = False) -> Measured:
        losses = self.criterion(features)
        (gradient,) = torch.autograd.grad(losses.sum(), image, retain_graph=keep)
        losses = losses.detach()
        return Measured(losses, gradient, torch.stack((losses.sum(), gradient.sum())))


# Number of a step, from 1; the best picture so far, (B, C, H, W); and its loss.
Reached = tuple[int, Tensor, float]


class Tracker:
    """The best picture so far and the losses of all steps.

    A loss may be read several steps after its step. If the CPU read the loss of the current step at
    once, it would have to wait for the GPU.
    """

    def __init__(self) -> None:
        self.best: Tensor | None = None
        self.best_loss = math.inf
        self.losses: list[float] = []  # of each step
        self.last = 0.0  # the last loss that was read; NaN if it or the gradient is not finite
        self.reached: list[Reached] = []  # steps that were read since the last call of `take`
        self._unread: deque[tuple[int, Tensor, Pending]] = deque()

    def add(self, step: int, image: Tensor, sums: Tensor) -> None:
        """Add an evaluation. Its `Measured.sums` may still be being computed."""
        self._unread.append((step, image.detach(), start_reading(sums)))

    def read(self, late: int = 0) -> None:
        """Read all losses except for the last `late`.

        Raises:
            FloatingPointError: the loss of the first picture is not finite.
        """
        while len(self._unread) > late:
            step, image, numbers = self._unread.popleft()
            total, gradient_sum = numbers()
            self.last = total if math.isfinite(gradient_sum) else math.nan
            if self.last < self.best_loss:
                self.best, self.best_loss = image, self.last
            if self.best is None:
                raise FloatingPointError(f"the loss of the first picture is {self.last}")
            if step > len(self.losses):  # a rematched evaluation has the number of the last step
                self.losses.append(self.last if math.isfinite(self.last) else math.inf)
                self.reached.append((step, self.best, self.best_loss))

    def take(self) -> list[Reached]:
        """Return the steps that were read since the last call."""
        found, self.reached = self.reached, []
        return found

    def go_back(self) -> Tensor:
        """Return the best picture, and discard the losses that were not read."""
        self._unread.clear()
        assert self.best is not None  # `read` raises otherwise
        return self.best

    def has_converged(self, window: int, tolerance: float) -> bool:
        """Return whether the loss decreases too slowly.

        Two medians are compared: of the last `window` losses, and of the `window` losses before
        those. The loss has converged if the relative decrease from the earlier to the later median
        is `tolerance` or less. Medians, since trials of a line search may have far larger losses.
        With a tolerance of 0, the result is always False.
        """
        if not tolerance or len(self.losses) < 2 * window:
            return False
        before = statistics.median(self.losses[-2 * window : -window])
        return statistics.median(self.losses[-window:]) >= (1 - tolerance) * before

    def state_dict(self) -> State:
        """Return the state; all losses must have been read."""
        return {"best": self.best, "best_loss": self.best_loss, "losses": list(self.losses)}

    def load_state_dict(self, state: State) -> None:
        """Restore a state that `state_dict` has returned."""
        self.best, self.best_loss, self.losses = state["best"], state["best_loss"], state["losses"]


def start_reading(values: Tensor) -> Pending:
    """Start copying (N,) to the CPU, and return a function that waits for the numbers."""
    if values.device.type != CUDA:
        return values.cpu().tolist  # CPU-GPU sync point
    there = values.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def numbers() -> list[float]:
        arrived.synchronize()
        return there.tolist()

    return numbers


class Evaluator:
    """Evaluates an objective; each evaluation is a step.

    Args:
        objective: what is minimized.
        steps: the largest number of steps.
        exact_steps: the number of steps at the end that are exact.
        tolerance: the loss has converged if its relative decrease per window is at most this. A
            window is `CONVERGENCE_WINDOW` steps, or `match_every` steps if that is more. After
            convergence, the number of further steps is at most the fraction `LAST_STEPS` of the
            steps taken, and all of them are exact. 0: convergence is not tested.
        late: number of steps by which the reading of losses is delayed.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        steps: int,
        exact_steps: int = 0,
        tolerance: float = 0.0,
        late: int = 0,
    ) -> None:
        self.objective, self.tracker, self.late = objective, Tracker(), late
        self.taken, self.steps, self.exact_steps = 0, steps, exact_steps
        self.tolerance, self.settled = tolerance, False  # whether the losses have converged
        self.rematched: int | None = None  # number of steps taken at the last rematch
        # Steps between two rematches of the criterion; None: it need not be rematched.
        self.match_every = objective.criterion.match_every
        self.went_back = False
        if exact_steps >= steps:
            objective.use_exact()

    @property
    def left(self) -> int:
        """The number of steps that may still be taken."""
        return self.steps - self.taken

    @property
    def rematch_is_due(self) -> bool:
        """Whether the criterion should be rematched before the next step."""
        if self.match_every is None or not self.left:
            return False
        return self.rematched is None or self.taken - self.rematched >= self.match_every

    def __call__(
        self, image: Tensor, *, rematch: bool = False, keep: bool = False
    ) -> tuple[Tensor, Tensor, float]:
        """Take one step.

        Args:
            image: (B, C, H, W).
            rematch: whether to rematch the criterion for this picture first.
            keep: whether `rematch_last` may follow.

        Returns:
            Losses (B,), the gradient (B, C, H, W) of their sum, and the last sum that was read, of
            this step or an earlier one; NaN if it or the gradient was not finite.
        """
        if rematch:
            self._rematch()
        self.taken += 1
        measured = self.objective(image, rematch=rematch, keep=keep and self.rematch_is_due)
        return self._tracked(image, measured)

    def rematch_last(self, image: Tensor) -> tuple[Tensor, Tensor, float]:
        """Rematch the criterion for the last picture and evaluate it again, which is no step."""
        self._rematch()
        return self._tracked(image, self.objective.rematched(image))

    def _rematch(self) -> None:
        self._forget()
        self.rematched = self.taken

    def _forget(self) -> None:
        """Forget the best loss, since losses of different objectives are not comparable."""
        self.read()
        self.tracker.best_loss = math.inf

    def _tracked(self, image: Tensor, measured: Measured) -> tuple[Tensor, Tensor, float]:
        self.tracker.add(self.taken, image, measured.sums)
        self.read(self.late)
        return measured.losses, measured.gradient, self.tracker.last

    def read(self, late: int = 0) -> None:
        """Read all losses except for the last `late`. If they have converged, reduce the number of
        steps."""
        known = len(self.tracker.losses)
        self.tracker.read(late)
        # Each window must contain a rematch, since rematches change the loss.
        window = max(CONVERGENCE_WINDOW, self.match_every or 0)
        if self.settled or len(self.tracker.losses) == known:
            return
        if self.tracker.has_converged(window, self.tolerance):
            self.steps = min(self.steps, self.taken + math.ceil(LAST_STEPS * self.taken))
            self.settled, self.exact_steps = True, self.left

    def use_exact(self, at_once: bool = False) -> bool:
        """Switch to exact evaluations if only `exact_steps` steps are left, or if `at_once`.

        Returns:
            Whether it has switched. If so, earlier losses are those of another objective.
        """
        if self.objective.is_exact or (self.left > self.exact_steps and not at_once):
            return False
        self._forget()
        self.objective.use_exact()
        return True

    def go_back(self) -> Tensor:
        """Return the best picture, after a loss or gradient that is not finite."""
        self.went_back = True
        return self.tracker.go_back()

    def state_dict(self) -> State:
        """Return the state, except for the matches that the criterion holds between rematches."""
        self.read()
        kept = {name: getattr(self, name) for name in STATE_FIELDS}
        generators = [one.get_state() for one in self.objective.criterion.generators]
        exact, tracker = self.objective.is_exact, self.tracker.state_dict()
        return kept | {"exact": exact, "tracker": tracker, "generators": generators}

    def load_state_dict(self, state: State) -> None:
        """Restore a state that `state_dict` has returned."""
        for name in STATE_FIELDS:
            setattr(self, name, state[name])
        if state["exact"]:
            self.objective.use_exact()
        self.tracker.load_state_dict(state["tracker"])
        generators = self.objective.criterion.generators
        for one, kept in zip(generators, state["generators"], strict=True):
            one.set_state(kept)
