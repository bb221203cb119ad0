"""One round of painting: patch search in both directions, then voting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.descriptors import PATCH, LazyDescriptors
from engine.levels import Level, fill_rows
from engine.patchmatch import STRIDES, Candidates, NNField, PatchMatch
from engine.voting import vote
from terms.matching import row_slices
from utils import resize

ALPHA = 0.005  # mean square; a smaller one uses source patches more evenly (Granot et al.)
VOTE_EXPONENT = 2.0  # the weight of a patch is its squared distance to the power -VOTE_EXPONENT
DISTANCE_FLOOR = 1e-4  # mean square; smaller distances count as equal
MAX_DESCRIPTORS = 2**17  # output patches whose descriptors are held at a time
SOURCE_CHUNK = 2**14  # source patches searched at a time if the output exceeds MAX_DESCRIPTORS
HALO = max(STRIDES)  # rows of patches around a strip, from which offsets propagate into it

# Inputs of a search for some rows and a halo of rows around them: descriptors (n, W', D + G), field
# (n, W'), the slice of the n rows without the halo, and the axes along which the strip repeats.
Strip = tuple[Tensor, NNField, slice, str]


@dataclass(frozen=True)
class PaintingState:
    """A painting between two rounds."""

    factor: float  # of full size
    output_field: NNField  # (H', W'): source patch of each output patch
    source_field: NNField  # (h', w'): output patch of each source patch
    image: Tensor  # (1, 3, H, W)
    weights: Tensor | None = None  # (H', W') of the votes that made the image; None: equal


def random_source_field(level: Level) -> NNField:
    """Return a random field of the source patches."""
    return NNField.random(level.source_patches, level.patches, level.generator)


def state_of_layout(level: Level, layout: Tensor) -> PaintingState:
    """Return the state before the first round, for a layout (1, 3, ., .)."""
    source_field = random_source_field(level)
    output_field = NNField.random(level.patches, level.source_patches, level.generator)
    image = resize(layout.to(level.device), level.size, level.wrap)
    return PaintingState(level.factor, output_field, source_field, image)


def upsample(level: Level, state: PaintingState) -> PaintingState:
    """Return the state of a coarser level, resized to this one."""
    factor = level.factor / state.factor
    output_field = state.output_field.to(level.device).resize(level.patches, factor)
    source_field = state.source_field.to(level.device).resize(level.source_patches, factor)
    return PaintingState(level.factor, output_field, source_field, vote(level, output_field))


def paint_round(level: Level, state: PaintingState) -> PaintingState:
    """Return the state after one round of search and vote.

    Squared distances d(x, y) of output patches x to source patches y are divided by
    ALPHA + min over x of d(x, y), so that source patches that are not used yet cost less (Granot
    et al., "Drop the GAN", 2022).
    """
    source_field, nearest = _search_output(level, state)
    output_field, distance = _search_source(level, state, 1 / (ALPHA + nearest))
    weights = (distance + DISTANCE_FLOOR) ** -VOTE_EXPONENT
    image = vote(level, output_field, weights)
    return PaintingState(level.factor, output_field, source_field, image, weights)


def _search_output(level: Level, state: PaintingState) -> tuple[NNField, Tensor]:
    """Find the nearest output patch of each source patch, and its squared distance, (h', w')."""
    large = math.prod(level.patches) > MAX_DESCRIPTORS
    describe = partial(LazyDescriptors, level.describe) if large else level.describe
    output = describe(state.image, level.guide, level.wrap)
    anywhere = torch.ones(level.patches, dtype=torch.bool, device=level.device)

    def strip(rows: slice) -> Strip:
        first = max(0, rows.start - HALO)
        around = slice(first, rows.stop + HALO)
        inside = slice(rows.start - first, rows.stop - first)
        return level.descriptors[around], state.source_field[around], inside, ""

    height, width = level.source_patches
    rows = SOURCE_CHUNK // width if large else height
    return _search(level, state.source_field, Candidates(output, anywhere), strip, rows)


def _search_source(
    level: Level, state: PaintingState, cost_factor: Tensor
) -> tuple[NNField, Tensor]:
    """Find the source patch of least cost of each output patch, and its squared distance, (H', W').

    Args:
        cost_factor: (h', w'), multiplies squared distances of source patches.
    """
    h, w = level.source_patches
    candidates = Candidates(
        level.descriptors,
        level.usable,
        cost_factor,
        labels=level.atlas.exemplars[:h, :w] if level.job.separate else None,
        guide_channels=0 if level.guide is None else level.guide.shape[1],
    )
    strip, rows = partial(describe_strip, level, state), MAX_DESCRIPTORS // level.patches[1]
    return _search(level, state.output_field, candidates, strip, rows)


def _search(
    level: Level, field: NNField, candidates: Candidates, strip: Callable[[slice], Strip], most: int
) -> tuple[NNField, Tensor]:
    """Search in strips of at most `most` rows.

    Args:
        field: Field before the search.
        strip: Function that returns the inputs of the search for some rows.

    Returns:
        The field, and the squared distance of each query to its neighbour.
    """

    def search(rows: slice, generator: torch.Generator) -> list[Tensor]:
        queries, part, inside, wrap = strip(rows)
        match = PatchMatch(queries, candidates, generator, wrap)
        part = match(part, 1)
        return [x[inside] for x in (part.y, part.x, match.distance(part))]

    found, distance = field.zeros_like(), level.descriptors.new_zeros(field.size)
    strips = _strips(level, field.size[0], most)
    fill_rows((found.y, found.x, distance), strips, search, level.job.group)
    return found, distance


def _strips(level: Level, height: int, rows: int) -> list[tuple[slice, torch.Generator]]:
    """Divide `height` into strips of at most `rows` rows.

    If there are several, each has a generator of its own, so that they may be searched in any order
    and by different processes.
    """
    parts, shared = list(row_slices(height, max(1, rows))), level.generator
    if len(parts) == 1:
        return [(parts[0], shared)]
    seeds = torch.randint(2**62, (len(parts),), generator=shared, device=shared.device).tolist()
    return [
        (part, torch.Generator(shared.device).manual_seed(seed))
        for part, seed in zip(parts, seeds, strict=True)
    ]


def describe_strip(level: Level, state: PaintingState, rows: slice) -> Strip:
    """Return the inputs of a search for some rows of output patches and a halo around them."""
    wrap, field = level.wrap, state.output_field
    height = level.patches[0]
    if rows == slice(0, height):
        return level.describe(state.image, level.guide, wrap), field, rows, wrap
    first, last = rows.start - HALO, rows.stop + HALO
    if "y" not in wrap:
        first, last = max(first, 0), min(last, height)
    y = torch.arange(first, last + PATCH - 1, device=level.device) % level.size[0]
    image = state.image.index_select(2, y)
    guide = None if level.guide is None else level.guide.index_select(2, y)
    wrap = wrap.replace("y", "")
    inside = slice(rows.start - first, rows.stop - first)
    return level.describe(image, guide, wrap), field[y[: last - first]], inside, wrap
