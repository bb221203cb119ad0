"""The sizes that a picture goes through, coarse to fine, and the steps that each of them gets."""

import math

from utils import Size, UserError, size_text

COARSEST = 64  # px, shorter side of the exemplar at the coarsest scale
FEWER = 0.7  # ratio of a scale's steps to those of the next coarser scale


def pyramid(
    exemplar: Size, output: Size, scales: int | None, least: int, multiples: Size = (1, 1)
) -> list[tuple[Size, Size]]:
    """Return the sizes of (exemplar, output) from coarse to fine, each twice the one before.

    `scales` is how many; None takes as many as bring the exemplar's shorter side nearest to
    COARSEST. It is the exemplar that decides: when it is seen whole in fewer pixels, its layout
    is pinned and the output turns into a copy. The output's sides are rounded up to `multiples`.

    Raises UserError when a shorter side would fall below `least` pixels.
    """
    for name, size in (("exemplar", exemplar), ("output", output)):
        if min(size) < least:
            raise UserError(
                f"{name} of {size_text(size)}: the shorter side must have {least} pixels or more"
            )
    most = 1 + math.floor(math.log2(min(*exemplar, *output) / least))
    if scales is None:
        scales = min(max(1, 1 + round(math.log2(min(exemplar) / COARSEST))), most)
    if not 1 <= scales <= most:
        raise UserError(f"scales {scales}: allowed here are auto and 1 to {most}")
    factors = [2**k for k in reversed(range(scales))]
    return [(_divided(exemplar, k, (1, 1)), _divided(output, k, multiples)) for k in factors]


def _divided(size: Size, factor: int, multiples: Size) -> Size:
    height, width = (
        m * math.ceil(round(side / factor) / m) for side, m in zip(size, multiples, strict=True)
    )
    return height, width


def split_steps(steps: int, scales: int) -> list[int]:
    """Return how many of the steps each scale gets, coarse to fine: each finer scale FEWER times
    those of the coarser one, the coarsest at least one.

    A step costs four times as much at every finer scale and gains less there, but errors that are
    left at the finest scale are the visible ones.
    """
    parts = [FEWER**scale for scale in range(scales)]
    ends = [round(steps * sum(parts[: k + 1]) / sum(parts)) for k in range(scales)]
    ends = [max(end, min(steps, 1)) for end in ends]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
