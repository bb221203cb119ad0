"""Layout from which a painting starts: quilted candidates, and the cost that ranks them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.descriptors import PATCH, window_labels
from engine.kinds import STOCHASTIC
from engine.levels import CPU, Level
from engine.patchmatch import NNField
from engine.quilting import QuiltSource, quilt
from terms.base import View
from terms.valid import largest_rectangle, valid_at
from utils import Size, size_of

BLOCK_SIDE = 0.31  # of the exemplar's shorter side
GRAIN_BLOCK_SIDE = 1.0  # the same along a grain, since a cut across a grain is conspicuous
MAX_BLOCK_SIDE = 0.5  # of the shorter side of the smallest of several exemplars
LAYOUTS = 12  # layouts from which one is chosen
LAYOUT_PIXELS = 2**16  # px; larger outputs have fewer layouts
MAX_CONCENTRATION = 0.3  # of offsets; a layout above it counts as a copy of the exemplar
SAMPLING_STRIDE = 4  # px between the patches whose nearest neighbours are searched for the cost


def layout_count(size: Size) -> int:
    """Return the number of candidate layouts for an output of a size.

    Larger outputs have fewer, since their layouts differ less in cost and take longer to make.
    """
    return max(1, round(LAYOUTS * min(1.0, LAYOUT_PIXELS / math.prod(size))))


def valid_size(view: View) -> Size:
    """Return the size of the largest rectangle of valid pixels."""
    size = size_of(view.image)
    return size if view.valid is None else largest_rectangle(valid_at(view.valid, size))[1]


def quilt_layout(level: Level) -> NNField:
    """Return the source patches (H', W') of a random layout, by image quilting."""
    job, atlas = level.job, level.atlas
    canvas, known = _known_values(level)
    scale = 3**-0.5  # quilting sums squared differences over 3 channels, descriptors average them
    maps = scale * atlas.image[0]
    if atlas.guide is not None:
        maps = torch.cat((maps, atlas.guide[0]))
    exemplars, shares = atlas.exemplars, [one.share for one in job.exemplars]
    if not job.separate:
        exemplars, shares = exemplars.clamp(max=0), [1.0]
    single = atlas.guide is None and len(atlas.sizes) == 1
    kind = job.kind if single else STOCHASTIC  # a kind holds for a single view without guide
    # On the CPU, since blocks are small and laid one after the other.
    pixels = quilt(
        QuiltSource(maps.to(CPU), exemplars.to(CPU), shares),
        canvas.to(CPU),
        known.to(CPU),
        block=_block_size(level, kind.axis),
        generator=job.generators[CPU],
        wrap=level.wrap,
        kind=kind,
    ).to(level.device)
    # An output patch gets the source patch whose middle is the source of its middle pixel.
    middle = PATCH // 2
    y, x = (z.roll((-middle, -middle), (0, 1)) for z in (pixels.y, pixels.x))
    rows, columns = (slice(count) for count in level.patches)
    return atlas.patches_around(NNField(y, x)[rows, columns])


def _known_values(level: Level) -> tuple[Tensor, Tensor]:
    """Return values and known mask of the output before quilting, (3 + G, H, W) each."""
    blank = level.atlas.image.new_zeros(3, *level.size)
    canvas, known = blank, torch.zeros_like(blank, dtype=torch.bool)
    if level.mask is not None:
        known = (~level.mask[0]).expand(3, -1, -1)
        if level.kept is not None:
            canvas = 3**-0.5 * level.kept[0]
    if level.guide is not None:
        canvas = torch.cat((canvas, level.guide[0]))
        known = torch.cat((known, torch.ones_like(level.guide[0], dtype=torch.bool)))
    return canvas, known


def _block_size(level: Level, grain: str) -> Size:
    """Return the height and width of blocks for a grain along "y" or "x"; "": no grain."""
    exemplars = level.job.exemplars
    side = level.factor * min(valid_size(exemplars[0].views[0]))
    height, width = (
        round(side * (GRAIN_BLOCK_SIDE if axis == grain else BLOCK_SIDE)) for axis in "yx"
    )
    if len(exemplars) > 1:  # a block larger than an exemplar could not be taken from it
        smallest = min(side for one in exemplars for side in valid_size(one.views[0]))
        most = max(PATCH, round(MAX_BLOCK_SIDE * level.factor * smallest))
        height, width = min(height, most), min(width, most)
    while min(height, width) > PATCH and not _all_have_blocks(level, (height, width)):
        height, width = max(PATCH, height // 2), max(PATCH, width // 2)
    return height, width


def _all_have_blocks(level: Level, block: Size) -> bool:
    """Return whether each exemplar contains a block of valid pixels only."""
    labels = level.atlas.exemplars
    height, width = map(min, block, labels.shape)
    labels = window_labels(labels, (height, width))
    return all((labels == k).any() for k in range(len(level.job.exemplars)))


def layout_cost(level: Level, field: NNField, image: Tensor) -> tuple[bool, float]:
    """Return the cost of a layout: whether it is a copy of the source, and its dissimilarity.

    The dissimilarity is the mean squared distance of output patches to their nearest source patch
    (coherence) times that of source patches to their nearest output patch (completeness): Simakov
    et al., "Summarizing Visual Data Using Bidirectional Similarity", 2008. Departure: the two
    are multiplied, since in a sum the larger distance would hide the smaller.

    Args:
        level: Level of the layout.
        field: (H', W') source patches.
        image: (1, 3, H, W), voted from the field.
    """
    output = level.describe(image, level.guide, level.wrap)
    source, usable = level.descriptors, level.usable
    sparse = (slice(None, None, SAMPLING_STRIDE),) * 2
    coherence = _mean_nearest(output[sparse].flatten(0, 1), source[usable])
    completeness = _mean_nearest(source[sparse][usable[sparse]], output.flatten(0, 1))
    return field.offset_concentration() > MAX_CONCENTRATION, coherence * completeness


def _mean_nearest(queries: Tensor, candidates: Tensor) -> float:
    """Return the mean squared distance of (N, D) to the nearest of (M, D)."""
    rows = min(2**11, max(1, 2**26 // len(candidates)))
    nearest = [torch.cdist(some, candidates).amin(1) for some in queries.split(rows)]
    return torch.cat(nearest).square().mean().item()
