"""What Ctrl-C, SIGTERM and SIGHUP do: they interrupt the main thread, which alone may decide it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

LINE = "Synthesis.py: interrupted"
NOTHING = f"{LINE}, there is nothing to save yet"
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(KeyboardInterrupt):
    """A signal asked for the end; what is there is still to be saved."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.exit_code = 128 + number


def exit_code(error: KeyboardInterrupt) -> int:
    """As shells have it: 130 of Ctrl-C, 143 of SIGTERM, 129 of SIGHUP."""
    return error.exit_code if isinstance(error, Stopped) else 128 + signal.SIGINT


def signals_exit() -> None:
    """At once and by one line, until `signals_raise`: for imports, which take seconds and would
    show their inside. A signal that is ignored, as nohup has it, stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _exit)


def signals_raise() -> None:
    """From here on they raise `Stopped`."""
    for number in SIGNALS:
        if signal.getsignal(number) is _exit:
            signal.signal(number, _raise)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        os.write(2, f"{NOTHING}\n".encode())
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """A second one, or one at the very end, must not cost the picture."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
