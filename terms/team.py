"""Several processes that make one picture together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from utils import UserError

LARGE = 2**20  # values; fewer are copied into one message with others


@dataclass(frozen=True)
class Team:
    """Processes that make one picture together: each has it whole, looks at some of its blocks, and
    hears what the others have measured. What they do besides is the same on all."""

    rank: int
    count: int
    group: Any = None  # of `torch.distributed`; None: all that there are

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Have those of all processes, which lie alike in memory, added up in their place: large
        ones where they are, the others in one message."""
        if self.count == 1:
            return
        small = []
        for x in tensors:
            if x.numel() >= LARGE and _is_dense(x):
                self._add_up(x.as_strided((x.numel(),), (1,)))
            else:
                small.append(x)
        if small:
            flat = torch.cat([x.flatten() for x in small])
            self._add_up(flat)
            for x, part in zip(small, flat.split([x.numel() for x in small]), strict=True):
                x.copy_(part.view(x.shape))

    def _add_up(self, numbers: Tensor) -> None:
        try:
            distributed.all_reduce(numbers, group=self.group)
        except RuntimeError as error:
            raise UserError("--split: another process has ended, and with it this one") from error


def _is_dense(x: Tensor) -> bool:
    """Whether values follow each other in memory without holes."""
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


ALONE = Team(0, 1)
