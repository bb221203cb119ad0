"""What Ctrl-C does, which interrupts the main thread only; that thread alone may decide it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 130
LINE = "Synthesis.py: interrupted"


def ctrl_c_exits() -> None:
    """At once and by one line, until `ctrl_c_raises`: for imports, which take seconds and would
    show their inside. Where Ctrl-C is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def ctrl_c_raises() -> None:
    """KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(*_: object) -> None:
    os.write(2, f"{LINE}\n".encode())
    os._exit(EXIT_CODE)


@contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """A second Ctrl-C, or one at the very end, must not cost the picture."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
