"""The program of a worker process: make pictures of jobs that arrive on stdin, until it is closed.

`Worker` in `command/workers.py` starts it and sends pickled objects: once the arguments of
`outcome_of` that follow the job, then jobs. Each job is answered by one pickled outcome on stdout.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python runs with -P, which adds no folder itself, so that no file of the current folder is
    # imported in place of one of this project.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import os
import pickle
from contextlib import suppress

from command.interrupts import signals_held, signals_raise
from command.make import outcome_of
from command.processes import keep_freed_memory
from command.start import signals_exit


def serve() -> None:
    """Answer each job on stdin with its outcome on stdout, until stdin is closed or a signal
    arrives between two pictures."""
    signals_exit()
    signals_raise()
    keep_freed_memory()
    jobs, answers = sys.stdin.buffer, os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    with suppress(EOFError, OSError, KeyboardInterrupt), open(answers, "wb", buffering=0) as file:
        arguments = pickle.load(jobs)
        while True:
            outcome = outcome_of(pickle.load(jobs), *arguments)
            with signals_held():
                file.write(pickle.dumps(outcome))


if __name__ == "__main__":
    serve()
