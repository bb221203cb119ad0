"""The log of a run (--log): a line of JSON for each picture."""

import hashlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from command.display import print_stderr
from command.results import CURVE, INTERRUPTED, Failed, Net, Result
from utils import UserError, reason_of

POINTS = 200  # of a loss curve in a log


class Log:
    """A file to which lines are appended; without a path, all methods do nothing."""

    def __init__(self, path: Path | None) -> None:
        """Raise UserError if the file cannot be written."""
        self.path = path
        self.known: dict[str, Any] = {}  # values that are the same in all lines
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("a").close()
            except OSError as error:
                raise UserError(f"--log {path}: cannot be written ({reason_of(error)})") from error

    def begin(self, net: Net) -> None:
        """Set the values that are the same in all lines of the run."""
        if self.path is not None:
            self.known = {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "weights_sha256": _digest(net),
            }

    def add(self, result: Result | Failed) -> None:
        """Append the line of an outcome; if the log cannot be written, print a message."""
        if self.path is None:
            return
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | _told(result) | self.known
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")
        except OSError as error:
            print_stderr([f"--log {self.path}: cannot be written ({reason_of(error)})"])


def _told(result: Result | Failed) -> dict[str, Any]:
    if isinstance(result, Failed):
        return {"exemplar": result.exemplar, "reason": "failed", "error": result.line}
    record = {name: value for name, value in result.record.items() if name != CURVE}
    told = {"picture": result.path, "record": record}
    if result.write_errors:
        told["missing"] = result.write_errors
    if result.stats is None:
        return told | {"reason": "finished before"}
    return told | {
        "reason": "interrupted" if INTERRUPTED in result.record else "finished",
        "seconds": round(result.seconds, 2),
        "phases": {name: round(seconds, 2) for name, seconds in result.stats.phases.items()},
        "curve": result.stats.points(POINTS),
        "peak_bytes": result.stats.peak,
    }


def _digest(net: Net) -> str:
    """Return the SHA-256 of the weights, tensor by tensor in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(net.weights):
        found.update(net.weights[name].contiguous().numpy().tobytes())
    return found.hexdigest()
