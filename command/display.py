"""Progress of a synthesis: a bar or lines on stderr, snapshots, a preview."""

import json
import math
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from command.outputs import preview_path, snapshot_path
from command.pictures import save_picture
from command.plan import PREVIEW, Job
from command.streams import write
from engine.synthesis import Frame
from utils import UserError, in_one_line, reason_of

LINE_INTERVAL = 60  # s between lines of progress if stderr is no terminal
PREVIEW_INTERVAL = 2  # s between updates of the preview


def print_stderr(lines: Iterable[str | None], quiet: bool = False) -> None:
    """Print lines on stderr; errors of stderr are ignored.

    Args:
        lines: None and "" are skipped.
        quiet: whether to print nothing.
    """
    for line in lines:
        if line and not quiet:
            write(in_one_line(line) + "\n", sys.stderr)


class Notes:
    """Prints notes on stderr, each once: not again for each of many pictures."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.printed: set[str] = set()

    def print(self, *notes: str | None) -> None:
        """Print those notes that have not been printed."""
        new = [note for note in dict.fromkeys(notes) if note and note not in self.printed]
        self.printed.update(new)
        print_stderr(new, self.quiet)


def print_result(line: str) -> None:
    """Print the line of a result on stdout. If stdout cannot be written, a note is printed on
    stderr, except for a pipe that is no longer read."""
    error = write(in_one_line(line) + "\n", sys.stdout)
    if error is not None and not isinstance(error, BrokenPipeError):
        print_stderr(
            [f"Synthesis.py: stdout cannot be written ({reason_of(error)}), pictures are saved"]
        )


class Display:
    """A consumer of frames: shows progress, saves snapshots, and records the loss curve.

    Args:
        record: of the picture; each snapshot is saved with this record and its step.
        progress: "text", "lines" or "json". "text" is a bar, or lines if stderr is no terminal.
    """

    def __init__(self, job: Job, record: dict[str, Any], quiet: bool, progress: str) -> None:
        self.job, self.record, self.quiet = job, record, quiet
        self.last: Frame | None = None
        self.resumed_work = 0.0  # share of the work, in [0, 1), that an earlier run has done
        self.curve: list[tuple[int, int, float]] = []  # (step, scale, loss after the step)
        self.phases: dict[str, float] = {}  # phase -> s; phases are painting and each scale
        self.went_back = False
        self.as_json = progress == "json"
        self.lines = progress == "lines" or sys.stderr is None or not sys.stderr.isatty()
        self.started = self.shown_at = self.line_at = self.preview_at = time.monotonic()
        self.bar = tqdm(
            total=1,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            dynamic_ncols=True,
            smoothing=0,  # mean rate, since time is proportional to work
            disable=quiet or self.as_json or self.lines,
            leave=False,
        )

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar and the preview file."""
        self.bar.close()
        if self.job.preview:
            with suppress(OSError):
                preview_path(self.job.save_path).unlink(missing_ok=True)

    def resume_from(self, progress: dict[str, Any]) -> None:
        """Restore the property `progress` of an earlier run, from its checkpoint."""
        self.curve = [(step, scale, loss) for step, scale, loss in progress["curve"]]
        self.phases = progress["phases"]
        self.resumed_work = self.bar.initial = self.bar.n = progress["work"]

    @property
    def progress(self) -> dict[str, Any]:
        """Loss curve, phases and share of work so far, for a checkpoint."""
        work = self.resumed_work if self.last is None else self.last.work
        return {"curve": self.curve, "phases": self.phases, "work": work}

    def show(self, frame: Frame) -> None:
        """Show the progress of a frame, and save its snapshots and preview if these are due."""
        now, before = time.monotonic(), self.last
        # A frame of painting may count as several steps. A resumed run has no frame, only a curve.
        since = before.step if before else self.curve[-1][0] if self.curve else 0
        self.last = frame
        painting = math.isnan(frame.loss)
        height, width = frame.pixels.shape[-2:]
        scale = f"scale {frame.scale}/{frame.scales} {width}x{height}"
        phase = "painting" if painting else scale
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self.shown_at
        self.shown_at = now
        if not painting:
            self.curve.append((frame.step, frame.scale, frame.loss))
        if frame.went_back and not self.went_back:
            self.went_back = True
            said = f"{self.job.name}: step {frame.step} led to no finite loss: "
            print_stderr(
                [f"{said}back to the best picture, with half of the step size"], self.quiet
            )
        if self.as_json:
            self._show_json(frame, now)
        else:
            self._show_text(frame, scale, before is None or before.scale != frame.scale, now)
        self._save(frame, since, now)

    def _save(self, frame: Frame, since: int, now: float) -> None:
        """Save the snapshots that are due after step `since`, and the preview."""
        if every := self.job.save_every:
            for step in range(since + every - since % every, frame.step + 1, every):
                try:
                    path = snapshot_path(self.job.save_path, step)
                    save_picture(frame.made.image, path, self.record | {"step": step})
                except UserError as error:  # the picture can be made without a snapshot
                    print_stderr([str(error)])
        if self.job.preview and now - self.preview_at >= PREVIEW_INTERVAL:
            self.preview_at = now
            with suppress(UserError):
                path = preview_path(self.job.save_path)
                save_picture(frame.made.image, path, {PREVIEW: self.job.name})

    def _show_text(self, frame: Frame, scale: str, new: bool, now: float) -> None:
        step = f"step {frame.step}/{self.job.spec.steps}"
        # Errors of different scales are not comparable: finer scales have larger ones.
        error = f", error {frame.loss:.2g}" + " at this scale" * (frame.scales > 1)
        step += ", painting" if math.isnan(frame.loss) else error
        if new:
            self.bar.set_description(scale, refresh=False)
        self.bar.set_postfix_str(step, refresh=False)
        self.bar.update(frame.work - self.bar.n)
        if self.lines and new:
            print_stderr([f"{self.job.name}: {scale} from step {frame.step}"], self.quiet)
        elif self.lines and now - self.line_at >= LINE_INTERVAL:
            left = duration(self._left(frame, now))
            print_stderr([f"{self.job.name}: {step}, {frame.work:.0%}, {left} left"], self.quiet)
            self.line_at = now

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
        print_stderr([json.dumps(found)], self.quiet)

    def _left(self, frame: Frame, now: float) -> float:
        """Return the remaining time in s, at the mean rate of this run."""
        done = max(frame.work - self.resumed_work, 1e-9)
        return (now - self.started) * (1 - frame.work) / done


def duration(seconds: float) -> str:
    """Return a duration in words: in s below 2 min, in min below 2 h, otherwise in h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
