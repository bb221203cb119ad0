"""Patch descriptors: principal components of the pixels, and the mean of the guide."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from terms.matching import gather_patches, row_slices
from utils import Size, wrapped

PATCH = 7  # px, side of a patch
COMPONENTS = 32  # number of principal components that are kept of the 147 values of a patch
SAMPLE = 20_000  # patches from which the principal components are computed
CPU_CHUNK = 2**14  # patches processed at a time on a CPU, so that they fit into its cache
GPU_CHUNK = 2**18  # patches processed at a time on any other device, to keep it busy
GATHER_DIVISOR = 4  # chunks are smaller by this factor if the pixels of patches are gathered
NO_LABEL = -1  # of pixels that belong to no view, and of windows without a common label


def chunk_size(device: torch.device) -> int:
    """Return the number of patches to process at a time."""
    return CPU_CHUNK if device.type == "cpu" else GPU_CHUNK


def window_labels(labels: Tensor, window: Size) -> Tensor:
    """Return the label that all pixels of each window have in common, else NO_LABEL.

    Args:
        labels: (h, w) of int64, NO_LABEL or more.
        window: Height and width.

    Returns:
        (h - height + 1, w - width + 1) of int64, at the first pixel of each window.
    """
    values = labels.float()[None]
    highest, lowest = (F.max_pool2d(sign * values, window, 1)[0] for sign in (1, -1))
    return torch.where(highest == -lowest, highest.long(), NO_LABEL)


class PatchDescriptor:
    """Map from the patches of an image to descriptors.

    A descriptor holds COMPONENTS principal components of a patch's pixels, computed from patches of
    the source, followed by the mean of each guide channel. The squared distance of two descriptors
    is the mean squared difference of the pixels, without the components that are left out, plus the
    squared difference of the mean guides.

    Args:
        image: (1, 3, h, w), the source.
        usable: (h - PATCH + 1, w - PATCH + 1) of bool, patches from which components are computed.
        generator: Generator, on any device, that draws the sample of patches.
    """

    def __init__(self, image: Tensor, usable: Tensor, generator: torch.Generator) -> None:
        starts = usable.flatten().nonzero()[:, 0]
        if len(starts) > SAMPLE:
            drawn = torch.randperm(len(starts), generator=generator, device=generator.device)
            starts = starts[drawn[:SAMPLE]]
        width = usable.shape[1]
        starts = starts // width * image.shape[3] + starts % width
        # Contiguous, since rounding depends on the memory layout.
        patches = gather_patches(image, starts, PATCH).T.contiguous()
        mean = patches.mean(0)
        centred = patches - mean
        # On the CPU, since some GPUs have no float64.
        _, axes = torch.linalg.eigh((centred.T @ centred / len(centred)).cpu().double())
        self.axes = axes[:, -COMPONENTS:].to(image)  # (3 PATCH^2, D)
        self.projected_mean = mean @ self.axes  # (D,)

    def __call__(self, image: Tensor, guide: Tensor | None, wrap: str = "") -> Tensor:
        """Return the descriptors of all patches.

        Args:
            image: (1, 3, H, W).
            guide: (1, G, H, W) or None.
            wrap: Axes along which the image repeats; there, patches continue across its borders.

        Returns:
            (H', W', D + G). H' is H if the image repeats along "y", else H - PATCH + 1; W' alike.
        """
        kernel = self.axes.T.view(-1, 3, PATCH, PATCH)
        mean = self.projected_mean.view(-1, 1, 1)
        maps = _padded_maps(image, guide, wrap)
        height, width = (side - (PATCH - 1) for side in maps[0].shape[2:])
        channels = len(kernel) + sum(x.shape[1] for x in maps[1:])
        descriptors = image.new_empty(height, width, channels)
        for rows in row_slices(height, max(1, chunk_size(image.device) // width)):
            pixels, *guides = (x[..., rows.start : rows.stop + PATCH - 1, :] for x in maps)
            parts = [(F.conv2d(pixels, kernel)[0] - mean) / (3 * PATCH**2) ** 0.5]
            parts += [F.avg_pool2d(x, PATCH, 1)[0] for x in guides]
            descriptors[rows] = torch.cat(parts).movedim(0, 2)
        return descriptors


class LazyDescriptors:
    """Descriptors that are computed when they are indexed, in a tenth of the memory of all.

    Args:
        describe: Map to descriptors.
        image, guide, wrap: Arguments of `describe`.
    """

    def __init__(
        self, describe: PatchDescriptor, image: Tensor, guide: Tensor | None, wrap: str
    ) -> None:
        maps = _padded_maps(image, guide, wrap)
        self.width = maps[0].shape[3]
        self.patch_rows = [_patch_rows(x) for x in maps]
        # The values of a gathered patch are in the order (row, column, channel).
        axes = describe.axes.view(3, PATCH, PATCH, -1).permute(1, 2, 0, 3).flatten(0, 2)
        self.axes, self.projected_mean = axes.contiguous(), describe.projected_mean
        self.row_offsets = torch.arange(PATCH, device=image.device) * self.width

    def index_select(self, index: Tensor) -> Tensor:
        """Return the descriptors (N, D + G) of patches with flat indices y * W' + x, (N,)."""
        chunks = index.split(chunk_size(index.device) // GATHER_DIVISOR)
        return torch.cat([self._describe(chunk) for chunk in chunks])

    def _describe(self, index: Tensor) -> Tensor:
        across = self.width - PATCH + 1
        starts = index // across * self.width + index % across
        rows = (starts[:, None] + self.row_offsets).flatten()  # (N PATCH,)
        patches, *guides = (
            x.index_select(0, rows).view(len(index), PATCH**2, -1) for x in self.patch_rows
        )
        pixels = (patches.flatten(1) @ self.axes - self.projected_mean) / (3 * PATCH**2) ** 0.5
        return torch.cat((pixels, *(x.mean(1) for x in guides)), 1)


def _padded_maps(image: Tensor, guide: Tensor | None, wrap: str) -> list[Tensor]:
    """Return image and guide with PATCH - 1 more rows and columns along the axes in `wrap`."""
    return [wrapped(x, wrap, PATCH - 1, PATCH - 1) for x in (image, guide) if x is not None]


def _patch_rows(maps: Tensor) -> Tensor:
    """Return a view (H W - PATCH + 1, PATCH C) of maps (1, C, H, W) whose row i holds the PATCH
    pixels from flat position i on.

    Rows of the view overlap in memory. A patch is gathered as PATCH rows, which is five times as
    fast as pixel by pixel.
    """
    flat = maps[0].flatten(1).T.contiguous()  # (H W, C)
    count, channels = flat.shape
    return flat.as_strided((count - PATCH + 1, PATCH * channels), (channels, 1))
