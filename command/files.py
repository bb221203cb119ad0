"""Files: how they are opened, and saved whole or not at all."""

import glob
import os
import platform
import stat
import tempfile
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from uuid import uuid4

from utils import UserError, reason_of

ROOT = Path(__file__).resolve().parent.parent
TEXTURES = ROOT / "textures"
PROCESSES = "/proc"
_TEMPORARY = ".synthesis-"  # how the names of files begin that are not whole yet
ROOM = 2**16  # bytes that a folder must have room for, before slow work begins
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # whatever opens a pipe waits


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device, a file of /proc or empty, so that
            reading may never end or gives nothing.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _AT_ONCE))
    known, reason = os.fstat(file.fileno()), ""
    if not stat.S_ISREG(known.st_mode):
        reason = "a device or a pipe, not a file"
    elif os.path.ismount(PROCESSES) and known.st_dev == os.stat(PROCESSES).st_dev:
        reason = f"a file of {PROCESSES}, which the system makes up"
    elif known.st_size == 0:
        reason = "an empty file"
    if reason:
        file.close()
        raise OSError(reason)
    return file


def check_writable(path: Path) -> None:
    """See that a file can be saved there, so that slow work does not end in an error; folders that
    are missing are created when it is. What runs that were killed have left there goes.

    Raises UserError when the path is a folder or no file, or its folder cannot be created or
    written to.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path}: a folder, not a file to save to")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: a device or a pipe, not a file to save to")
        folder = _real(path).parent
        there = next(one for one in (folder, *folder.parents) if one.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(ROOM))
        sweep(there)
    except OSError as error:
        raise UserError(f"{path}: cannot be saved there ({reason_of(error)})") from error


def temporary_of(path: Path) -> Path:
    """Where a file is written until it is whole: beside it, named by the process."""
    # Not mkstemp, whose files are private: an ordinary open follows the user's umask.
    return path.with_name(f"{_TEMPORARY}{platform.node()}-{os.getpid()}-{uuid4().hex[:8]}.tmp")


def sweep(folder: Path) -> None:
    """Remove temporary files of processes of this machine that are no more."""
    own = f"{_TEMPORARY}{platform.node()}-"
    for path in folder.glob(f"{glob.escape(own)}*-*.tmp"):
        with suppress(OSError, ValueError):
            try:
                os.kill(int(path.name[len(own) :].partition("-")[0]), 0)
            except ProcessLookupError:
                path.unlink()


def save_bytes(content: bytes | memoryview, path: Path) -> None:
    """Write a file that appears whole or not at all; raises UserError when it cannot be written."""
    temporary = temporary_of(_real(path))
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, _real(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be saved ({reason_of(error)})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _real(path: Path) -> Path:
    # Replacing a link would leave the file that it points to as it was.
    return Path(os.path.realpath(path))
