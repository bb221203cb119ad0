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


@dataclass(frozen=True)
class Atlas:
    """All views of all exemplars at one size, stacked vertically; narrow ones are padded."""

    image: Tensor  # (1, 3, h, w)
    guide: Tensor | None  # (1, G, h, w)
    views: Tensor  # (h, w) of int64: index of the view of each pixel, or NO_LABEL
    exemplars: Tensor  # (h, w) of int64: index of the exemplar of each pixel, or NO_LABEL
    sizes: list[Size]  # of the views

    @classmethod
    def of(cls, exemplars: tuple[Exemplar, ...], factor: float) -> Atlas:
        """Return the atlas of exemplars resized by a factor."""
        views = [(i, view) for i, one in enumerate(exemplars) for view in one.views]
        images = [resize(view.image, scaled_size(view.image, factor)) for _, view in views]
        sizes = [size_of(image) for image in images]
        guides = [
            resize_guide(view.guide, size)
            for (_, view), size in zip(views, sizes, strict=True)
            if view.guide is not None
        ]
        labels = []
        for n, ((i, view), size) in enumerate(zip(views, sizes, strict=True)):
            label = torch.tensor((n, i), device=images[0].device).view(1, 2, 1, 1)
            label = label.expand(1, 2, *size)
            if view.valid is not None:
                label = torch.where(valid_at(view.valid, size), label, NO_LABEL)
            labels.append(label)
        view_labels, exemplar_labels = _stack(labels, NO_LABEL)[0]
        guide = _stack(guides, 0) if guides else None
        return cls(_stack(images, 0), guide, view_labels, exemplar_labels, sizes)

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


@dataclass(frozen=True)
class Level:
    """Source and output of one scale. Tensors are on the CPU if the output is small."""

    job: PaintingJob
    factor: float  # of full size
    size: Size  # of the output, (H, W)
    atlas: Atlas
    usable: Tensor  # (h', w') of bool: source patches that lie in one view
    describe: PatchDescriptor
    descriptors: Tensor  # (h', w', D + G) of the source patches
    guide: Tensor | None  # (1, G, H, W)
    mask: Tensor | None  # (1, 1, H, W) of bool: pixels that may change; None: all
    kept: Tensor | None  # (1, 3, H, W): values of the pixels outside the mask; None: none are given

    @property
    def wrap(self) -> str:
        """Axes along which the output repeats."""
        return self.job.canvas.wrap

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.usable.device

    @property
    def generator(self) -> torch.Generator:
        """Generator on that device."""
        return self.job.generators[self.device]

    @property
    def patches(self) -> Size:
        """(H', W'): number of output patches along each axis."""
        height, width = (
            side if axis in self.wrap else side - (PATCH - 1)
            for side, axis in zip(self.size, "yx", strict=True)
        )
        return height, width

    @property
    def source_patches(self) -> Size:
        """(h', w'): number of source patches along each axis."""
        return self.usable.shape[0], self.usable.shape[1]


def level_at(job: PaintingJob, factor: float, size: Size) -> Level:
    """Return the level of a job with exemplars resized by a factor and an output of a size."""
    device = job.device if math.prod(size) > GPU_PIXELS else CPU
    atlas = Atlas.of(tuple(one.to(device) for one in job.exemplars), factor)
    canvas = job.canvas.to(device)
    usable = atlas.usable_patches()
    describe = PatchDescriptor(atlas.image, usable, job.generators[device])
    return Level(
        job=job,
        factor=factor,
        size=size,
        atlas=atlas,
        usable=usable,
        describe=describe,
        descriptors=describe(atlas.image, atlas.guide),
        guide=None if canvas.guide is None else resize_guide(canvas.guide, size),
        mask=canvas.mask_at(size),
        kept=canvas.init_at(size),
    )


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
