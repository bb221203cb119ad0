"""What kind of texture an exemplar is, as far as that decides how its picture is made."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.colours import luma
from terms.autocorrelation import PERIODIC, luminance_autocorrelation, period
from utils import Size, resize, scaled_size

# Measured on 32 exemplars: brick walls have 0.34 to 0.65, everything without courses at most 0.28,
# but for wood, whose gradients are one axis to 0.68 and more (walls: 0.55 at most).
COURSES = 0.33  # of the power of its gradients along rows and columns
NEAR_AXIS = 10  # degrees
HALFWAY = 45  # degrees between two axes of the picture
DIRECTIONAL = 0.6  # of the power of its gradients along one axis, 0 ... 1
UNEVEN = 0.12  # of its variance between sixteenths of the picture
BLOTCH = 4  # px at 256, after which its autocorrelation is small
SMALL = 0.3  # of 1
SIDE = 256  # px; a larger picture is judged at that size


class Kind(NamedTuple):
    """A kind of texture."""

    name: str
    regular: bool = False  # has rows and columns, which are to stay straight
    axis: str = ""  # of the picture, along which its grain runs: "y", "x" or neither
    period: Size = (0, 0)  # px down and across, after which it repeats


PERIODICAL = Kind("periodic", regular=True)
IN_COURSES = Kind("in courses", regular=True)
ALONG_AN_AXIS = Kind("directional")
NOT_STATIONARY = Kind("not stationary")
WITH_OBJECTS = Kind("with objects")
STOCHASTIC = Kind("stochastic")


def kind_of(image: Tensor) -> Kind:
    """The kind of a picture (1, 3, H, W) in [0, 1]; the first that fits of those above."""
    clear, y, x = period(image)
    if clear > PERIODIC:
        return PERIODICAL._replace(period=(y, x))
    shorter = min(image.shape[2:])
    if shorter > SIDE:
        image = resize(image, scaled_size(image, SIDE / shorter))
    along_rows_and_columns, along_one_axis, steepest = _directions(image)
    if along_one_axis > DIRECTIONAL:
        grain = "y" if steepest < HALFWAY / 2 else "x" if steepest > 90 - HALFWAY / 2 else ""
        return ALONG_AN_AXIS._replace(axis=grain)
    if along_rows_and_columns > COURSES:
        return IN_COURSES
    if _unevenness(image) > UNEVEN:
        return NOT_STATIONARY
    return WITH_OBJECTS if _blotch(image) >= BLOTCH else STOCHASTIC


def _directions(image: Tensor) -> tuple[float, float, float]:
    """What part of the power of the gradients is near an axis of the picture; how far all of it
    has one axis in common, which need not be one of the picture's (the coherence of the structure
    tensor); and how many degrees that one is from the horizontal, 0 ... 90."""
    grey = luma(image)[0, 0].double()
    x = grey[1:-1, 2:] - grey[1:-1, :-2]
    y = grey[2:, 1:-1] - grey[:-2, 1:-1]
    power = x.square() + y.square()
    total = power.sum().clamp(min=1e-12)
    degrees = torch.rad2deg(torch.atan2(y, x))
    off = (degrees - 90 * (degrees / 90).round()).abs()
    along = torch.stack(((x.square() - y.square()).sum(), (2 * x * y).sum()))
    steepest = torch.rad2deg(torch.atan2(along[1], along[0])).abs() / 2
    shares = power[off < NEAR_AXIS].sum() / total, along.norm() / total
    return shares[0].item(), shares[1].item(), steepest.item()


def _unevenness(image: Tensor) -> float:
    means = F.adaptive_avg_pool2d(image, 4)
    variance = image.var((2, 3), correction=0).sum().clamp(min=1e-12)
    return (means.var((2, 3)).sum() / variance).item()


def _blotch(image: Tensor) -> int:
    """After how many px the autocorrelation, mean over all directions, is SMALL."""
    reach = min(image.shape[2:]) // 4
    lags = luminance_autocorrelation(image, reach)
    side = torch.arange(-reach, reach + 1, device=image.device)
    radius = (side[:, None].square() + side.square()).double().sqrt().round().long()
    counts = radius.flatten().bincount()
    means = radius.flatten().bincount(lags.flatten()) / counts
    small = (means[: reach + 1] < SMALL).nonzero()
    return int(small[0, 0]) if len(small) else reach
