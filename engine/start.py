"""Where a stage of a synthesis starts: noise, added detail, given pixels."""

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.colours import colours_apart, is_grey, noise_like, with_colours, with_fine_detail
from engine.painting import Painting, PaintingFrame, paint, pixels_laid, value_of
from engine.schedule import Stage
from engine.spec import Spec
from terms.base import Canvas, Exemplar
from terms.valid import select_valid
from utils import Size, resize, size_of

DETAIL = 0.7  # of the standard deviation of the exemplar's detail
# Distance of colour distributions above which a painting keeps its own, relative to the deviation
# of the exemplar's colours. For fifteen textures at 200x200 it was at most 0.11, at half of that
# size by chance 0.3, and no eye objects to either; for photographs of several things 0.15 to 1.2.
SHIFTED = 0.13


def all_grey(spec: Spec) -> bool:
    """Return whether all exemplars are grey."""
    return all(is_grey(one.image) for one in spec.exemplars)


def noise(spec: Spec, size: Size, generator: torch.Generator) -> Tensor:
    """Return white noise (1, 3, h, w) in [0, 1] with the exemplars' mean and covariance of colours;
    (1, 1, h, w) if they are grey."""
    image = noise_like(_pixels(spec.exemplars), size, generator).clamp(0, 1)
    return image if all_grey(spec) else image.expand(-1, 3, -1, -1)


def _pixels(exemplars: Sequence[Exemplar]) -> Tensor:
    """Return the pixels that count, (1, 3, n, m), of several exemplars in their shares."""
    found = [select_valid(one.image, one.valid) for one in exemplars]
    if len(found) == 1:
        return found[0]
    flat = [pixels.flatten(2) for pixels in found]
    shares = [one.share for one in exemplars]
    most = min(pixels.shape[2] / share for pixels, share in zip(flat, shares, strict=True))
    counts = [max(1, int(share * most)) for share in shares]
    every = (
        pixels[..., torch.linspace(0, pixels.shape[2] - 1, count).long()]
        for pixels, count in zip(flat, counts, strict=True)
    )
    return torch.cat(list(every), 2)[..., None]


def with_noise_detail(
    spec: Spec, image: Tensor, coarser: Stage, stage: Stage, generator: torch.Generator
) -> Tensor:
    """Add noise like the detail that the exemplar gains from one stage to the next.

    Args:
        image: (1, C, h, w) in [0, 1], of the stage's size.
    """
    exemplar = spec.exemplars[0]
    before, now = (resize(exemplar.image, one.source_size) for one in (coarser, stage))
    gained = select_valid(now - resize(before, stage.source_size), exemplar.valid)
    return (image + DETAIL * noise_like(gained, stage.size, generator)).clamp(0, 1)


def with_painted_detail(spec: Spec, image: Tensor) -> Tensor:
    """Replace the finest detail by that of a painting of the same layout.

    Args:
        image: (1, 3 or 1, h, w) in [0, 1].

    Returns:
        (1, 3, h, w) in [0, 1].
    """
    layout = image.expand(-1, 3, -1, -1)
    painting = value_of(painted(spec, size_of(image), layout))
    return with_fine_detail(layout, painting.image, spec.canvas.wrap)


def painted(
    spec: Spec, size: Size, layout: Tensor | None = None
) -> Generator[PaintingFrame, None, Painting]:
    """Paint a picture of that size; see `engine.painting.paint`."""
    return paint(
        spec.exemplars,
        spec.canvas,
        size=size,
        seed=spec.seed,
        kind=spec.kind,
        layout=layout,
        group=spec.group,
    )


def with_given_pixels(canvas: Canvas, image: Tensor, *, everywhere: bool) -> Tensor:
    """Replace pixels of a start by those of `canvas.init`.

    Args:
        image: (1, 3 or 1, h, w).
        everywhere: whether all pixels are replaced where there is no mask.
    """
    init, mask = canvas.init_at(size_of(image)), canvas.mask_at(size_of(image))
    if init is None or not (everywhere or mask is not None):
        return image
    if image.shape[1] == 1 and is_grey(init):
        init = init[:, :1]  # one channel stays grey under any optimizer
    return init if mask is None else torch.where(mask, image, init)


def in_exemplars_colours(spec: Spec, painting: Painting) -> Painting:
    """Return the painting with the exemplar's distribution of colours.

    A mean of patches changes it, and so does laying some patches more often. But where much more or
    less was laid of some colours, as of a photograph that is no texture throughout, the painting
    gets the distribution of the pixels that were laid: in the exemplar's shares, white that has no
    room would be hatched with the missing colours. Mixtures and paintings of a given layout keep
    their colours.
    """
    if spec.canvas.has_layout or len(spec.exemplars) > 1:
        return painting
    channels = 1 if all_grey(spec) else 3
    image = painting.image[:, :channels]
    exemplar = select_valid(spec.exemplars[0].image, spec.exemplars[0].valid)[:, :channels]
    laid = pixels_laid(painting, spec.exemplars)[:, :channels]
    wanted = exemplar if colours_apart(laid, exemplar) < SHIFTED else laid
    return replace(painting, image=with_colours(image, wanted).expand(-1, 3, -1, -1))
