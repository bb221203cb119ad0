"""Settings that are read instead of typed: those of a picture's record, and those of a file.

Both become flags, which the command line's own parser then checks as if they had been typed: what
a file says is no more trusted than what a user says.
"""

import hashlib
import os
import tomllib
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from command.kinds import kind_and_name
from command.memory import ARRAY
from command.pictures import find_picture, read_record, record_at
from losses import TERMS
from utils import TEXTURES, UserError, open_regular, reason_of

Flags = dict[str, Any]
# In a record: the flags that were typed, and what else tells the picture: exemplar, seed, net and
# precision. All beside it was decided: it is for the log, the report and whoever looks at it.
ASKED = "asked"
NET_FLAGS = {"model", "weights", "weights_layout"}  # say together which net it is
# Flags -> those by which, typed now, they are another machine's, or another net's.
REPLACED = dict.fromkeys(NET_FLAGS, NET_FLAGS) | {"precision": {"device"}}
# Records of 0.2.1 and older do not tell what was typed from what followed. All counts as typed but
# what these flags, typed now, would make wrong.
FOLLOWED = {
    **dict.fromkeys(TERMS, {"method", "preset"}),
    "spectrum": {"method", "preset", "gt_path", "style_image", "guide", "orientation", "repaint"},
    "layers": {"method"},
    "lr": {"optimizer", "preset"},
    "size": {"expand", "mask"},
    **dict.fromkeys(("repaint", "epoch", "optimizer"), {"preset"}),
}
MOST_BYTES = 2**20  # of a file of flags
TYPED_ONLY = {"config", "help", "version"}  # what would be ignored, or end the run, in such a file


def named(path: Path) -> str:
    """As records and results name a file: ours by its name, others as they were given."""
    return path.name if path.parent == TEXTURES else str(path)


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        known = path.stat()
        return _digest(path, known.st_mtime_ns, known.st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error


@cache
def _digest(path: Path, changed: int, size: int) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_picture(path: Path, names: Collection[str], typed: Collection[str]) -> Flags:
    """The flags that were typed for a picture, by its record.

    Args:
        path: of the picture.
        names: of flags that a record may give; others are ignored.
        typed: names of flags that are typed now, which are not looked up.

    Raises:
        UserError: no picture, no record of ours in it, or a file that it was made from is not here
            as it was: where it was, in `textures/` or beside the picture.
    """
    record = read_record(path)
    inputs = record.get("inputs")
    if "gt_path" not in record or not isinstance(inputs, dict):
        raise UserError(f"--from {path}: holds no record of how it was made")
    return _located(flags_of(record, names, typed), inputs, path)


def flags_of(record: Flags, names: Collection[str], typed: Collection[str] = ()) -> Flags:
    """As `of_picture`, with files named as the record names them."""
    asked, replaced = record.get(ASKED), REPLACED
    if not isinstance(asked, dict) or "gt_path" not in asked:
        asked, replaced = record, REPLACED | FOLLOWED
    gone = {name for name, by in replaced.items() if by & set(typed)} | set(typed)
    return {name: value for name, value in asked.items() if name in names and name not in gone}


def made_by(path: Path, version: str) -> str | None:
    """What the user should hear of a picture that another version of this program made."""
    found = record_at(path).get("version")
    if found == version:
        return None
    return f"--from {path}: made by version {found}; version {version} may make another picture"


def _located(value: Any, inputs: dict[str, Any], picture: Path) -> Any:
    """A value with every name of an input as the path where that is now."""
    if isinstance(value, dict):
        return {name: _located(one, inputs, picture) for name, one in value.items()}
    if isinstance(value, list):
        return [_located(one, inputs, picture) for one in value]
    if not isinstance(value, str):
        return value
    kind, name = kind_and_name(value) if value not in inputs else (None, value)
    if name.startswith(ARRAY):
        raise UserError(f"--from {picture}: {name} was a picture in memory, no file, give it anew")
    if name not in inputs:
        return value
    path = found_input(name, inputs[name], picture)
    if path is None:
        raise UserError(f"--from {picture}: {name} is not here as it was, by its SHA-256")
    return f"{kind}:{named(path)}" if kind else named(path)


def found_input(name: str, sha256: Any, picture: Path) -> Path | None:
    """Where a file is now that a picture was made from: where it was, in `textures/` or beside the
    picture; None if it is nowhere, or is another one."""
    for path in _candidates(name, picture):
        with suppress(UserError):  # it can be opened, but not read
            if digest(path) == sha256:
                return path
    return None


def exemplar_of(picture: Path, record: Flags) -> Path | None:
    """The picture whose texture a result has, if it is still here as it was."""
    name, inputs = record.get("style_image") or record.get("gt_path"), record.get("inputs")
    if not isinstance(name, str) or not isinstance(inputs, dict):
        return None
    return found_input(name, inputs.get(name), picture)


def _candidates(name: str, picture: Path) -> Iterable[Path]:
    for place in (name, picture.parent / name, picture.parent / Path(name).name, Path(name).name):
        try:
            yield find_picture(place)
        except UserError:
            continue


def of_file(path: Path) -> Flags:
    """The flags of a TOML file: `size = "512x256"`, `preset = "best"`.

    Raises:
        UserError: it cannot be read, or says what only a command line can.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise ValueError(f"larger than {MOST_BYTES} bytes")
            # Editors of Windows begin a file of UTF-8 with a byte order mark.
            found = tomllib.loads(file.read().decode("utf-8-sig"))
    except RecursionError as error:
        raise UserError(f"--config {path}: nested too deep") from error
    except (OSError, ValueError) as error:  # both TOML's and UTF-8's errors are ValueErrors
        raise UserError(f"--config {path}: {reason_of(error)}") from error
    for name in TYPED_ONLY & found.keys():
        raise UserError(f"--config {path}: {name} is for the command line alone")
    return found
