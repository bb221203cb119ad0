"""Write to stdout and stderr, which may be full, closed or no longer read."""

import os
import sys
from contextlib import suppress
from typing import TextIO

from utils import UserError, reason_of


def write_stdout(text: str) -> None:
    """Write text to stdout and flush it.

    Raises:
        UserError: stdout cannot be written, as on a full disk.
        SystemExit: stdout is a pipe whose reader has ended; the code is 0.
    """
    error = write(text, sys.stdout)
    if isinstance(error, BrokenPipeError):
        raise SystemExit(0)
    if error is not None:
        raise UserError(f"stdout: cannot be written ({reason_of(error)})") from error


def write(text: str, stream: TextIO | None) -> Exception | None:
    """Write text to a stream and flush it; characters that its encoding lacks become "?".

    Returns:
        The error if the stream cannot be written, else None. After an error, all text to the stream
        is dropped. If `stream` is None, nothing is written.
    """
    if stream is None:
        return None
    try:
        if getattr(stream, "errors", "strict") == "strict":  # stderr has "backslashreplace"
            known = stream.encoding or "utf-8"
            text = text.encode(known, "replace").decode(known)
        stream.write(text)
        stream.flush()
    except (OSError, ValueError, AttributeError) as error:  # ValueError: closed stream
        _drop(stream)
        return error
    return None


def drop_unwritable() -> None:
    """Drop buffered text of stdout and stderr that cannot be written. Otherwise Python prints an
    error at exit and exits with code 120."""
    for stream in (sys.stdout, sys.stderr):
        write("", stream)


def copy_of_stderr() -> int | None:
    """Return a duplicate of descriptor 2. None if it is closed, or was closed when Python started:
    a file that was opened later may then have this descriptor."""
    if sys.__stderr__ is None:
        return None
    try:
        return os.dup(2)
    except OSError:
        return None


def _drop(stream: TextIO) -> None:
    """Redirect the descriptor of a stream to the null device, and flush the stream's buffer
    there."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
