"""The sizes that a picture goes through, coarse to fine, and the steps that each of them gets."""

import math

from utils import Size, UserError, told

COARSEST = 64  # px, shorter side of the exemplar at the coarsest scale
ENOUGH = 96  # steps at the finest scale; at others those that take as long


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
                f"{name} of {told(size)}: the shorter side must have {least} pixels or more"
            )
    most = 1 + math.floor(math.log2(min(*exemplar, *output) / least))
    if scales is None:
        scales = min(max(1, 1 + round(math.log2(min(exemplar) / COARSEST))), most)
    if not 1 <= scales <= most:
        raise UserError(f"--scales {scales}: allowed here are auto and 1 to {most}")
    factors = [2**k for k in reversed(range(scales))]
    return [(_divided(exemplar, k, (1, 1)), _divided(output, k, multiples)) for k in factors]


def _divided(size: Size, factor: int, multiples: Size) -> Size:
    height, width = (
        m * math.ceil(round(side / factor) / m) for side, m in zip(size, multiples, strict=True)
    )
    return height, width


def split_steps(steps: int, scales: int) -> list[int]:
    """Return how many of the steps each scale gets, coarse to fine.

    Half as many each time, as a step costs four times as much at every finer scale, and finds four
    times less to do there. Where there is enough for the finest scale, what is beyond that goes to
    every scale by equal parts of the time. Of blind answers 96 steps at the finest scale won 6 of 8
    against 48, with one tie, and 48 won 12 of 16 against 12, with one tie.
    """
    shares: list[float] = []
    for finer in range(scales):
        rest, count = steps - sum(shares), scales - finer
        halves, equal_times = rest / (2**count - 1), 3 * rest / (4**count - 1)
        shares.insert(0, min(halves, max(ENOUGH * 4**finer, equal_times)))
    ends = [round(sum(shares[: k + 1])) for k in range(scales)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
