"""Kinds of texture that are synthesized differently, and the kind of an exemplar."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.colours import luma
from terms.autocorrelation import PERIODIC, luminance_autocorrelation, period
from utils import Size, resize, scaled_size

# The thresholds come from 32 exemplars. The share of gradient power near the axes of the picture is
# 0.34 to 0.65 for brick walls and at most 0.28 for textures without courses other than wood. Wood
# has a coherence of 0.68 or more, brick walls have at most 0.55.
MIN_COURSES = 0.33  # share of gradient power near the axes, of a texture in courses
NEAR_AXIS = 10  # degrees from an axis of the picture that count as near
AXIS_SPACING = 45  # degrees between horizontal and diagonal, and diagonal and vertical
MIN_COHERENCE = 0.6  # of the structure tensor, 0 ... 1, of a directional texture
MAX_UNEVENNESS = 0.12  # variance of the means of 4x4 equal parts, relative to that of pixels
# A picture that exceeds both limits is uneven. 50 of 300 photographic game textures are: signs,
# doors, lamps, faces and walls with a border. In a second set of 116 pictures, no picture of a
# single material is uneven.
MAX_COLOR_UNEVENNESS = 0.15  # the same measure as for MAX_UNEVENNESS
MAX_DETAIL_UNEVENNESS = 0.28  # coefficient of variation of the mean gradients of 4x4 equal parts
MIN_UNEVEN_SIDE = 128  # px; smaller pictures may show only one or two objects of a texture
MIN_OBJECT_LENGTH = 4  # px, correlation length of a texture with objects
SMALL_CORRELATION = 0.3  # autocorrelation at the correlation length
SIDE = 256  # px, shorter side to which larger pictures are reduced first


class Kind(NamedTuple):
    """A kind of texture."""

    name: str
    regular: bool = False  # whether it has rows and columns, which are to stay straight
    axis: str = ""  # axis of the picture along which its grain runs, "y" or "x"; "": neither
    period: Size = (0, 0)  # lag (y, x) in px after which it repeats; (0, 0): none


PERIODICAL = Kind("periodic", regular=True)
IN_COURSES = Kind("in courses", regular=True)
ALONG_AN_AXIS = Kind("directional")
NOT_STATIONARY = Kind("not stationary")
WITH_OBJECTS = Kind("composed of objects")
STOCHASTIC = Kind("stochastic")


def kind_of(image: Tensor) -> Kind:
    """Return the kind of a picture (1, 3, H, W) in [0, 1]: the first of these that fits: periodic,
    directional, in courses, not stationary, composed of objects, stochastic."""
    clarity, y, x = period(image)
    if clarity > PERIODIC:
        return PERIODICAL._replace(period=(y, x))
    image = _reduced(image)
    near_axes, coherence, steepest = _directions(image)
    if coherence > MIN_COHERENCE:
        near = AXIS_SPACING / 2
        grain = "y" if steepest < near else "x" if steepest > 90 - near else ""
        return ALONG_AN_AXIS._replace(axis=grain)
    if near_axes > MIN_COURSES:
        return IN_COURSES
    if _unevenness(image) > MAX_UNEVENNESS:
        return NOT_STATIONARY
    return WITH_OBJECTS if _correlation_length(image) >= MIN_OBJECT_LENGTH else STOCHASTIC


def is_uneven(image: Tensor) -> bool:
    """Return whether both colours and the amount of detail differ between the parts of a picture
    (1, 3, H, W) in [0, 1], as they do in photographs of things and not within one texture. False
    if a side is shorter than MIN_UNEVEN_SIDE."""
    if min(image.shape[2:]) < MIN_UNEVEN_SIDE:
        return False
    image = _reduced(image)
    x, y = _differences(image[0].mean(0))
    detail = F.adaptive_avg_pool2d((x.abs() + y.abs())[None], 4)
    variation = detail.std() / detail.mean().clamp(min=1e-12)
    return _unevenness(image) > MAX_COLOR_UNEVENNESS and variation.item() > MAX_DETAIL_UNEVENNESS


def _reduced(image: Tensor) -> Tensor:
    """Return a picture, resized so that its shorter side is SIDE px if that side is longer."""
    shorter = min(image.shape[2:])
    return resize(image, scaled_size(image, SIDE / shorter)) if shorter > SIDE else image


def _directions(image: Tensor) -> tuple[float, float, float]:
    """Analyse the directions of the gradients.

    Returns:
        The share of the gradients' power within NEAR_AXIS of an axis of the picture; the coherence
        of the structure tensor, which is 1 if all gradients lie along one line; and the angle of
        their main line from the horizontal, 0 ... 90 degrees.
    """
    x, y = _differences(luma(image)[0, 0].double())
    power = x.square() + y.square()
    total = power.sum().clamp(min=1e-12)
    degrees = torch.rad2deg(torch.atan2(y, x))
    off = (degrees - 90 * (degrees / 90).round()).abs()
    along = torch.stack(((x.square() - y.square()).sum(), (2 * x * y).sum()))
    steepest = torch.rad2deg(torch.atan2(along[1], along[0])).abs() / 2
    shares = power[off < NEAR_AXIS].sum() / total, along.norm() / total
    return shares[0].item(), shares[1].item(), steepest.item()


def _differences(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences across and down between the neighbours of each pixel of (H, W) that is
    not on the border, (H - 2, W - 2) each."""
    return grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]


def _unevenness(image: Tensor) -> float:
    """Return the variance of the means of 4x4 equal parts, relative to that of pixels."""
    means = F.adaptive_avg_pool2d(image, 4)
    variance = image.var((2, 3), correction=0).sum().clamp(min=1e-12)
    return (means.var((2, 3)).sum() / variance).item()


def _correlation_length(image: Tensor) -> int:
    """Return the shortest lag in px at which the autocorrelation, averaged over all directions, is
    below SMALL_CORRELATION; at most a quarter of the shorter side."""
    reach = min(image.shape[2:]) // 4
    lags = luminance_autocorrelation(image, reach)
    side = torch.arange(-reach, reach + 1, device=image.device)
    radius = (side[:, None].square() + side.square()).double().sqrt().round().long()
    counts = radius.flatten().bincount()
    means = radius.flatten().bincount(lags.flatten()) / counts
    small = (means[: reach + 1] < SMALL_CORRELATION).nonzero()
    return int(small[0, 0]) if len(small) else reach
