"""What a job leaves behind: the picture with its record, its repeat, its maps, and one line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from command.plan import Job
from engine import maps
from engine.blocks import Blocks
from engine.repaint import stretch
from engine.synthesis import Made
from losses import Criterion
from models import Extractor, Weights, least_side, resolve_layers
from terms.base import Exemplar, Scene, View
from terms.gram import GRAM_LAYERS
from utils import read_picture, resize, save_picture


@dataclass(frozen=True)
class Net:
    """A net as it was found on this machine."""

    weights: Weights
    name: str
    told: str  # as records and the last line name it
    device: torch.device
    precision: str  # of `engine.precision.PRECISIONS`


@dataclass(frozen=True)
class Result:
    """What became of a job."""

    path: Path
    image: Tensor  # (1, 3, H, W) in [0, 1], on the CPU
    record: dict[str, Any]
    seconds: float
    interrupted: bool  # the picture is that of the steps until Ctrl-C

    @property
    def line(self) -> str:
        """What the command prints of it."""
        return (
            f"{self.path}  {self.record['size']}  {self.seconds:.1f} s  "
            f"Gram error {self.record['error']:.6f}  {self.record['net']}  "
            f"{self.record['precision']}"
        )


def save(job: Job, made: Made, record: dict[str, Any], net: Net) -> dict[str, Any]:
    """Save all that a job makes; returns the record, to which the saved file's error is added."""
    image = made.image
    save_picture(image, job.save_path, record)
    exemplar = job.spec.exemplars[0].image.to(image.device)
    error = saved_error(job.save_path, exemplar, net, job.spec.block)
    record = record | {"error": round(error, 6)}
    save_picture(image, job.save_path, record)
    tile = job.spec.canvas.tile
    if tile:
        down, across = (2 if axis in tile else 1 for axis in "yx")
        save_picture(image.repeat(1, 1, down, across), job.tiled_path, record)
    if job.maps:
        carry_maps(job, made, record, net)
    return record


@torch.no_grad()
def saved_error(path: Path, exemplar: Tensor, net: Net, block: int | None = None) -> float:
    """Relative Gram error of a saved file: what clamping, 8 bits and compression cost is in it.

    Always of `GRAM_LAYERS`, as many of them as the sizes allow, in the net as it comes, so that
    pictures made with different settings compare.
    """
    saved = read_picture(path)[0].to(exemplar.device)
    least = min(*saved.shape[-2:], *exemplar.shape[-2:])
    layers = [
        layer for layer in resolve_layers(GRAM_LAYERS, net.name) if least_side([layer]) <= least
    ]
    trunk = Extractor(net.weights, net.name, layers).to(exemplar.device)
    scene = Scene((Exemplar((View(trunk(exemplar)),)),))
    criterion = Criterion(scene, layers, weights={})
    look = trunk if block is None else Blocks(trunk, criterion, block)
    return criterion(look(saved)).item()


@torch.no_grad()
def carry_maps(job: Job, made: Made, record: dict[str, Any], net: Net) -> None:
    """Save the exemplar's other maps as they go with the picture, each place from the exemplar as
    it is or as it was rotated and resized, whichever is nearer."""
    spec, device, tile = job.spec, made.image.device, job.spec.canvas.tile
    if made.painting is not None:
        found = maps.painted_from(made.painting)
    else:
        trunk = Extractor(net.weights, net.name, maps.LAYERS).to(device)
        output = trunk(made.image, tile)
        found = [
            maps.correspondence(output, trunk(view.image.to(device)), tile)
            for view in spec.exemplars[0].views
        ]
    for one in job.maps:
        copies = [copy.to(device) for copy in one.copies]
        if made.painting is not None:
            copies = [stretch(copy, spec.seed) for copy in copies]
        carried = maps.carried(copies, found, tile)
        if made.painting is not None:
            carried = resize(carried, spec.canvas.size, tile).roll(made.shift, (2, 3))
        kept = {name: record[name] for name in ("version", "exemplar")}
        save_picture(carried, one.path, kept, one.sixteen_bit)
