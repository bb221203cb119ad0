"""Errors and text, memory, sizes, resizing and padding.

Images are (B, C, H, W) float32 tensors in [0, 1]. Sizes are (height, width) in code and
WIDTHxHEIGHT in text for the user. No function prints.
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

LEVELS, LEVELS_16_BIT = 255, 65535  # largest values of 8-bit and 16-bit channels
# Kinds of images, which decide how an image is read, resized, transferred and saved.
COLOUR, NORMALS, DATA, LABELS, MASK, AXES = "colour", "normal", "data", "id", "mask", "axes"
KINDS = (COLOUR, NORMALS, DATA, LABELS, MASK, AXES)
BICUBIC_REACH = 2  # px: radius of the filter of bicubic interpolation
# Files of Linux: memory, and control groups ("cgroups") of this process and of the system.
MEMINFO, OWN_CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
LONGEST_VALUE, LONGEST_LINE = 200, 1000  # characters of a value in a message, and of the message


def in_one_line(text: str) -> str:
    """Return text with line breaks replaced by spaces and unprintable characters escaped.

    File names, flags and messages of libraries may contain control sequences of terminals.
    """
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class UserError(Exception):
    """Error that the user can correct, printed as one line on stderr with exit code 2.

    `str` shortens words and quoted values to LONGEST_VALUE characters, and the message to
    LONGEST_LINE.
    """

    def __str__(self) -> str:
        line = in_one_line(super().__str__())
        long = rf"'[^']{{{LONGEST_VALUE},}}'|\S{{{LONGEST_VALUE},}}"
        line = re.sub(long, lambda m: _abbreviate(m[0], LONGEST_VALUE), line)
        return _abbreviate(line, LONGEST_LINE)


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put a prefix, such as the name of a flag, before the message of a UserError raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error


def _abbreviate(text: str, most: int) -> str:
    """Return at most `most` characters of text: an ellipsis replaces the middle."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 3]}...{text[-end:]}"


def reason_of(error: Exception) -> str:
    """Return the message of an error; of an OSError, without its number and file name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# ----------------------------------------------------------------------------- devices, memory


def memory_format_for(device: torch.device) -> torch.memory_format:
    """Return the memory format in which a device convolves the fastest.

    On Apple GPUs the backward pass takes ten times as long in channels_last.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def give_back_freed_memory() -> None:
    """Return freed memory of this process to the system. Does nothing without glibc."""
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_bytes(device: torch.device) -> float:
    """Return how many bytes can still be allocated, infinity if unknown.

    For the CPU on Linux: memory that is free or can be freed, within the limits of the control
    groups of the process. On other systems: all physical memory.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, KeyError, ValueError):
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return min(1024 * int(fields["MemAvailable"].split()[0]), _cgroup_bytes())
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf


def _cgroup_bytes() -> float:
    """Return the number of bytes that the control groups of this process (version 1 or 2) leave:
    the least over the groups and their parents.

    Slurm and systemd set the limit of a job or session in a parent of the group of the process.
    """
    try:
        own = [line.split(":", 2) for line in OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return math.inf
    left = [math.inf]
    for _, kind, path in own:
        # Inside a container this path often does not exist, and the root is the group.
        group = PurePosixPath(path.lstrip("/"))
        for place in (group, *group.parents):
            if kind == "":
                left.append(_bytes_left(CGROUPS / place, "memory.max", "anon"))
            elif kind == "memory":
                folder = CGROUPS / "memory" / place
                left.append(_bytes_left(folder, "memory.limit_in_bytes", "total_rss"))
    return min(left)


def _bytes_left(folder: Path, limit: str, used: str) -> float:
    """Return the limit of a control group minus its use, infinity if there is no limit."""
    try:
        most = int((folder / limit).read_text())  # ValueError: "max"
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return most - int(counts[used])
    except (OSError, ValueError, KeyError):
        return math.inf


# --------------------------------------------------------------------------------------- sizes

Size = tuple[int, int]  # (height, width)


def size_of(maps: Tensor) -> Size:
    """Return (height, width) of maps (B, C, H, W)."""
    height, width = maps.shape[2:]
    return height, width


def size_text(size: Sequence[int]) -> str:
    """Return (height, width) as WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"


def resize(image: Tensor, size: Size, wrap: str = "", labels: bool = False) -> Tensor:
    """Resize an image (B, C, H, W) to (height, width), bicubic with antialiasing.

    Overshoot is clamped to [0, 1], or to the range of the image if that is larger. Returns the
    image itself if it has that size.

    Args:
        wrap: Axes along which the image tiles, and so does the result: "", "x", "y" or "xy".
        labels: Take the nearest pixel instead of interpolating.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if labels:
        return F.interpolate(image, size, mode="nearest-exact")
    if wrap:
        # One axis at a time, as sides without a common divisor are padded by a whole period.
        across = _resized_along(image, 3, size[1], "x" in wrap)
        found = _resized_along(across, 2, size[0], "y" in wrap)
    else:
        found = F.interpolate(image, size, mode="bicubic", antialias=True)
    return _clamp_to_range(image, found)


def _clamp_to_range(image: Tensor, found: Tensor) -> Tensor:
    """Clamp the overshoot of interpolation to [0, 1], or the range of the image if larger."""
    known = image.detach()
    return found.clamp(known.amin().clamp(max=0), known.amax().clamp(min=1))


def _resized_along(image: Tensor, dim: int, new: int, wraps: bool) -> Tensor:
    """Resize one axis of (B, C, H, W) to `new`, with circular padding if `wraps`."""
    old, before, after = image.shape[dim], 0, 0
    if wraps:
        # The least padding that covers the filter and is a whole number of px in both sizes, so
        # that no pixel is shifted.
        common = math.gcd(old, new)
        reach = math.ceil(BICUBIC_REACH * max(1, old / new) * common / old)
        steps = min(reach, common)  # at most one period
        before, after = steps * old // common, steps * new // common
    parts = image.narrow(dim, old - before, before), image, image.narrow(dim, 0, before)
    shape = list(image.shape[2:])
    shape[dim - 2] = new + 2 * after
    found = F.interpolate(torch.cat(parts, dim), shape, mode="bicubic", antialias=True)
    return found.narrow(dim, after, new)


def wrapped(maps: Tensor, wrap: str, rows: int, columns: int) -> Tensor:
    """Append the first `rows` rows to (B, C, H, W) if "y" is in `wrap`, and the first `columns`
    columns if "x" is."""
    if not wrap:
        return maps
    return F.pad(maps, (0, columns * ("x" in wrap), 0, rows * ("y" in wrap)), "circular")


def pad_axes(maps: Tensor, wraps: str, mirrors: str, reach: int) -> Tensor:
    """Pad (B, C, H, W) by `reach` rows or columns on both sides of the given axes.

    Every row and column is then in 2 reach + 1 windows of 2 reach + 1 px.

    Args:
        wraps: Axes that are padded circularly: "", "x", "y" or "xy".
        mirrors: Other axes, which are padded symmetrically: reflected with the border repeated.
    """
    for axis, dim in (("y", 2), ("x", 3)):
        first, last = maps.narrow(dim, 0, reach), maps.narrow(dim, maps.shape[dim] - reach, reach)
        if axis in wraps:
            maps = torch.cat((last, maps, first), dim)
        elif axis in mirrors:
            maps = torch.cat((first.flip(dim), maps, last.flip(dim)), dim)
    return maps


class Sides(NamedTuple):
    """Numbers of rows or columns, one for each side of an image."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


NO_SIDES = Sides()


def crop(maps: Tensor, beyond: Sides) -> Tensor:
    """Return a view of maps (B, C, H, W) without `beyond` rows and columns on its sides."""
    if beyond == NO_SIDES:
        return maps
    rows = slice(beyond.top, maps.shape[2] - beyond.bottom)
    return maps[..., rows, beyond.left : maps.shape[3] - beyond.right]


def pad(x: Tensor, wrap: str, mode: str, open_sides: Sides = NO_SIDES) -> Tensor:
    """Pad (B, C, H, W) by one row or column on every side; keeps the memory format.

    Args:
        wrap: Axes that are padded circularly: "", "x", "y" or "xy". `F.pad` would take several
            copies and lose channels_last.
        mode: Of the other axes, "reflect" or "replicate".
        open_sides: 1 for each side that is not padded, else 0.

    Raises:
        RuntimeError: "reflect", and a side is shorter than two.
    """
    if not wrap and open_sides == NO_SIDES:
        return F.pad(x, (1, 1, 1, 1), mode)
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
    """Backward pass of `pad`: add the gradients of padded rows and columns to their sources.

    Returns:
        The gradient with respect to the input: a view of `gradient`, which is overwritten.
    """
    for dim, border, source in reversed(_border_sources(gradient, wrap, mode, open_sides)):
        gradient.select(dim, source).add_(gradient.select(dim, border))
    return crop(gradient, _borders(open_sides))


def _borders(open_sides: Sides) -> Sides:
    """Return the number of rows or columns, 0 or 1, that `pad` adds on each side."""
    return Sides(*(1 - opened for opened in open_sides))


def _border_sources(
    bordered: Tensor, wrap: str, mode: str, open_sides: Sides
) -> list[tuple[int, int, int]]:
    """Return (dimension, index, index of the source) of each padded column, then of each padded
    row, as rows are copied with their corners."""
    top, bottom, left, right = open_sides
    found = []
    for axis, dim, opened in (("x", 3, (left, right)), ("y", 2, (top, bottom))):
        last = bordered.shape[dim] - 2  # last index that is not padding; the first is 1
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
    """Return the size of (B, C, H, W) times a factor, at least 1x1."""
    height, width = (max(1, round(factor * side)) for side in maps.shape[2:])
    return height, width


def rotated_and_resized(
    image: Tensor, degrees: Iterable[float], factors: Iterable[float], labels: bool = False
) -> list[Tensor]:
    """Return rotated and resized copies of an image (B, C, H, W).

    One copy for each angle, each factor and each pair of both, angle by angle from 0 degrees, each
    with factor 1 first; without the image itself. A rotated image is cropped to the largest centred
    rectangle of the same aspect ratio without empty corners. Multiples of 90 degrees are exact.

    Args:
        degrees: Angles counter-clockwise.
        factors: Factors of the size.
        labels: Take the nearest pixel instead of interpolating.
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
    # Counter-clockwise with y pointing down.
    grid = torch.stack(((cos * x - sin * y) * 2 / width, (sin * x + cos * y) * 2 / height), 2)
    grid = grid.to(image.dtype).expand(len(image), -1, -1, -1)
    if labels:
        return F.grid_sample(image, grid, "nearest", "reflection", align_corners=False)
    found = F.grid_sample(image, grid, "bicubic", "reflection", align_corners=False)
    return _clamp_to_range(image, found)
