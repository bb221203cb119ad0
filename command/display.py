"""What the user sees and gets while a picture is made: a bar or lines on stderr, and snapshots."""

import json
import math
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor
from tqdm import tqdm

from command.pictures import save_picture
from command.plan import PREVIEW, Job
from command.streams import write
from engine.synthesis import Progress, finished
from utils import UserError, in_one_line, reason_of

A_LINE = 60  # s between lines where there is no terminal
A_PREVIEW = 2  # s


def say(notes: Iterable[str | None], quiet: bool = False) -> None:
    """Print what the user should hear on stderr, unless it is to be quiet; one that is closed or
    full costs no picture."""
    for note in notes:
        if note and not quiet:
            write(in_one_line(note) + "\n", sys.stderr)


class Notes:
    """Tells the user what is to be heard, once: not with each of many pictures."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.heard: set[str] = set()

    def tell(self, *notes: str | None) -> None:
        """One line each."""
        new = [note for note in notes if note and note not in self.heard]
        self.heard.update(new)
        say(new, self.quiet)


def print_result(line: str) -> None:
    """Print on stdout. One that is closed or no longer read costs no picture; of one that is full
    one line tells."""
    error = write(in_one_line(line) + "\n", sys.stdout)
    if error is not None and not isinstance(error, BrokenPipeError):
        say([f"Synthesis.py: stdout cannot be written ({reason_of(error)}), pictures are saved"])


class Display:
    """Shows progress, saves snapshots, and keeps the picture as it stands and how it came there."""

    def __init__(self, job: Job, record: dict[str, Any], quiet: bool, progress: str) -> None:
        """
        Args:
            progress: as the flag has it, or "lines" where other processes say theirs too.
        """
        self.job, self.record, self.quiet = job, record, quiet
        self.last: Progress | None = None
        self.before = 0.0  # fraction of the work that an earlier run has done
        self.curve: list[tuple[int, int, float]] = []  # step, scale, and the loss after that step
        self.phases: dict[str, float] = {}  # seconds by what was done
        self.as_json = progress == "json" and not quiet
        terminal = sys.stderr is not None and sys.stderr.isatty()
        lines = progress == "lines" or not terminal
        self.lines = lines and not quiet and not self.as_json
        self.started = self.at = self.said = self.previewed = time.monotonic()
        self.bar = tqdm(
            total=1,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            dynamic_ncols=True,
            smoothing=0,  # work is counted as it is, so that the rate so far is the best guess
            disable=quiet or self.as_json or self.lines,
            leave=False,
        )

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar and the preview."""
        self.bar.close()
        if self.job.preview:
            with suppress(OSError):
                self.job.preview_path.unlink(missing_ok=True)

    def __call__(self, progress: Progress) -> None:
        """Called after each step, or where the picture is painted after each round, which counts as
        several."""
        now, before = time.monotonic(), self.last
        since = self.curve[-1][0] if self.curve else 0  # what was resumed has a curve
        if before is not None:
            since = before.step
        self.last = progress
        painting = math.isnan(progress.loss)
        height, width = progress.image.shape[-2:]
        scale = f"scale {progress.scale}/{progress.scales} {width}x{height}"
        phase = "painting" if painting else scale
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self.at
        self.at = now
        if not painting:
            self.curve.append((progress.step, progress.scale, progress.loss))
        if self.as_json:
            self._say_as_json(progress, now)
        else:
            self._show(progress, scale, before is None or before.scale != progress.scale, now)
        if every := self.job.save_every:
            for step in range(since + every - since % every, progress.step + 1, every):
                self._save_snapshot(step)
        if self.job.preview and now - self.previewed >= A_PREVIEW:
            self.previewed = now
            with suppress(UserError):  # it is worth no line
                save_picture(self.picture(), self.job.preview_path, {PREVIEW: self.job.name})

    def resumes(self, fraction: float) -> None:
        """Called before the first step where an earlier run has done that fraction of the work."""
        self.before = self.bar.initial = self.bar.n = fraction

    @property
    def fraction(self) -> float:
        """Of the work that is done."""
        return self.before if self.last is None else self.last.fraction

    def _save_snapshot(self, step: int) -> None:
        path = self.job.snapshot_path(step)
        try:
            save_picture(self.picture(), path, self.record | {"step": step})
        except UserError as error:  # a snapshot less is no reason to end
            say([str(error)])

    def went_back(self, step: int) -> None:
        """After the first step whose loss or gradient is not finite."""
        said = f"{self.job.name}: step {step} led to no finite loss: back to the best picture, "
        say([f"{said}with half of the step size"], self.quiet)

    def _show(self, progress: Progress, scale: str, new: bool, now: float) -> None:
        told = f"step {progress.step}/{self.job.spec.steps}"
        # The finer a scale, the more there is to be wrong: its error begins anew.
        of_scale = " at this scale" if progress.scales > 1 else ""
        error = f"error {progress.loss:.2g}{of_scale}"
        told += ", painting" if math.isnan(progress.loss) else f", {error}"
        if new:
            self.bar.set_description(scale, refresh=False)
        self.bar.set_postfix_str(told, refresh=False)
        self.bar.update(progress.fraction - self.bar.n)
        if self.lines and new:
            say([f"{self.job.name}: {scale} from step {progress.step}"])
        elif self.lines and now - self.said >= A_LINE:
            left = duration(self._left(progress, now))
            say([f"{self.job.name}: {told}, {progress.fraction:.0%}, {left} left"])
            self.said = now

    def _say_as_json(self, progress: Progress, now: float) -> None:
        found = {
            "picture": self.job.name,
            "result": str(self.job.save_path),
            "step": progress.step,
            "steps": self.job.spec.steps,
            "scale": progress.scale,
            "scales": progress.scales,
            "fraction": round(progress.fraction, 4),
            "error": None if math.isnan(progress.loss) else float(f"{progress.loss:.6g}"),
            "seconds": round(now - self.started, 2),
            "left": round(self._left(progress, now), 1),
        }
        say([json.dumps(found)])

    def _left(self, progress: Progress, now: float) -> float:
        """Seconds, at the rate of this run so far."""
        done = max(progress.fraction - self.before, 1e-9)
        return (now - self.started) * (1 - progress.fraction) / done

    def picture(self) -> Tensor:
        """(1, 3, height, width) in [0, 1]: the best so far, as it would be saved."""
        assert self.last is not None  # there is a picture after the first step
        image = self.last.image
        return finished(self.job.spec.canvas.to(image.device), image)


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are two or more."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
