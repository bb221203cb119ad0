"""Files, sizes, devices and errors: all that is not texture.

Pictures are `(B, C, H, W)` float32 tensors in [0, 1]; sizes are (height, width) in code and
WIDTHxHEIGHT for the user. Nothing here prints: what the user should hear is returned or raised.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS, LEVELS_16_BIT = 255, 65535  # of a channel of 8 and of 16 bits
# Kinds of pictures, which decide how they are read, resized, carried along and saved.
COLOUR, NORMALS, DATA, LABELS, MASK, AXES = "colour", "normal", "data", "id", "mask", "axes"
KINDS = (COLOUR, NORMALS, DATA, LABELS, MASK, AXES)
BICUBIC_REACH = 2  # px, of the filter with which pictures are enlarged
MEMORY, OWN_GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup")  # of Linux
GROUPS = Path("/sys/fs/cgroup")
VALUE, LINE = 200, 1000  # characters of a value and of a line that tells of an error, at most


def in_one_line(text: str) -> str:
    """The same with line breaks as spaces, and escaped what would steer a terminal: file names,
    flags and messages of libraries may hold both."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class UserError(Exception):
    """An error that the user can fix: main prints it as one line on stderr and exits 2.

    The middle of words and quoted values of more than VALUE characters is left out, and that of a
    line of more than LINE characters.
    """

    def __str__(self) -> str:
        line = in_one_line(super().__str__())
        line = re.sub(rf"'[^']{{{VALUE},}}'|\S{{{VALUE},}}", lambda m: _cut(m[0], VALUE), line)
        return _cut(line, LINE)


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put a prefix, such as the flag that it is about, before the UserError of a block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error


def _cut(text: str, most: int) -> str:
    """The text, without its middle where it has more than `most` characters."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 3]}...{text[-end:]}"


def reason_of(error: Exception) -> str:
    """Return why an error was raised, for a line to the user."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# ------------------------------------------------------------------------------------- devices


def memory_format_for(device: torch.device) -> torch.memory_format:
    """The layout in which a device convolves the fastest; on Apple's GPUs the way back takes ten
    times as long in channels_last."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def give_back_freed_memory() -> None:
    """Hand what this process has kept back to the system, where the C library is glibc."""
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_bytes(device: torch.device) -> float:
    """Return how much memory may still be taken, infinity where the system does not say.

    Of the CPU's what Linux can free counts as available, and the process's control group may allow
    less; elsewhere it is all that is built in.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, KeyError, ValueError):
        fields = dict(line.split(":") for line in MEMORY.read_text().splitlines())
        return min(1024 * int(fields["MemAvailable"].split()[0]), _group_bytes())
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf


def _group_bytes() -> float:
    """Return the least memory that the control groups of this process, of version 2 or 1, leave.

    The limit of a job or session (Slurm, systemd) is set in a group above the process's own.
    """
    try:
        own = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return math.inf
    left = [math.inf]
    for _, kind, path in own:
        # Inside a container the group's own path often does not exist, and the root is it.
        group = PurePosixPath(path.lstrip("/"))
        for place in (group, *group.parents):
            if kind == "":
                left.append(_left_in(GROUPS / place, "memory.max", "anon"))
            elif kind == "memory":
                folder = GROUPS / "memory" / place
                left.append(_left_in(folder, "memory.limit_in_bytes", "total_rss"))
    return min(left)


def _left_in(folder: Path, limit: str, used: str) -> float:
    try:
        most = int((folder / limit).read_text())  # ValueError: "max"
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return most - int(counts[used])
    except (OSError, ValueError, KeyError):
        return math.inf


# --------------------------------------------------------------------------------------- sizes

Size = tuple[int, int]  # (height, width)


def size_of(maps: Tensor) -> Size:
    """Return (height, width) of (B, C, H, W)."""
    height, width = maps.shape[2:]
    return height, width


def size_text(size: Sequence[int]) -> str:
    """Return (height, width) as the user writes it, WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"


def resize(image: Tensor, size: Size, wrap: str = "", labels: bool = False) -> Tensor:
    """Return (B, C, H, W) resized to (height, width), antialiased, within [0, 1] or the range of
    the values if that is larger; labels by the nearest pixel.

    A picture that repeats along the axes in `wrap`, "x", "y" or "xy", does so afterwards. The very
    same tensor comes back when it has that size already.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if labels:
        return F.interpolate(image, size, mode="nearest-exact")
    if wrap:
        # One after the other, as sides without a common divisor are padded by whole copies.
        across = _resized_along(image, 3, size[1], "x" in wrap)
        found = _resized_along(across, 2, size[0], "y" in wrap)
    else:
        found = F.interpolate(image, size, mode="bicubic", antialias=True)
    return _in_range_of(image, found)


def _in_range_of(image: Tensor, found: Tensor) -> Tensor:
    """Clamp what bicubic interpolation makes of an image, which overshoots at edges, to [0, 1] or
    the image's range if that is larger."""
    known = image.detach()
    return found.clamp(known.amin().clamp(max=0), known.amax().clamp(min=1))


def _resized_along(image: Tensor, dim: int, new: int, wraps: bool) -> Tensor:
    """Return (B, C, H, W) with one side resized to `new`, what lies across its border seen."""
    old, before, after = image.shape[dim], 0, 0
    if wraps:
        # As many whole px as the filter reaches, and that become whole px: none is moved.
        common = math.gcd(old, new)
        reach = math.ceil(BICUBIC_REACH * max(1, old / new) * common / old)
        steps = min(reach, common)  # at most a copy of the picture
        before, after = steps * old // common, steps * new // common
    parts = image.narrow(dim, old - before, before), image, image.narrow(dim, 0, before)
    shape = list(image.shape[2:])
    shape[dim - 2] = new + 2 * after
    found = F.interpolate(torch.cat(parts, dim), shape, mode="bicubic", antialias=True)
    return found.narrow(dim, after, new)


def wrapped(maps: Tensor, wrap: str, height: int, width: int) -> Tensor:
    """Return (B, C, H, W) with so many rows and columns of its own beginning after its end.

    Along the axes in `wrap` only, "x", "y" or "xy".
    """
    if not wrap:
        return maps
    return F.pad(maps, (0, width * ("x" in wrap), 0, height * ("y" in wrap)), "circular")


def pad_axes(maps: Tensor, wraps: str, mirrors: str, reach: int) -> Tensor:
    """Return (B, C, H, W) with `reach` more rows or columns on either side of the axes named: of
    "x", "y" or "xy", its own from the other end, or mirrored ones, the outermost coming twice.

    Either way every row and column is in as many windows of 2 reach + 1 px.
    """
    for axis, dim in (("y", 2), ("x", 3)):
        first, last = maps.narrow(dim, 0, reach), maps.narrow(dim, maps.shape[dim] - reach, reach)
        if axis in wraps:
            maps = torch.cat((last, maps, first), dim)
        elif axis in mirrors:
            maps = torch.cat((first.flip(dim), maps, last.flip(dim)), dim)
    return maps


class Sides(NamedTuple):
    """Numbers of rows and columns on the sides of a picture."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


NO_SIDES = Sides()


def crop(maps: Tensor, beyond: Sides) -> Tensor:
    """(B, C, H, W) without so many rows and columns on its sides, a view."""
    if beyond == NO_SIDES:
        return maps
    rows = slice(beyond.top, maps.shape[2] - beyond.bottom)
    return maps[..., rows, beyond.left : maps.shape[3] - beyond.right]


def pad(x: Tensor, wrap: str, mode: str, open_sides: Sides = NO_SIDES) -> Tensor:
    """Return (B, C, H, W) with one more row or column on every side: its own from the other end
    along the axes in `wrap`, else what `F.pad` makes of the mode, "reflect" or "replicate"; none on
    sides that are open, where 1 is given.

    channels_last stays what it is; `F.pad` would wrap by several copies and lose it.
    """
    B, C, H, W = x.shape
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    more = _borders(open_sides)
    shape = B, C, H + more.top + more.bottom, W + more.left + more.right
    result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    crop(result, more).copy_(x)
    for dim, border, source in _border_sources(result, wrap, mode, open_sides):
        result.select(dim, border).copy_(result.select(dim, source))
    return result


def pad_backward(gradient: Tensor, wrap: str, mode: str, open_sides: Sides = NO_SIDES) -> Tensor:
    """The gradient by what `padded` was given, (B, C, H, W), from that by what it returned, of
    which it becomes a part: every pixel gathers the gradients of its copies."""
    for dim, border, source in reversed(_border_sources(gradient, wrap, mode, open_sides)):
        gradient.select(dim, source).add_(gradient.select(dim, border))
    return crop(gradient, _borders(open_sides))


def _borders(open_sides: Sides) -> Sides:
    return Sides(*(1 - opened for opened in open_sides))


def _border_sources(
    bordered: Tensor, wrap: str, mode: str, open_sides: Sides
) -> list[tuple[int, int, int]]:
    """The columns and then the rows that were added to (B, C, H, W): their dimension, which of it
    they are, and which they are copied from."""
    top, bottom, left, right = open_sides
    found = []
    for axis, dim, opened in (("x", 3, (left, right)), ("y", 2, (top, bottom))):
        last = bordered.shape[dim] - 2  # of those between two borders; the first is 1
        if axis in wrap:
            sources = last, 1
        elif mode == "replicate":
            sources = 1, last
        elif last + sum(opened) > 1 or all(opened):
            sources = 2, last - 1
        else:
            raise RuntimeError("padding by reflection needs two rows and columns")
        pairs = zip(opened, (0, last + 1), sources, strict=True)
        found += [(dim, border, source) for is_open, border, source in pairs if not is_open]
    return found


def scaled_size(maps: Tensor, factor: float) -> Size:
    """Return the size of (B, C, H, W) resized by a factor."""
    height, width = (max(1, round(factor * side)) for side in maps.shape[2:])
    return height, width


def rotated_and_resized(
    image: Tensor, degrees: Iterable[float], factors: Iterable[float], labels: bool = False
) -> list[Tensor]:
    """Return (B, C, H, W) at every one of the angles and factors and every pair of the two, in the
    range that `resize` has, labels by the nearest pixel.

    Turned counter-clockwise and cut to the largest centred part of the same aspect that has no
    empty corners; multiples of 90 degrees move pixels and change none. The picture as it is, at
    0 degrees and factor 1, is left out.
    """
    found = []
    for angle in (0, *degrees):
        for factor in (1, *factors):
            rotated = _rotated(image, angle, labels)
            found.append(resize(rotated, scaled_size(rotated, factor), labels=labels))
    return found[1:]


def _rotated(image: Tensor, degrees: float, labels: bool) -> Tensor:
    quarters, rest = divmod(degrees, 90)
    image = torch.rot90(image, int(quarters), (2, 3))
    if rest == 0:
        return image
    height, width = image.shape[2:]
    cos, sin = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    share = min(width / (width * cos + height * sin), height / (width * sin + height * cos))
    h, w = max(1, int(share * height)), max(1, int(share * width))
    y = torch.arange(h, device=image.device)[:, None] - (h - 1) / 2
    x = torch.arange(w, device=image.device)[None, :] - (w - 1) / 2
    # Counter-clockwise on a screen, where y points down.
    grid = torch.stack(((cos * x - sin * y) * 2 / width, (sin * x + cos * y) * 2 / height), 2)
    grid = grid.to(image.dtype).expand(len(image), -1, -1, -1)
    if labels:
        return F.grid_sample(image, grid, "nearest", "reflection", align_corners=False)
    found = F.grid_sample(image, grid, "bicubic", "reflection", align_corners=False)
    return _in_range_of(image, found)
