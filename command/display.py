"""Output while a picture is made: a progress bar or lines on stderr, snapshots, a preview."""

import json
import math
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from command.pictures import save_picture
from command.plan import PREVIEW, Job
from command.streams import write
from engine.synthesis import Frame
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
    """A consumer of frames: shows progress, saves snapshots, and records the loss curve.

    Args:
        progress: "bar", "lines" or "json".
    """

    def __init__(self, job: Job, record: dict[str, Any], quiet: bool, progress: str) -> None:
        self.job, self.record, self.quiet = job, record, quiet
        self.last: Frame | None = None
        self.before = 0.0  # share of the work that an earlier run has done
        self.curve: list[tuple[int, int, float]] = []  # step, scale, and the loss after that step
        self.phases: dict[str, float] = {}  # seconds of painting, and of each scale
        self.went_back = False
        self.as_json = progress == "json" and not quiet
        terminal = sys.stderr is not None and sys.stderr.isatty()
        lines = progress == "lines" or not terminal
        self.lines = lines and not quiet and not self.as_json
        self.started = self.at = self.said = self.previewed = time.monotonic()
        self.bar = tqdm(
            total=1,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            dynamic_ncols=True,
            smoothing=0,  # the unit is work, so that the mean rate is the best estimate
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

    def resumes(self, course: dict[str, Any]) -> None:
        """Continue the `course` of an earlier run."""
        self.curve = [(step, scale, loss) for step, scale, loss in course["curve"]]
        self.phases = course["phases"]
        self.before = self.bar.initial = self.bar.n = course["work"]

    @property
    def course(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the run so far."""
        work = self.before if self.last is None else self.last.work
        return {"curve": self.curve, "phases": self.phases, "work": work}

    def show(self, frame: Frame) -> None:
        """Show a frame, and save a snapshot or preview of it if one is due."""
        now, before = time.monotonic(), self.last
        # A round of painting counts as several steps; a run that goes on has a curve.
        since = before.step if before else self.curve[-1][0] if self.curve else 0
        self.last = frame
        painting = math.isnan(frame.loss)
        height, width = frame.pixels.shape[-2:]
        scale = f"scale {frame.scale}/{frame.scales} {width}x{height}"
        phase = "painting" if painting else scale
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self.at
        self.at = now
        if not painting:
            self.curve.append((frame.step, frame.scale, frame.loss))
        if frame.went_back and not self.went_back:
            self.went_back = True
            said = f"{self.job.name}: step {frame.step} led to no finite loss: "
            say([f"{said}back to the best picture, with half of the step size"], self.quiet)
        if self.as_json:
            self._show_json(frame, now)
        else:
            self._show_text(frame, scale, before is None or before.scale != frame.scale, now)
        self._save(frame, since, now)

    def _save(self, frame: Frame, since: int, now: float) -> None:
        """Save the snapshots of the steps after `since`, and the preview."""
        if every := self.job.save_every:
            for step in range(since + every - since % every, frame.step + 1, every):
                try:
                    path = self.job.snapshot_path(step)
                    save_picture(frame.made.image, path, self.record | {"step": step})
                except UserError as error:  # a missing snapshot is no reason to end
                    say([str(error)])
        if self.job.preview and now - self.previewed >= A_PREVIEW:
            self.previewed = now
            with suppress(UserError):
                save_picture(frame.made.image, self.job.preview_path, {PREVIEW: self.job.name})

    def _show_text(self, frame: Frame, scale: str, new: bool, now: float) -> None:
        step = f"step {frame.step}/{self.job.spec.steps}"
        # Each scale has an error of its own: the finer it is, the more can be wrong.
        of_scale = " at this scale" if frame.scales > 1 else ""
        error = f"error {frame.loss:.2g}{of_scale}"
        step += ", painting" if math.isnan(frame.loss) else f", {error}"
        if new:
            self.bar.set_description(scale, refresh=False)
        self.bar.set_postfix_str(step, refresh=False)
        self.bar.update(frame.work - self.bar.n)
        if self.lines and new:
            say([f"{self.job.name}: {scale} from step {frame.step}"])
        elif self.lines and now - self.said >= A_LINE:
            left = duration(self._left(frame, now))
            say([f"{self.job.name}: {step}, {frame.work:.0%}, {left} left"])
            self.said = now

    def _show_json(self, frame: Frame, now: float) -> None:
        found = {
            "picture": self.job.name,
            "result": str(self.job.save_path),
            "step": frame.step,
            "steps": self.job.spec.steps,
            "scale": frame.scale,
            "scales": frame.scales,
            "fraction": round(frame.work, 4),
            "error": None if math.isnan(frame.loss) else float(f"{frame.loss:.6g}"),
            "seconds": round(now - self.started, 2),
            "left": round(self._left(frame, now), 1),
        }
        say([json.dumps(found)])

    def _left(self, frame: Frame, now: float) -> float:
        """Return the seconds that are left at the mean rate of this run."""
        done = max(frame.work - self.before, 1e-9)
        return (now - self.started) * (1 - frame.work) / done


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are two or more."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
