"""Checkpoints, from which a run that was killed resumes."""

import json
import time
from io import BytesIO
from typing import Any

import torch

from command.display import Display, print_stderr
from command.files import open_regular, save_bytes
from command.outputs import checkpoint_path
from command.plan import Job
from engine.objective import State
from engine.synthesis import Frame
from utils import UserError

FORMAT = 5  # version of the file format; other versions are refused
INTERVAL = 30.0  # s


class Checkpoints:
    """A consumer of frames that saves the state of a job every INTERVAL. It does nothing if
    `job.resume` is False.

    Args:
        record: of the picture, from `record_of`; a checkpoint with another record is refused.

    Raises:
        UserError: the checkpoint file of the job is no checkpoint of this job.
    """

    def __init__(self, job: Job, record: dict[str, Any], display: Display) -> None:
        self.job, self.display, self.path = job, display, checkpoint_path(job.save_path)
        self.settings = json.dumps(record, default=str, sort_keys=True)
        self.last = time.monotonic()
        self.state: State | None = None  # to resume from; None: start anew
        found = self._read() if job.resume else None
        if found is not None:
            self.state = found["state"]
            display.resume_from(found["course"])
            print_stderr([f"{job.name}: resumes from {self.path}"], display.quiet)

    def save_if_due(self, frame: Frame) -> None:
        """Save the state of a frame if a checkpoint is due."""
        due = self.job.resume and time.monotonic() - self.last >= INTERVAL
        if due and frame.state is not None:
            content = {"format": FORMAT, "settings": self.settings, "state": frame.state()}
            file = BytesIO()
            torch.save(content | {"course": self.display.progress}, file)
            try:
                save_bytes(file.getbuffer(), self.path)
            except UserError as error:  # the picture can be made without a checkpoint
                print_stderr([str(error)])
            self.last = time.monotonic()

    def remove(self) -> None:
        """Remove the checkpoint file. To be called after the picture is saved."""
        if self.job.resume:
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        try:
            with open_regular(self.path) as file:
                found: dict[str, Any] = torch.load(file, weights_only=True)
            same = found["format"] == FORMAT and found["settings"] == self.settings
        except FileNotFoundError:
            return None
        except Exception as error:  # torch.load raises many classes for damaged files
            raise UserError(f"--resume: {self.path} is no checkpoint, remove it") from error
        if not same:
            raise UserError(
                f"--resume: {self.path} is of other settings or another version, remove it or give "
                "another --save_path"
            )
        return found
