"""Autocorrelation of features and pixels; period of a texture."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import TINY, LayerWeights, Statistics, Term, TermInputs, relative_error
from terms.valid import weighted_sources
from utils import Size, size_of, wrapped

NEAREST_LAG = 8  # px; at shorter lags the autocorrelation measures smoothness, not a period
PERIODIC = 0.3  # an exemplar is periodic if the clarity, from `period`, is higher
OVERLAP = 0.1  # least share of a picture that its copy, shifted by twice the period, covers
SAME_PERIOD = 0.9  # the period is the shortest lag of at least this share of the highest peak
RIDGE = 0.001  # a peak or ridge is less than this below the highest of the 3x3 lags around it
CLEAR = 0.5  # least correlation of a peak, relative to the first, that refines the period
PERIOD_SIDE = 512  # px; pictures whose shorter side is longer are reduced for the search


class Autocorrelation(Term):
    """Autocorrelation of each channel of the middle layer: Sendik and Cohen-Or, "Deep Correlations
    for Texture Synthesis", 2017.

    Departures from the paper: the mean of the source, which would dominate the autocorrelation, is
    subtracted. Lags reach half of the shorter side, and the value at each lag is the mean product
    over all pairs of positions, so that the output may have any size.
    """

    needs_whole = "takes the Fourier transform of a layer"

    @classmethod
    def layers_used(cls, layers: LayerWeights) -> list[str]:
        return [list(layers)[len(layers) // 2]]

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        (self.layer,) = self.layers_used(layers)
        sources = weighted_sources(inputs, self.layer)
        means = [share * maps.mean((2, 3), keepdim=True) for share, maps in sources]
        self.mean = torch.stack(means).sum(0)
        # About its own mean, as the difference from the mean of all exemplars is not periodic.
        self.sources = [(s, maps - maps.mean((2, 3), keepdim=True)) for s, maps in sources]
        self.reach = min(side for _, maps in sources for side in maps.shape[-2:]) // 2
        self.wrap = inputs.canvas.wrap
        self.source_lags: dict[int, Tensor] = {}

    def measure(self, output: Features) -> Statistics:
        features = output[self.layer] - self.mean
        reach = min(*(side // 2 for side in features.shape[-2:]), self.reach)
        features = wrapped(features, self.wrap, reach, reach)
        return {"lags": autocorrelation(features, reach)}

    def distance(self, statistics: Statistics) -> Tensor:
        lags = statistics["lags"]
        reach = lags.shape[-1] // 2
        if reach not in self.source_lags:
            parts = [share * autocorrelation(maps, reach) for share, maps in self.sources]
            self.source_lags[reach] = torch.stack(parts).sum(0)
        return relative_error(lags, self.source_lags[reach])


def autocorrelation(maps: Tensor, reach: int) -> Tensor:
    """Return the mean product of all pairs of positions at each lag: (..., H, W) ->
    (..., 2 reach + 1, 2 reach + 1), lag 0 in the centre. Lags do not wrap around."""
    height, width = maps.shape[-2:]
    shape = [height + reach, width + reach]  # with padding against wrapping around
    power = torch.fft.rfft2(maps, shape).abs().square()
    lags = torch.arange(-reach, reach + 1, device=maps.device)
    pairs = (height - lags.abs())[:, None] * (width - lags.abs())[None, :]
    sums = torch.fft.irfft2(power, shape).roll((reach, reach), (-2, -1))
    return sums[..., : 2 * reach + 1, : 2 * reach + 1] / pairs.clamp(min=1)


def luminance_autocorrelation(image: Tensor, reach: int) -> Tensor:
    """Return the autocorrelation of the mean channel, normalised to 1 at lag 0 in the centre:
    (1, 3, H, W) -> (2 reach + 1, 2 reach + 1)."""
    grey = image[0].double().mean(0)
    lags = autocorrelation(grey - grey.mean(), reach)
    return lags / lags[reach, reach].clamp(min=1e-12)


def remove_shading(image: Tensor) -> Tensor:
    """Subtract uneven illumination, the best-fitting quadratic surface, from the mean channel:
    (1, 3, H, W) -> (1, 1, H, W) of float64."""
    grey = image.double().mean(1, keepdim=True)
    y, x = (torch.linspace(-1, 1, side, dtype=grey.dtype).to(grey) for side in grey.shape[2:])
    y, x = y[:, None].expand(grey.shape[2:]), x.expand(grey.shape[2:])
    surfaces = torch.stack([y**0, y, x, y * y, y * x, x * x]).flatten(1).T  # (H W, 6)
    basis = torch.linalg.qr(surfaces).Q
    return grey - (basis @ (basis.T @ grey.flatten())).view_as(grey)


def pearson_autocorrelation(grey: Tensor, reach: int) -> Tensor:
    """Return Pearson's correlation of a picture and its copy, shifted by each lag, over their
    overlap: (1, 1, H, W) of float64 -> (2 reach + 1, 2 reach + 1), lag 0 in the centre.

    The denominator is increased by 1/1000 of the variance of the picture, so that the correlation
    of parts without contrast is 0.
    """
    maps = grey[0, 0]
    variance = maps.var(correction=0)
    products = autocorrelation(maps, reach)
    mean, square = (_means_of_overlaps(x, reach) for x in (maps, maps.square()))
    spread = (square - mean.square()).clamp(min=0)
    # The overlap, in the coordinates of the shifted copy, is the overlap at the opposite lag.
    both = (spread * spread.flip(0, 1)).sqrt()
    return (products - mean * mean.flip(0, 1)) / (both + variance / 1000).clamp(min=1e-12)


def _means_of_overlaps(maps: Tensor, reach: int) -> Tensor:
    """Return the mean over the part that a copy, shifted by each lag, overlaps: (H, W) ->
    (2 reach + 1, 2 reach + 1)."""
    sums = F.pad(maps.cumsum(0).cumsum(1), (1, 0, 1, 0))
    lags = torch.arange(-reach, reach + 1, device=maps.device)
    (top, low), (left, right) = (
        ((-lags).clamp(min=0), side - lags.clamp(min=0)) for side in maps.shape
    )
    rows = sums[low] - sums[top]
    pairs = (low - top)[:, None] * (right - left)
    return (rows[:, right] - rows[:, left]) / pairs


def period(image: Tensor, reach: int | None = None) -> tuple[float, int, int]:
    """Find the period of a texture, and its clarity.

    Along the straight line from lag 0, the correlation of a periodic texture has a valley before
    the period and another before twice the period. The clarity of a peak is the rise of the
    correlation from the valley, or from 0 if the valley is negative, to the peak: the lesser of the
    rises to the period and to twice the period. An edge has no valley, and a blob has no second
    rise. Of the peaks with more than 1/6 of the highest clarity, the period is the shortest lag
    whose correlation is at least SAME_PERIOD of the highest.

    Args:
        image: (1, 3, H, W).
        reach: longest lag along each axis, in px; None: as far as OVERLAP allows.

    Returns:
        Highest clarity, in [0, 1], and the period (y, x) in px; (0, 0, 0) if there is none.
    """
    factor, correlation, size = _correlation_of(image, reach)
    top = _within_a_pixel(correlation)
    lags = _peaks(correlation, top, size)
    if not len(lags):
        return 0.0, 0, 0
    height, clarity = _heights_and_clarities(top, lags)
    best = clarity.max().item()
    if best < TINY:
        return 0.0, 0, 0
    # Not the clearest peak: in a brick wall that is from course to course, but the bricks of one
    # course are the most alike.
    height = height.where(clarity > best / 6, -1)
    length = lags.square().sum(1).where(height >= SAME_PERIOD * height.max(), 2**62)
    y, x = lags[length.argmin()] * factor
    return best, int(y), int(x)


def repeats(image: Tensor) -> tuple[float, float]:
    """Return the periods along the axes of a periodic texture, (down, across) in px; 0 for an axis
    along which no period is found, such as the axis parallel to stripes.

    A texture repeats after p px across if it equals its copy that is shifted by (0, p). This is not
    the shortest lag of `period`, which may be oblique: in a brick wall whose courses are offset by
    half a brick, the period down is two courses. Of the peaks on the axis that `period` would
    consider, the period is the shortest whose correlation is at least SAME_PERIOD times two
    values: the highest peak on the axis, and the highest correlation at the same distance along the
    axis and any offset across it. The latter excludes a shift by one course of a wall, which
    matches better with an offset. The number of whole periods up to the farthest peak divides its
    lag, which gives the period to a fraction of a px.

    Args:
        image: (1, 3, H, W).
    """
    # Smoothed, as thin lines at a fractional lag from their copies would barely touch them.
    factor, correlation, size = _correlation_of(F.avg_pool2d(image, 3, 1), None)
    top = _within_a_pixel(correlation)
    lags = _peaks(correlation, top, size)
    if not len(lags):
        return 0.0, 0.0
    height, clarity = _heights_and_clarities(top, lags)
    clear = clarity > clarity.max() / 6
    centre = correlation.shape[0] // 2
    found = []
    for axis in (0, 1):
        on_axis = clear & (lags[:, 1 - axis] == 0) & (lags[:, axis] > 0)
        lines = top if axis == 0 else top.T
        near = lines[:, centre // 2 : -(centre // 2)].amax(1)[centre + lags[:, axis]]
        highest = torch.maximum(near, height.where(on_axis, -1).max())
        same = lags[on_axis & (height >= SAME_PERIOD * highest), axis]
        profile = correlation[centre:, centre] if axis == 0 else correlation[centre, centre:]
        found.append(factor * _refined(profile, int(same.min())) if len(same) else 0.0)
    return found[0], found[1]


def _refined(profile: Tensor, lag: int) -> float:
    """Return a period to a fraction of a px.

    Args:
        profile: (n,), the correlation at the lags 0 ... n - 1 of an axis.
        lag: the period, rounded.
    """
    period, count, first = float(lag), 1, profile[lag].item()
    while (near := round(count * period)) + 3 < len(profile):
        place = near - 2 + int(profile[near - 2 : near + 3].argmax())
        before, peak, after = profile[place - 1 : place + 2].tolist()
        if peak < CLEAR * first:
            break
        # The vertex of the parabola through the three values.
        curvature = max(2 * peak - before - after, TINY)
        period = (place + max(-0.5, min((after - before) / (2 * curvature), 0.5))) / count
        count += 1
    return period


def _correlation_of(image: Tensor, reach: int | None) -> tuple[int, Tensor, Size]:
    """Return the factor by which a picture (1, 3, H, W) is reduced, its Pearson autocorrelation to
    twice the farthest lag that OVERLAP, or `reach` in px, allows, and its reduced size."""
    factor = math.ceil(min(image.shape[-2:]) / PERIOD_SIDE)
    # On the CPU, as GPUs may have no float64.
    grey = remove_shading(F.avg_pool2d(image.cpu(), factor))
    farthest = int((1 - OVERLAP) / 2 * min(size_of(grey)))
    farthest = farthest if reach is None else min(farthest, reach // factor)
    return factor, pearson_autocorrelation(grey, 2 * farthest), size_of(grey)


def _within_a_pixel(correlation: Tensor) -> Tensor:
    """Return the maximum within 1 px of each lag, (n, n) -> (n, n): twice a fractional period lies
    up to 1 px from twice the rounded period, and a slanted ridge has dips between its pixels."""
    return F.max_pool2d(correlation[None, None], 3, 1, 1)[0, 0]


def _heights_and_clarities(top: Tensor, lags: Tensor) -> tuple[Tensor, Tensor]:
    """Return the correlation at lags, (K, 2) -> (K,), and its clarity, see `period`."""
    line = _along_lags(top, lags)
    valleys = line[:48].amin(0), line[48:96].amin(0)
    return line[48], torch.minimum(line[48] - valleys[0], line[96] - valleys[1])


def _along_lags(top: Tensor, lags: Tensor) -> Tensor:
    """Return the correlation, at least 0, at 97 points of the line from lag 0 to twice each lag:
    (n, n), (K, 2) -> (97, K); point 48 is the lag itself."""
    points = (torch.arange(97)[:, None, None] / 48 * lags).round().long() + top.shape[0] // 2
    y, x = points.unbind(2)
    return top[y, x].clamp(min=0)


def _peaks(correlation: Tensor, top: Tensor, size: Size) -> Tensor:
    """Return the lags (y, x) of the peaks and ridges of a correlation, (K, 2), that are longer than
    NEAREST_LAG and at twice of which OVERLAP remains.

    Args:
        correlation: (n, n), lag 0 in the centre; the result has lags up to half of its reach.
        top: (n, n), maximum of the correlation within 1 px.
        size: (height, width) of the picture.
    """
    reach = correlation.shape[0] // 2
    lags = (correlation > top - RIDGE).nonzero() - reach
    long = lags.square().sum(1) > NEAREST_LAG**2
    overlap = (1 - 2 * lags.abs() / torch.tensor(size)).clamp(min=0).prod(1)
    return lags[long & (overlap >= OVERLAP) & (lags.abs() <= reach // 2).all(1)]
