"""Group of processes that evaluate the same picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from utils import UserError

COALESCED_BELOW = 2**20  # values; smaller tensors are reduced together, as one tensor


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that make one picture together.

    Each process holds the whole picture and evaluates some of its blocks; the statistics are summed
    over all processes. Each process computes everything else itself.
    """

    rank: int
    size: int
    handle: Any = None  # group of `torch.distributed`; None: the default group

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over all processes, in place.

        Dense tensors of COALESCED_BELOW values or more are reduced one by one, all others as one
        tensor, which is a copy. Tensors must have the same shapes and strides in all processes.
        """
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
        """Send rows to the previous and the next process, and receive as many from them.

        Args:
            up: rows for the previous process, (B, C, n, W).
            down: rows for the next process, (B, C, n, W).
            ring: whether the first process is next to the last.

        Returns:
            Rows from the previous and from the next process, (B, C, n, W); (B, C, 0, W) if there is
            no such process.

        Raises:
            UserError: another process has ended.
        """
        before, after = self.rank - 1, self.rank + 1
        has_before, has_after = ring or before >= 0, ring or after < self.size
        sent = [rows.movedim(1, 3).contiguous() for rows in (up, down)]
        from_before, from_after = (torch.empty_like(rows) for rows in sent)
        # In a ring of two, both neighbours are the same process: the tags and the order of the list
        # pair each message that is sent with the one that is received.
        operations = [
            (has_after, distributed.isend, sent[1], after),
            (has_before, distributed.irecv, from_before, before),
            (has_before, distributed.isend, sent[0], before),
            (has_after, distributed.irecv, from_after, after),
        ]
        with _explained_errors():
            messages = [
                distributed.P2POp(operation, rows, rank % self.size, self.handle, n // 2)
                for n, (needed, operation, rows, rank) in enumerate(operations)
                if needed
            ]
            for message in distributed.batch_isend_irecv(messages):
                message.wait()
        above, below = from_before.movedim(3, 1), from_after.movedim(3, 1)
        return above if has_before else above[:, :, :0], below if has_after else below[:, :, :0]

    def _all_reduce_flat(self, values: Tensor) -> None:
        with _explained_errors():
            distributed.all_reduce(values, group=self.handle)


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Raise UserError if communication fails."""
    try:
        yield
    except RuntimeError as error:
        raise UserError("another process has ended, and with it this one") from error


def _is_dense(x: Tensor) -> bool:
    """Whether a tensor fills its memory without gaps."""
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


SINGLE_PROCESS = ProcessGroup(0, 1)
