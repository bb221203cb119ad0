"""Valid pixels of an exemplar: those that are not transparent and not inside its mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from terms.base import Exemplar, TermInputs, View
from utils import Size, size_of

RECTANGLE_SIDE = 512  # px; longer sides are searched at a lower resolution
NEARLY_ALL = 0.99  # share of an interpolated pixel that must be valid for the pixel to be valid


def valid_at(valid: Tensor, size: Size) -> Tensor:
    """Return the valid positions of a layer of size (h, w): (1, 1, H, W) of bool -> (1, 1, h, w) of
    bool.

    A position is valid if all pixels are valid that its 3x3 neighbourhood covers, which a
    convolution reads.
    """
    missing = F.adaptive_max_pool2d((~valid).float(), size)
    return F.max_pool2d(missing, 3, 1, 1) == 0


def usable_patches(valid: Tensor, size: Size, patch: int) -> Tensor:
    """Return the patches of a layer whose positions are all valid; if there are none, those with
    the largest share of valid positions or, if no position is valid, of valid pixels.

    Args:
        valid: (1, 1, H, W) of bool.
        size: (h, w) of the layer.
        patch: side of a patch.

    Returns:
        (h - patch + 1, w - patch + 1) of bool
    """
    shares = F.avg_pool2d(valid_at(valid, size).float(), patch, 1)[0, 0]
    if shares.max() == 0:
        shares = F.avg_pool2d(F.adaptive_avg_pool2d(valid.float(), size), patch, 1)[0, 0]
    return shares == shares.max()


def valid_centres(valid: Tensor, size: Size, patch: int) -> Tensor:
    """Return the centres of patches whose positions are all valid: (1, 1, H, W) of bool -> (h, w)
    of bool. Positions outside the picture count as valid, as pictures are mirrored there."""
    missing = (~valid_at(valid, size)).float()
    return F.max_pool2d(missing, patch, 1, patch // 2)[0, 0] == 0


def crop_to_valid(maps: Tensor, valid: Tensor | None) -> Tensor:
    """Return the largest rectangle of valid positions.

    Args:
        maps: (1, C, h, w).
        valid: (1, 1, H, W) of bool; None: all.

    Returns:
        A view of `maps`; `maps` itself if no position is valid.
    """
    if valid is None:
        return maps
    (top, left), (height, width) = largest_rectangle(valid_at(valid, size_of(maps)))
    return maps[..., top : top + height, left : left + width] if height else maps


def weighted_sources(inputs: TermInputs, layer: str) -> list[tuple[float, Tensor]]:
    """Return the share of each exemplar, and the largest rectangle of its valid positions in a
    layer, (1, C, h, w)."""
    return [
        (share, crop_to_valid(view.features[layer].detach(), view.valid))
        for share, view in inputs.weighted_views
    ]


def largest_rectangle(inside: Tensor) -> tuple[Size, Size]:
    """Find the largest rectangle of True in (1, 1, H, W) of bool.

    For each row, it is the largest rectangle under the histogram of column heights: Morgan,
    "Programming from Specifications", 1994, section 21. Sides above RECTANGLE_SIDE are searched at
    a lower resolution, so that the rectangle may be smaller than the largest.

    Returns:
        (top, left) and (height, width); zeros if there is none.
    """
    step = -(-max(size_of(inside)) // RECTANGLE_SIDE)
    if step > 1:
        inside = -F.max_pool2d(-inside.float(), step) > 0
    best, found = 0, ((0, 0), (0, 0))
    heights = np.zeros(inside.shape[3], dtype=np.int64)
    for y, row in enumerate(inside[0, 0].cpu().numpy()):
        heights = np.where(row, heights + 1, 0)
        bars: list[tuple[int, int]] = []  # open rectangles: left end and height, both ascending
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
    """Replace the views by one view of the valid positions, with features (1, C, n, 1), for
    permutation-invariant statistics. An exemplar without invalid pixels is returned unchanged."""
    valid = exemplar.views[0].valid
    if valid is None:
        return exemplar
    features = {k: select_valid(maps, valid) for k, maps in exemplar.features.items()}
    return replace(exemplar, views=(View(features),))


def select_valid(maps: Tensor, valid: Tensor | None) -> Tensor:
    """Return the maps at valid positions; if there are none, at those with the largest share of
    valid pixels.

    Args:
        maps: (1, C, h, w).
        valid: (1, 1, H, W) of bool; None: all.

    Returns:
        (1, C, n, 1); `maps` itself if `valid` is None.
    """
    if valid is None:
        return maps
    inside = usable_patches(valid, size_of(maps), 1)
    return maps[..., inside][..., None]


def fill_invalid(image: Tensor, valid: Tensor) -> Tensor:
    """Replace invalid pixels by smooth interpolation of valid ones, so that no feature depends on
    invalid pixels: (1, C, H, W), (1, 1, H, W) of bool -> (1, C, H, W).

    By the pull-push algorithm of Gortler et al., "The Lumigraph", 1996, section 3.4.
    """
    weight = valid.to(image)
    return torch.where(valid, image, _pull_push(image * weight, weight))


def _pull_push(total: Tensor, weight: Tensor) -> Tensor:
    """Return `total / weight`; where the weight is 0, the interpolated result at half the size.

    Args:
        total: weighted values, (1, C, H, W).
        weight: weights, (1, 1, H, W).

    Returns:
        (1, C, H, W)
    """
    mean = total / weight.clamp(min=1e-6)
    if min(size_of(total)) == 1 or bool((weight > 0).all()):
        return mean
    coarse = _pull_push(
        F.avg_pool2d(total, 2, ceil_mode=True), F.avg_pool2d(weight, 2, ceil_mode=True)
    )
    around = F.interpolate(coarse, size_of(total), mode="bilinear", align_corners=False)
    return torch.where(weight > 0, mean, around)


def positions_of_regions(masks: Tensor, inside: Tensor | None) -> list[Tensor]:
    """Return the indices of the valid positions of each region.

    Args:
        masks: (count, N) of bool, the mask of each region.
        inside: (N,) of bool, the valid positions; None: all.

    Returns:
        (n,) of int64 for each region; if none of its positions is valid, all of them.
    """
    if inside is not None:
        both = masks & inside
        masks = torch.where(both.any(1, keepdim=True), both, masks)
    return [mask.nonzero()[:, 0] for mask in masks]
