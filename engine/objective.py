"""The objective of an optimization, its evaluations, and the best picture that they find."""

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from engine.graphs import KIND, Measure, graphed
from models import Features

SETTLING = 20  # steps over which a loss must decrease to be worth more of them
LAST_STEPS = 0.125  # further steps after convergence, relative to those before it
KEPT = ("taken", "steps", "exact_steps", "rematched", "settled")  # state of an evaluator

# Tensors, numbers, and dictionaries and lists of these.
State = dict[str, Any]
Extract = Callable[[Tensor], Features]
Numbers = Callable[[], list[float]]


class Criterion(Protocol):
    """A loss to be minimized: features -> (B,)."""

    match_every: int | None  # steps between two calls of `rematch`; None: it is never called

    def __call__(self, output: Features, /) -> Tensor: ...

    @property
    def generators(self) -> list[torch.Generator]: ...  # that `rematch` draws from

    def rematch(self, output: Features, /) -> None: ...


class Measured(NamedTuple):
    """The objective at a picture."""

    losses: Tensor  # (B,)
    gradient: Tensor  # (B, C, H, W), of the sum of the losses
    sums: Tensor  # (2,): of the losses, and of the gradient, which shows whether it is finite


class Objective:
    """The loss of a picture and its gradient.

    Args:
        extract: pictures (B, C, H, W) -> features.
        criterion: features -> losses (B,).
        rough: faster and less exact than `extract`, and used instead until `use_exact` is called.
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
        """Evaluate (B, C, H, W).

        Args:
            rematch: whether to rematch the criterion for this picture first.
            keep: whether to keep the graph of the features for `rematched`, which takes as much
                memory as the evaluation.
        """
        self._kept = None  # before the forward pass, since two graphs may not fit
        image = image.detach()
        if self.criterion.match_every is None:
            if self._measure is None:
                self._measure = graphed(self._measured, image)
            return Measured(*self._measure(image))
        image = image.requires_grad_()
        features = self.extract(image)
        if rematch:
            self.criterion.rematch(features)
        if keep:
            self._kept = image, features
        return self._of_features(image, features, keep)

    def rematched(self, image: Tensor) -> Measured:
        """Evaluate the last picture again after rematching the criterion for it, without a forward
        pass where its graph was kept."""
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


class Reached(NamedTuple):
    """The outcome of a step."""

    step: int  # from 1
    best: Tensor  # (B, C, H, W): the best picture so far
    loss: float  # of the best picture


class Tracker:
    """The best picture so far and the losses of all steps.

    Losses are read when they are needed: the CPU would wait for a GPU to read the loss of the step
    that it has just launched.
    """

    def __init__(self) -> None:
        self.best: Tensor | None = None
        self.best_loss = math.inf
        self.losses: list[float] = []  # of each step
        self.last = 0.0  # the last loss that was read; NaN if it or the gradient is not finite
        self.reached: list[Reached] = []  # steps that were read and not taken out yet
        self._unread: deque[tuple[int, Tensor, Numbers]] = deque()

    @property
    def is_read(self) -> bool:
        """Whether all losses were read."""
        return not self._unread

    def add(self, step: int, image: Tensor, sums: Tensor) -> None:
        """Add an evaluation whose sums, as `Measured` has them, are still being computed."""
        self._unread.append((step, image.detach(), sent(sums)))

    def read(self, late: int = 0) -> None:
        """Read all losses except for the last `late`.

        Raises:
            FloatingPointError: the loss of the first picture is not finite.
        """
        while len(self._unread) > late:
            step, image, numbers = self._unread.popleft()
            total, slope = numbers()
            self.last = total if math.isfinite(slope) else math.nan
            if self.last < self.best_loss:
                self.best, self.best_loss = image, self.last
            if self.best is None:
                raise FloatingPointError(f"the loss of the first picture is {self.last}")
            if step > len(self.losses):  # otherwise it was evaluated before, by another criterion
                self.losses.append(self.last if math.isfinite(self.last) else math.inf)
                self.reached.append(Reached(step, self.best, self.best_loss))

    def take(self) -> list[Reached]:
        """Return the steps that were read since the last call."""
        found, self.reached = self.reached, []
        return found

    def go_back(self) -> Tensor:
        """Return the best picture, and drop the losses that were not read yet."""
        self._unread.clear()
        assert self.best is not None  # `read` raises otherwise
        return self.best

    def has_settled(self, window: int, tolerance: float) -> bool:
        """Return whether the median loss of the last `window` steps is less than `tolerance` below
        that of the `window` steps before, relative to it.

        Medians, since a trial of a line search may have a far larger loss.
        """
        if not tolerance or len(self.losses) < 2 * window:
            return False
        before = statistics.median(self.losses[-2 * window : -window])
        return statistics.median(self.losses[-window:]) >= (1 - tolerance) * before

    def state_dict(self) -> State:
        """Return the state, with all losses read."""
        self.read()
        return {"best": self.best, "best_loss": self.best_loss, "losses": list(self.losses)}

    def load_state_dict(self, state: State) -> None:
        """Restore a state of `state_dict`."""
        self.best, self.best_loss, self.losses = state["best"], state["best_loss"], state["losses"]


def sent(values: Tensor) -> Numbers:
    """Start copying numbers to the CPU; the function that is returned waits for them."""
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


class Evaluator:
    """Evaluations of an objective, each of which is a step.

    Args:
        objective: that is minimized.
        steps: evaluations that may be made.
        exact_steps: evaluations at the end that are exact.
        tolerance: relative decrease of the loss over `SETTLING` steps below which only
            `LAST_STEPS` more are taken, exact ones; 0 takes all steps.
        late: steps by which the reading of losses is delayed.
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
        self.tolerance, self.settled = tolerance, False
        self.rematched: int | None = None  # number of steps before the last rematch
        self.went_back = False
        if exact_steps >= steps:
            objective.use_exact()

    @property
    def match_every(self) -> int | None:
        """Steps between two rematches of the criterion; None: it is never rematched."""
        return self.objective.criterion.match_every

    @property
    def left(self) -> int:
        """The number of steps that may still be taken."""
        return self.steps - self.taken

    @property
    def due(self) -> bool:
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
            Losses (B,), the gradient (B, C, H, W) of their sum, and the last sum that was read.
        """
        if rematch:
            self._rematch()
        self.taken += 1
        measured = self.objective(image, rematch=rematch, keep=keep and self.due)
        return self._tracked(image, measured)

    def rematch_last(self, image: Tensor) -> tuple[Tensor, Tensor, float]:
        """Evaluate the last picture under the criterion rematched for it, which is no step."""
        self._rematch()
        return self._tracked(image, self.objective.rematched(image))

    def _rematch(self) -> None:
        self._forget()
        self.rematched = self.taken

    def _forget(self) -> None:
        """Make no earlier picture count as the best: the objective is another one from now on."""
        self.read()
        self.tracker.best_loss = math.inf

    def _tracked(self, image: Tensor, measured: Measured) -> tuple[Tensor, Tensor, float]:
        self.tracker.add(self.taken, image, measured.sums)
        self.read(self.late)
        return measured.losses, measured.gradient, self.tracker.last

    def read(self, late: int = 0) -> None:
        """Read losses, and leave only a few steps where they have stopped decreasing."""
        known = len(self.tracker.losses)
        self.tracker.read(late)
        # Matches that are rematched change the loss by themselves: compare whole rounds.
        window = max(SETTLING, self.match_every or 0)
        if self.settled or len(self.tracker.losses) == known:
            return
        if self.tracker.has_settled(window, self.tolerance):
            self.steps = min(self.steps, self.taken + math.ceil(LAST_STEPS * self.taken))
            self.settled, self.exact_steps = True, self.left

    def use_exact(self, at_once: bool = False) -> bool:
        """Switch to exact evaluations if the last steps have begun, or at once.

        Returns whether it has switched: earlier losses belong to another objective then.
        """
        if self.objective.is_exact or (self.left > self.exact_steps and not at_once):
            return False
        self._forget()
        self.objective.use_exact()
        return True

    def go_back(self) -> Tensor:
        """Return the best picture, after a step whose loss or gradient is not finite."""
        self.went_back = True
        return self.tracker.go_back()

    def state_dict(self) -> State:
        """Return the state. It does not hold what the criterion holds between rematches."""
        self.read()
        kept = {name: getattr(self, name) for name in KEPT}
        generators = [one.get_state() for one in self.objective.criterion.generators]
        exact, tracker = self.objective.is_exact, self.tracker.state_dict()
        return kept | {"exact": exact, "tracker": tracker, "generators": generators}

    def load_state_dict(self, state: State) -> None:
        """Restore a state of `state_dict`."""
        for name in KEPT:
            setattr(self, name, state[name])
        if state["exact"]:
            self.objective.use_exact()
        self.tracker.load_state_dict(state["tracker"])
        generators = self.objective.criterion.generators
        for one, kept in zip(generators, state["generators"], strict=True):
            one.set_state(kept)
