"""Periods of exemplars: the line that tells them, and --size auto:N, which holds whole repeats."""

from dataclasses import replace

from torch import Tensor

from command.flags import AUTO_SIZE, Request, parse_size
from engine.kinds import Kind, kind_of
from terms.autocorrelation import repeats
from terms.base import Canvas
from terms.valid import crop_to_valid
from utils import size_text

Periods = tuple[float, float]  # (down, across) in px; 0: none
EXACT = 1  # px by which a side that holds whole repeats may differ from a multiple of the period
NEAR = 8  # a multiple of the stride is preferred if it is within 1/NEAR of the requested side


def with_size(
    request: Request, exemplar: Tensor, valid: Tensor | None, stride: int
) -> tuple[Request, list[str]]:
    """Replace --size auto:N by the nearest size that holds whole repeats of an exemplar, and return
    a note on it; another request is returned as it is.

    Args:
        exemplar: (1, 3, h, w).
        valid: (1, 1, h, w) of bool, its valid pixels; None: all.
        stride: of the net. Along axes that tile, a side that is a multiple of it is preferred if
            one within 1/NEAR of the requested side holds whole repeats.
    """
    if not isinstance(request.size, str):
        return request, []
    piece = crop_to_valid(exemplar, valid)
    periods = repeats(piece) if kind_of(piece).period != (0, 0) else (0.0, 0.0)
    near = parse_size(request.size.removeprefix(AUTO_SIZE))
    height, width = (
        nearest_side(side, period, stride if axis in request.tile else 1)
        for side, period, axis in zip(near, periods, "yx", strict=True)
    )
    why = "" if any(periods) else ", as the exemplar has no period"
    note = f"--size {request.size}: {size_text((height, width))}{why}"
    return replace(request, size=(height, width)), [note]


def nearest_side(near: int, period: float, multiple: int = 1) -> int:
    """Return the side nearest to `near`, in px, that holds whole periods.

    Args:
        period: in px; 0: any side holds whole periods.
        multiple: the side is a multiple of this, if one within 1/NEAR of `near` holds whole
            periods.
    """
    if not period:
        return max(1, round(near / multiple)) * multiple
    counts = range(1, max(1, round(near / period)) * 2 + 1)
    sides = [round(count * period) for count in counts]
    fitting = [side for side in sides if side % multiple == 0 and abs(side - near) <= near / NEAR]
    return min(fitting or sides, key=lambda side: abs(side - near))


def period_notes(name: str, exemplar: Tensor, kind: Kind, canvas: Canvas, stride: int) -> list[str]:
    """Return a line on the period of a periodic exemplar, (1, 3, h, w), and on sizes that hold
    whole repeats; `stride` as for `with_size`."""
    if kind.period == (0, 0):
        return []
    down, across = repeats(exemplar)
    if not (down or across):  # the lattice is oblique
        y, x = kind.period
        return [f"{name} repeats after {abs(x)} px across and {abs(y)} px down"]
    told = f"{across:.1f}x{down:.1f} px" if down and across else ""
    told = told or (f"{across:.1f} px across" if across else f"{down:.1f} px down")
    return [f"{name} repeats every {told}{_on_size(canvas, (down, across), stride)}"]


def _on_size(canvas: Canvas, periods: Periods, stride: int) -> str:
    """Return the part of a note that compares the size of the output with the periods."""
    size, tile = canvas.size, canvas.wrap
    if canvas.has_layout and not tile:  # the layout determines the size
        return ""
    fits = {
        axis: not period or abs(side - max(1, round(side / period)) * period) <= EXACT
        for side, period, axis in zip(size, periods, "yx", strict=True)
    }
    better = size_text(
        [
            side if fits[axis] else nearest_side(side, period, stride if axis in tile else 1)
            for side, period, axis in zip(size, periods, "yx", strict=True)
        ]
    )
    if all(fits.values()):
        return f"; {size_text(size)} holds whole repeats"
    if all(fits[axis] for axis in tile):
        return f"; the nearest size that holds whole repeats is {better}"
    return f"; {size_text(size)} holds no whole repeats along --tile {tile}, {better} does"
