"""Autocorrelation: how a texture repeats, and whether it does."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import TINY, LayerWeights, Statistics, Term, TermInputs, relative_error
from terms.valid import crop_to_valid
from utils import wrapped

NEAREST_LAG = 8  # px; the autocorrelation closer by says how smooth a texture is, not its period
PERIODIC = 0.3  # how clearly an exemplar must repeat, by `period`, to be regular
OVERLAP = 0.1  # of the picture that it and itself, moved by twice a period, must have in common
SAME_PERIOD = 0.9  # of the highest correlation; the shortest lag that has it is the period
RIDGE = 0.001  # of the correlation, from one pixel of a ridge to the next
PERIOD_SIDE = 512  # px; a larger picture is made smaller before its period is looked for


class Autocorrelation(Term):
    """How the features of the middle layer repeat, filter by filter: Sendik and Cohen-Or, "Deep
    Correlations for Texture Synthesis", 2017.

    We depart from the paper: the source's mean, which drowns what repeats, is taken off first;
    lags reach to half of the shorter side, each the mean over its pairs of positions, so that the
    output may have any size.
    """

    needs_whole = "takes the Fourier transform of a layer"

    @classmethod
    def layers_used(cls, layers: LayerWeights) -> list[str]:
        return [list(layers)[len(layers) // 2]]

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        (self.layer,) = self.layers_used(layers)
        sources = [
            (share, crop_to_valid(view.features[self.layer].detach(), view.valid))
            for share, view in inputs.weighted_views
        ]
        means = [share * maps.mean((2, 3), keepdim=True) for share, maps in sources]
        self.mean = torch.stack(means).sum(0)
        # Each about its own mean: what differs between exemplars does not repeat.
        self.sources = [(s, maps - maps.mean((2, 3), keepdim=True)) for s, maps in sources]
        self.reach = min(side for _, maps in sources for side in maps.shape[-2:]) // 2
        self.tile = inputs.canvas.tile
        self.wanted: dict[int, Tensor] = {}

    def measure(self, output: Features) -> Statistics:
        features = output[self.layer] - self.mean
        reach = min(*(side // 2 for side in features.shape[-2:]), self.reach)
        features = wrapped(features, self.tile, reach, reach)
        return {"lags": autocorrelation(features, reach)}

    def distance(self, statistics: Statistics) -> Tensor:
        lags = statistics["lags"]
        reach = lags.shape[-1] // 2
        if reach not in self.wanted:
            parts = [share * autocorrelation(maps, reach) for share, maps in self.sources]
            self.wanted[reach] = torch.stack(parts).sum(0)
        return relative_error(lags, self.wanted[reach])


def autocorrelation(maps: Tensor, reach: int) -> Tensor:
    """(..., H, W) -> (..., 2 reach + 1, 2 reach + 1): mean product at every lag, 0 in the centre.

    Not wrapped round: each lag is the mean over the pairs of positions that have it.
    """
    height, width = maps.shape[-2:]
    shape = [height + reach, width + reach]  # enough for lags up to `reach` not to wrap round
    power = torch.fft.rfft2(maps, shape).abs().square()
    lags = torch.arange(-reach, reach + 1, device=maps.device)
    pairs = (height - lags.abs())[:, None] * (width - lags.abs())[None, :]
    sums = torch.fft.irfft2(power, shape).roll((reach, reach), (-2, -1))
    return sums[..., : 2 * reach + 1, : 2 * reach + 1] / pairs.clamp(min=1)


def luminance_autocorrelation(image: Tensor, reach: int) -> Tensor:
    """(1, 3, H, W) -> (2 reach + 1, 2 reach + 1) of its mean channel, 1 in the centre."""
    grey = image[0].double().mean(0)
    lags = autocorrelation(grey - grey.mean(), reach)
    return lags / lags[reach, reach].clamp(min=1e-12)


def remove_shading(image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, 1, H, W) of float64: its mean channel, less the quadratic surface that
    fits it best, which is light and not texture."""
    grey = image.double().mean(1, keepdim=True)
    y, x = (torch.linspace(-1, 1, side, dtype=grey.dtype).to(grey) for side in grey.shape[2:])
    y, x = y[:, None].expand(grey.shape[2:]), x.expand(grey.shape[2:])
    surfaces = torch.stack([y**0, y, x, y * y, y * x, x * x]).flatten(1).T  # (H W, 6)
    basis = torch.linalg.qr(surfaces).Q
    return grey - (basis @ (basis.T @ grey.flatten())).view_as(grey)


def pearson_autocorrelation(grey: Tensor, reach: int) -> Tensor:
    """(1, 1, H, W) of float64 -> (2 reach + 1, 2 reach + 1): Pearson's correlation of a picture and
    itself moved by every lag, each over the part that overlaps; lag 0 is in the centre.

    A thousandth of the variance is added, so that parts without contrast do not correlate.
    """
    maps = grey[0, 0]
    variance = maps.var(correction=0)
    products = autocorrelation(maps, reach)
    mean, square = (_means_of_overlaps(x, reach) for x in (maps, maps.square()))
    spread = (square - mean.square()).clamp(min=0)
    # What overlaps at a lag is, in the moved picture, what overlaps at the opposite lag.
    both = (spread * spread.flip(0, 1)).sqrt()
    return (products - mean * mean.flip(0, 1)) / (both + variance / 1000).clamp(min=1e-12)


def _means_of_overlaps(maps: Tensor, reach: int) -> Tensor:
    """(H, W) -> (2 reach + 1, 2 reach + 1): mean of what a copy moved by every lag lies over."""
    sums = F.pad(maps.cumsum(0).cumsum(1), (1, 0, 1, 0))
    lags = torch.arange(-reach, reach + 1, device=maps.device)
    (top, low), (left, right) = (
        ((-lags).clamp(min=0), side - lags.clamp(min=0)) for side in maps.shape
    )
    rows = sums[low] - sums[top]
    pairs = (low - top)[:, None] * (right - left)
    return (rows[:, right] - rows[:, left]) / pairs


def period(image: Tensor, reach: int | None = None) -> tuple[float, int, int]:
    """(1, 3, H, W) -> how clearly a picture repeats, 0 ... 1, and after which lag (y, x) in px.

    What repeats is like itself after the lag and after twice the lag, and less so in between:
    counts how far the correlation rises at each of the two over the valley on the straight line
    before it, or over 0, the lesser of both. An edge has no valley; a blotch has no second rise.

    Only peaks of the correlation beyond NEAREST_LAG count, after which OVERLAP is left, up to
    `reach` along each axis, None for as far as that goes. Of lags that are clear enough, the
    shortest one of about the highest correlation is returned; a picture without any gives 0 and
    the lag (0, 0).
    """
    factor = math.ceil(min(image.shape[-2:]) / PERIOD_SIDE)
    # On the CPU, as GPUs may have no float64.
    grey = remove_shading(F.avg_pool2d(image.cpu(), factor))
    sides = torch.tensor(grey.shape[-2:])
    farthest = int((1 - OVERLAP) / 2 * sides.min())
    farthest = farthest if reach is None else min(farthest, reach // factor)
    found = pearson_autocorrelation(grey, 2 * farthest)
    # The highest within 1 px: twice a lag that is no whole number of px lies beside twice the
    # rounded one, and a slanted ridge of the correlation has dips between its pixels.
    top = F.max_pool2d(found[None, None], 3, 1, 1)[0, 0]
    lags = (found > top - RIDGE).nonzero() - 2 * farthest  # (K, 2); a ridge counts all along
    beyond = lags.square().sum(1) > NEAREST_LAG**2
    left = (1 - 2 * lags.abs() / sides).clamp(min=0).prod(1)  # of the picture, after twice the lag
    lags = lags[beyond & (left >= OVERLAP) & (lags.abs() <= farthest).all(1)]
    if not len(lags):
        return 0.0, 0, 0

    def after(share: float) -> Tensor:
        places = (share * lags).round().long() + 2 * farthest
        return top[places[:, 0], places[:, 1]].clamp(min=0)

    once, twice = after(1), after(2)
    before, between = (
        torch.stack([after(start + k / 48) for k in range(48)]).amin(0) for start in (0, 1)
    )
    clear = torch.minimum(once - before, twice - between)
    best = clear.max().item()
    if best < TINY:
        return 0.0, 0, 0
    # Courses of bricks are clearer than bricks along a course, which are more like each other.
    height = once.where(clear > best / 6, -1)
    length = lags.square().sum(1).where(height >= SAME_PERIOD * height.max(), 2**62)
    y, x = lags[length.argmin()] * factor
    return best, int(y), int(x)
