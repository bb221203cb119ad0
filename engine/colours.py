"""Means, covariances and distributions of colours."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from terms.base import interpolate_quantiles
from terms.valid import select_valid
from utils import pad_axes

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SMOOTH = 9  # px, odd; what is fine is smaller
TURNS = 4  # of colour space
SAMPLE = 2**17  # pixels whose distribution is looked at
LEAST_DEVIATION = 1 / 255  # one grey level: less than that is rounding, not worth amplifying


def is_grey(picture: Tensor) -> bool:
    """Whether the channels of (1, 3, H, W) are equal."""
    return torch.equal(picture, picture[:, :1].expand_as(picture))


def luma(image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, 1, H, W)."""
    # By numbers, as a tensor of weights would be sent to a GPU in every step.
    red, green, blue = (image[:, i : i + 1] * weight for i, weight in enumerate(LUMA))
    return red + green + blue


def with_chroma(image: Tensor, content: Tensor) -> Tensor:
    """The luma of one picture with the colour differences of another of the same size."""
    return (luma(image) + content - luma(content)).clamp(0, 1)


def with_fine_detail(image: Tensor, painted: Tensor, wrap: str = "") -> Tensor:
    """(1, C, H, W) twice -> the first, with the second's detail in all that is smaller than SMOOTH
    px."""
    return (painted + _smooth(image - painted, wrap)).clamp(0, 1)


def _smooth(maps: Tensor, wrap: str) -> Tensor:
    """(B, C, H, W) -> the means of SMOOTH x SMOOTH px around each pixel."""
    mirrors = "".join(axis for axis in "yx" if axis not in wrap)
    maps = pad_axes(maps, wrap, mirrors, SMOOTH // 2)
    return F.avg_pool2d(F.avg_pool2d(maps, (SMOOTH, 1), 1), (1, SMOOTH), 1)


def matched_colours(style: Tensor, content: Tensor, valid: Tensor | None = None) -> Tensor:
    """The style moved linearly to the content's mean and covariance of colours.

    Only pixels of the style that count are used: `valid`, (1, 1, H, W) of bool; None: all.

    Gatys et al., "Preserving Color in Neural Artistic Style Transfer", 2016, section 4, by the
    symmetric square root, which moves colours least. Along axes of colour in which the style
    hardly varies it cannot be made to: a flat style becomes the content's mean.
    """
    (mean_style, root_style), (mean, root) = (
        colours(picture[0].flatten(1), LEAST_DEVIATION)
        for picture in (select_valid(style, valid), content)
    )
    pixels = style[0].flatten(1).double() - mean_style
    matched = root @ torch.linalg.solve(root_style, pixels) + mean
    return matched.view(style.shape).to(style.dtype).clamp(0, 1)


def with_colours(image: Tensor, exemplar: Tensor) -> Tensor:
    """(1, C, H, W), (1, C, h, w) -> the first, its pixels' colours distributed as the second's.

    Along each axis of a few turned colour spaces, the values are replaced by the exemplar's of the
    same rank (Pitie, Kokaram and Dahyot, "N-Dimensional Probability Density Function Transfer",
    2005).
    """
    generator = torch.Generator().manual_seed(0)
    pixels, wanted = image[0].flatten(1), exemplar[0].flatten(1)
    for _ in range(TURNS):
        turned, _ = torch.linalg.qr(torch.randn(len(pixels), len(pixels), generator=generator))
        axes = turned.to(pixels)
        values = interpolate_quantiles((axes @ wanted).sort().values, pixels.shape[1])
        ranks = (axes @ pixels).argsort()
        pixels = axes.T @ torch.empty_like(pixels).scatter_(1, ranks, values)
    return pixels.view(image.shape).clamp(0, 1)


def colours_apart(image: Tensor, exemplar: Tensor) -> float:
    """How differently the channels of (1, C, H, W) and (1, C, h, w) are distributed: the root of
    their mean squared Wasserstein distance, for the second's standard deviation."""
    pixels = (picture[0].flatten(1) for picture in (image, exemplar))
    ours, theirs = (some[:, :: 1 + some.shape[1] // SAMPLE].sort().values for some in pixels)
    apart = (ours - interpolate_quantiles(theirs, ours.shape[1])).square().mean()
    return (apart / theirs.var(1, correction=0).mean().clamp(min=LEAST_DEVIATION**2)).sqrt().item()


def colours(pixels: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """(C, N) -> mean (C, 1) and symmetric square root of the covariance (C, C), as float64.

    The root exists for any picture, of two colours or of one as well, whose covariance has no full
    rank and is therefore of no use to a Cholesky decomposition. Its eigenvalues are the standard
    deviations along the axes of the colours, each of them at least `least`.
    """
    pixels = pixels.double()
    covariance = pixels.cov().reshape(len(pixels), len(pixels))
    variances, axes = torch.linalg.eigh(covariance)  # what is 0 may come out as -1e-18
    deviations = variances.clamp(min=0).sqrt().clamp(min=least)
    return pixels.mean(1, keepdim=True), axes @ deviations.diag() @ axes.T


def noise_like(picture: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Gaussian white noise with the picture's mean colour and colour covariance.

    A picture whose channels are equal gives one of one channel, so that what is grey stays grey.
    Drawn on the CPU, where a seed means the same on every machine.
    """
    pixels = picture[0].flatten(1).cpu()  # (3, H W)
    if is_grey(picture):
        pixels = pixels[:1]
    mean, root = (x.float() for x in colours(pixels))
    image = mean + root @ torch.randn(len(pixels), math.prod(size), generator=generator)
    return image.view(1, len(pixels), *size).to(picture.device)
