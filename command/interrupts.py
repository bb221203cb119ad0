"""Handlers of SIGINT (Ctrl-C), SIGTERM and SIGHUP, to be set by the main thread."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from command.start import SIGNALS, exit_at_once


class Stopped(KeyboardInterrupt):
    """Raised by a signal that asks the process to save its unfinished picture and end."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.exit_code = 128 + number


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code of a process that a signal ends, 128 + number: 130 for Ctrl-C, 143 for
    SIGTERM, 129 for SIGHUP."""
    return error.exit_code if isinstance(error, Stopped) else 128 + signal.SIGINT


def raise_on_signals() -> None:
    """Have the signals raise `Stopped`, in place of the handler of `exit_on_signals`. Signals with
    another handler stay as they are."""
    for number in SIGNALS:
        if signal.getsignal(number) is exit_at_once:
            signal.signal(number, _raise)


def terminate_on_signals() -> None:
    """Have the signals end the process at once, since all is saved and Python takes a while to
    exit."""
    for number in SIGNALS:
        if signal.getsignal(number) is _raise:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer signals to the end of the `with` block, so that they do not interrupt the saving of a
    picture. Of several signals only the first is delivered.

    In a thread other than the main thread, which alone may set handlers, it does nothing.

    Raises:
        KeyboardInterrupt: at the end of the block, if a signal arrived in it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deferred: list[int] = []
    # Ignored signals, as under nohup, and handlers that Python has not installed stay as they are.
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {n: one for n, one in handlers.items() if one not in (None, signal.SIG_IGN)}
    for number in handlers:
        signal.signal(number, lambda number, frame: deferred.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if deferred:
            signal.raise_signal(deferred[0])
