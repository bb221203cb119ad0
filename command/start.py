"""The first steps of the command: open standard streams that are closed, handle signals, and
explain errors of imports.

Old versions of Python must be able to parse this module, and it imports little, because a signal
during its imports ends in a traceback.
"""

import os
import signal
import sys

PYTHON = (3, 11)  # the oldest version that runs the command
LINE = "Synthesis.py: interrupted"
NOTHING = f"{LINE}, there is nothing to save yet"
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_streams() -> None:
    """Open the null device on each of the descriptors 0, 1 and 2 that is closed, for this process
    and those that it starts.

    Otherwise the next file that is opened gets that number, and messages are written into it. For
    a stream that is closed Python has None, and prints messages for stderr on stdout.
    """
    for descriptor, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def signals_exit() -> None:
    """Have signals end the process with one line, until `signals_raise` is called: imports take
    seconds, and would end in a traceback. Signals that are ignored, as under nohup, stay ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, exit_at_once)


def exit_at_once(number: int, frame: object) -> None:
    """Handle a signal: write one line on stderr and end the process."""
    try:
        os.write(2, f"{NOTHING}\n".encode())
    except OSError:
        pass  # nobody can be told
    os._exit(128 + number)


def configure_libraries() -> None:
    """Set environment variables of PyTorch and OpenMP, unless the user has set them; to be called
    before PyTorch is imported.

    Threads of GNU's OpenMP spin for some milliseconds while they wait for each other. If another
    program runs on the same cores, that takes the time of the thread that they wait for: a step
    takes up to ten times as long. They spin for some microseconds only, which costs nothing
    measurable if the machine is idle.
    """
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # run on the CPU what MPS lacks
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def explain_imports() -> None:
    """Have an error that follows from an old version of Python or from a missing package end the
    process with one line and code 2; other errors end in a traceback as usual."""
    sys.excepthook = _explain


def _explain(kind, error, traceback) -> None:
    if sys.version_info < PYTHON:
        here, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, PYTHON))
        line = "this is Python " + here + ", " + needed + " or newer is needed"
    elif issubclass(kind, ModuleNotFoundError):
        line = error.name + " is missing: pip install -r requirements.txt"
    else:
        sys.__excepthook__(kind, error, traceback)
        return
    sys.stderr.write("Synthesis.py: " + line + "\n")
    sys.stderr.flush()
    os._exit(2)  # an exception raised in a hook would be shown as an error of the hook
