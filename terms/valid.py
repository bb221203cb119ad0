"""Places of an exemplar that do not count: what is transparent, or what a mask makes anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from terms.base import Exemplar, View
from utils import Size, size_of

RECTANGLE_SIDE = 512  # px
NEARLY_ALL = 0.99  # of a pixel that was interpolated, for it to count


def valid_at(valid: Tensor, size: Size) -> Tensor:
    """(1, 1, H, W) of bool -> (1, 1, h, w): the positions of a layer that count.

    All pixels of a position and of its eight neighbours count, as a convolution sees these too.
    """
    missing = F.adaptive_max_pool2d((~valid).float(), size)
    return F.max_pool2d(missing, 3, 1, 1) == 0


def usable_patches(valid: Tensor, size: Size, patch: int) -> Tensor:
    """(1, 1, H, W) of bool -> (h - patch + 1, w - patch + 1): patches of a layer all of whose
    positions count; where there is none, those of which most counts."""
    shares = F.avg_pool2d(valid_at(valid, size).float(), patch, 1)[0, 0]
    if shares.max() == 0:
        shares = F.avg_pool2d(F.adaptive_avg_pool2d(valid.float(), size), patch, 1)[0, 0]
    return shares == shares.max()


def in_one_piece(maps: Tensor, valid: Tensor | None) -> Tensor:
    """(1, C, h, w) -> its largest part whose positions all count, a view; all of it if there is
    none or if `valid`, (1, 1, H, W) of bool, is None."""
    if valid is None:
        return maps
    (top, left), (height, width) = largest_rectangle(valid_at(valid, size_of(maps)))
    return maps[..., top : top + height, left : left + width] if height else maps


def largest_rectangle(inside: Tensor) -> tuple[Size, Size]:
    """(1, 1, H, W) of bool -> (top, left) and (height, width) of the largest rectangle of True,
    zeros where there is none; of a picture larger than RECTANGLE_SIDE to some pixels.

    For each row, the largest rectangle below a histogram: Morgan, "Programming from
    Specifications", 1994, section 21.
    """
    step = -(-max(size_of(inside)) // RECTANGLE_SIDE)
    if step > 1:
        inside = -F.max_pool2d(-inside.float(), step) > 0
    best, found = 0, ((0, 0), (0, 0))
    heights = np.zeros(inside.shape[3], dtype=np.int64)
    for y, row in enumerate(inside[0, 0].cpu().numpy()):
        heights = np.where(row, heights + 1, 0)
        bars: list[tuple[int, int]] = []  # that go on: where they begin, and heights that rise
        for x, height in enumerate([*heights.tolist(), 0]):
            first = x
            while bars and bars[-1][1] > height:
                first, tall = bars.pop()
                if tall * (x - first) > best:
                    best = tall * (x - first)
                    found = ((y + 1 - tall) * step, first * step), (tall * step, (x - first) * step)
            if height and not (bars and bars[-1][1] == height):
                bars.append((first, height))
    return found


def counted(exemplar: Exemplar) -> Exemplar:
    """The exemplar for statistics that do not see where things are: of the picture as it is, the
    positions that count, (1, C, n, 1) of each layer."""
    valid = exemplar.views[0].valid
    if valid is None:
        return exemplar
    features = {k: valid_positions(maps, valid) for k, maps in exemplar.features.items()}
    return replace(exemplar, views=(View(features),))


def valid_positions(maps: Tensor, valid: Tensor | None) -> Tensor:
    """(1, C, h, w) -> (1, C, n, 1): the positions that count; where there is none, those of which
    most does. The maps themselves if `valid`, (1, 1, H, W) of bool, is None."""
    if valid is None:
        return maps
    inside = usable_patches(valid, size_of(maps), 1)
    return maps[..., inside][..., None]


def filled(image: Tensor, valid: Tensor) -> Tensor:
    """(1, C, H, W), (1, 1, H, W) of bool -> the image, smoothly filled where it does not count.

    What a net sees beside a place that counts then depends on those alone. By means over ever
    larger parts (pull-push: Gortler et al., "The Lumigraph", 1996, section 3.4).
    """
    weight = valid.to(image)
    return torch.where(valid, image, _pulled(image * weight, weight))


def _pulled(total: Tensor, weight: Tensor) -> Tensor:
    """Sums (1, C, H, W) of what counts and how much of that there is -> their quotient, that of the
    next larger parts where there is nothing."""
    mean = total / weight.clamp(min=1e-6)
    if min(size_of(total)) == 1 or bool((weight > 0).all()):
        return mean
    coarse = _pulled(
        F.avg_pool2d(total, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True)
    )
    around = F.interpolate(coarse, size_of(total), mode="bilinear", align_corners=False)
    return torch.where(weight > 0, mean, around)


def positions_of_regions(masks: Tensor, inside: Tensor | None) -> list[Tensor]:
    """Positions of regions that count.

    Args:
        masks: (count, N) of bool, which positions each region has.
        inside: (N,) of bool, which positions count; None: all.

    Returns:
        (n,) of int64 for each region; all positions of a region none of which counts.
    """
    if inside is not None:
        both = masks & inside
        masks = torch.where(both.any(1, keepdim=True), both, masks)
    return [mask.nonzero()[:, 0] for mask in masks]
