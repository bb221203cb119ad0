"""For every patch of one picture a similar patch of another, searched for by PatchMatch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from terms.matching import gather_patches, row_slices
from utils import Size, wrapped

PATCH = 7  # px
COMPONENTS = 32  # of the 147 numbers of a patch, by principal components
SAMPLE = 20_000  # patches that the principal components are computed from
STRIDES = (8, 4, 2, 1, 1)  # px to the neighbours whose places are tried
CHUNK = 2**14  # patches compared at a time by a CPU, so that they stay in the cache
LARGE = 2**18  # the same for others, which have much to do at a time
PIXELS = 4  # as many times fewer are copied with all their pixels, for them to be described
UNKNOWN = -1  # what has no mark


def at_a_time(device: torch.device) -> int:
    """How many patches are worked on at the same time."""
    return CHUNK if device.type == "cpu" else LARGE


@dataclass(frozen=True)
class Places:
    """For every patch the row and column where a similar patch begins, (H, W) of int64 each."""

    y: Tensor
    x: Tensor

    @classmethod
    def drawn(cls, size: Size, among: Size, generator: torch.Generator) -> Places:
        """`size` of them, anywhere among so many rows and columns; where the generator is."""
        device = generator.device
        y, x = (torch.randint(n, size, generator=generator, device=device) for n in among)
        return cls(y, x)

    def zeros(self) -> Places:
        """As many, all at the origin."""
        return Places(torch.zeros_like(self.y), torch.zeros_like(self.x))

    def to(self, device: torch.device) -> Places:
        """The same on another device."""
        return Places(self.y.to(device), self.x.to(device))

    def clamped(self, among: Size) -> Places:
        """The nearest among so many rows and columns."""
        return Places(self.y.clamp(0, among[0] - 1), self.x.clamp(0, among[1] - 1))

    def flat(self, width: int) -> Tensor:
        """(H, W): y * width + x."""
        return self.y * width + self.x

    def offset_concentration(self) -> float:
        """The chance that two places lie as far from each other as their patches do."""
        rows, columns = (torch.arange(side, device=self.y.device) for side in self.y.shape)
        moves = torch.stack((self.y - rows[:, None], self.x - columns)).flatten(1)
        _, counts = moves.unique(dim=1, return_counts=True)
        return (counts / counts.sum()).square().sum().item()

    def seen_from(self, down: int, across: int, tile: str) -> Places:
        """Where a patch would lie if it went on from its neighbour so many px up and left."""
        y, x = (
            _shifted(_shifted(z, 0, down, "y" in tile), 1, across, "x" in tile)
            for z in (self.y, self.x)
        )
        return Places(y + down, x + across)

    def resized(self, size: Size, factor: float) -> Places:
        """The same at another size, of an exemplar that was resized by `factor`."""
        rows, columns = (torch.arange(side, device=self.y.device) for side in size)
        above, left = (
            ((new + 0.5) * old / side).long()
            for new, old, side in zip((rows, columns), self.y.shape, size, strict=True)
        )
        y, x = (z[above][:, left] for z in (self.y, self.x))
        y = ((y - above[:, None]) * factor).round().long() + rows[:, None]
        x = ((x - left) * factor).round().long() + columns
        return Places(y, x)


def _shifted(z: Tensor, dim: int, by: int, wraps: bool) -> Tensor:
    """What lies `by` px before; beyond the border the outermost, or what comes round."""
    if by == 0 or wraps:
        return z.roll(by, dim) if by else z
    count = min(abs(by), z.shape[dim])
    left = z.shape[dim] - count
    border = z.narrow(dim, 0 if by > 0 else z.shape[dim] - 1, 1)
    borders = border.expand([count if d == dim else n for d, n in enumerate(z.shape)])
    if by > 0:
        return torch.cat((borders, z.narrow(dim, 0, left)), dim)
    return torch.cat((z.narrow(dim, count, left), borders), dim)


def marks_of_windows(marks: Tensor, window: Size) -> Tensor:
    """(h, w) of int64 -> (h - height + 1, w - width + 1): the one mark that all pixels of a window
    of that height and width have, else UNKNOWN."""
    values = marks.float()[None]
    most, least = (F.max_pool2d(sign * values, window, 1)[0] for sign in (1, -1))
    return torch.where(most == -least, most.long(), UNKNOWN)


class Descriptor:
    """Patches of pixels in their principal components (of the exemplar), and mean guides.

    The squared distance of two descriptors is, but for the components left out, the mean squared
    difference of two patches' pixels, and that of their guides.
    """

    def __init__(self, picture: Tensor, usable: Tensor, generator: torch.Generator) -> None:
        """(1, 3, h, w), and (h - PATCH + 1, w - PATCH + 1) of bool: which patches there are."""
        starts = usable.flatten().nonzero()[:, 0]
        if len(starts) > SAMPLE:
            drawn = torch.randperm(len(starts), generator=generator, device=generator.device)
            starts = starts[drawn[:SAMPLE]]
        width = usable.shape[1]
        starts = starts // width * picture.shape[3] + starts % width
        # Sums over another layout round otherwise, and what is nearly equal would be another patch.
        patches = gather_patches(picture, starts, PATCH).T.contiguous()
        mean = patches.mean(0)
        centred = patches - mean
        # On the CPU, as GPUs may have no float64.
        _, axes = torch.linalg.eigh((centred.T @ centred / len(centred)).cpu().double())
        self.axes = axes[:, -COMPONENTS:].to(picture)  # (3 PATCH^2, D)
        self.of_mean = mean @ self.axes

    def __call__(self, picture: Tensor, guide: Tensor | None, tile: str = "") -> Tensor:
        """(1, 3, H, W), (1, G, H, W) -> (H', W', D + G), a descriptor for every patch."""
        kernel = self.axes.T.view(-1, 3, PATCH, PATCH)
        mean = self.of_mean.view(-1, 1, 1)
        more = PATCH - 1
        maps = [wrapped(one, tile, more, more) for one in (picture, guide) if one is not None]
        height, width = (side - more for side in maps[0].shape[2:])
        found = picture.new_empty(
            height, width, len(kernel) + sum(one.shape[1] for one in maps[1:])
        )
        for rows in row_slices(height, max(1, at_a_time(picture.device) // width)):
            pixels, *guides = (one[..., rows.start : rows.stop + more, :] for one in maps)
            parts = [(F.conv2d(pixels, kernel)[0] - mean) / (3 * PATCH**2) ** 0.5]
            parts += [F.avg_pool2d(one, PATCH, 1)[0] for one in guides]
            found[rows] = torch.cat(parts).movedim(0, 2)
        return found


class Undescribed:
    """A picture and its guide whose patches are described as they are asked for: all descriptors
    take ten times as much memory as they do."""

    def __init__(
        self, describe: Descriptor, picture: Tensor, guide: Tensor | None, tile: str
    ) -> None:
        """As `Descriptor` is called."""
        more = PATCH - 1
        maps = [wrapped(one, tile, more, more) for one in (picture, guide) if one is not None]
        self.width = maps[0].shape[3]
        self.runs = [_runs(one) for one in maps]
        # Of a patch that is copied run by run, channels come last.
        axes = describe.axes.view(3, PATCH, PATCH, -1).permute(1, 2, 0, 3).flatten(0, 2)
        self.axes, self.of_mean = axes.contiguous(), describe.of_mean
        self.down = torch.arange(PATCH, device=picture.device) * self.width

    def at(self, index: Tensor) -> Tensor:
        """(N,) y * W' + x of patches -> (N, D + G): their descriptors."""
        return torch.cat(
            [self._described(some) for some in index.split(at_a_time(index.device) // PIXELS)]
        )

    def _described(self, index: Tensor) -> Tensor:
        across = self.width - PATCH + 1
        starts = index // across * self.width + index % across
        rows = (starts[:, None] + self.down).flatten()  # (N PATCH,)
        patches, *guides = (
            one.index_select(0, rows).view(len(index), PATCH**2, -1) for one in self.runs
        )
        found = (patches.flatten(1) @ self.axes - self.of_mean) / (3 * PATCH**2) ** 0.5
        return torch.cat((found, *(one.mean(1) for one in guides)), 1)


def _runs(maps: Tensor) -> Tensor:
    """(1, C, H, W) -> (H W - PATCH + 1, PATCH C): the row of a patch that begins at each pixel.

    A view in which runs overlap: a patch is copied out of it in PATCH pieces, five times as fast as
    pixel by pixel.
    """
    flat = maps[0].flatten(1).T.contiguous()  # (H W, C)
    count, channels = flat.shape
    return flat.as_strided((count - PATCH + 1, PATCH * channels), (channels, 1))


class Search:
    """Finds for every patch of an output a patch of a source at a small distance.

    PatchMatch (Barnes et al. 2009): what is right for a patch is, some px further, right for its
    neighbour; and random places, far and near. We depart from the paper in that all patches are
    tried at once, with neighbours 8, 4, 2 and 1 px away, instead of one patch after the other.
    """

    def __init__(
        self,
        output: Tensor,
        source: Tensor | Undescribed,
        usable: Tensor,
        generator: torch.Generator,
        tile: str = "",
        factor: Tensor | None = None,
        kinds: Tensor | None = None,
        guides: int = 0,
    ) -> None:
        """
        Args:
            output: (H, W, D), a descriptor for every patch.
            source: (h, w, D), or what these are made of.
            usable: (h, w) of bool, which patches of the source there are; any of them.
            generator: of what is drawn, where output and source are.
            tile: the axes along which the output goes on where it began.
            factor: (h, w) that multiplies the distances of a source patch; None means 1.
            guides: how many of the last of D numbers are guides. Their distances are multiplied by
                the highest factor, for a patch to be used where it is asked for.
            kinds: (h, w) of int64; a patch of the output stays with the kind that it has. None
                means that there is one kind.
        """
        self.output, self.usable = output, usable
        if isinstance(source, Undescribed):
            self.source_at = source.at
        else:
            self.source_at = partial(source.flatten(0, 1).index_select, 0)
        self.generator, self.tile = generator, tile
        self.factor, self.kinds, self.guides = factor, kinds, guides
        self.most = 1.0 if factor is None else factor.max()

    def __call__(self, places: Places, rounds: int) -> Places:
        """Better places than these, at patches that there are."""
        places = self._moved_to_usable(places)
        height, width = self.usable.shape
        y, x = places.y.flatten(), places.x.flatten()
        here = y * width + x
        kind = None if self.kinds is None else self._at(self.kinds, here)
        cost = self._cost(here)

        def offer(other: Places) -> None:
            inside = (other.y >= 0) & (other.y < height) & (other.x >= 0) & (other.x < width)
            other = other.clamped((height, width))
            there = other.flat(width).flatten()
            inside = inside.flatten() & self._at(self.usable, there)
            if kind is not None:
                inside &= self._at(self.kinds, there) == kind
            # In what is found, most are offered what they have.
            some = (inside & (there != here)).nonzero()[:, 0]
            found = self._cost(there.index_select(0, some), some)
            better = found < cost.index_select(0, some)
            some, found = some[better], found[better]
            cost[some] = found
            for own, new in ((here, there), (y, other.y.flatten()), (x, other.x.flatten())):
                own[some] = new.index_select(0, some)

        shape = places.y.shape
        places = Places(y.view(shape), x.view(shape))
        for _ in range(rounds):
            for stride in STRIDES:
                for down, across in ((0, stride), (0, -stride), (stride, 0), (-stride, 0)):
                    offer(places.seen_from(down, across, self.tile))
            reach = max(self.usable.shape)
            while reach >= 1:
                offer(self._near(places, reach))
                reach //= 3
        return places

    def distance(self, places: Places) -> Tensor:
        """(H, W): squared distances of the descriptors."""
        index = places.flat(self.usable.shape[1])
        return self._summed(index.flatten(), None, slice(None)).view(index.shape)

    def _summed(self, index: Tensor, some: Tensor | None, numbers: slice) -> Tensor:
        """(N,) places, of all patches of the output or of some, (N,) -> (N,): squared distances in
        these of the D numbers."""
        chunk, output = at_a_time(index.device), self.output.flatten(0, 1)
        found = []
        for n, at in enumerate(index.split(chunk)):
            own = slice(n * chunk, n * chunk + len(at))
            patches = output[own] if some is None else output.index_select(0, some[own])
            apart = self.source_at(at).sub_(patches)[:, numbers]
            found.append(apart.square_().sum(1))
        return torch.cat(found)

    def _cost(self, index: Tensor, some: Tensor | None = None) -> Tensor:
        """The same, as places are judged."""
        if self.factor is None:
            return self._summed(index, some, slice(None))
        pixels = self.output.shape[2] - self.guides
        found = self._summed(index, some, slice(pixels)) * self._at(self.factor, index)
        if self.guides:
            found = found + self._summed(index, some, slice(pixels, None)) * self.most
        return found

    def _at(self, values: Tensor | None, index: Tensor) -> Tensor:
        """(h, w) -> what it says of places y * w + x, (N,)."""
        assert values is not None
        return values.flatten().index_select(0, index)

    def _near(self, places: Places, reach: int) -> Places:
        """Places drawn from around these, `reach` px to every side."""
        y, x = (z + self._drawn(-reach, reach + 1, z.shape) for z in (places.y, places.x))
        return Places(y, x)

    def _drawn(self, least: int, end: int, shape: torch.Size) -> Tensor:
        """Whole numbers from `least` on, less than `end`."""
        drawn = self.generator
        return torch.randint(least, end, shape, generator=drawn, device=drawn.device)

    def _moved_to_usable(self, places: Places) -> Places:
        """Where a place is not one of a patch that there is: any that is."""
        height, width = self.usable.shape
        near = places.clamped((height, width))
        there = self.usable.flatten().nonzero()[:, 0]
        any_of = there[self._drawn(0, len(there), near.y.shape)]
        usable = self._at(self.usable, near.flat(width).flatten()).view(near.y.shape)
        return Places(
            torch.where(usable, near.y, any_of // width),
            torch.where(usable, near.x, any_of % width),
        )
