"""Tables of people's preferences in blind pairs, and of the agreement of scores and verdict."""

import csv
from collections.abc import Callable
from pathlib import Path

from command.scores import SCORES
from command.verdict import FAULTS, faults

JUDGED = Path(__file__).resolve().parent / "judged.csv"
Scores = dict[str, float]


def _badness_of(name: str) -> Callable[[Scores], float]:
    """Return a function of the scores that ranks pictures by one of them; smaller is better. It is
    the sum of the score's faults in the verdict or, if the verdict does not use it, its value."""
    sizes = [fault.size for fault in FAULTS if fault.score == name]
    return lambda values: sum(size(values[name]) for size in sizes) if sizes else values[name]


def _judgements(path: Path) -> list[tuple[str, Scores, Scores, int]]:
    """Return (half, scores of A, scores of B, answers for A minus answers for B) of each pair;
    `half` is "tuning" or "held out"."""
    found = []
    for row in csv.DictReader(path.read_text().splitlines()):
        a, b = (
            {name: float(row[f"{name} {side}"]) for name in SCORES if f"{name} {side}" in row}
            for side in "AB"
        )
        answers = row["answers"].split()
        found.append((row["half"], a, b, answers.count("A") - answers.count("B")))
    return found


def agreement(path: Path = JUDGED) -> list[str]:
    """Return a Markdown table: for each score and the verdict, the share of pairs in which it is
    better for the preferred picture, in the tuning half, the held-out half and all pairs.

    Pairs without a majority are left out. Equal values count half.
    """
    pairs = [pair for pair in _judgements(path) if pair[3]]
    measures = {name: _badness_of(name) for name in pairs[0][1]}
    measures["**verdict**"] = lambda values: sum(faults(values))
    chosen = {half: [pair for pair in pairs if pair[0] == half] for half in ("tuning", "held out")}
    chosen["all"] = pairs
    titles = [f"{title} ({len(found)} pairs)" for title, found in chosen.items()]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * 4 + "|"]
    for name, badness in measures.items():
        shares = [_share(found, badness) for found in chosen.values()]
        lines.append(f"| {name} | " + " | ".join(shares) + " |")
    return lines


def _share(pairs: list[tuple[str, Scores, Scores, int]], badness: Callable) -> str:
    """Return the share of pairs in which the preferred picture has the smaller badness."""
    if not pairs:
        return "-"
    right = 0.0
    for _, a, b, preferred in pairs:
        gain = (badness(b) - badness(a)) * preferred
        right += 1 if gain > 0 else 0 if gain < 0 else 0.5
    return f"{right / len(pairs):.0%}"


def preferences(path: Path = JUDGED) -> list[str]:
    """Return a Markdown table: for each pair of programs and half of the exemplars, the numbers of
    answers for the first, for neither and for the second. A tie counts half in the share."""
    answers: dict[tuple[str, str, str], list[str]] = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        answers.setdefault((row["half"], row["A"], row["B"]), []).extend(row["answers"].split())
    lines = ["| | against | exemplars | won | tie | lost | share |", "|---" * 7 + "|"]
    for (half, a, b), found in sorted(answers.items()):
        won, tie, lost = (found.count(answer) for answer in ("A", "tie", "B"))
        share = (won + tie / 2) / len(found)
        lines.append(f"| {a} | {b} | {half} | {won} | {tie} | {lost} | {share:.0%} |")
    return lines
