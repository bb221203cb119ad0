"""Random stretch of an exemplar's rows and columns, by at most about two pixels.

Optimization that starts from painted pixels keeps many of them. Pixels of a stretched exemplar
avoid exact copies. If painting is the last stage, the exemplar is not stretched, since the
interpolation would soften its grain.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.spec import Spec
from terms.base import View
from terms.valid import NEARLY_ALL
from utils import size_of

STRAIN = 0.12  # root mean square of the relative stretch
WAVELENGTH = 32  # px, from stretched to squeezed and back; a longer one makes equal motifs differ
LANCZOS_RADIUS = 6  # px of the maps before `double`


def with_stretched_exemplars(spec: Spec) -> Spec:
    """Return a copy of a spec whose exemplars are stretched: images, guides and valid masks alike.

    A texture whose `spec.kind` is periodic is not stretched, since equal motifs would visibly
    differ in size and shape.
    """
    if spec.kind.period != (0, 0):
        return spec

    def stretched(view: View) -> View:
        image, guide, valid = view.image, view.guide, view.valid
        return replace(
            view,
            features={"image": stretch(image, spec.seed)},
            guide=None if guide is None else stretch(guide, spec.seed),
            # A pixel that is interpolated from invalid ones is invalid.
            valid=None if valid is None else stretch(valid.float(), spec.seed) > NEARLY_ALL,
        )

    exemplars = (
        replace(one, views=tuple(stretched(view) for view in one.views)) for one in spec.exemplars
    )
    return replace(spec, exemplars=tuple(exemplars))


def stretch(maps: Tensor, seed: int) -> Tensor:
    """Stretch and squeeze rows and columns of maps (1, C, H, W) at random.

    Rows and columns stay straight, and none is displaced by more than about two pixels, so that
    lines do not waver and equal motifs that are not small stay alike. One seed stretches all maps
    of one size alike.
    """
    height, width = size_of(maps)
    generator = torch.Generator().manual_seed(seed)
    y, x = (torch.arange(side) + _displacements(side, generator) for side in (height, width))
    # In a grid's coordinates, pixel 2 n of 2 H pixels is at (2 n + 0.5) / H - 1.
    y, x = (2 * y[:, None] + 0.5) / height - 1, (2 * x + 0.5) / width - 1
    grid = torch.stack(torch.broadcast_tensors(x, y), 2)[None].to(maps)
    stretched = F.grid_sample(double(maps), grid, "bicubic", "border", align_corners=False)
    return stretched.clamp(maps.min(), maps.max())


def _displacements(side: int, generator: torch.Generator) -> Tensor:
    """Return the displacement of each row in px, (side,); 0 for the first and the last row."""
    count = round(2 * side / WAVELENGTH) + 4
    knots = 0.5 + torch.rand(count, generator=generator)
    # Signs alternate, since successive displacements of one sign would change distances visibly.
    knots[int(torch.randint(2, (1,), generator=generator)) :: 2] *= -1
    moved = F.interpolate(
        knots.view(1, 1, 1, count), (1, side), mode="bicubic", align_corners=True
    ).flatten()
    moved = moved - torch.lerp(moved[:1], moved[-1:], torch.linspace(0, 1, side))
    return moved * STRAIN / moved.diff().square().mean().sqrt()


def double(maps: Tensor) -> Tensor:
    """Upsample maps (1, C, H, W) to (1, C, 2 H, 2 W) by a windowed sinc (Lanczos). Pixel n of the
    maps is pixel 2 n of the result.

    Interpolation of maps that are not upsampled first would blur most halfway between two pixels,
    so that the grain would visibly vary.
    """
    offset = torch.arange(0.5 - LANCZOS_RADIUS, LANCZOS_RADIUS, device=maps.device)
    kernel = torch.sinc(offset) * torch.sinc(offset / LANCZOS_RADIUS)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    for _ in "xy":
        columns = maps.reshape(-1, 1, *maps.shape[2:])
        padded = F.pad(columns, (LANCZOS_RADIUS - 1, LANCZOS_RADIUS, 0, 0), mode="reflect")
        between = F.conv2d(padded, kernel).view(maps.shape)
        maps = torch.stack((maps, between), 4).flatten(3).mT
    return maps
