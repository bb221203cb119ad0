"""Worker processes: make several pictures at the same time, one in each process.

A small picture does not keep all cores busy, since the threads of a process wait for each other
after every short operation. Each worker uses as many threads as a single process would, so that its
pictures are bit-identical to those made without workers.
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
# Threads that spin while they wait take the cores from threads that work: two workers took five
# times as long as one process that makes all pictures.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
# On two cores, two workers make 1.4 times as many pictures of 64x64 or 128x128 per second as one
# process, and 1.3 times as many of 256x256, after a start-up of four seconds.
DEFAULT_WORKERS, MIN_PICTURES, MAX_PIXELS = 2, 8, 256**2
READ_AHEAD = 2  # pending tasks for each worker but the first

Pending = Callable[[], Result | Failed | None]  # waits for an outcome; None: not begun


def is_small(job: Job) -> bool:
    """Return whether a picture is so small that making several at the same time is faster."""
    return math.prod(job.spec.canvas.size) <= MAX_PIXELS


class Worker:
    """A process that makes one picture after another, running `command/serve.py`."""

    def __init__(self, arguments: Any, stderr: int) -> None:
        """
        Args:
            arguments: those of `command.make.outcome_of` that follow the job.
            stderr: descriptor for the stderr of the process.
        """
        self.process = subprocess.Popen(
            PROGRAM,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which forwards it
        )
        self.unsent = [arguments]

    def outcome(self, job: Job) -> Result | Failed:
        """Send a job and return its outcome.

        Raises:
            EOFError, OSError, pickle.UnpicklingError: the process has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        for message in (*self.unsent, job):
            pickle.dump(message, self.process.stdin)
        self.process.stdin.flush()
        self.unsent = []
        return pickle.load(self.process.stdout)

    def end(self) -> int:
        """Close stdin, which ends the process, and return its exit code: -N after signal N."""
        with suppress(OSError):
            self.process.communicate()
        return self.process.wait()


class Workers:
    """A pool of at most `count` workers. One is started when a job finds no idle worker."""

    def __init__(self, count: int, *arguments: Any) -> None:
        """
        Args:
            arguments: those of `command.make.outcome_of` that follow the job.
        """
        self.count, self.arguments = count, arguments
        self.threads = ThreadPoolExecutor(count)  # each waits for one worker
        self.idle: SimpleQueue[Worker] = SimpleQueue()
        self.all: list[Worker] = []
        self.stopping, self.lock = False, threading.Lock()
        # A copy, since descriptor 2 is redirected at times, to silence libraries.
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
        """Send SIGTERM to all workers, which save their unfinished pictures and end."""
        with self.lock:
            stopped, self.stopping = self.stopping, True
        for worker in () if stopped else self.all:  # a second signal could interrupt the saving
            worker.process.terminate()

    def outcomes(
        self,
        tasks: Iterable[Job | Result | Failed],
        fits: Callable[[Job], bool],
        here: Callable[[Job], Result | Failed],
    ) -> Iterator[Result | Failed]:
        """Yield the outcome of each task, in the order of tasks.

        Args:
            tasks: jobs, and outcomes of items that need no job.
            fits: returns whether a worker may run a job while other workers run theirs.
            here: runs any other job in this process, while all workers are idle.

        Raises:
            KeyboardInterrupt: after the outcomes of all jobs that were begun.
        """
        pending: deque[Pending] = deque()
        try:
            for task in tasks:
                if not isinstance(task, Job):
                    pending.append(partial(_known, task))
                elif self.count > 1 and fits(task):
                    pending.append(self.threads.submit(self._outcome, task).result)
                else:
                    yield from self._completed(pending, 0)
                    pending.append(partial(_known, here(task)))
                yield from self._completed(pending, READ_AHEAD * (self.count - 1))
            yield from self._completed(pending, 0)
        except KeyboardInterrupt:
            self.stop()
            yield from filter(None, (wait() for wait in pending))
            raise

    @staticmethod
    def _completed(pending: deque[Pending], most: int) -> Iterator[Result | Failed]:
        """Yield the outcomes of the first tasks until at most `most` tasks are pending."""
        while len(pending) > most:
            outcome = pending[0]()
            if isinstance(outcome, Result) and outcome.stopped:
                raise outcome.stopped
            pending.popleft()
            if outcome:
                yield outcome

    def _outcome(self, job: Job) -> Result | Failed | None:
        """Have a worker run a job and return its outcome; None if the pool stops before the first
        frame of the job."""
        with self.lock:
            if self.stopping:
                return None
            if self.idle.empty():
                worker = Worker(self.arguments, self.stderr)
                self.all.append(worker)
            else:
                worker = self.idle.get()
        try:
            outcome = worker.outcome(job)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = worker.end()
            if self.stopping:
                return None
            reason = f"its worker process ended with code {code}"
            if code == -9:
                reason += ", probably out of memory: give --workers 1"
            return Failed(job.exemplar, f"{job.exemplar}: {reason}")
        if isinstance(outcome, Result) and outcome.stopped:
            self.stop()  # before this thread takes another job
        self.idle.put(worker)
        return outcome


def _known(outcome: Result | Failed) -> Result | Failed:
    return outcome
