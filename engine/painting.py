"""Painting a picture with the exemplar's own pixels, coarse to fine.

Patches of the output become the mean of similar patches of the exemplar, over and over (Kwatra et
al. 2005), each distance divided by how near any of the output's patches is to that patch of the
exemplar, so that all of the exemplar is used (Granot et al., "Drop the GAN", 2022). The first
layout is the best of some that are quilted from blocks, or is that of a picture that is given.

We depart from these papers in three points. Patches are found by PatchMatch, not by comparing all
pairs. They count by the inverse of their squared distance: their plain mean is blurred where they
do not agree. And rows and columns of the exemplar are stretched and squeezed a little, which the
eye does not notice, so that what is laid is never the exemplar's very pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.correspondences import (
    PATCH,
    STRIDES,
    UNKNOWN,
    Descriptor,
    Places,
    Search,
    Undescribed,
    at_a_time,
    marks_of_windows,
)
from engine.kinds import STOCHASTIC, Kind
from engine.quilting import quilted
from engine.scales import COARSEST
from engine.stretching import stretched
from terms.base import Canvas, Exemplar, View
from terms.matching import resize_guide, row_slices
from terms.process_group import SINGLE_PROCESS, ProcessGroup
from terms.valid import largest_rectangle, valid_at
from utils import Size, UserError, resize, scaled_size, size_of, size_text

FACTOR = math.sqrt(2)  # from scale to scale
BLOCK = 0.31  # of the exemplar's shorter side: a side of a quilted block
ALONG = 1.0  # the same along a grain, where a cut across is seen at once
SMALLER = 1.2  # than what they should be, by so much sides may be at the coarsest scale
COMPLETENESS = 0.005  # mean square: less makes every patch of the exemplar be used (Granot: alpha)
SHARPNESS = 2.0  # patches count by distance to the power of minus this
LEAST_DISTANCE = 1e-4  # mean square; what is nearer than this is as good
GUIDE = 1.0  # of the mean squared difference of guides, beside that of pixels
FINE = 0.49  # of full size: from where on a given layout is painted
SMALL_EXEMPLAR = 0.5  # of the shorter side of the smallest exemplar: the maximum side of a block
LAYING = 3  # rounds that take as long as trying a layout
LAYOUTS, LARGE = 12, 2**16  # how many are tried, and px from which on fewer are
COPY = 0.3  # of all pairs of pixels, from one piece of the exemplar: more is the exemplar, moved
SPARSE = 4  # px from one patch whose nearest is asked for to the next
MAX_DESCRIPTORS = 2**17  # patches whose descriptors are there at the same time
BACK = 2**14  # of the source, that are looked for in such a picture at the same time
BUSY = 2**16  # px, above which a GPU has more to do than to be told what
CPU = torch.device("cpu")
MIN_SIDE = 2 * PATCH  # px


@dataclass(frozen=True)
class Painting:
    """A picture, and where in the exemplars its pixels are from."""

    image: Tensor  # (1, 3, H, W) in [0, 1]
    places: Tensor  # (H, W) of int64: pixel y * w + x of the views below each other
    views: Tensor  # (h, w) of int64: the view of every pixel there; UNKNOWN is none


@dataclass(frozen=True)
class PaintingFrame:
    """State of a painting after a round of search and vote, or after a layout was tried."""

    scale: int  # 1 ... scales, coarse to fine
    scales: int
    work: float  # share of the work of all scales that is done, 0 ... 1
    image: Tensor  # (1, 3, h, w) in [0, 1], at the size of the scale


@dataclass(frozen=True)
class _Source:
    """All views of all exemplars at one size, below each other; beside them is nothing."""

    picture: Tensor  # (1, 3, h, w)
    guide: Tensor | None  # (1, G, h, w)
    views: Tensor  # (h, w) of int64: which view a pixel is of; UNKNOWN is none
    exemplars: Tensor  # (h, w) of int64
    sizes: list[Size]  # of the views, from above

    @classmethod
    def of(cls, exemplars: tuple[Exemplar, ...], factor: float) -> _Source:
        views = [(i, view) for i, one in enumerate(exemplars) for view in one.views]
        pictures = [resize(view.image, scaled_size(view.image, factor)) for _, view in views]
        sizes = [size_of(picture) for picture in pictures]
        guides = [
            resize_guide(view.guide, size)
            for (_, view), size in zip(views, sizes, strict=True)
            if view.guide is not None
        ]
        marks = []
        for n, ((i, view), size) in enumerate(zip(views, sizes, strict=True)):
            mark = torch.tensor((n, i), device=pictures[0].device).view(1, 2, 1, 1)
            mark = mark.expand(1, 2, *size)
            if view.valid is not None:
                mark = torch.where(valid_at(view.valid, size), mark, UNKNOWN)
            marks.append(mark)
        marked = _stacked(marks, UNKNOWN)[0]
        guide = _stacked(guides, 0) * GUIDE**0.5 if guides else None
        return cls(_stacked(pictures, 0), guide, marked[0], marked[1], sizes)

    @property
    def usable(self) -> Tensor:
        """(h', w') of bool: which patches lie in one view."""
        return marks_of_windows(self.views, (PATCH, PATCH)) != UNKNOWN

    def with_middles(self, pixels: Places) -> Places:
        """The first pixels of the patches around these pixels; a patch that crosses the border of
        its picture is moved inside."""
        heights, widths = torch.tensor(self.sizes, device=pixels.y.device).T
        bottoms = heights.cumsum(0)
        view = torch.bucketize(pixels.y.contiguous(), bottoms, right=True)
        top = (bottoms - heights)[view]
        y = torch.minimum((pixels.y - PATCH // 2).maximum(top), bottoms[view] - PATCH)
        x = torch.minimum((pixels.x - PATCH // 2).clamp(min=0), widths[view] - PATCH)
        return Places(y, x)


def _stacked(maps: list[Tensor], value: int) -> Tensor:
    """(1, C, ., .) each -> below each other, as wide as the widest of them."""
    width = max(one.shape[3] for one in maps)
    return torch.cat([F.pad(one, (0, width - one.shape[3]), value=value) for one in maps], 2)


def paint(
    exemplars: tuple[Exemplar, ...],
    canvas: Canvas,
    *,
    size: Size,
    seed: int,
    kind: Kind = STOCHASTIC,
    layout: Tensor | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Generator[PaintingFrame, None, Painting]:
    """Paint an image with the pixels of exemplars, coarse to fine.

    Args:
        exemplars: Exemplars with their guides, at full size.
        canvas: Tiling, guide, mask and init of the output.
        size: Height and width of the painting; those of the canvas, or a little more.
        seed: Seed of all random draws.
        kind: Kind of texture. Blocks of a regular one keep its rows and columns.
        layout: (1, 3, ., .) image whose objects stay where they are, painted from FINE of the full
            size on. None: a layout is quilted, or taken from `canvas.init` if nothing is masked.
        group: Processes that paint the image together; all of them call this function alike.

    Yields:
        A frame after each layout that is tried, and after each round.

    Returns:
        The painting, as the value of `yield from`; see `value_of`.

    Raises:
        UserError: A side of an exemplar or of the size is shorter than MIN_SIDE.
    """
    check_sides(exemplars, size)
    exemplars = stretched(exemplars, seed)
    painter = _Painter(exemplars, canvas, kind, seed, group)
    factors = _factors(exemplars, size, kind)
    if layout is not None:
        factors = [factor for factor in factors if factor >= FINE]
    rounds = [_rounds(exemplars, factor) for factor in factors]
    sizes = [_at_least(MIN_SIDE, size, factor) for factor in factors]
    if layout is None and canvas.mask is None:
        layout = canvas.init
    laying = LAYING * factors[0] ** 2
    total = laying * _layouts(sizes[0]) if layout is None else 0.0
    total += sum(n * factor**2 for n, factor in zip(rounds, factors, strict=True))
    done = 0.0
    for scale, factor in enumerate(factors, 1):
        for _ in painter.begin(factor, sizes[scale - 1], layout):
            done += laying
            yield PaintingFrame(scale, len(factors), min(1.0, done / total), painter.image)
        for _ in range(rounds[scale - 1]):
            painter.round()
            done += factor**2
            yield PaintingFrame(scale, len(factors), min(1.0, done / total), painter.image)
    return painter.painting()


def value_of(frames: Generator[PaintingFrame, None, Painting]) -> Painting:
    """Run a generator of `paint` to its end and return the painting."""
    while True:
        try:
            next(frames)
        except StopIteration as end:
            return end.value


def _at_least(side: int, size: Size, factor: float) -> Size:
    height, width = (max(side, round(factor * one)) for one in size)
    return height, width


def pixels_laid(painting: Painting, exemplars: tuple[Exemplar, ...]) -> Tensor:
    """(1, 3, H, W): of every pixel of a painting the one of the exemplars that counts most."""
    return _Source.of(exemplars, 1.0).picture[0].flatten(1)[:, painting.places][None]


def check_sides(exemplars: tuple[Exemplar, ...], size: Size) -> None:
    """Raise UserError where there is no room for patches."""
    named = [
        ("exemplar" if view.valid is None else "opaque part of the exemplar", _piece(view))
        for one in exemplars
        for view in one.views
    ]
    for name, sides in (*named, ("output", size)):
        if min(sides) < MIN_SIDE:
            raise UserError(
                f"{name} of {size_text(sides)}, painting needs sides of {MIN_SIDE} or more"
            )


def _piece(view: View) -> Size:
    """The size of the largest rectangle of a picture whose pixels all count."""
    size = size_of(view.image)
    return size if view.valid is None else largest_rectangle(valid_at(view.valid, size))[1]


def _factors(exemplars: tuple[Exemplar, ...], size: Size, kind: Kind) -> list[float]:
    """Of the sizes from coarse to fine: the first brings the exemplar to COARSEST, unless a copy
    or the output became too small.

    Of what has rows and columns to twice that, as there a pixel that a block lies off is a step in
    a course of bricks.
    """
    sides = [min(_piece(view)) for one in exemplars for view in one.views]
    most = min(sides[0] / (COARSEST * (1 + kind.regular)), min(*sides, *size) / MIN_SIDE)
    count = max(0, math.floor(math.log(SMALLER * most, FACTOR)))
    return [FACTOR**-k for k in range(count, -1, -1)]


def _rounds(exemplars: tuple[Exemplar, ...], factor: float) -> int:
    """Coarse rounds cost little and decide much."""
    side = factor * min(size_of(exemplars[0].image))
    return 8 if side < 2 * COARSEST + 2 else 4 if side < 3 * COARSEST else 2


def _layouts(size: Size) -> int:
    """How many to choose from: less chance is left in a large one, and each takes longer."""
    return max(1, round(LAYOUTS * min(1.0, LARGE / math.prod(size))))


def _mean_nearest(patches: Tensor, among: Tensor) -> float:
    """(N, D), (M, D) -> the mean squared distance to the nearest."""
    rows = min(2**11, max(1, 2**26 // len(among)))
    nearest = [torch.cdist(some, among).amin(1) for some in patches.split(rows)]
    return torch.cat(nearest).square().mean().item()


class _Painter:
    """The picture while it is painted, from scale to scale."""

    def __init__(
        self,
        exemplars: tuple[Exemplar, ...],
        canvas: Canvas,
        kind: Kind,
        seed: int,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.exemplars, self.canvas, self.kind, self.group = exemplars, canvas, kind, group
        self.device = exemplars[0].image.device
        self.generators = {d: torch.Generator(d).manual_seed(seed) for d in (self.device, CPU)}
        self.factor = 0.0
        self.places: Places | None = None  # of patches
        self.nearest: Places | None = None  # for every patch of the source one of the output
        # What was quilted in shares keeps them; in a layout that is given every patch looks for its
        # like in any exemplar.
        self.keeps_exemplars = len(exemplars) > 1 and canvas.guide is None

    def begin(self, factor: float, size: Size, layout: Tensor | None) -> Iterator[None]:
        """Go on at another size; yields after every layout that is tried."""
        device = self.device if math.prod(size) > BUSY else CPU
        exemplars = tuple(one.to(device) for one in self.exemplars)
        canvas, self.size = self.canvas.to(device), size
        self.generator = self.generators[device]
        self.source = _Source.of(exemplars, factor)
        self.usable = self.source.usable
        self.describe = Descriptor(self.source.picture, self.usable, self.generator)
        self.described = self.describe(self.source.picture, self.source.guide)
        guided = canvas.guide is not None
        self.guide = resize_guide(canvas.guide, size) * GUIDE**0.5 if guided else None
        self.mask, self.kept = canvas.mask_at(size), canvas.init_at(size)
        patches = size[0] - self._short("y"), size[1] - self._short("x")
        among = self.usable.shape[0], self.usable.shape[1]
        if self.places is not None and self.nearest is not None:
            grown = factor / self.factor
            self.places = self.places.to(device).resized(patches, grown)
            self.nearest = self.nearest.to(device).resized(among, grown)
            self._vote(None)
        else:
            self.nearest = Places.drawn(among, patches, self.generator)
            if layout is not None:
                self.image = resize(layout.to(device), size, canvas.tile)
                self.keeps_exemplars = False
                self.places = Places.drawn(patches, among, self.generator)
            else:
                yield from self._lay(size, patches, factor)
        self.factor = factor

    def _lay(self, size: Size, patches: Size, factor: float) -> Iterator[None]:
        """The best of some new layouts, those last that are the exemplar in one piece."""
        layouts = []
        for _ in range(_layouts(size)):
            places = self.places = self._quilted(size, patches, factor)
            self._vote(None)
            yield
            layouts.append((places.offset_concentration() > COPY, self._dissimilarity(), places))
        self.places = min(layouts, key=lambda layout: layout[:2])[2]
        self._vote(None)

    def _dissimilarity(self) -> float:
        """How far patches are from the source's nearest, times how far those are from the picture's
        nearest: the more of it is torn, and the more of the source is missing.

        Both of Simakov et al., "Summarizing Visual Data Using Bidirectional Similarity", 2008, but
        their product for their sum, in which the larger would hide the smaller.
        """
        output = self.describe(self.image, self.guide, self.canvas.tile)
        source, usable = self.described, self.usable
        some = (slice(None, None, SPARSE),) * 2
        torn = _mean_nearest(output[some].flatten(0, 1), source[usable])
        missing = _mean_nearest(source[some][usable[some]], output.flatten(0, 1))
        return torn * missing

    def _short(self, axis: str) -> int:
        """By how much fewer patches there are than pixels."""
        return 0 if axis in self.canvas.tile else PATCH - 1

    def _quilted(self, size: Size, patches: Size, factor: float) -> Places:
        """Where patches are from in a new layout."""
        even = 3**-0.5  # so that squared differences add up to those of descriptors
        source, guide = even * self.source.picture[0], self.source.guide
        blank = torch.zeros(3, *size, device=source.device)
        canvas = blank if self.kept is None or self.mask is None else even * self.kept[0]
        sure = torch.zeros_like(blank, dtype=torch.bool)
        if self.mask is not None:
            sure = (~self.mask[0]).expand(3, -1, -1)
        if guide is not None and self.guide is not None:
            source, canvas = torch.cat((source, guide[0])), torch.cat((canvas, self.guide[0]))
            sure = torch.cat((sure, torch.ones_like(self.guide[0], dtype=torch.bool)))
        owner, shares = self.source.exemplars, [one.share for one in self.exemplars]
        if not self.keeps_exemplars:
            owner, shares = owner.clamp(max=0), [1.0]
        side = factor * min(_piece(self.exemplars[0].views[0]))
        # The kind is that of one exemplar as it is, laid anywhere.
        alone = guide is None and sum(len(one.views) for one in self.exemplars) == 1
        kind = self.kind if alone else STOCHASTIC
        height, width = (round(side * (ALONG if axis == kind.axis else BLOCK)) for axis in "yx")
        if len(self.exemplars) > 1:  # a block larger than an exemplar could never be taken from it
            least = min(side for one in self.exemplars for side in _piece(one.views[0]))
            most = max(PATCH, round(SMALL_EXEMPLAR * factor * least))
            height, width = min(height, most), min(width, most)
        while min(height, width) > PATCH and not self._has_blocks((height, width)):
            height, width = max(PATCH, height // 2), max(PATCH, width // 2)
        # Block after block, each of them small: on the CPU.
        pixels = quilted(
            source.to(CPU),
            owner.to(CPU),
            canvas.to(CPU),
            sure.to(CPU),
            shares,
            self.canvas.tile,
            self.generators[CPU],
            (height, width),
            kind,
        ).to(source.device)
        # The middle of a patch has the source of its pixel, unless the patch is moved inside.
        middle = PATCH // 2
        y, x = (z.roll((-middle, -middle), (0, 1)) for z in (pixels.y, pixels.x))
        rows, columns = (slice(count) for count in patches)
        return self.source.with_middles(Places(y[rows, columns], x[rows, columns]))

    def _has_blocks(self, block: Size) -> bool:
        """Whether each exemplar has a rectangle of that size whose pixels all count."""
        height, width = map(min, block, self.source.exemplars.shape)
        owners = marks_of_windows(self.source.exemplars, (height, width))
        return all((owners == k).any() for k in range(len(self.exemplars)))

    def round(self) -> None:
        """Find similar patches and lay them over each other."""
        self._vote(self._searched())

    def _searched(self) -> Tensor:
        """Find similar patches; returns how much each of them counts."""
        assert self.places is not None and self.nearest is not None  # since it began
        factor = 1 / (COMPLETENESS + self._looked_back())
        h, w = self.usable.shape
        height, width = self.places.y.shape

        def better(rows: slice, generator: torch.Generator) -> list[Tensor]:
            output, places, inside, tile = self._strip(rows)
            search = Search(
                output,
                self.described,
                self.usable,
                generator,
                tile,
                factor,
                self.source.exemplars[:h, :w] if self.keeps_exemplars else None,
                0 if self.guide is None else self.guide.shape[1],
            )
            places = search(places, 1)
            weight = (search.distance(places) + LEAST_DISTANCE) ** -SHARPNESS
            return [one[inside] for one in (places.y, places.x, weight)]

        found, weights = self.places.zeros(), factor.new_zeros(height, width)
        self._shared(
            (found.y, found.x, weights), self._drawing(height, MAX_DESCRIPTORS // width), better
        )
        self.places = found
        return weights

    def _looked_back(self) -> Tensor:
        """For every patch of the source its distance to the nearest of the output, which is found
        anew."""
        assert self.places is not None and self.nearest is not None  # since it began
        size, tile = self.places.y.shape, self.canvas.tile
        args = self.image, self.guide, tile
        large = math.prod(size) > MAX_DESCRIPTORS
        output = Undescribed(self.describe, *args) if large else self.describe(*args)
        anywhere = torch.ones(size, dtype=torch.bool, device=self.usable.device)
        height, width = self.usable.shape
        nearest = self.nearest

        def nearer(rows: slice, generator: torch.Generator) -> list[Tensor]:
            first = max(0, rows.start - max(STRIDES))
            around = slice(first, rows.stop + max(STRIDES))
            inside = slice(rows.start - first, rows.stop - first)
            search = Search(self.described[around], output, anywhere, generator)
            places = search(Places(nearest.y[around], nearest.x[around]), 1)
            return [one[inside] for one in (places.y, places.x, search.distance(places))]

        parts = self._drawing(height, BACK // width if large else height)
        found, distance = nearest.zeros(), self.described.new_zeros(height, width)
        self._shared((found.y, found.x, distance), parts, nearer)
        self.nearest = found
        return distance

    def _drawing(self, height: int, rows: int) -> list[tuple[slice, torch.Generator]]:
        """Strips of so many rows, and what each draws from: not from the same, so that they may be
        searched in any order, or by several processes."""
        parts, drawn = list(row_slices(height, max(1, rows))), self.generator
        if len(parts) == 1:
            return [(parts[0], drawn)]
        seeds = torch.randint(2**62, (len(parts),), generator=drawn, device=drawn.device).tolist()
        return [
            (part, torch.Generator(drawn.device).manual_seed(seed))
            for part, seed in zip(parts, seeds, strict=True)
        ]

    def _shared(
        self,
        maps: Sequence[Tensor],
        parts: Sequence[tuple[slice, *tuple[torch.Generator, ...]]],
        work: Callable[..., Sequence[Tensor]],
    ) -> None:
        """Fill maps (..., H, W) of zeros with what comes of the work on parts, which begin with
        rows of all maps. Where there are several, each process of a group does some."""
        group = self.group if len(parts) > 1 else SINGLE_PROCESS
        for part in parts[group.rank :: group.size]:
            for whole, rows in zip(maps, work(*part), strict=True):
                whole[..., part[0], :] = rows
        for whole in maps:
            group.all_reduce([whole])

    def _strip(self, rows: slice) -> tuple[Tensor, Places, slice, str]:
        """Rows of patches and some around them, of a picture whose descriptors would not fit: the
        descriptors, the places, which rows of both were asked for, and what goes on where it began.
        """
        assert self.places is not None
        tile, (height, _) = self.canvas.tile, self.places.y.shape
        if rows == slice(0, height):
            return self.describe(self.image, self.guide, tile), self.places, rows, tile
        first, last = rows.start - max(STRIDES), rows.stop + max(STRIDES)
        if "y" not in tile:
            first, last = max(first, 0), min(last, height)
        at = torch.arange(first, last + PATCH - 1, device=self.image.device) % self.size[0]
        image, guide = (
            None if one is None else one.index_select(2, at) for one in (self.image, self.guide)
        )
        assert image is not None
        some = at[: last - first]
        tile = tile.replace("y", "")
        places = Places(self.places.y[some], self.places.x[some])
        inside = slice(rows.start - first, rows.stop - first)
        return self.describe(image, guide, tile), places, inside, tile

    def _vote(self, weights: Tensor | None) -> None:
        """The picture as the mean of its patches, and what is kept of the canvas."""
        assert self.places is not None
        height, width = self.size
        self.image = self.source.picture.new_zeros(1, 3, height, width)
        self.pixels = torch.zeros(self.size, dtype=torch.int64, device=self.image.device)
        parts = [
            (rows,) for rows in row_slices(height, max(1, at_a_time(self.image.device) // width))
        ]
        self._shared((self.image, self.pixels), parts, partial(self._voted, weights))
        if self.mask is not None and self.kept is not None:
            self.image = torch.where(self.mask, self.image, self.kept)

    def _voted(self, weights: Tensor | None, rows: slice) -> tuple[Tensor, Tensor]:
        """Some rows (3, h, W) of the picture, and where the pixels (h, W) are from that count most.

        What begins up to PATCH - 1 px before a pixel lies on it.
        """
        assert self.places is not None
        y_there, y = self._beginning(rows.start, rows.stop, "y")
        x_there, x = self._beginning(0, self.size[1], "x")
        height, width = self.source.picture.shape[2:]
        places = Places(*(z[y][:, x] for z in (self.places.y, self.places.x)))
        start = places.clamped((height - PATCH + 1, width - PATCH + 1)).flat(width)
        weight = (y_there[:, None] & x_there).to(self.image)
        if weights is not None:
            weight *= weights[y][:, x]
        colours = self.source.picture[0].flatten(1)
        h, w = rows.stop - rows.start, self.size[1]
        total, total_weight = colours.new_zeros(3, h, w), colours.new_zeros(h, w)
        most, pixels = torch.zeros_like(total_weight), start.new_zeros(h, w)
        for down in range(PATCH):
            for across in range(PATCH):
                first, left = PATCH - 1 - down, PATCH - 1 - across
                here = slice(first, first + h), slice(left, left + w)
                own, laid = start[here] + (down * width + across), weight[here]
                index = own.flatten()
                for channel, values in zip(total, colours, strict=True):
                    channel += values.index_select(0, index).view(h, w) * laid
                total_weight += laid
                torch.where(laid > most, own, pixels, out=pixels)
                torch.maximum(laid, most, out=most)
        return total.div_(total_weight), pixels

    def _beginning(self, start: int, stop: int, axis: str) -> tuple[Tensor, Tensor]:
        """Which patches lie on pixels `start` to `stop` of an axis: whether there is one, and
        where it is kept."""
        assert self.places is not None
        count = self.places.y.shape["yx".index(axis)]
        at = torch.arange(start - (PATCH - 1), stop, device=self.places.y.device)
        if axis in self.canvas.tile:
            return torch.ones_like(at, dtype=torch.bool), at % count
        return (at >= 0) & (at < count), at.clamp(0, count - 1)

    def painting(self) -> Painting:
        """What has come of it."""
        found = self.image, self.pixels, self.source.views
        return Painting(*(one.to(self.device) for one in found))
