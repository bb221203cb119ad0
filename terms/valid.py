"""Pixels of an exemplar that do not count: transparent ones, and those that a mask makes anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from terms.base import Exemplar, View
from utils import Size, size_of

RECTANGLE_SIDE = 512  # px
NEARLY_ALL = 0.99  # share of an interpolated pixel that must count for the pixel to count


def valid_at(valid: Tensor, size: Size) -> Tensor:
    """(1, 1, H, W) of bool -> (1, 1, h, w) of bool: the positions of a layer that count.

    A position counts if all its pixels and those of its eight neighbours do, as a convolution sees
    these too.
    """
    missing = F.adaptive_max_pool2d((~valid).float(), size)
    return F.max_pool2d(missing, 3, 1, 1) == 0


def usable_patches(valid: Tensor, size: Size, patch: int) -> Tensor:
    """(1, 1, H, W) of bool -> (h - patch + 1, w - patch + 1) of bool: the patches of a layer whose
    positions all count; if there is none, those with the largest share that counts."""
    shares = F.avg_pool2d(valid_at(valid, size).float(), patch, 1)[0, 0]
    if shares.max() == 0:
        shares = F.avg_pool2d(F.adaptive_avg_pool2d(valid.float(), size), patch, 1)[0, 0]
    return shares == shares.max()


def valid_centres(valid: Tensor, size: Size, patch: int) -> Tensor:
    """(1, 1, H, W) of bool -> (h, w): positions in the middle of patches whose positions all count;
    the border is mirrored, so that positions beyond it count."""
    missing = (~valid_at(valid, size)).float()
    return F.max_pool2d(missing, patch, 1, patch // 2)[0, 0] == 0


def crop_to_valid(maps: Tensor, valid: Tensor | None) -> Tensor:
    """(1, C, h, w) -> a view of its largest rectangle whose positions all count; all of it if there
    is none, or if `valid`, (1, 1, H, W) of bool, is None."""
    if valid is None:
        return maps
    (top, left), (height, width) = largest_rectangle(valid_at(valid, size_of(maps)))
    return maps[..., top : top + height, left : left + width] if height else maps


def largest_rectangle(inside: Tensor) -> tuple[Size, Size]:
    """(1, 1, H, W) of bool -> (top, left) and (height, width) of the largest rectangle of True,
    zeros where there is none. Sides above RECTANGLE_SIDE are searched in steps of several pixels.

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
        bars: list[tuple[int, int]] = []  # open ones: left end, and height, ascending
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


def drop_invalid(exemplar: Exemplar) -> Exemplar:
    """The exemplar for statistics that do not depend on positions: one view, whose layers hold the
    positions that count, (1, C, n, 1); the same exemplar if all count."""
    valid = exemplar.views[0].valid
    if valid is None:
        return exemplar
    features = {k: select_valid(maps, valid) for k, maps in exemplar.features.items()}
    return replace(exemplar, views=(View(features),))


def select_valid(maps: Tensor, valid: Tensor | None) -> Tensor:
    """(1, C, h, w) -> (1, C, n, 1): the positions that count; if there is none, those with the
    largest share that counts. The same maps if `valid`, (1, 1, H, W) of bool, is None."""
    if valid is None:
        return maps
    inside = usable_patches(valid, size_of(maps), 1)
    return maps[..., inside][..., None]


def fill_invalid(image: Tensor, valid: Tensor) -> Tensor:
    """(1, C, H, W), (1, 1, H, W) of bool -> the image, filled smoothly where it does not count.

    So features of pixels that count depend on no others. By means over increasing areas (pull-push:
    Gortler et al., "The Lumigraph", 1996, section 3.4).
    """
    weight = valid.to(image)
    return torch.where(valid, image, _pulled(image * weight, weight))


def _pulled(total: Tensor, weight: Tensor) -> Tensor:
    """Sums over areas, (1, C, H, W), and their weights, (1, 1, H, W) -> means (1, C, H, W); where
    the weight is 0, that of larger areas."""
    mean = total / weight.clamp(min=1e-6)
    if min(size_of(total)) == 1 or bool((weight > 0).all()):
        return mean
    coarse = _pulled(
        F.avg_pool2d(total, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True)
    )
    around = F.interpolate(coarse, size_of(total), mode="bilinear", align_corners=False)
    return torch.where(weight > 0, mean, around)


def positions_of_regions(masks: Tensor, inside: Tensor | None) -> list[Tensor]:
    """The positions that count of each region.

    Args:
        masks: (count, N) of bool, the positions of each region.
        inside: (N,) of bool, the positions that count; None: all.

    Returns:
        (n,) of int64 for each region; all positions of a region of which none counts.
    """
    if inside is not None:
        both = masks & inside
        masks = torch.where(both.any(1, keepdim=True), both, masks)
    return [mask.nonzero()[:, 0] for mask in masks]
