"""The page of --report: the results in a folder beside their exemplars, as one HTML file."""

import base64
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from command.arguments import argv_of, recorded_flags
from command.display import LINE_INTERVAL, print_stderr
from command.files import save_bytes
from command.flags import Request
from command.outputs import PAGE, check_page
from command.pictures import SUFFIXES, files_in, read_levels, read_picture, read_record, read_size
from command.results import CURVE, FINAL_KEYS, Failed, finite
from command.scores import LEAST_SIDE, SCORES
from command.settings import ASKED, exemplar_of, flags_of
from command.sheet import snapshots_of
from command.streams import write_stdout
from command.verdict import verdict
from utils import Size, UserError, in_one_line, size_text

TEMPLATE = Path(__file__).with_name("report.html")
SIDE, SMALL = 320, 128  # px, longer side of pictures and of snapshots on the page
SCORED_SIDE = 512  # px; larger pictures are cropped to the middle before scoring
MOST_SNAPSHOTS = 60  # shown per result, including the last one
# Defaults of an entry of the page; a picture that failed has only its name and the reason.
EMPTY: dict[str, Any] = {
    **dict.fromkeys(("name", "exemplar", "size", "verdict", "command", "failed"), ""),
    **dict.fromkeys(("exemplar_picture", "picture", "error", "faults")),
    **{"scores": {}, "snapshots": [], "curve": [], "settings": {}},
}
NO_SETTINGS = FINAL_KEYS | {ASKED, "inputs", "version", "exemplar", "gt_path", "size", "step"}


def print_report(request: Request) -> None:
    """Write the page of a folder and print its path.

    Raises:
        UserError: The folder is missing or has no results, or the page cannot be written.
    """
    assert request.report is not None
    write_stdout(f"{write_report(request.report, request.quiet)}\n")


def write_report(folder: Path, quiet: bool, failed: Sequence[Failed] = ()) -> Path:
    """Write the page of a folder and return its path; raise as `print_report`.

    The page shows the pictures made by this program, and names those that cannot be read.

    Args:
        failed: Pictures that the present run could not make.
    """
    if not folder.is_dir():
        raise UserError(f"--report {folder}: not a folder")
    check_page(folder / PAGE)
    results = _results_in(folder)
    if not results:
        raise UserError(f"--report {folder}: holds no picture made by this program")
    entries = [_failure(one.exemplar, one.line) for one in failed]
    picture_of = cache(partial(_thumbnail_or_none, side=SIDE))  # results share exemplars
    lines = not sys.stderr.isatty()
    print_stderr([f"report: scoring pictures, {len(results)} in all"] * lines, quiet)
    said = time.monotonic()
    for i, (path, record) in enumerate(tqdm(results, "report", leave=False, disable=quiet or None)):
        if lines and time.monotonic() - said >= LINE_INTERVAL:
            said = time.monotonic()
            print_stderr([f"report: {i} of {len(results)} pictures scored"], quiet)
        entries.append(_entry_or_failure(path, record, picture_of))
    # JSON within a script element must not contain "</script>".
    data = json.dumps(entries, allow_nan=False).replace("<", "\\u003c")
    page = folder / PAGE
    save_bytes(TEMPLATE.read_text("utf-8").replace("/*DATA*/", data).encode(), page)
    return page


def _results_in(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the results in a folder with their records, and the unreadable pictures with {};
    snapshots, maps, repeats and sheets are left out."""
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in files_in(folder):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            try:
                record = read_record(path)
                if "error" in record and not _is_repeat(record, read_size(path)):
                    found.append((path, record))
            except UserError:  # the same error when the picture is read
                found.append((path, {}))
    return found


def _is_repeat(record: dict[str, Any], size: Size) -> bool:
    """Return whether a picture of that size is the repeat of the one that the record describes."""
    tile, (height, width) = record.get("tile"), size
    if tile not in ("x", "y", "xy"):
        return False
    repeat = height // (1 + ("y" in tile)), width // (1 + ("x" in tile))
    return record.get("size") == size_text(repeat)


def _entry_or_failure(
    path: Path, record: dict[str, Any], picture_of: Callable[[Path], str | None]
) -> dict[str, Any]:
    """Return the entry of a result, or one with the error if that fails.

    Args:
        picture_of: Returns the picture of an exemplar as a data URL.
    """
    try:
        return _entry(path, record, picture_of)
    except UserError as error:
        return _failure(path, str(error))
    except Exception as error:  # an altered record raises errors of many types
        return _failure(path, in_one_line(f"{type(error).__name__}: {error}"))


def _failure(path: Path, why: str) -> dict[str, Any]:
    return EMPTY | {"name": path.name, "failed": why}


def _entry(
    path: Path, record: dict[str, Any], picture_of: Callable[[Path], str | None]
) -> dict[str, Any]:
    exemplar = exemplar_of(path, record)
    scores = {} if exemplar is None else _scores(path, exemplar)
    total, words = verdict(scores) if scores else (math.nan, "")
    snapshots = snapshots_of(path)
    every = max(1, math.ceil(len(snapshots) / MOST_SNAPSHOTS))
    shown = snapshots[(len(snapshots) - 1) % every :: every]
    small = ((step, _thumbnail_or_none(one, SMALL)) for step, one in shown)
    return EMPTY | {
        "name": path.name,
        "exemplar": str(record.get("exemplar", "")),
        "exemplar_picture": None if exemplar is None else picture_of(exemplar),
        "picture": _thumbnail(path, SIDE),
        "size": str(record.get("size", "")),
        "error": finite(record.get("error")),
        "faults": finite(round(total, 2)),
        "verdict": words,
        "scores": {name: finite(value) for name, value in scores.items()},
        "snapshots": [[step, picture] for step, picture in small if picture],
        "curve": _curve(record.get(CURVE)),
        "settings": {k: _told(v) for k, v in record.items() if k not in NO_SETTINGS and v},
        "command": _command(path, record),
    }


def _scores(path: Path, exemplar: Path) -> dict[str, float]:
    try:
        output, source = (_middle(read_picture(one)[0]) for one in (path, exemplar))
    except UserError:
        return {}
    if min(*output.shape[2:], *source.shape[2:]) < LEAST_SIDE:
        return {}
    return {name: function(output, source) for name, (function, _) in SCORES.items()}


def _middle(image: Any) -> Any:
    top, left = (max(0, (side - SCORED_SIDE) // 2) for side in image.shape[2:])
    return image[..., top : top + SCORED_SIDE, left : left + SCORED_SIDE]


def _thumbnail(path: Path, side: int) -> str:
    """Return a picture as a data URL, reduced so that the longer side has `side` px."""
    picture = read_levels(path)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = BytesIO()
    picture.save(file, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _thumbnail_or_none(path: Path, side: int) -> str | None:
    """Return the result of `_thumbnail`; None if the file cannot be read."""
    try:
        return _thumbnail(path, side)
    except UserError:
        return None


def _curve(points: Any) -> list[Any]:
    """Return the valid points (step, scale, loss) of the loss curve in a record."""
    try:
        return [p for p in points if len(p) == 3 and None not in map(finite, p) and p[0] > 0]
    except TypeError:
        return []


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _command(path: Path, record: dict[str, Any]) -> str:
    """Return the command that makes a picture again: with the flags typed for it, or with `--from`
    if its record lacks them or was altered."""
    again = f"python Synthesis.py --from {shlex.quote(path.name)}"
    if not isinstance(record.get(ASKED), dict):
        return again
    flags = flags_of(record, recorded_flags())
    try:
        return "python Synthesis.py " + shlex.join([*argv_of(flags), "--save_path", path.name])
    except (UserError, TypeError, ValueError, LookupError):
        return again
