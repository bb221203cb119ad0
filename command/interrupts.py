"""What Ctrl-C, SIGTERM and SIGHUP do: they interrupt the main thread, which alone may decide it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from command.start import SIGNALS, exit_at_once


class Stopped(KeyboardInterrupt):
    """A signal asked for the end; what is there is still to be saved."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.exit_code = 128 + number


def exit_code(error: KeyboardInterrupt) -> int:
    """As shells have it: 130 of Ctrl-C, 143 of SIGTERM, 129 of SIGHUP."""
    return error.exit_code if isinstance(error, Stopped) else 128 + signal.SIGINT


def signals_raise() -> None:
    """From here on they raise `Stopped`."""
    for number in SIGNALS:
        if signal.getsignal(number) is exit_at_once:
            signal.signal(number, _raise)


def signals_end() -> None:
    """From here on they end the process at once: all is done, and Python takes a while to end."""
    for number in SIGNALS:
        if signal.getsignal(number) is _raise:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


@contextmanager
def signals_held() -> Iterator[None]:
    """A signal inside the block waits for its end, and is then delivered, the first one alone: it
    must not cost the picture that is being saved, and must not be lost.

    Raises:
        KeyboardInterrupt: at the end of the block, if there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    # One that is ignored, as nohup has it, or that is not Python's, stays as it is.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {n: known for n, known in before.items() if known not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
