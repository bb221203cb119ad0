"""What the command does before anything else: it opens standard streams that are closed, and lets
signals end it by one line.

It is imported before Python's version is checked, so it has nothing that an old Python could not
read, and imports next to nothing, as a signal before that ends in a traceback.
"""

import os
import signal
import sys

LINE = "Synthesis.py: interrupted"
NOTHING = f"{LINE}, there is nothing to save yet"
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_streams() -> None:
    """Open the null device as each of descriptors 0, 1 and 2 that is closed, for this process and
    those that it starts.

    Else the next file that is opened gets that number, and what is meant for stderr is written
    into it. Python has None in place of such a stream, and prints on stdout what is for stderr.
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
    """From here on signals end the process at once and by one line, until `signals_raise`: for
    imports, which take seconds and would show their inside. A signal that is ignored, as nohup has
    it, stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, exit_at_once)


def exit_at_once(number: int, frame: object) -> None:
    """Handle a signal."""
    try:
        os.write(2, f"{NOTHING}\n".encode())
    except OSError:
        pass  # nobody can be told
    os._exit(128 + number)
