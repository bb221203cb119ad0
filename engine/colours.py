"""Means, covariances and distributions of colours."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from terms.base import interpolate_quantiles
from terms.valid import select_valid
from utils import pad_axes

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SMOOTHING = 9  # px, odd, side of the mean filter that separates fine detail
ROTATIONS = 4  # number of random rotations of colour space in `with_colours`
SAMPLE = 2**17  # largest number of pixels that are compared, every n-th of a larger picture
LEAST_DEVIATION = 1 / 255  # one grey level; smaller deviations are rounding and not amplified


def is_grey(picture: Tensor) -> bool:
    """Return whether the channels of (1, 3, H, W) are equal."""
    return torch.equal(picture, picture[:, :1].expand_as(picture))


def luma(image: Tensor) -> Tensor:
    """Return the luma of a picture: (1, 3, H, W) -> (1, 1, H, W)."""
    # The weights are numbers, since a tensor of weights would be copied to the GPU at each call.
    red, green, blue = (image[:, i : i + 1] * weight for i, weight in enumerate(LUMA))
    return red + green + blue


def with_chroma(image: Tensor, content: Tensor) -> Tensor:
    """Return the luma of one picture with the colour differences of another of the same size."""
    return (luma(image) + content - luma(content)).clamp(0, 1)


def with_fine_detail(image: Tensor, painted: Tensor, wrap: str = "") -> Tensor:
    """Replace the detail of a picture that is finer than about SMOOTHING px by a painting's.

    Args:
        image, painted: (1, C, H, W) in [0, 1].
        wrap: axes along which both repeat.
    """
    return (painted + _smooth(image - painted, wrap)).clamp(0, 1)


def _smooth(maps: Tensor, wrap: str) -> Tensor:
    """Return the mean of the SMOOTHING x SMOOTHING px around each pixel of (B, C, H, W)."""
    mirrors = "".join(axis for axis in "yx" if axis not in wrap)
    maps = pad_axes(maps, wrap, mirrors, SMOOTHING // 2)
    return F.avg_pool2d(F.avg_pool2d(maps, (SMOOTHING, 1), 1), (1, SMOOTHING), 1)


def matched_colours(style: Tensor, content: Tensor, valid: Tensor | None = None) -> Tensor:
    """Transform the colours of a style linearly, to the mean and covariance of a content's.

    This is the method of Gatys et al., "Preserving Color in Neural Artistic Style Transfer", 2016,
    section 4, with the symmetric square root, which changes colours least. Along an axis of colour
    space in which the style varies by less than LEAST_DEVIATION, the result varies less than the
    content; a style of one colour becomes the content's mean.

    Args:
        style: (1, 3, H, W) in [0, 1].
        content: (1, 3, h, w) in [0, 1].
        valid: (1, 1, H, W) of bool, pixels of the style whose statistics are used; None: all.
    """
    (mean_style, root_style), (mean, root) = (
        mean_and_root(picture[0].flatten(1), LEAST_DEVIATION)
        for picture in (select_valid(style, valid), content)
    )
    pixels = style[0].flatten(1).double() - mean_style
    matched = root @ torch.linalg.solve(root_style, pixels) + mean
    return matched.view(style.shape).to(style.dtype).clamp(0, 1)


def with_colours(image: Tensor, exemplar: Tensor) -> Tensor:
    """Give the colours of an image (1, C, H, W) the distribution of an exemplar's, (1, C, h, w).

    Along each axis of randomly rotated colour spaces, the values are replaced by the exemplar's
    values of the same rank (Pitie, Kokaram and Dahyot, "N-Dimensional Probability Density Function
    Transfer", 2005).
    """
    generator = torch.Generator().manual_seed(0)
    pixels, wanted = image[0].flatten(1), exemplar[0].flatten(1)
    for _ in range(ROTATIONS):
        rotation, _ = torch.linalg.qr(torch.randn(len(pixels), len(pixels), generator=generator))
        axes = rotation.to(pixels)
        values = interpolate_quantiles((axes @ wanted).sort().values, pixels.shape[1])
        ranks = (axes @ pixels).argsort()
        pixels = axes.T @ torch.empty_like(pixels).scatter_(1, ranks, values)
    return pixels.view(image.shape).clamp(0, 1)


def colour_distance(image: Tensor, exemplar: Tensor) -> float:
    """Return the distance between the distributions of the channels of two pictures, (1, C, H, W)
    and (1, C, h, w): the root of their mean squared 2-Wasserstein distance, relative to the
    standard deviation of the second."""
    pixels = (picture[0].flatten(1) for picture in (image, exemplar))
    ours, theirs = (some[:, :: 1 + some.shape[1] // SAMPLE].sort().values for some in pixels)
    apart = (ours - interpolate_quantiles(theirs, ours.shape[1])).square().mean()
    return (apart / theirs.var(1, correction=0).mean().clamp(min=LEAST_DEVIATION**2)).sqrt().item()


def mean_and_root(pixels: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the mean (C, 1) and the symmetric square root of the covariance (C, C) of colours
    (C, N), as float64.

    Unlike the Cholesky factor, the root exists if the covariance has no full rank, as for pictures
    of one or two colours. Its eigenvalues are the standard deviations along the principal axes,
    clamped from below to `least`.
    """
    pixels = pixels.double()
    covariance = pixels.cov().reshape(len(pixels), len(pixels))
    variances, axes = torch.linalg.eigh(covariance)  # rounding may give -1e-18 instead of 0
    deviations = variances.clamp(min=0).sqrt().clamp(min=least)
    return pixels.mean(1, keepdim=True), axes @ deviations.diag() @ axes.T


def noise_like(picture: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return Gaussian white noise with the mean and covariance of a picture's colours.

    The noise is drawn on the CPU, so that a seed gives the same noise on every device.

    Args:
        picture: (1, 3, h, w).
        size: of the noise, (H, W).
        generator: on the CPU.

    Returns:
        (1, 3, H, W), or (1, 1, H, W) if the picture is grey.
    """
    pixels = picture[0].flatten(1).cpu()  # (3, H W)
    if is_grey(picture):
        pixels = pixels[:1]
    mean, root = (x.float() for x in mean_and_root(pixels))
    image = mean + root @ torch.randn(len(pixels), math.prod(size), generator=generator)
    return image.view(1, len(pixels), *size).to(picture.device)
