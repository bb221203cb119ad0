"""From the last pixels of a synthesis to the picture that is saved."""

import torch
from torch import Tensor

from engine.colours import with_chroma
from terms.base import Canvas
from utils import Size, resize


def whole(canvas: Canvas, image: Tensor) -> Tensor:
    """Return a picture of the canvas's size, (1, 3, H, W), with the pixels outside of the mask and
    the content's colours put back where the canvas says so.

    Args:
        image: (1, 3 or 1, h, w) in [0, 1].
    """
    image = resize(image, canvas.size, canvas.wrap).expand(-1, 3, -1, -1)
    if canvas.mask is not None and canvas.init is not None:
        image = torch.where(canvas.mask, image, canvas.init)
    elif canvas.keep_color and canvas.content is not None:
        image = with_chroma(image, canvas.content)
    return image


def cut_at(image: Tensor, wrap: str) -> Size:
    """Return the numbers of rows and columns by which to roll (1, 3, H, W) that tiles, so that the
    step across its border is the mean one.

    The place where a repeating picture is cut is free; a row of large steps there looks like a
    seam.
    """
    shift = [0, 0]
    for i, (axis, dim) in enumerate((("y", 2), ("x", 3))):
        if axis in wrap:
            steps = (image - image.roll(1, dim)).abs().transpose(0, dim).flatten(1).mean(1)
            shift[i] = -int((steps - steps.mean()).abs().argmin())
    return shift[0], shift[1]
