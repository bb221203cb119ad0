"""What is kept of a synthesis so that it can go on where it was, and ends in the same bytes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.optimizers import State


@dataclass
class Checkpoints:
    """Where states go while a picture is made, and the one that it goes on from."""

    save: Callable[[State], None]
    every: float  # s, at least, between two of them
    resumed: State | None = None
    last: float = field(default_factory=time.monotonic)

    def offer(self, state: Callable[[], State]) -> None:
        """Save a state, if it is time for one."""
        if time.monotonic() - self.last >= self.every:
            self.save(state())
            self.last = time.monotonic()
