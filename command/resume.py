"""Checkpoints in files: where a run that was killed goes on."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from command.display import Display, say
from command.files import open_regular, save_bytes
from command.plan import Job
from engine.checkpoints import Checkpoints
from utils import UserError

FORMAT = 2  # of the file; another one is refused
EVERY = 30.0  # s


def checkpoints_of(job: Job, record: dict[str, Any], display: Display) -> Checkpoints | None:
    """Where the states of a job go, and the one that there is; None where nobody asked for it.

    Raises:
        UserError: the file that there is cannot be gone on from.
    """
    if not job.resume:
        return None
    settings = json.dumps(record, default=str, sort_keys=True)

    def save(state: dict[str, Any]) -> None:
        file = BytesIO()
        known = {"format": FORMAT, "settings": settings, "curve": display.curve}
        known |= {"phases": display.phases, "fraction": display.fraction}
        torch.save(known | {"state": state}, file)
        try:
            save_bytes(file.getbuffer(), job.checkpoint_path)
        except UserError as error:  # one less is no reason to end
            say([str(error)])

    found = _read(job.checkpoint_path, settings, job.spec.exemplars[0].image.device)
    if found is not None:
        display.curve = [(step, scale, loss) for step, scale, loss in found["curve"]]
        display.phases = found["phases"]
        display.resumes(found["fraction"])
        say([f"{job.name}: goes on from {job.checkpoint_path}"], display.quiet)
    return Checkpoints(save, EVERY, None if found is None else found["state"])


def _read(path: Path, settings: str, device: torch.device) -> dict[str, Any] | None:
    try:
        with open_regular(path) as file:
            found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        same = found["format"] == FORMAT and found["settings"] == settings
        state = found["state"]
    except FileNotFoundError:
        return None
    except Exception as error:  # as many kinds as there are ways to damage a file
        raise UserError(f"--resume: {path} is no checkpoint, remove it") from error
    if not same:
        raise UserError(
            f"--resume: {path} is of other settings or another version, remove it or give another "
            "--save_path"
        )
    return found | {"state": _on(device, state)}


def _on(device: torch.device, value: Any) -> Any:
    """A state on the device of the picture; states of generators, of bytes, are the CPU's."""
    if isinstance(value, torch.Tensor):
        return value if value.dtype == torch.uint8 else value.to(device)
    if isinstance(value, list | tuple):
        return [_on(device, one) for one in value]
    if isinstance(value, dict):
        return {name: _on(device, one) for name, one in value.items()}
    return value
