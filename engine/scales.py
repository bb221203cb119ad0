"""Sizes of the scales of a coarse-to-fine synthesis, and the numbers of steps at each."""

import math

from torch import Tensor

from utils import Size, UserError, size_text

COARSEST = 64  # px, shorter side of the exemplar at the coarsest scale
STEP_RATIO = 0.7  # number of steps of a scale, relative to that of the next coarser scale
AFTER_PAINTING_RATIO = 0.45  # the same for optimization from a painting, which has fine detail

Sizes = list[tuple[Size, Size]]  # (exemplar, output) of each scale, coarse to fine


def pyramid(
    exemplar: Size, output: Size, scales: int | None, least: int, multiples: Size = (1, 1)
) -> Sizes:
    """Return the sizes of (exemplar, output) from coarse to fine.

    Sizes double from scale to scale. If the number of scales is not given, it is the one for which
    the exemplar's shorter side at the coarsest scale is nearest to `COARSEST`. If that side would
    be shorter than `COARSEST`, sizes grow by a factor below 2, so that it equals `COARSEST`: from a
    smaller exemplar, the output would take the layout and become a copy.

    Args:
        exemplar: full size of the exemplar.
        output: full size of the output.
        scales: number of scales; None: it depends on the size of the exemplar.
        least: shortest side that is allowed, in px.
        multiples: height and width of the output are rounded up to multiples of these.

    Raises:
        UserError: a side would be shorter than `least`.
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


def split_steps(steps: int, scales: int, ratio: float = STEP_RATIO) -> list[int]:
    """Return the number of steps of each scale, coarse to fine. Each scale has `ratio` times as
    many as the next coarser one. If there are any steps, the coarsest scale has at least one.

    At each finer scale, a step takes four times as long and improves the picture less, but errors
    that remain at the finest scale are the visible ones.
    """
    parts = [ratio**scale for scale in range(scales)]
    ends = [round(steps * sum(parts[: k + 1]) / sum(parts)) for k in range(scales)]
    ends = [max(end, min(steps, 1)) for end in ends]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def with_margin(size: Size, margin: Size) -> Size:
    """Return a size with a margin of the given rows and columns at each border."""
    return size[0] + 2 * margin[0], size[1] + 2 * margin[1]


def without_margin(image: Tensor, margin: Size) -> Tensor:
    """Cut so many rows and columns at each border of a picture (..., h, w)."""
    rows, columns = margin
    return image[..., rows : image.shape[-2] - rows, columns : image.shape[-1] - columns]
