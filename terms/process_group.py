"""Several processes that make one picture together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from utils import UserError

COALESCED_BELOW = 2**20  # values; fewer are copied into one message with others


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that make one picture together: each has it whole, looks at some of its blocks, and
    hears what the others have measured. What they do besides is the same on all."""

    rank: int
    size: int
    handle: Any = None  # of `torch.distributed`; None: all that there are

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Have those of all processes, which lie alike in memory, added up in their place: large
        ones where they are, the others in one message."""
        if self.size == 1:
            return
        small = []
        for x in tensors:
            if x.numel() >= COALESCED_BELOW and _is_dense(x):
                self._all_reduce_flat(x.as_strided((x.numel(),), (1,)))
            else:
                small.append(x)
        if small:
            flat = torch.cat([x.flatten() for x in small])
            self._all_reduce_flat(flat)
            for x, part in zip(small, flat.split([x.numel() for x in small]), strict=True):
                x.copy_(part.view(x.shape))

    def exchange(self, up: Tensor, down: Tensor, ring: bool) -> tuple[Tensor, Tensor]:
        """Rows (B, C, ., W) for the processes before and after this one -> those that they give, as
        many; of none where there is none. In a ring the first comes after the last."""
        before, after = self.rank - 1, self.rank + 1
        has_before, has_after = ring or before >= 0, ring or after < self.size
        sent = [rows.movedim(1, 3).contiguous() for rows in (up, down)]
        from_before, from_after = (torch.empty_like(rows) for rows in sent)
        # Two in a ring are before and after each other: what goes down comes first on both sides.
        ways = [
            (has_after, distributed.isend, sent[1], after),
            (has_before, distributed.irecv, from_before, before),
            (has_before, distributed.isend, sent[0], before),
            (has_after, distributed.irecv, from_after, after),
        ]
        with _connected():
            messages = [
                distributed.P2POp(way, rows, rank % self.size, self.handle, n // 2)
                for n, (there, way, rows, rank) in enumerate(ways)
                if there
            ]
            for message in distributed.batch_isend_irecv(messages):
                message.wait()
        above, below = from_before.movedim(3, 1), from_after.movedim(3, 1)
        return above if has_before else above[:, :, :0], below if has_after else below[:, :, :0]

    def _all_reduce_flat(self, numbers: Tensor) -> None:
        with _connected():
            distributed.all_reduce(numbers, group=self.handle)


@contextmanager
def _connected() -> Iterator[None]:
    """Where a message cannot be sent or does not come, say why."""
    try:
        yield
    except RuntimeError as error:
        raise UserError("--split: another process has ended, and with it this one") from error


def _is_dense(x: Tensor) -> bool:
    """Whether values follow each other in memory without holes."""
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


SINGLE_PROCESS = ProcessGroup(0, 1)
