"""What the user sees and gets while a picture is made: a bar or lines on stderr, and snapshots."""

import math
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor
from tqdm import tqdm

from command.plan import Job
from engine.synthesis import Progress, finished
from utils import UserError, in_one_line, save_picture


def say(notes: Iterable[str | None], quiet: bool = False) -> None:
    """Print what the user should hear on stderr, unless it is to be quiet; one that is closed or
    full costs no picture."""
    for note in notes:
        if note and not quiet:
            with suppress(OSError, ValueError, AttributeError):
                print(in_one_line(note), file=sys.stderr, flush=True)


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
    """Print on stdout; one that is closed, full or has another alphabet costs no picture."""
    with suppress(OSError, ValueError, AttributeError):
        told = in_one_line(line).encode(sys.stdout.encoding or "utf-8", "replace")
        print(told.decode(sys.stdout.encoding or "utf-8"), flush=True)


class Display:
    """Shows progress, saves snapshots, and keeps the picture as it stands."""

    def __init__(self, job: Job, record: dict[str, Any], quiet: bool) -> None:
        self.job, self.record = job, record
        self.last: Progress | None = None
        self.lines = not quiet and not sys.stderr.isatty()
        self.bar = tqdm(
            total=1,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            dynamic_ncols=True,
            smoothing=0,  # work is counted as it is, so that the rate so far is the best guess
            disable=quiet or self.lines,
            leave=False,
        )

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def __call__(self, progress: Progress) -> None:
        """After a step."""
        height, width = progress.image.shape[-2:]
        if self.last is None or self.last.scale != progress.scale:
            told = f"scale {progress.scale}/{progress.scales} {width}x{height}"
            self.bar.set_description(told, refresh=False)
            if self.lines:
                say([f"{self.job.name}: {told} from step {progress.step}"])
        self.last = progress
        told = f"step {progress.step}/{self.job.spec.steps}"
        told += ", painting" if math.isnan(progress.loss) else f", error {progress.loss:.2g}"
        self.bar.set_postfix_str(told, refresh=False)
        self.bar.update(progress.fraction - self.bar.n)
        if self.job.save_every and progress.step % self.job.save_every == 0:
            path = self.job.snapshot_path(progress.step)
            try:
                save_picture(self.picture(), path, self.record | {"step": progress.step})
            except UserError as error:  # a snapshot less is no reason to end
                say([str(error)])

    def picture(self) -> Tensor:
        """(1, 3, height, width) in [0, 1]: the best so far, as it would be saved."""
        assert self.last is not None  # there is a picture after the first step
        image = self.last.image
        return finished(self.job.spec.canvas.to(image.device), image)
