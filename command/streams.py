"""Writing to stdout and stderr, which may be full, closed or no longer read."""

import os
import sys
from contextlib import suppress
from typing import TextIO

from utils import UserError, reason_of


def put(text: str) -> None:
    """Write text to stdout and flush it.

    Raises:
        UserError: it cannot be written, as on a full disk.
        SystemExit: of code 0, where the reader of a pipe has ended.
    """
    error = write(text, sys.stdout)
    if isinstance(error, BrokenPipeError):
        raise SystemExit(0)
    if error is not None:
        raise UserError(f"stdout: cannot be written ({reason_of(error)})") from error


def write(text: str, stream: TextIO | None) -> Exception | None:
    """Write text and flush it; characters that the stream's encoding lacks become "?".

    Returns the error where it cannot be written, else None. After an error, and where `stream` is
    None, text is dropped.
    """
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
    """Drop text that is still buffered and cannot be written. Otherwise Python reports it at exit,
    with code 120."""
    for stream in (sys.stdout, sys.stderr):
        write("", stream)


def copy_of_stderr() -> int | None:
    """A duplicate of descriptor 2. None where it is closed, or was when Python started, so that it
    may be any file that was opened since."""
    if sys.__stderr__ is None:
        return None
    try:
        return os.dup(2)
    except OSError:
        return None


def _drop(stream: TextIO) -> None:
    """Redirect a stream to the null device, and flush what it could not write."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
