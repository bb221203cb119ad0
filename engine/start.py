"""Start of a stage: noise, a painting, added detail, given pixels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.colours import colour_distance, is_grey, noise_like, with_colours, with_fine_detail
from engine.painting import paint, source_colours
from engine.schedule import Stage
from engine.spec import Spec
from engine.stretching import with_stretched_exemplars
from terms.base import Canvas, Exemplar
from terms.valid import select_valid
from utils import Size, resize, size_of

KEPT = 0.8  # share of a painting's contrast that the start of the optimization has
DETAIL = 0.7  # standard deviation of added noise, relative to that of the exemplar's detail
# Threshold of `colour_distance` between a painting's source pixels and the exemplar, see
# `in_exemplars_colours`. The distance was at most 0.11 for fifteen textures at 200x200 px and, by
# chance, up to 0.3 at half that size; neither is visible. It was 0.15 to 1.2 for photographs of
# several things.
MAX_COLOUR_DISTANCE = 0.13


def start_of(
    spec: Spec,
    stages: Sequence[Stage],
    image: Tensor | None,
    painting: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Return the start of an optimization stage, (1, 3 or 1, h, w).

    The first scale starts from noise with the mean and covariance of the exemplars' colours, or
    from a painting and such noise; each other scale starts from the enlarged result of the coarser
    one (Snelgrove 2017, Gonthier et al. 2022).

    Departure: detail is added to the enlarged result, since fine structure that grows from a smooth
    start follows the grid of the network's pooling. The detail is noise with the colour covariance
    of what the exemplar gains there, or is painted. From noise, the finest scale would keep
    hatching and dark points, whose Gram matrices nearly equal those of grain; at other scales,
    L-BFGS would merge more objects.

    Args:
        stages: the stages up to this one.
        image: the result of the coarser stage; None: this is the coarsest one.
        painting: (1, 3, H, W) in [0, 1], from which the coarsest stage starts; None: from noise.
    """
    stage = stages[-1]
    if image is None:
        image = noise(spec, stage.size, generator)
        if painting is not None:
            image = partly_painted(spec, painting, image)
    else:
        image = resize(image, stage.size, spec.canvas.wrap)
        if stage.paints_detail:
            image = with_painted_detail(spec, image, stage)
        else:
            image = with_noise_detail(spec, image, stages[-2], stage, generator)
    if all_grey(spec):
        image = image[:, :1]
    first = stage.scale == 1 and painting is None
    return with_given_pixels(spec.canvas, image, everywhere=first)


def all_grey(spec: Spec) -> bool:
    """Return whether all exemplars are grey."""
    return all(is_grey(one.image) for one in spec.exemplars)


def noise(spec: Spec, size: Size, generator: torch.Generator) -> Tensor:
    """Return white noise (1, 3, h, w) in [0, 1] with the mean and covariance of the exemplars'
    colours; (1, 1, h, w) if all exemplars are grey."""
    image = noise_like(_pixels(spec.exemplars), size, generator).clamp(0, 1)
    return image if all_grey(spec) else image.expand(-1, 3, -1, -1)


def _pixels(exemplars: Sequence[Exemplar]) -> Tensor:
    """Return valid pixels of the exemplars, (1, 3, n, m), in numbers proportional to the shares."""
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
    """Add white noise with the colour covariance of the detail that the exemplar gains from the
    coarser stage to this one.

    Args:
        image: (1, C, h, w) in [0, 1], of the stage's size.
    """
    exemplar, now = spec.exemplars[0], stage.source_size
    gained = resize(exemplar.image, now) - resize(resize(exemplar.image, coarser.source_size), now)
    gained = select_valid(gained, exemplar.valid)
    return (image + DETAIL * noise_like(gained, stage.size, generator)).clamp(0, 1)


def partly_painted(spec: Spec, painting: Tensor, white: Tensor) -> Tensor:
    """Return a painting whose contrast is multiplied by KEPT, and white noise that makes up for the
    variance that is lost.

    The noise lets the optimization change small structures, so that less of the exemplar is copied.

    Args:
        painting: (1, 3, H, W) in [0, 1].
        white: (1, 3 or 1, h, w), from `noise`.
    """
    image = resize(painting, size_of(white), spec.canvas.wrap)
    mean = image.mean((2, 3), keepdim=True)
    mixed = mean + KEPT * (image - mean) + math.sqrt(1 - KEPT**2) * (white - mean)
    return mixed.clamp(0, 1)


def with_painted_detail(spec: Spec, image: Tensor, stage: Stage) -> Tensor:
    """Replace the fine detail of a picture by that of a painting of the same layout.

    Args:
        image: (1, 3 or 1, h, w) in [0, 1], of the stage's size.

    Returns:
        (1, 3, h, w) in [0, 1].
    """
    layout, stretched = image.expand(-1, 3, -1, -1), with_stretched_exemplars(spec)
    for frame in paint(stretched, stage.size, layout, spec.factor_at(stage.source_size)):
        painting = frame.image
    return with_fine_detail(layout, painting, spec.canvas.wrap)


def with_given_pixels(canvas: Canvas, image: Tensor, *, everywhere: bool) -> Tensor:
    """Replace the pixels outside the mask by those of `canvas.init`.

    Args:
        image: (1, 3 or 1, h, w).
        everywhere: whether to replace all pixels if there is no mask; otherwise none is replaced.
    """
    init, mask = canvas.init_at(size_of(image)), canvas.mask_at(size_of(image))
    if init is None or not (everywhere or mask is not None):
        return image
    if image.shape[1] == 1 and is_grey(init):
        init = init[:, :1]
    return init if mask is None else torch.where(mask, image, init)


def in_exemplars_colours(spec: Spec, painting: Tensor, places: Tensor) -> Tensor:
    """Return a painting with the exemplar's distribution of colours, (1, 3, H, W) in [0, 1].

    Averaging patches changes the distribution, and so does using some patches more often than
    others. If the colours of the painting's source pixels are at MAX_COLOUR_DISTANCE or more from
    the exemplar's, as for a photograph of several things, the painting gets the distribution of its
    source pixels instead, since the exemplar's would hatch white areas with the missing colours.
    Mixtures and paintings with a given layout keep their colours.

    Args:
        painting: (1, 3, H, W) in [0, 1].
        places: (H, W), as in `PaintingFrame`.
    """
    if spec.canvas.has_layout or len(spec.exemplars) > 1:
        return painting
    channels = 1 if all_grey(spec) else 3
    image = painting[:, :channels]
    exemplar = select_valid(spec.exemplars[0].image, spec.exemplars[0].valid)[:, :channels]
    used = source_colours(places, spec.exemplars)[:, :channels]
    wanted = exemplar if colour_distance(used, exemplar) < MAX_COLOUR_DISTANCE else used
    return with_colours(image, wanted).expand(-1, 3, -1, -1)
