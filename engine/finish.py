"""Last steps from the pixels of a synthesis to the picture that is saved."""

import torch
from torch import Tensor

from engine.colours import with_chroma
from engine.scales import with_margin, without_margin
from terms.base import Canvas
from utils import Size, resize


def whole(canvas: Canvas, image: Tensor, margin: Size) -> Tensor:
    """Resize a picture to the canvas and its margin, cut off the margin, and restore the pixels
    outside the mask or, if the canvas keeps colour, the hue and saturation of the content.

    Args:
        image: (1, 3 or 1, h, w) in [0, 1].
        margin: rows and columns beyond each border of the canvas.

    Returns:
        (1, 3, H, W) in [0, 1].
    """
    image = resize(image, with_margin(canvas.size, margin), canvas.wrap)
    image = without_margin(image, margin).expand(-1, 3, -1, -1)
    if canvas.mask is not None and canvas.init is not None:
        image = torch.where(canvas.mask, image, canvas.init)
    elif canvas.keep_color and canvas.content is not None:
        image = with_chroma(image, canvas.content)
    return image


def cut_at(image: Tensor, wrap: str) -> Size:
    """Return the numbers of rows and columns by which to roll a repeating picture (1, 3, H, W), so
    that pixels differ across its border about as much as neighbours do on average.

    A repeating picture may be cut anywhere, and large differences at the cut look like a seam.
    """
    shift = [0, 0]
    for i, (axis, dim) in enumerate((("y", 2), ("x", 3))):
        if axis in wrap:
            steps = (image - image.roll(1, dim)).abs().transpose(0, dim).flatten(1).mean(1)
            shift[i] = -int((steps - steps.mean()).abs().argmin())
    return shift[0], shift[1]
