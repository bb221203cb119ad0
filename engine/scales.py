"""The sizes of a coarse-to-fine synthesis, and the steps of each."""

import math

from utils import Size, UserError, size_text

COARSEST = 64  # px, shorter side of the exemplar at the coarsest scale
FEWER = 0.7  # ratio of the steps of a scale to those of the next coarser scale

Sizes = list[tuple[Size, Size]]  # (exemplar, output) of each scale, coarse to fine


def pyramid(
    exemplar: Size, output: Size, scales: int | None, least: int, multiples: Size = (1, 1)
) -> Sizes:
    """Return the sizes of (exemplar, output) from coarse to fine.

    Each is twice the one before. If the number of scales is not given, they begin where the
    exemplar's shorter side is nearest to `COARSEST`, but not below: if fewer pixels show all of it,
    its layout is fixed and the output becomes a copy. There, sizes grow by a smaller factor.

    Args:
        scales: their number; None: as many as the exemplar's size asks for.
        least: px, the shortest side that is allowed.
        multiples: to which the sides of the output are rounded up.

    Raises:
        UserError: a shorter side would be less than `least`.
    """
    for name, size in (("exemplar", exemplar), ("output", output)):
        if min(size) < least:
            raise UserError(
                f"{name} of {size_text(size)}: the shorter side must have {least} pixels or more"
            )
    most = 1 + math.floor(math.log2(min(*exemplar, *output) / least))
    coarsest = math.inf
    if scales is None:
        scales = min(max(1, 1 + round(math.log2(min(exemplar) / COARSEST))), most)
        coarsest = min(exemplar) / COARSEST
    if not 1 <= scales <= most:
        raise UserError(f"scales {scales}: allowed here are auto and 1 to {most}")
    step = min(2.0, coarsest ** (1 / (scales - 1))) if scales > 1 else 1.0
    factors = [step**k for k in reversed(range(scales))]
    return [(_divided(exemplar, k, (1, 1)), _divided(output, k, multiples)) for k in factors]


def _divided(size: Size, factor: float, multiples: Size) -> Size:
    height, width = (
        m * math.ceil(round(side / factor) / m) for side, m in zip(size, multiples, strict=True)
    )
    return height, width


def split_steps(steps: int, scales: int) -> list[int]:
    """Return the number of steps of each scale, coarse to fine: each finer scale has `FEWER` times
    those of the coarser one, the coarsest at least one.

    A step costs four times as much at every finer scale and improves less there, but errors that
    remain at the finest scale are the visible ones.
    """
    parts = [FEWER**scale for scale in range(scales)]
    ends = [round(steps * sum(parts[: k + 1]) / sum(parts)) for k in range(scales)]
    ends = [max(end, min(steps, 1)) for end in ends]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
