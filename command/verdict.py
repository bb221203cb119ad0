"""What eyes hold against a texture, from its scores: one number, and words."""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

from command.display import say
from command.flags import Request
from command.pictures import find_picture, read_picture
from command.scores import LEAST_SIDE, SCORES, score
from command.streams import put
from utils import UserError

# Faults of the judged pictures: below the first most of their pairs were won, and above the second
# none was.
GOOD, FAIR = 4.0, 5.25
NAMED = 1.25  # a fault's part of the sum that is worth a word
COPIED = 0.5  # share of `copied` or of `layout` that is told
MELTED, MISSING = "objects melted or torn", "parts of the exemplar are missing"


def _octaves_over(unit: float) -> Callable[[float], float]:
    """A score >= 0 -> octaves by which it exceeds about `unit`, 0 for 0."""
    return lambda value: math.log2(1 + value / unit)


def _beyond(free: float) -> Callable[[float], float]:
    """A score -> by how much it is above `free`, up to 2; 0 below, and where there is no score."""
    return lambda value: 0.0 if math.isnan(value) else min(2.0, max(0.0, value - free))


def _below(free: float) -> Callable[[float], float]:
    return lambda value: _beyond(-free)(-value)


class Fault(NamedTuple):
    """One thing that eyes hold against a picture: what a score says of it, >= 0, its weight in the
    sum, and what it looks like."""

    score: str
    size: Callable[[float], float]
    weight: float
    words: str


# Weights are a logistic regression on the judged pairs of docs/judged.csv, rounded: of two
# pictures, the one with a sum smaller by 1 is preferred at odds of e. No picture
# there has a rim or has lost its order, so the last two weights are set by hand.
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
    """Scores of a picture -> what each of FAULTS adds to the sum; 0 is none, the exemplar's own."""
    return [fault.weight * fault.size(values[fault.score]) for fault in FAULTS]


def verdict(values: dict[str, float]) -> tuple[float, str]:
    """Scores of a picture -> the sum of its faults and words: how good it is, and its worst two.

    Copying is told after a semicolon. It is no fault of looks, and not in the sum; the layout of
    an exemplar that repeats is the texture itself.
    """
    sizes = faults(values)
    total = sum(sizes)
    found = {fault.words: size for fault, size in zip(FAULTS, sizes, strict=True) if size > NAMED}
    if found.get(MISSING, 0) < 2 * found.get(MELTED, 0):
        found.pop(MISSING, None)  # what has melted is not found again either
    worst = sorted(found, key=lambda words: -found[words])[:2]
    words = "good" if total < GOOD else "fair" if total < FAIR else "poor"
    if worst:
        words += ": " + ", ".join(worst)
    if values["layout"] > COPIED and math.isnan(values["peak"]):
        words += "; the exemplar's layout again"
    elif values["copied"] > COPIED:
        words += "; copied from the exemplar in pieces"
    return total, words


def _verdicts(scores: dict[str, tuple[float, float]]) -> tuple[float, float, str]:
    """What `score` returns -> faults of the picture and of the halves; words for the picture."""
    picture, halves = ({name: pair[i] for name, pair in scores.items()} for i in (0, 1))
    total, words = verdict(picture)
    return total, sum(faults(halves)), words


def as_table(scores: dict[str, tuple[float, float]]) -> str:
    """What `score` returns as lines of text, each score with how to read it; then the verdict."""
    lines = [f"{'score':16} {'picture':>8} {'halves':>8}"]
    for name, (value, halves) in scores.items():
        lines.append(f"{name:16} {value:8.3f} {halves:8.3f}  {SCORES[name].reading}")
    total, halves, words = _verdicts(scores)
    last = (
        f"verdict: {words} (faults of {total:.1f}, where less than {GOOD:g} is good and more than "
        f"{FAIR:g} poor; two halves of the exemplar have {halves:.1f})"
    )
    return "\n".join([*lines, last])


def as_json(scores: dict[str, tuple[float, float]]) -> str:
    """What `score` returns as `{name: {"picture": value, "halves": value}}`, NaN as null; the
    verdict likewise, with its `"words"`."""
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
    """What `--score` asks for, as a table or as JSON.

    Raises:
        UserError: a picture that is missing or too small.
    """
    assert request.score is not None
    pictures = []
    for path in (find_picture(request.score), find_picture(request.gt_path[0])):
        picture, *_, notes = read_picture(path)
        height, width = picture.shape[-2:]
        if min(height, width) < LEAST_SIDE:
            raise UserError(f"{path}: {width}x{height}, scores need sides of {LEAST_SIDE} or more")
        say(notes, request.quiet)
        pictures.append(picture)
    scores = score(*pictures)
    put((as_json(scores) if request.json else as_table(scores)) + "\n")
