"""Voting: each pixel of an image is the mean over the source patches that cover it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.descriptors import PATCH, chunk_size
from engine.levels import Level, fill_rows
from engine.patchmatch import NNField
from terms.matching import row_slices


def vote(level: Level, field: NNField, weights: Tensor | None = None) -> Tensor:
    """Return the weighted mean of overlapping source patches.

    Args:
        level: Level of the output.
        field: (H', W'), source patch of each output patch.
        weights: (H', W') of the patches; None: equal weights.

    Returns:
        (1, 3, H, W); pixels outside the mask have the values of `level.kept`.
    """

    def mean(rows: slice) -> tuple[Tensor]:
        colours = level.atlas.image[0].flatten(1)
        shape = rows.stop - rows.start, level.size[1]
        total, total_weight = colours.new_zeros(3, *shape), colours.new_zeros(shape)
        for source, weight in _votes(level, field, weights, rows):
            index = source.flatten()
            for channel, values in zip(total, colours, strict=True):
                channel += values.index_select(0, index).view(shape) * weight
            total_weight += weight
        return (total.div_(total_weight),)

    image = level.atlas.image.new_zeros(1, 3, *level.size)
    fill_rows([image], _parts(level), mean, level.job.group)
    if level.mask is not None and level.kept is not None:
        image = torch.where(level.mask, image, level.kept)
    return image


def main_source(level: Level, field: NNField, weights: Tensor | None = None) -> Tensor:
    """Return the source pixel that has the highest weight at each output pixel.

    Args are those of `vote`.

    Returns:
        (H, W) of int64, flat indices y * w + x into the atlas.
    """

    def heaviest(rows: slice) -> tuple[Tensor]:
        shape = rows.stop - rows.start, level.size[1]
        highest = level.atlas.image.new_zeros(shape)
        pixels = field.y.new_zeros(shape)
        for source, weight in _votes(level, field, weights, rows):
            torch.where(weight > highest, source, pixels, out=pixels)
            torch.maximum(weight, highest, out=highest)
        return (pixels,)

    pixels = field.y.new_zeros(level.size)
    fill_rows([pixels], _parts(level), heaviest, level.job.group)
    return pixels


def _parts(level: Level) -> list[tuple[slice]]:
    rows = max(1, chunk_size(level.device) // level.size[1])
    return [(part,) for part in row_slices(level.size[0], rows)]


def _votes(
    level: Level, field: NNField, weights: Tensor | None, rows: slice
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the votes for the pixels of some rows, for each position of a pixel within a patch.

    Yields:
        Flat indices of source pixels, (h, W) of int64, and their weights, (h, W), which are 0 where
        there is no patch.
    """
    y_exists, y = _covering(level, rows.start, rows.stop, 0)
    x_exists, x = _covering(level, 0, level.size[1], 1)
    height, width = level.atlas.image.shape[2:]
    field = NNField(field.y[y][:, x], field.x[y][:, x])
    start = field.clamp((height - PATCH + 1, width - PATCH + 1)).flat(width)
    weight = (y_exists[:, None] & x_exists).to(level.atlas.image)
    if weights is not None:
        weight *= weights[y][:, x]
    h, w = rows.stop - rows.start, level.size[1]
    for down in range(PATCH):
        for across in range(PATCH):
            top, left = PATCH - 1 - down, PATCH - 1 - across
            window = slice(top, top + h), slice(left, left + w)
            yield start[window] + (down * width + across), weight[window]


def _covering(level: Level, start: int, stop: int, axis: int) -> tuple[Tensor, Tensor]:
    """Return the patches that cover any of the pixels `start` to `stop` of an axis: whether each
    exists, and its index in the field, both (stop - start + PATCH - 1,)."""
    count = level.patches[axis]
    first = torch.arange(start - (PATCH - 1), stop, device=level.device)
    if "yx"[axis] in level.wrap:
        return torch.ones_like(first, dtype=torch.bool), first % count
    return (first >= 0) & (first < count), first.clamp(0, count - 1)
