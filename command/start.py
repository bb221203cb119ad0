"""Start-up of the command: standard streams, signal handlers, and errors of imports.

This module must parse in old versions of Python, whose users it tells to upgrade. It imports
little, because a signal during its imports ends in a traceback.
"""

import os
import signal
import sys

PYTHON = (3, 11)  # oldest version that is supported
LINE = "Synthesis.py: interrupted"
NOTHING = f"{LINE}, there is nothing to save yet"
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_streams() -> None:
    """Open the null device on each of the descriptors 0, 1 and 2 that is closed, also for child
    processes.

    Otherwise the next file that is opened gets the descriptor, and messages are written into it.
    `sys.stdin`, `sys.stdout` and `sys.stderr`, which are None for closed descriptors, are opened as
    well: with `sys.stderr` None, Python prints messages on stdout.
    """
    for descriptor, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def exit_on_signals() -> None:
    """Have signals end the process with one line instead of a traceback: imports take seconds.
    `raise_on_signals` replaces this handler. Ignored signals, as under nohup, stay ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, exit_at_once)


def exit_at_once(number: int, frame: object) -> None:
    """Signal handler: print one line on stderr and end the process."""
    try:
        os.write(2, f"{NOTHING}\n".encode())
    except OSError:
        pass  # stderr cannot be written
    os._exit(128 + number)


def configure_libraries() -> None:
    """Set environment variables of PyTorch and OpenMP, unless the user has set them or, instead of
    GOMP_SPINCOUNT, OMP_WAIT_POLICY. To be called before PyTorch is imported.

    By default, threads of GNU's OpenMP spin for some milliseconds while they wait for each other.
    If another program runs on the same cores, spinning threads delay the thread that they wait for:
    a step takes up to ten times as long. GOMP_SPINCOUNT limits spinning to less than 0.1 ms, at no
    measurable cost on an idle machine. With a third of that, a step takes 5 to 8 % longer.
    """
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # for operations that MPS lacks
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def explain_imports() -> None:
    """Have a missing package, or any error in an unsupported version of Python, end the process
    with one line and code 2. Other errors end in a traceback as usual."""
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
