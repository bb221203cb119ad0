"""Several pictures at the same time, each made by a process of its own.

After every short operation on a small picture the threads of a process wait for each other; those
of another one take the processors meanwhile. Each process has as many threads as it would have
alone, so that its pictures are the same to the bit.
"""

import math
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

from command.files import ROOT
from command.plan import Job
from command.results import Failed, Result
from command.streams import copy_of_stderr

PROGRAM = [sys.executable, "-P", str(ROOT / "command" / "serve.py")]
# Threads that spin while they wait would take the processors from those that have work: two
# processes took five times as long as one after the other.
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}
# Measured on two cores: 1.4 times as many pictures of 64x64 or 128x128, 1.3 of 256x256, after four
# seconds in which they start.
AT_ONCE, MANY, SMALL = 2, 8, 256**2
AHEAD = 2  # pictures for each further process that are read before the first of them is made

Begun = Callable[[], Result | Failed | None]  # waits for what becomes of a job


def is_small(job: Job) -> bool:
    """Whether others beside it are worth it."""
    return math.prod(job.spec.canvas.size) <= SMALL


class Worker:
    """A process that makes one picture after the other."""

    def __init__(self, told: Any, stderr: int) -> None:
        self.process = subprocess.Popen(
            PROGRAM,
            env=os.environ | SLEEPING,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # what a terminal sends goes to us alone, who pass it on
        )
        self.untold = [told]

    def outcome(self, job: Job) -> Result | Failed:
        """Raises EOFError or OSError where it ends before."""
        assert self.process.stdin is not None and self.process.stdout is not None
        for what in (*self.untold, job):
            pickle.dump(what, self.process.stdin)
        self.process.stdin.flush()
        self.untold = []
        return pickle.load(self.process.stdout)

    def end(self) -> int:
        """Have it end as it has nothing to do; returns its exit code, negative of a signal."""
        with suppress(OSError):
            self.process.communicate()
        return self.process.wait()


class Workers:
    """So many processes, each started when there is a picture for it."""

    def __init__(self, count: int, *told: Any) -> None:
        """
        Args:
            told: what `outcome_of` takes beside a job.
        """
        self.count, self.told = count, told
        self.threads = ThreadPoolExecutor(count)  # one for each process, that waits for it
        self.idle: SimpleQueue[Worker] = SimpleQueue()
        self.all: list[Worker] = []
        self.stopping, self.lock = False, threading.Lock()
        # While libraries are silenced, descriptor 2 is another one.
        stderr = copy_of_stderr()
        self.stderr = os.open(os.devnull, os.O_WRONLY) if stderr is None else stderr

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:
            self.stop()
        self.threads.shutdown()
        for worker in self.all:
            worker.end()
        os.close(self.stderr)

    def stop(self) -> None:
        """Have those at work save their pictures as they stand, and end."""
        with self.lock:
            known, self.stopping = self.stopping, True
        for worker in () if known else self.all:  # by a second signal they would not save
            worker.process.terminate()

    def outcomes(
        self,
        tasks: Iterable[Job | Result | Failed],
        fits: Callable[[Job], bool],
        here: Callable[[Job], Result | Failed],
    ) -> Iterator[Result | Failed]:
        """What becomes of each, in their order.

        Args:
            tasks: jobs, and what is known already of others.
            fits: whether a job can be made beside others.
            here: makes one that cannot, when no other is being made.

        Raises:
            KeyboardInterrupt: after the outcomes of all pictures that were begun.
        """
        begun: deque[Begun] = deque()
        try:
            for task in tasks:
                if not isinstance(task, Job):
                    begun.append(partial(_itself, task))
                elif self.count > 1 and fits(task):
                    begun.append(self.threads.submit(self._outcome, task).result)
                else:
                    yield from self._taken(begun, 0)
                    begun.append(partial(_itself, here(task)))
                yield from self._taken(begun, AHEAD * (self.count - 1))
            yield from self._taken(begun, 0)
        except KeyboardInterrupt:
            self.stop()
            yield from filter(None, (waited_for() for waited_for in begun))
            raise

    @staticmethod
    def _taken(begun: deque[Begun], most: int) -> Iterator[Result | Failed]:
        """The outcomes of the first, once no more than so many are to be left."""
        while len(begun) > most:
            outcome = begun[0]()
            if isinstance(outcome, Result) and outcome.stopped:
                raise outcome.stopped
            begun.popleft()
            if outcome:
                yield outcome

    def _outcome(self, job: Job) -> Result | Failed | None:
        """What becomes of a job in some process; None where it is stopped before its first step."""
        with self.lock:
            if self.stopping:
                return None
            if self.idle.empty():
                worker = Worker(self.told, self.stderr)
                self.all.append(worker)
            else:
                worker = self.idle.get()
        try:
            outcome = worker.outcome(job)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = worker.end()
            if self.stopping:
                return None
            why = f"the process that made it ended with code {code}"
            if code == -9:
                why += ", as where memory runs out: give --workers 1"
            return Failed(job.exemplar, f"{job.exemplar}: {why}")
        if isinstance(outcome, Result) and outcome.stopped:
            self.stop()  # before this thread begins another
        self.idle.put(worker)
        return outcome


def _itself(outcome: Result | Failed) -> Result | Failed:
    return outcome
