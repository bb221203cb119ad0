"""The command from Python: flags as keyword arguments, results as tensors."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from command.arguments import Request, request_of
from command.memory import in_memory, names_one
from command.results import Failed
from command.run import run
from utils import UserError

# Flags that write files other than the picture.
WRITES_FILES = ("save_every", "preview", "resume", "maps", "report")


def images_of(gt_path: Any, flags: dict[str, Any]) -> Tensor | list[Tensor]:
    """Make the pictures of one call of `Synthesis.synthesize`.

    Args:
        gt_path: exemplar, or a list of exemplars.
        flags: all other flags by name.

    Returns:
        (1, 3, H, W) in [0, 1] for a single exemplar and seed without tile_set, otherwise a list of
        these.

    Raises:
        UserError: the first error, a flag that makes no picture, or one that writes further files
            without save_path.
    """
    named, pictures = in_memory({"gt_path": gt_path, **flags})
    request = replace(request_of(**named), pictures=pictures)
    instead = {"score": request.score, "json": request.json, "report": request.page_alone}
    for flag, given in instead.items():
        if given:
            raise UserError(f"--{flag}: makes no picture, use the command line")
    if "save_path" in request.typed:
        made = _images(request)
    else:
        for flag in WRITES_FILES:
            if getattr(request, flag):
                raise UserError(f"--{flag}: writes files beside the result, give save_path")
        with TemporaryDirectory() as folder:  # the record holds the error of a saved file
            made = _images(replace(request, save_path=Path(folder) / "{stem}_{seed}.png"))
    one = len(request.gt_path) == 1 and request.count == 1 and not request.tile_set
    one = one and not isinstance(gt_path, list | tuple)
    return made[0] if one and names_one(request.gt_path[0], pictures) else made


def _images(request: Request) -> list[Tensor]:
    found = []
    for result in run(request, remake=True):
        if isinstance(result, Failed):
            raise UserError(result.line)
        found.append(result.image)
    return found
