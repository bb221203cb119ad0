"""One scale of a painting: the source, the output and everything else that its rounds share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.descriptors import NO_LABEL, PATCH, PatchDescriptor, window_labels
from engine.kinds import Kind
from engine.patchmatch import NNField
from terms.base import Canvas, Exemplar
from terms.matching import resize_guide
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from terms.valid import valid_at
from utils import Size, resize, scaled_size, size_of

GPU_PIXELS = 2**16  # px of the output; up to this many, a CPU takes less time than a GPU
CPU = torch.device("cpu")


class Atlas:
    """All views of all exemplars at one size, stacked vertically; narrow ones are padded.

    Args:
        exemplars: Exemplars at full size.
        factor: Factor by which they are resized.
    """

    def __init__(self, exemplars: tuple[Exemplar, ...], factor: float) -> None:
        views = [(i, view) for i, one in enumerate(exemplars) for view in one.views]
        images = [resize(view.image, scaled_size(view.image, factor)) for _, view in views]
        self.sizes = [size_of(image) for image in images]  # of the views
        guides, labels = [], []
        for n, ((i, view), size) in enumerate(zip(views, self.sizes, strict=True)):
            if view.guide is not None:
                guides.append(resize_guide(view.guide, size))
            label = torch.tensor((n, i), device=images[0].device).view(1, 2, 1, 1)
            label = label.expand(1, 2, *size)
            if view.valid is not None:
                label = torch.where(valid_at(view.valid, size), label, NO_LABEL)
            labels.append(label)
        self.image = _stack(images, 0)  # (1, 3, h, w)
        self.guide = _stack(guides, 0) if guides else None  # (1, G, h, w)
        # (h, w) of int64 each: index of the view and of the exemplar of each pixel, or NO_LABEL
        self.views, self.exemplars = _stack(labels, NO_LABEL)[0]

    def usable_patches(self) -> Tensor:
        """Return which patches lie within one view, (h - PATCH + 1, w - PATCH + 1) of bool."""
        return window_labels(self.views, (PATCH, PATCH)) != NO_LABEL

    def patches_around(self, pixels: NNField) -> NNField:
        """Return the patches that have the given pixels in the middle.

        Patches that would cross the border of their view are moved inside.
        """
        heights, widths = torch.tensor(self.sizes, device=pixels.y.device).T
        bottoms = heights.cumsum(0)
        view = torch.bucketize(pixels.y.contiguous(), bottoms, right=True)
        top = (bottoms - heights)[view]
        y = torch.minimum((pixels.y - PATCH // 2).maximum(top), bottoms[view] - PATCH)
        x = torch.minimum((pixels.x - PATCH // 2).clamp(min=0), widths[view] - PATCH)
        return NNField(y, x)


def _stack(maps: list[Tensor], value: int) -> Tensor:
    """Stack maps (1, C, ., .) vertically, padded with a value to the widest one."""
    width = max(x.shape[3] for x in maps)
    return torch.cat([F.pad(x, (0, width - x.shape[3]), value=value) for x in maps], 2)


@dataclass(frozen=True)
class PaintingJob:
    """Arguments of a painting, the same at all scales."""

    exemplars: tuple[Exemplar, ...]  # at full size
    canvas: Canvas
    kind: Kind
    generators: dict[torch.device, torch.Generator]  # of the CPU and of the exemplars' device
    layout: Tensor | None = None  # (1, 3, ., .), image whose layout is kept; None: it is quilted
    group: ProcessGroup = SINGLE_PROCESS

    @property
    def device(self) -> torch.device:
        """Device of exemplars and canvas."""
        return self.exemplars[0].image.device

    @property
    def separate(self) -> bool:
        """Whether each output patch keeps to the exemplar from which it was quilted."""
        return len(self.exemplars) > 1 and self.canvas.guide is None and self.layout is None


def generators(device: torch.device, seed: int) -> dict[torch.device, torch.Generator]:
    """Return generators with a given seed, on a device and on the CPU."""
    return {d: torch.Generator(d).manual_seed(seed) for d in (device, CPU)}


class Level:
    """Source and output of one scale. Tensors are on the CPU if the output is small.

    Args:
        job: Arguments of the painting.
        factor: Factor by which the exemplars are resized.
        size: Size of the output, (H, W).
    """

    def __init__(self, job: PaintingJob, factor: float, size: Size) -> None:
        self.job, self.factor, self.size, self.wrap = job, factor, size, job.canvas.wrap
        self.device = job.device if math.prod(size) > GPU_PIXELS else CPU  # of all tensors
        self.generator = job.generators[self.device]
        canvas = job.canvas.to(self.device)
        self.atlas = Atlas(tuple(one.to(self.device) for one in job.exemplars), factor)
        self.usable = self.atlas.usable_patches()  # (h', w') of bool: source patches
        self.describe = PatchDescriptor(self.atlas.image, self.usable, self.generator)
        # (h', w', D + G) of the source patches
        self.descriptors = self.describe(self.atlas.image, self.atlas.guide)
        # (1, G, H, W)
        self.guide = None if canvas.guide is None else resize_guide(canvas.guide, size)
        self.mask = canvas.mask_at(size)  # (1, 1, H, W) of bool: pixels that may change; None: all
        # (1, 3, H, W): values of the pixels outside the mask; None: none are given
        self.kept = canvas.init_at(size)
        height, width = (
            side if axis in self.wrap else side - (PATCH - 1)
            for side, axis in zip(size, "yx", strict=True)
        )
        # Numbers of patches along each axis, (H', W') of the output and (h', w') of the source
        self.patches: Size = height, width
        self.source_patches: Size = self.usable.shape[0], self.usable.shape[1]


def fill_rows(
    outputs: Sequence[Tensor],
    parts: Sequence[tuple[slice, *tuple[torch.Generator, ...]]],
    compute: Callable[..., Sequence[Tensor]],
    group: ProcessGroup,
) -> None:
    """Compute tensors in strips of rows, which are divided among the processes of a group.

    Args:
        outputs: (..., H, W) of zeros each; filled in place.
        parts: Arguments of `compute` for each strip, its rows first. A single strip is computed by
            all processes.
        compute: Function that returns the rows of each output.
        group: Processes, all of which call this function alike.
    """
    if len(parts) == 1:
        group = SINGLE_PROCESS
    for part in parts[group.rank :: group.size]:
        for output, rows in zip(outputs, compute(*part), strict=True):
            output[..., part[0], :] = rows
    for output in outputs:
        group.all_reduce([output])
