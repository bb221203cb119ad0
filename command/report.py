"""One page to look at: every result of a folder beside its exemplar, in a file that needs nothing
else."""

import base64
import json
import math
import shlex
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from command.arguments import Request, argv_of, recorded_flags
from command.pictures import find_pictures, read_levels, read_picture, record_at
from command.results import AFTERWARDS, CURVE
from command.scores import LEAST_SIDE, SCORES
from command.settings import ASKED, exemplar_of, flags_of
from command.sheet import PAGE, snapshots_of
from command.streams import put
from command.verdict import faults, verdict
from utils import UserError, save_bytes

TEMPLATE = Path(__file__).with_name("report.html")
SIDE, SMALL = 320, 128  # px, the longer side of pictures and of snapshots on the page
SCORED_SIDE = 512  # px: of larger pictures the middle is scored
NO_SETTINGS = AFTERWARDS | {ASKED, "inputs", "version", "exemplar", "gt_path", "size", "step"}


def print_report(request: Request) -> None:
    """Write the page of a folder, and print where it is.

    Raises:
        UserError: no folder, no result in it, or the page cannot be written.
    """
    assert request.report is not None
    put(f"{write_report(request.report, request.quiet)}\n")


def write_report(folder: Path, quiet: bool) -> Path:
    """The page of all pictures in a folder whose records say that we made them; raises as
    `print_report` does."""
    if not folder.is_dir():
        raise UserError(f"--report {folder}: not a folder")
    found = [(path, record) for path in find_pictures(folder) if (record := record_at(path))]
    results = [(path, record) for path, record in found if "error" in record]
    if not results:
        raise UserError(f"--report {folder}: no picture there that was made by this program")
    entries = []
    exemplars: dict[str, Any] = {}
    for path, record in tqdm(results, "report", leave=False, disable=quiet or None):
        entries.append(_entry(path, record, exemplars))
    # Within a script of HTML nothing may look like its end.
    data = json.dumps(entries, allow_nan=False).replace("<", "\\u003c")
    page = folder / PAGE
    save_bytes(TEMPLATE.read_text("utf-8").replace("/*DATA*/", data).encode(), page)
    return page


def _entry(path: Path, record: dict[str, Any], exemplars: dict[str, Any]) -> dict[str, Any]:
    """What the page knows of a result; a record that somebody has changed is no reason to fail."""
    exemplar = exemplar_of(path, record)
    scores: dict[str, float] = {}
    total, words = None, ""
    if exemplar is not None:
        scores = _scores(path, exemplar)
        if scores:
            total, words = round(sum(faults(scores)), 2), verdict(scores)[1]
    if exemplar is not None and str(exemplar) not in exemplars:
        exemplars[str(exemplar)] = _thumbnail(exemplar, SIDE)
    return {
        "name": path.name,
        "exemplar": str(record.get("exemplar", "")),
        "exemplar_picture": None if exemplar is None else exemplars[str(exemplar)],
        "picture": _thumbnail(path, SIDE),
        "size": str(record.get("size", "")),
        "error": _finite(record.get("error")),
        "faults": total,
        "verdict": words,
        "scores": {name: _finite(value) for name, value in scores.items()},
        "snapshots": [[step, _thumbnail(one, SMALL)] for step, one in snapshots_of(path)],
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
    """A picture as it is put into a page."""
    picture = read_levels(path)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = BytesIO()
    picture.save(file, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _curve(points: Any) -> list[Any]:
    """Of a record, if it is one: [step, scale, loss] each."""
    try:
        return [p for p in points if len(p) == 3 and None not in map(_finite, p) and p[0] > 0]
    except TypeError:
        return []


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _command(path: Path, record: dict[str, Any]) -> str:
    """What makes it again: what was typed for it. Of a record that does not say so, or that
    somebody has changed, `--from`."""
    again = f"python Synthesis.py --from {shlex.quote(path.name)}"
    if not isinstance(record.get(ASKED), dict):
        return again
    flags = flags_of(record, recorded_flags())
    try:
        return "python Synthesis.py " + shlex.join([*argv_of(flags), "--save_path", path.name])
    except (UserError, TypeError, ValueError, LookupError):
        return again
