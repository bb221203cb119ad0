"""Orientation of a texture: the axes along which it runs, in the exemplar and in the output.

An axis is a vector (cosine, sine) of twice its angle, since directions that differ by half a turn
are the same axis. Angles count from the horizontal, clockwise in a picture, whose rows go down.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.guides import Guide, Variants

SMOOTHING = 9  # px, side of the windows in which gradients are averaged
AXIS_BINS = 8  # bins of 22.5 degrees; they are the regions of methods that match statistics
AXIS_WEIGHT = 0.3  # length of a unit axis in the channels of a guide
COHERENT = 0.2  # least coherence, of at most 1, of a pixel that has an axis
LEAST_CHROMA = 0.05  # of at most 1; pixels of less count as grey, which JPEG may have tinted
LEAST_SHARE = 0.05  # of the exemplar; a wanted axis that has less needs a rotated copy
FIELDS = ("radial", "circular", "wave")


def axes(image: Tensor) -> Tensor:
    """Return the axis along which a texture runs at each pixel, times its coherence, 0 ... 1:
    (1, 3, H, W) -> (1, 2, H, W).

    Axes are those of the structure tensor (Bigün and Granlund 1987): gradients are squared as
    complex numbers and averaged; the texture runs perpendicular to the axis of the mean.
    """
    grey = image.mean(1, keepdim=True)
    grey = F.pad(grey, (1, 1, 1, 1), "replicate")
    x, y = (grey.diff(dim=d, n=1) for d in (3, 2))
    x, y = (x[..., 1:-1, 1:] + x[..., 1:-1, :-1]) / 2, (y[..., 1:, 1:-1] + y[..., :-1, 1:-1]) / 2
    squares = torch.cat((x.square() - y.square(), 2 * x * y, x.square() + y.square()), 1)
    for _ in range(2):
        padded = F.pad(squares, [SMOOTHING // 2] * 4, "replicate")
        squares = F.avg_pool2d(padded, SMOOTHING, 1)
    return -squares[:, :2] / squares[:, 2:].clamp(min=1e-8)


def field(spec: str, size: tuple[int, int]) -> Tensor | None:
    """Return the unit axes (1, 2, H, W) that a text specifies; None if it is not valid.

    Args:
        spec: a name in FIELDS, or degrees in [-360, 360], counter-clockwise from the horizontal.
        size: (H, W).
    """
    y, x = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in size), indexing="ij")
    if spec in FIELDS:
        angle = {
            "radial": torch.atan2(y, x),
            "circular": torch.atan2(y, x) + math.pi / 2,
            "wave": math.pi / 4 * (2 * math.pi * x / size[1]).cos(),
        }[spec]
    else:
        try:
            degrees = float(spec)
        except ValueError:
            return None
        if not abs(degrees) <= 360:  # true for NaN
            return None
        angle = torch.full(size, -math.radians(degrees))
    return torch.stack(((2 * angle).cos(), (2 * angle).sin()))[None]


def axes_of_hue(picture: Tensor) -> Tensor:
    """Return the unit axes (1, 2, H, W) that the hues of a picture (1, 3, H, W) represent: the hue
    angle is twice the counter-clockwise angle of the axis. At grey pixels, the axis is 0."""
    red, green, blue = picture.split(1, 1)
    sixth = 2 * math.pi / 6
    # Coordinates in the plane of hues, in which red has angle 0.
    cos = red - green * math.cos(sixth) - blue * math.cos(sixth)
    sin = (green - blue) * math.sin(2 * sixth)
    # The sign makes the angles counter-clockwise, since the rows of a picture go down.
    found = torch.cat((cos, -sin), 1)
    return F.normalize(found).where(found.norm(dim=1, keepdim=True) >= LEAST_CHROMA, 0)


def axes_of_vectors(vectors: Tensor) -> Tensor:
    """Return the unit axes of vectors (1, 2, H, W), whose components point right and down."""
    x, y = vectors.split(1, 1)
    return F.normalize(torch.cat((x.square() - y.square(), 2 * x * y), 1))


def axis_bins(found: Tensor) -> Tensor:
    """Return the bin of each axis: (1, 2, H, W) -> (1, 1, H, W) in 0 ... AXIS_BINS - 1; -1 if the
    coherence is too small. Bin 0 is centred on the horizontal."""
    angle = torch.atan2(found[:, 1:], found[:, :1]) / (2 * math.pi)  # in half turns
    bins = (angle * AXIS_BINS).round().long() % AXIS_BINS
    return torch.where(found.norm(dim=1, keepdim=True) < COHERENT, -1, bins)


def missing_turns(exemplar: Tensor, wanted: Tensor) -> list[float]:
    """Return the angles in degrees, counter-clockwise, of the rotated copies of the exemplar that
    have the wanted axes which it lacks."""
    found = axes(exemplar)
    have, ask = axis_bins(found), axis_bins(wanted)
    mean = torch.atan2(*found.mean((0, 2, 3)).flip(0)).item() / 2
    turns = []
    for k in ask[ask >= 0].unique().tolist():
        share = (have == k).float().mean()
        if share < LEAST_SHARE:
            axis = wanted.movedim(1, 0).flatten(1)[:, (ask == k).flatten()].mean(1)
            turns.append(math.degrees(mean - torch.atan2(axis[1], axis[0]).item() / 2) % 180)
    return turns


def orientation_guide(exemplar: Tensor, wanted: Tensor, variants: Variants) -> Guide:
    """Return the guide that lays an exemplar's texture along wanted axes of the output."""
    found = [axes(image) for image in (exemplar, *variants(exemplar))]
    regions = tuple(map(axis_bins, found))
    sources = tuple(AXIS_WEIGHT * x for x in found)
    region = axis_bins(wanted)
    had = torch.cat([x.flatten() for x in regions])
    # There are no statistics for a bin that no pixel of the exemplar has. Methods that match
    # patches do without it, since they use the nearest axis.
    region = torch.where(torch.isin(region, had), region, -1)
    if (region < 0).all():
        # If no bin is left, as for a flat exemplar, there is one region for all pixels.
        regions, region = tuple(map(torch.zeros_like, regions)), torch.zeros_like(region)
    return Guide(sources, AXIS_WEIGHT * wanted, regions, region)
