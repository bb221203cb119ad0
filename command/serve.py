"""Program of a worker process, started by `command.workers.Worker`.

Protocol: stdin brings pickled objects, first the arguments of `outcome_of` that follow the job,
then jobs. For each job, one pickled outcome is written to stdout.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python runs with -P, which leaves the current folder out of sys.path: a file there could hide
    # a module of this project.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import os
import pickle
from contextlib import suppress

from command.interrupts import defer_signals, raise_on_signals
from command.make import outcome_of
from command.processes import keep_freed_memory
from command.start import exit_on_signals


def serve() -> None:
    """Run each job from stdin and write its outcome to stdout, until stdin is closed or a signal
    arrives between two jobs."""
    exit_on_signals()
    raise_on_signals()
    keep_freed_memory()
    jobs, answers = sys.stdin.buffer, os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries may print to stdout
    with suppress(EOFError, OSError, KeyboardInterrupt), open(answers, "wb", buffering=0) as file:
        arguments = pickle.load(jobs)
        while True:
            outcome = outcome_of(pickle.load(jobs), *arguments)
            with defer_signals():
                file.write(pickle.dumps(outcome))


if __name__ == "__main__":
    serve()
