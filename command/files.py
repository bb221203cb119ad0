"""Open files safely, and save them atomically."""

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
_TEMPORARY = ".synthesis-"  # prefix of the names of temporary files
ROOM = 2**16  # bytes that `check_writable` writes
FileState = tuple[int, int, int, int]  # device, inode, modification time in ns, size in bytes
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # opening a pipe would block


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: The file cannot be opened, is empty, or is a pipe, a device or a file of /proc,
            from which reading may never end.
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


def file_state(path: Path) -> FileState | None:
    """Return the state of the file at a path; None if there is no file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def check_writable(path: Path) -> None:
    """Check before slow work that a file can be saved; missing folders are created on saving.

    Also removes temporary files of processes that have ended.

    Raises:
        UserError: The path is a folder, a device or a pipe, or its folder cannot be written to.
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
    """Return the path of a temporary file beside a file, named after the process."""
    # Not mkstemp, whose files are private instead of following the umask.
    return path.with_name(f"{_TEMPORARY}{platform.node()}-{os.getpid()}-{uuid4().hex[:8]}.tmp")


def sweep(folder: Path) -> None:
    """Remove temporary files of processes of this machine that have ended."""
    own = f"{_TEMPORARY}{platform.node()}-"
    for path in folder.glob(f"{glob.escape(own)}*-*.tmp"):
        with suppress(OSError, ValueError):
            try:
                os.kill(int(path.name[len(own) :].partition("-")[0]), 0)
            except ProcessLookupError:
                path.unlink()


def save_bytes(content: bytes | memoryview, path: Path) -> None:
    """Write a file atomically, and the folders that it needs.

    Raises:
        UserError: The file cannot be written.
    """
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
    # Replacing a symbolic link would not change the file that it points to.
    return Path(os.path.realpath(path))
