"""The verdict on a result: the sum of its visible faults, estimated from its scores, in words."""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

from command.display import print_stderr
from command.flags import Request
from command.pictures import find_picture, read_picture
from command.scores import LEAST_SIDE, SCORES, score
from command.streams import write_stdout
from utils import UserError

# Of the pictures judged in pairs, those with sums of faults below GOOD won most of their pairs,
# those above FAIR none.
GOOD, FAIR = 4.0, 5.25
NAMED = 1.25  # contribution to the sum from which a fault is named
COPIED = 0.5  # value of `copied` or `layout` from which copying is named
MELTED, MISSING = "objects melted or torn", "parts of the exemplar are missing"


def _octaves_over(unit: float) -> Callable[[float], float]:
    """Return a function: a score >= 0 -> log2(1 + score / unit)."""
    return lambda value: math.log2(1 + value / unit)


def _beyond(free: float) -> Callable[[float], float]:
    """Return a function: a score -> its excess over `free`, clipped to [0, 2]; 0 for NaN."""
    return lambda value: 0.0 if math.isnan(value) else min(2.0, max(0.0, value - free))


def _below(free: float) -> Callable[[float], float]:
    return lambda value: _beyond(-free)(-value)


class Fault(NamedTuple):
    """A visible fault of a picture: its size (>= 0) as a function of a score, its weight in the
    sum, and its description."""

    score: str
    size: Callable[[float], float]
    weight: float
    words: str


# Rounded weights of a logistic regression on the pairs in docs/judged.csv: a picture whose sum is
# smaller by 1 is preferred at odds of e to 1. No picture there has a rim or has lost its order, so
# the last two weights are set by hand.
FAULTS = (
    Fault("colour", _octaves_over(0.5), 1.0, "colours off"),
    Fault("chroma", _beyond(0.1), 1.0, "coloured specks"),
    Fault("grain", _beyond(0.0), 4.0, "hatching or noise in flat places"),
    Fault("grain", _below(0.0), 4.0, "flat places too smooth"),
    Fault("objects", _octaves_over(0.05), 0.6, MELTED),
    Fault("used", _octaves_over(0.05), 0.6, MISSING),
    Fault("rim", _beyond(0.5), 2.0, "a rim"),
    Fault("peak", _below(0.7), 2.0, "order lost"),
)


def faults(values: dict[str, float]) -> list[float]:
    """Return what each of FAULTS adds to the sum, given scores by name; 0 means no fault."""
    return [fault.weight * fault.size(values[fault.score]) for fault in FAULTS]


def verdict(values: dict[str, float]) -> tuple[float, str]:
    """Return the sum of the faults of a picture, given scores by name, and in words its rating and
    the two largest faults.

    Copying, which is not visible and not in the sum, is named after a semicolon. A copied layout is
    not named for periodic exemplars, which have only one.
    """
    sizes = faults(values)
    total = sum(sizes)
    found = {fault.words: size for fault, size in zip(FAULTS, sizes, strict=True) if size > NAMED}
    if found.get(MISSING, 0) < 2 * found.get(MELTED, 0):
        found.pop(MISSING, None)  # parts of the exemplar that are melted count as missing too
    worst = sorted(found, key=lambda words: -found[words])[:2]
    words = "good" if total < GOOD else "fair" if total < FAIR else "poor"
    if worst:
        words += ": " + ", ".join(worst)
    if values["layout"] > COPIED and math.isnan(values["peak"]):
        words += "; repeats the exemplar's layout"
    elif values["copied"] > COPIED:
        words += "; copied from the exemplar in pieces"
    return total, words


def _verdicts(scores: dict[str, tuple[float, float]]) -> tuple[float, float, str]:
    """Return the faults of the picture and of the halves, and words for the picture."""
    picture, halves = ({name: pair[i] for name, pair in scores.items()} for i in (0, 1))
    total, words = verdict(picture)
    return total, sum(faults(halves)), words


def as_table(scores: dict[str, tuple[float, float]]) -> str:
    """Return the result of `score` as a table with explanations, followed by the verdict."""
    lines = [f"{'score':16} {'picture':>8} {'halves':>8}"]
    for name, (value, halves) in scores.items():
        lines.append(f"{name:16} {value:8.3f} {halves:8.3f}  {SCORES[name].reading}")
    total, halves, words = _verdicts(scores)
    last = (
        f"verdict: {words} (faults {total:.1f}: below {GOOD:g} is good, above {FAIR:g} poor; the "
        f"halves of the exemplar have {halves:.1f})"
    )
    return "\n".join([*lines, last])


def as_json(scores: dict[str, tuple[float, float]]) -> str:
    """Return the result of `score` as `{name: {"picture": value, "halves": value}}`, NaN as null.

    The entry `"verdict"` holds the sums of faults in the same form, and `"words"`.
    """
    *totals, words = _verdicts(scores)
    found: dict[str, dict[str, float | str | None]] = {
        name: {
            title: None if math.isnan(value) else round(value, 6)
            for title, value in zip(("picture", "halves"), values, strict=True)
        }
        for name, values in {**scores, "verdict": totals}.items()
    }
    found["verdict"]["words"] = words
    return json.dumps(found)


def print_scores(request: Request) -> None:
    """Print the scores of the picture of --score, as a table or as JSON.

    Raises:
        UserError: A picture is missing or too small.
    """
    assert request.score is not None
    pictures = []
    for path in (find_picture(request.score), find_picture(request.gt_path[0])):
        picture, *_, notes = read_picture(path)
        height, width = picture.shape[-2:]
        if min(height, width) < LEAST_SIDE:
            raise UserError(f"{path}: {width}x{height}, scores need sides from {LEAST_SIDE} px")
        print_stderr(notes, request.quiet)
        pictures.append(picture)
    scores = score(*pictures)
    write_stdout((as_json(scores) if request.json else as_table(scores)) + "\n")
