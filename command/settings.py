"""Flags that are read from the record of a picture or from a file.

Neither is trusted: the parser of the command line checks them like typed flags.
"""

import hashlib
import os
import tomllib
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from command.files import TEXTURES, FileState, file_state, open_regular
from command.kinds import kind_and_name
from command.memory import ARRAY
from command.pictures import find_picture, read_record, record_at
from losses import TERMS
from utils import UserError, reason_of

Flags = dict[str, Any]
# Key of a record that holds the flags typed, the exemplar, the seed, the net and the precision,
# from which --from repeats the picture. The other keys hold values that the program chose.
ASKED = "asked"
NET_FLAGS = {"model", "weights", "weights_layout"}  # together they select the net
# Flags of a record -> flags that drop them when typed now.
REPLACED = dict.fromkeys(NET_FLAGS, NET_FLAGS) | {"precision": {"device"}}
# The same for records up to version 0.2.1, in which derived values cannot be told from typed flags
# and so count as typed.
FOLLOWED = {
    **dict.fromkeys(TERMS, {"method", "preset"}),
    "spectrum": {"method", "preset", "gt_path", "style_image", "guide", "orientation", "repaint"},
    "layers": {"method"},
    "lr": {"optimizer", "preset"},
    "size": {"expand", "mask"},
    **dict.fromkeys(("repaint", "epoch", "optimizer"), {"preset"}),
}
MOST_BYTES = 2**20  # of a file of flags
TYPED_ONLY = {"config", "help", "version"}  # flags that are not allowed in a file


def named(path: Path) -> str:
    """Return the name of a file in records: its path, or for a file in textures/ its name alone."""
    return path.name if path.parent == TEXTURES else str(path)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return _digest(path, file_state(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error


@cache
def _digest(path: Path, state: FileState | None) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_picture(path: Path, names: Collection[str], typed: Collection[str]) -> Flags:
    """Return the flags that were typed for a picture, according to its record.

    Files that the picture was made from are searched at their old path, in `textures/` and beside
    the picture.

    Args:
        path: Path of the picture.
        names: Flags that may be taken from a record; others are ignored.
        typed: Flags typed for the present run, which are left out.

    Raises:
        UserError: The picture or its record is missing, or a file that it was made from is missing
            or has changed.
    """
    record = read_record(path)
    inputs = record.get("inputs")
    if "gt_path" not in record or not isinstance(inputs, dict):
        raise UserError(
            f"--from {path}: holds no record of this program, which making it again requires"
        )
    return _located(flags_of(record, names, typed), inputs, path)


def flags_of(record: Flags, names: Collection[str], typed: Collection[str] = ()) -> Flags:
    """Return the flags of `of_picture` from a record, with files named as in the record."""
    asked, replaced = record.get(ASKED), REPLACED
    if not isinstance(asked, dict) or "gt_path" not in asked:
        asked, replaced = record, REPLACED | FOLLOWED
    gone = {name for name, by in replaced.items() if by & set(typed)} | set(typed)
    return {name: value for name, value in asked.items() if name in names and name not in gone}


def made_by(path: Path, version: str) -> str | None:
    """Return a line if another version of this program made the picture, else None."""
    found = record_at(path).get("version")
    if found == version:
        return None
    return f"--from {path}: made by version {found}; version {version} may make a different picture"


def _located(value: Any, inputs: dict[str, Any], picture: Path) -> Any:
    """Return the value of a flag with the names of files replaced by their present paths."""
    if isinstance(value, dict):
        return {name: _located(one, inputs, picture) for name, one in value.items()}
    if isinstance(value, list):
        return [_located(one, inputs, picture) for one in value]
    if not isinstance(value, str):
        return value
    kind, name = kind_and_name(value) if value not in inputs else (None, value)
    if name.startswith(ARRAY):
        raise UserError(
            f"--from {picture}: made from {name}, a picture in memory; pass that picture again"
        )
    if name not in inputs:
        return value
    path = found_input(name, inputs[name], picture)
    if path is None:
        raise UserError(
            f"--from {picture}: made from {name}, which is missing or has changed (SHA-256)"
        )
    return f"{kind}:{named(path)}" if kind else named(path)


def found_input(name: str, sha256: Any, picture: Path) -> Path | None:
    """Return the present path of a file that a picture was made from, None if it is missing or has
    changed. Searched are its old path, `textures/` and the folder of the picture."""
    for place in (name, picture.parent / name, picture.parent / Path(name).name, Path(name).name):
        with suppress(UserError):  # there is no such file, or it cannot be read
            path = find_picture(place)
            if digest(path) == sha256:
                return path
    return None


def exemplar_of(picture: Path, record: Flags) -> Path | None:
    """Return the exemplar of a result; None if it is missing or has changed."""
    name, inputs = record.get("style_image") or record.get("gt_path"), record.get("inputs")
    if not isinstance(name, str) or not isinstance(inputs, dict):
        return None
    return found_input(name, inputs.get(name), picture)


def of_file(path: Path) -> Flags:
    """Return the flags of a TOML file: `size = "512x256"`, `preset = "best"`.

    Raises:
        UserError: The file cannot be read, is not TOML, or contains a flag of TYPED_ONLY.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise ValueError(f"larger than {MOST_BYTES} bytes")
            # Editors on Windows begin a UTF-8 file with a byte order mark.
            found = tomllib.loads(file.read().decode("utf-8-sig"))
    except RecursionError as error:
        raise UserError(f"--config {path}: nested too deep") from error
    except (OSError, ValueError) as error:  # both TOML's and UTF-8's errors are ValueErrors
        raise UserError(f"--config {path}: {reason_of(error)}") from error
    for name in TYPED_ONLY & found.keys():
        raise UserError(f"--config {path}: {name} is allowed on the command line only")
    return found
