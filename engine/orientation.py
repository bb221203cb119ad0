"""Axes: along which direction a texture runs, in the exemplar and as the output shall."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.guides import Guide, Variants

SMOOTHING = 9  # px, side of the window whose mean axis counts as that of a place
AXIS_BINS = 8  # of 22.5 degrees: the regions of methods that match statistics
AXIS_WEIGHT = 0.3  # of a unit axis beside features, before GUIDE_WEIGHT
COHERENT = 0.2  # of 1; places of less have no axis
LEAST_CHROMA = 0.05  # of 1; what has less is grey, which JPEG tints, and has no hue
LEAST_SHARE = 0.05  # of the exemplar that an axis must have, not to be offered by turning
FIELDS = ("radial", "circular", "wave")


def axes(image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, 2, H, W): cosine and sine of twice the angle along which a texture runs,
    counted from the rows towards the columns, times its coherence, 0 ... 1.

    The structure tensor (Bigün and Granlund 1987): gradients squared as complex numbers and
    averaged; a texture runs across its mean gradient.
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
    """`axes` of unit length that degrees or a name in FIELDS ask for, None for another spec.

    Degrees, -360 to 360, are counted from the horizontal counter-clockwise, as they look.
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
        if not abs(degrees) <= 360:  # of much larger ones nothing is known but that they are large
            return None
        angle = torch.full(size, -math.radians(degrees))
    return torch.stack(((2 * angle).cos(), (2 * angle).sin()))[None]


def axes_of_hue(picture: Tensor) -> Tensor:
    """(1, 3, H, W) -> unit axes: the hue, once round the circle, is twice the angle; 0 for grey."""
    red, green, blue = picture.split(1, 1)
    sixth = 2 * math.pi / 6
    # The hexagon of hues, red at 0, as a plane.
    cos = red - green * math.cos(sixth) - blue * math.cos(sixth)
    sin = (green - blue) * math.sin(2 * sixth)
    # Counter-clockwise, as it looks: rows go down.
    found = torch.cat((cos, -sin), 1)
    return F.normalize(found).where(found.norm(dim=1, keepdim=True) >= LEAST_CHROMA, 0)


def axes_of_vectors(vectors: Tensor) -> Tensor:
    """(1, 2, H, W) of vectors to the right and down, either sign -> unit axes."""
    x, y = vectors.split(1, 1)
    return F.normalize(torch.cat((x.square() - y.square(), 2 * x * y), 1))


def axis_bins(found: Tensor) -> Tensor:
    """`axes` -> (1, 1, H, W): which of AXIS_BINS, the first one about the rows; -1 for none."""
    angle = torch.atan2(found[:, 1:], found[:, :1]) / (2 * math.pi)  # of half a turn
    bins = (angle * AXIS_BINS).round().long() % AXIS_BINS
    return torch.where(found.norm(dim=1, keepdim=True) < COHERENT, -1, bins)


def missing_turns(exemplar: Tensor, wanted: Tensor) -> list[float]:
    """Degrees, counter-clockwise, by which to turn the exemplar for it to have all axes wanted."""
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
    """The guide that lays an exemplar's texture along `axes` of the output."""
    found = [axes(image) for image in (exemplar, *variants(exemplar))]
    regions = tuple(map(axis_bins, found))
    sources = tuple(AXIS_WEIGHT * x for x in found)
    region = axis_bins(wanted)
    had = torch.cat([x.flatten() for x in regions])
    # What no place has, no statistics can be asked for; patches come as near as they can.
    region = torch.where(torch.isin(region, had), region, -1)
    if (region < 0).all():
        # A flat exemplar has no axis at all: its statistics are asked for as a whole.
        regions, region = tuple(map(torch.zeros_like, regions)), torch.zeros_like(region)
    return Guide(sources, AXIS_WEIGHT * wanted, regions, region)
