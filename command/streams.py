"""Standard output and error that are full, or that nobody reads any more."""

import os
import sys
from contextlib import suppress
from typing import TextIO

from utils import UserError, reason_of


def put(text: str) -> None:
    """Write text on stdout, at once.

    Raises:
        UserError: it cannot be written, as where a disk is full.
        SystemExit: of code 0, where nobody reads it any more, so that there is nothing left to do.
    """
    error = write(text, sys.stdout)
    if isinstance(error, BrokenPipeError):
        raise SystemExit(0)
    if error is not None:
        raise UserError(f"stdout: cannot be written ({reason_of(error)})") from error


def write(text: str, stream: TextIO | None) -> Exception | None:
    """Write text at once, letters that the stream's alphabet lacks as "?"; returns why that could
    not be done, if so. What is written after that is dropped, as on None."""
    if stream is None:
        return None
    try:
        if getattr(stream, "errors", "strict") == "strict":  # stderr has a way of its own
            known = stream.encoding or "utf-8"
            text = text.encode(known, "replace").decode(known)
        stream.write(text)
        stream.flush()
    except (OSError, ValueError, AttributeError) as error:  # ValueError: closed by Python
        _drop(stream)
        return error
    return None


def settle() -> None:
    """Before the end: drop what is still to be written and cannot be. Else Python tells of it, and
    exits with 120."""
    for stream in (sys.stdout, sys.stderr):
        write("", stream)


def copy_of_stderr() -> int | None:
    """A new descriptor of what descriptor 2 is; None where that is closed, or was when Python
    began: then it may be any file that was opened since."""
    if sys.__stderr__ is None:
        return None
    try:
        return os.dup(2)
    except OSError:
        return None


def _drop(stream: TextIO) -> None:
    """Lay the null device under a stream, which still holds what it could not write."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
