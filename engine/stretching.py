"""Exemplars whose rows and columns are stretched and squeezed a little."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from terms.base import Exemplar, View
from terms.valid import NEARLY_ALL
from utils import size_of

STRAIN = 0.12  # by how much the exemplar is stretched, root mean square
WAVE = 32  # px, from stretched to squeezed and back; longer ones make tiles unequal
LANCZOS = 6  # px to both sides, from which a pixel is interpolated


def stretched(exemplars: tuple[Exemplar, ...], seed: int) -> tuple[Exemplar, ...]:
    """The same with rows and columns stretched and squeezed by STRAIN: all maps of a view alike."""

    def of(view: View) -> View:
        guide = None if view.guide is None else stretch(view.guide, seed)
        valid = view.valid
        if valid is not None:
            valid = stretch(valid.float(), seed) > NEARLY_ALL
        features = {"image": stretch(view.image, seed)}
        return replace(view, features=features, guide=guide, valid=valid)

    return tuple(replace(one, views=tuple(of(view) for view in one.views)) for one in exemplars)


def stretch(maps: Tensor, seed: int, labels: bool = False) -> Tensor:
    """(1, C, H, W) -> the same, stretched at random by the seed, alike for all maps of one size;
    labels by the nearest pixel.

    Straight rows and columns stay straight, and nothing moves by more than some two pixels: so that
    lines are not seen to waver, and tiles are equally wide.
    """
    height, width = size_of(maps)
    generator = torch.Generator().manual_seed(seed)
    y, x = (torch.arange(side) + _moved(side, generator) for side in (height, width))
    # Pixel n of the maps is pixel 2 n of the doubled ones, half a pixel further to the left.
    middle = 1 if labels else 0.5
    y, x = (2 * y[:, None] + middle) / height - 1, (2 * x + middle) / width - 1
    grid = torch.stack(torch.broadcast_tensors(x, y), 2)[None].to(maps)
    if labels:
        return F.grid_sample(maps, grid, "nearest", "border", align_corners=False)
    found = F.grid_sample(doubled(maps), grid, "bicubic", "border", align_corners=False)
    return found.clamp(maps.min(), maps.max())


def _moved(side: int, generator: torch.Generator) -> Tensor:
    """(side,): by how many px each row is moved; the first and the last are not."""
    count = round(2 * side / WAVE) + 4
    drawn = 0.5 + torch.rand(count, generator=generator)
    # To and fro by turns: else moves add up, and what is far apart is seen to be too far.
    drawn[int(torch.randint(2, (1,), generator=generator)) :: 2] *= -1
    knots = drawn.view(1, 1, 1, count)
    moved = F.interpolate(knots, (1, side), mode="bicubic", align_corners=True).flatten()
    moved = moved - torch.lerp(moved[:1], moved[-1:], torch.linspace(0, 1, side))
    return moved * STRAIN / moved.diff().square().mean().sqrt()


def doubled(maps: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, C, 2 H, 2 W): the same, and what lies halfway to the next pixels.

    By a windowed sinc (Lanczos): what is interpolated from the nearest pixels alone is blurred, the
    more the nearer to halfway it lies, and the eye sees that grain comes and goes.
    """
    offset = torch.arange(0.5 - LANCZOS, LANCZOS, device=maps.device)
    kernel = torch.sinc(offset) * torch.sinc(offset / LANCZOS)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    for _ in "xy":
        columns = maps.reshape(-1, 1, *maps.shape[2:])
        padded = F.pad(columns, (LANCZOS - 1, LANCZOS, 0, 0), mode="reflect")
        between = F.conv2d(padded, kernel).view(maps.shape)
        maps = torch.stack((maps, between), 4).flatten(3).mT
    return maps
