"""Statistics of pixels and features that any texture model can be given beside its own.

A term is built once from the features of the source, and is then called with the features of the
output: `term(output) -> (B,)`. It never mixes the pictures of a batch, and is zero at the source
(total variation apart), in units that do not depend on net, layer and size.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import region_masks, surrounded, wrapped

Features = dict[str, Tensor]

MAX_PATCHES = 10_000
MATCH_EVERY = 20  # steps
GRAM_LAYERS = ["conv1_1", "conv2_1", "conv3_1", "conv4_1"]
TINY = 1e-8  # keeps a flat exemplar, whose statistics are zero, from dividing by zero
NEAREST_LAG = 8  # px; the autocorrelation closer by says how smooth a texture is, not its period
SPECTRUM_PADDING = 2  # times the size; with 1, lags wrap round, and order is lost at the rim
PATCH = 7  # px
PATCH_LEVELS = 3  # each of half the size
PATCH_DIRECTIONS = 32  # at full size; four times as many at half of it cost the same
PATCH_SIDE = 42  # px; many directions pin a smaller picture, and the output becomes a copy
PERIODIC = 0.3  # how clearly an exemplar must repeat, by `period`, to be regular
OVERLAP = 0.1  # of the picture that it and itself, moved by twice a period, must have in common
SAME_PERIOD = 0.9  # of the highest correlation; the shortest lag that has it is the period
RIDGE = 0.001  # of the correlation, from one pixel of a ridge to the next
PERIOD_SIDE = 512  # px; a larger picture is made smaller before its period is looked for


class Settings(NamedTuple):
    """What texture models and terms can be told; each takes what concerns it."""

    seed: int = 0
    match_every: int = MATCH_EVERY  # steps between renewals
    max_patches: int = MAX_PATCHES  # of a layer, for models that sample
    variants: tuple[Features, ...] = ()  # of the exemplar turned and resized, as more source, and
    # of other exemplars
    pools: tuple[int, ...] = ()  # to which exemplar the source and each of the variants belong
    shares: tuple[float, ...] = ()  # of the output that each exemplar shall have
    guide: tuple[tuple[Tensor, ...], Tensor] | None = None  # (1, G, h, w) of the source and of its
    # variants, and (B or 1, G, H, W) wanted
    regions: tuple[tuple[Tensor, ...], Tensor] | None = None  # the same in regions, -1 is none
    tile: str = ""  # axes along which the output goes on where it began, "x", "y" or "xy"


PLAIN = Settings()


def gram(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, C): products of feature maps, averaged over positions.

    Always in float32: in half precision deep layers overflow.
    """
    flat = features.float().movedim(1, -1).flatten(1, 2)  # (B, H W, C), a view in channels_last
    half = flat.detach().mT @ flat / flat.shape[1]
    # Both factors are the same tensor, so the gradient of one, made symmetric, is all of it; this
    # saves one of two large products on the way back.
    return half + (half - half.detach()).mT


def relative_error(output: Tensor, source: Tensor) -> Tensor:
    """(B, ...), (1, ...) -> (B,): squared distance over the squared norm of the source."""
    distance = (output - source).flatten(1).square().sum(1)
    return distance / source.square().sum().clamp(min=TINY)


def resampled(ascending: Tensor, count: int) -> Tensor:
    """(..., n) in ascending order -> (..., count): the same distribution in `count` quantiles."""
    if ascending.shape[-1] == count:
        return ascending
    steps = torch.arange(count, device=ascending.device, dtype=torch.float64) + 0.5
    position = (steps * (ascending.shape[-1] / count) - 0.5).clamp(0, ascending.shape[-1] - 1)
    low = position.long()
    high = (low + 1).clamp(max=ascending.shape[-1] - 1)
    share = (position - low).to(ascending.dtype)
    return torch.lerp(ascending[..., low], ascending[..., high], share)


def squared_wasserstein(ascending: Tensor, wanted: Tensor) -> Tensor:
    """(B, K, n) and (K, n) or (1, K, n), ascending -> (B,): squared Wasserstein-2 distance of the
    samples, which in one dimension is that of the sorted values (Rabin et al. 2011), mean over K.
    """
    return (ascending - wanted).square().mean((1, 2))


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


def without_shade(image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, 1, H, W) of float64: its mean channel, less the quadratic surface that
    fits it best, which is light and not texture."""
    grey = image.double().mean(1, keepdim=True)
    y, x = (torch.linspace(-1, 1, side, dtype=grey.dtype).to(grey) for side in grey.shape[2:])
    y, x = y[:, None].expand(grey.shape[2:]), x.expand(grey.shape[2:])
    surfaces = torch.stack([y**0, y, x, y * y, y * x, x * x]).flatten(1).T  # (H W, 6)
    basis = torch.linalg.qr(surfaces).Q
    return grey - (basis @ (basis.T @ grey.flatten())).view_as(grey)


def self_correlation(grey: Tensor, reach: int) -> Tensor:
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
    grey = without_shade(F.avg_pool2d(image, factor))
    sides = torch.tensor(grey.shape[-2:], device=image.device)
    farthest = int((1 - OVERLAP) / 2 * sides.min())
    farthest = farthest if reach is None else min(farthest, reach // factor)
    found = self_correlation(grey, 2 * farthest)
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
    y, x = (lags[length.argmin()] * factor).tolist()
    return best, y, x


class Gram:
    """The texture model of Gatys, Ecker and Bethge, "Texture Synthesis Using Convolutional Neural
    Networks", 2015, equations 2 to 4: the Gram matrix of every layer.

    We depart from equation 3 in the normalisation: each layer's error is relative to the norm of
    the source's Gram matrix, and the layers are averaged. The weights then carry over between
    nets, layers and sizes, and the loss reads as a relative error.
    """

    unordered = True  # does not see where things are

    def __init__(self, source: Features, layers: list[str], settings: Settings = PLAIN) -> None:
        self.grams = {layer: gram(source[layer]).detach() for layer in layers}

    def __call__(self, output: Features) -> Tensor:
        errors = [
            relative_error(gram(output[layer]), wanted) for layer, wanted in self.grams.items()
        ]
        return torch.stack(errors).mean(0)


class Histogram:
    """The distribution of each colour channel of the pixels, and the covariance of the channels.

    Gram matrices fix products of features and leave colour and contrast free to drift against
    each other. Matched is the squared Wasserstein distance relative to the variance. Unlike a
    remapped histogram (Risser et al. 2017) it needs no bins and is differentiable as it stands.
    """

    unordered = True  # does not see where things are

    def __init__(self, source: Features, layers: list[str], settings: Settings = PLAIN) -> None:
        image = source["image"].detach()
        self.ascending = image.flatten(2).sort(2).values  # (1, 3, H W)
        self.variance = image.var((2, 3), correction=0).mean().clamp(min=TINY)
        self.covariance = gram(image - image.mean((2, 3), keepdim=True))

    def __call__(self, output: Features) -> Tensor:
        image = output["image"]
        ascending = image.flatten(2).sort(2).values  # (B, 3, H W)
        wanted = resampled(self.ascending, ascending.shape[2])
        transport = squared_wasserstein(ascending, wanted) / self.variance
        covariance = gram(image - image.mean((2, 3), keepdim=True))
        return transport + relative_error(covariance, self.covariance)


class Moments:
    """Mean and standard deviation of every filter, as Galerne et al., "Scaling Painting Style
    Transfer", 2024, put beside Gram matrices; relative to the source's, mean over the layers.
    """

    unordered = True  # does not see where things are

    def __init__(self, source: Features, layers: list[str], settings: Settings = PLAIN) -> None:
        self.moments = {layer: self._moments(source[layer]).detach() for layer in layers}

    def __call__(self, output: Features) -> Tensor:
        errors = [
            relative_error(self._moments(output[layer]), wanted)
            for layer, wanted in self.moments.items()
        ]
        return torch.stack(errors).mean(0)

    @staticmethod
    def _moments(features: Tensor) -> Tensor:
        variance, mean = torch.var_mean(features.float(), (2, 3), correction=0)
        return torch.stack((mean, (variance + TINY).sqrt()), 1)  # (B, 2, C)


class Spectrum:
    """The power spectrum of the pixels: Liu, Gousseau and Xia, "Texture Synthesis Through
    Convolutional Neural Networks and Spectrum Constraints", 2016.

    The squared distance between the output and the picture nearest to it that has the source's
    Fourier modulus and the source's phase differences between the channels: one phase for three
    channels. We depart from the paper in that windows of the source's size are compared, as many
    as cover the output by halves, so that the output may have any size; and that each is padded
    with zeros, so that its spectrum is that of lags that do not wrap round: a period that does not
    divide the size is spread over several frequencies, whose phases wrapping leaves free.

    Beside a mask the nearest picture is that of all pixels, which carries the order of what is kept
    into what is made, but distances count only where a region is asked for: Hirani and Totsuka,
    "Combining Frequency and Spatial Domain Information for Fast Interactive Image Noise Removal",
    1996.
    """

    def __init__(self, source: Features, layers: list[str], settings: Settings = PLAIN) -> None:
        image = source["image"].detach()
        self.mean = image.mean((2, 3), keepdim=True)
        self.image = image - self.mean
        self.tile = settings.tile
        regions = settings.regions
        self.counts = None if regions is None else (regions[1] >= 0).float()  # (1, 1, H, W)
        self.wanted: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, output: Features) -> Tensor:
        image = output["image"] - self.mean
        height, width = map(min, image.shape[2:], self.image.shape[2:])
        if (height, width) not in self.wanted:
            sources = _windows(self.image, height, width)
            source = sources[len(sources) // 2]
            spectrum = torch.fft.rfft2(source, _padded(height, width))  # (1, 3, 2 H, W + 1)
            self.wanted[height, width] = spectrum, source.square().sum().clamp(min=TINY)
        spectrum, energy = self.wanted[height, width]
        margins = height // 2, width // 2
        parts = _windows(wrapped(image, self.tile, *margins), height, width)
        if self.counts is None:
            return torch.stack([_one_phase_distance(p, spectrum) for p in parts]).mean(0) / energy
        counts = F.adaptive_max_pool2d(self.counts, image.shape[2:])
        counts = _windows(wrapped(counts, self.tile, *margins), height, width)
        pairs = [(part, count) for part, count in zip(parts, counts, strict=True) if count.any()]
        distances = [_one_phase_distance(part, spectrum, count) for part, count in pairs]
        share = sum((count.mean() for _, count in pairs), image.new_zeros(())).clamp(min=TINY)
        return sum(distances, image.new_zeros(len(image))) / (energy * share)


def _one_phase_distance(image: Tensor, wanted: Tensor, counts: Tensor | None = None) -> Tensor:
    """(B, 3, H, W), spectrum (1, 3, ...) -> (B,): squared distance of image from its nearest
    picture with the modulus and the phase differences of that spectrum.

    With `counts`, (1, 1, H, W) of 0 and 1, only of the pixels that are 1.
    """
    height, width = image.shape[2:]
    shape = _padded(height, width)
    with torch.no_grad():
        common = (torch.fft.rfft2(image, shape) * wanted.conj()).sum(1, keepdim=True)
        phase = torch.polar(torch.ones_like(common.abs()), common.angle())
        nearest = torch.fft.irfft2(phase * wanted, shape)
    if counts is not None:
        return ((image - nearest[..., :height, :width]).square() * counts).sum((1, 2, 3))
    image = F.pad(image, (0, shape[1] - width, 0, shape[0] - height))
    return (image - nearest).square().sum((1, 2, 3))


def _padded(height: int, width: int) -> list[int]:
    return [SPECTRUM_PADDING * height, SPECTRUM_PADDING * width]


def _windows(image: Tensor, height: int, width: int) -> list[Tensor]:
    return [
        image[..., y : y + height, x : x + width]
        for y in _starts(image.shape[2], height)
        for x in _starts(image.shape[3], width)
    ]


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover a length, at least half of each under the next one."""
    count = 1 + math.ceil(2 * (length - window) / window)
    return [round(i * (length - window) / max(count - 1, 1)) for i in range(count)]


class Autocorrelation:
    """How the features of the middle layer repeat, filter by filter: Sendik and Cohen-Or, "Deep
    Correlations for Texture Synthesis", 2017.

    We depart from the paper: the source's mean, which drowns what repeats, is taken off first;
    lags reach to half of the shorter side, each the mean over its pairs of positions, so that the
    output may have any size.
    """

    def __init__(self, source: Features, layers: list[str], settings: Settings = PLAIN) -> None:
        self.layer = layers[len(layers) // 2]
        features = source[self.layer].detach().float()
        self.mean = features.mean((2, 3), keepdim=True)
        self.features = features - self.mean
        self.tile = settings.tile
        self.wanted: dict[int, Tensor] = {}

    def __call__(self, output: Features) -> Tensor:
        features = output[self.layer].float() - self.mean
        reach = min(*features.shape[-2:], *self.features.shape[-2:]) // 2
        if reach not in self.wanted:
            self.wanted[reach] = autocorrelation(self.features, reach)
        features = wrapped(features, self.tile, reach, reach)
        return relative_error(autocorrelation(features, reach), self.wanted[reach])


class Patches:
    """The distribution of 7x7 patches of pixels, by the sliced Wasserstein distance on random unit
    directions, on the picture and on its halves and quarters: Elnekave and Weiss, "Generating
    Natural Images with Direct Patch Distributions Matching", 2022.

    We depart from the paper: directions stay for some steps, so that the objective is smooth in
    between; the distance is relative to the variance of the source's projections; sizes are
    compared through quantiles; every region has a distribution of its own, that of the patches
    whose middle lies in it; and the picture is mirrored at its borders. Otherwise the outermost
    rows are in one patch where others are in seven, and take up what the others leave over: beads
    of dark and light.
    """

    def __init__(self, source: Features, layers: list[str], settings: Settings = PLAIN) -> None:
        self.tile = settings.tile
        pictures, regions, self.region, self.count = [source], [None], None, 1
        if settings.regions is not None:
            regions, self.region = settings.regions
            self.count = 1 + int(max(x.max() for x in (*regions, self.region)))
            pictures = [source, *settings.variants][: len(regions)]
        self.images, self.regions = [f["image"].detach() for f in pictures], regions
        # What repeats has no layout but its order.
        self.repeats = period(self.images[0])[0] > PERIODIC
        self.generator = torch.Generator().manual_seed(1)  # scores judge by other directions
        self.renew(source)

    def renew(self, output: Features) -> None:
        """Draw new directions."""
        self.levels: list[tuple[int, Tensor, list[Tensor]]] = []
        side = min(self.images[0].shape[2:])
        for level in range(PATCH_LEVELS):
            factor = 2**level
            many = self.repeats or side >= factor * PATCH_SIDE
            count = PATCH_DIRECTIONS * (4**level if many else 1)
            directions = unit_directions(count, self.generator).to(self.images[0].device)
            if side >= factor * PATCH:
                found = [
                    self._projected(image, factor, directions, "", region)
                    for image, region in zip(self.images, self.regions, strict=True)
                    if min(image.shape[2:]) >= factor * PATCH
                ]
                wanted = [torch.cat(parts, 2).sort(2).values for parts in zip(*found, strict=True)]
                self.levels.append((factor, directions, wanted))

    def __call__(self, output: Features) -> Tensor:
        image = output["image"]
        errors = [image.new_zeros(len(image))]
        for factor, directions, wanted in self.levels:
            if min(image.shape[2:]) >= factor * PATCH:
                found = self._projected(image, factor, directions, self.tile, self.region)
                errors.append(_distance(found, wanted))
        return torch.stack(errors).sum(0) / PATCH_LEVELS

    def _projected(
        self, image: Tensor, factor: int, directions: Tensor, wraps: str, region: Tensor | None
    ) -> list[Tensor]:
        """(B, 3, H, W), (K, 3, 7, 7), (1, 1, ., .) of -1 ... count - 1 -> (B, K, n) of each region.

        Every patch is in the region of its middle. Along the axes that the output tiles, the output
        `wraps` and the source has no border; along the others both are mirrored.
        """
        smaller, reach = F.avg_pool2d(image, factor), PATCH // 2
        mirrors = "".join(axis for axis in "yx" if axis not in self.tile)
        projected = F.conv2d(surrounded(smaller, wraps, mirrors, reach), directions)
        if region is None:
            return [projected.flatten(2)]
        h, w = smaller.shape[2:]
        top, left = (0 if axis in wraps + mirrors else reach for axis in "yx")
        masks = region_masks(region, (h, w), self.count).view(-1, h, w)
        masks = masks[:, top : h - top, left : w - left]
        return [projected[..., mask] for mask in masks]


def _distance(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """(B, K, n) and (1, K, m) in ascending order of every region -> (B,), regions by their n."""
    pairs = [
        (parts.sort(2).values, resampled(ascending, parts.shape[2]))
        for parts, ascending in zip(found, wanted, strict=True)
        if parts.shape[2] and ascending.shape[2]
    ]
    if not pairs:
        return found[0].new_zeros(len(found[0]))
    count = sum(parts.shape[2] for parts, _ in pairs)
    variance = torch.cat([ascending for _, ascending in pairs], 2).var(2, correction=0).mean()
    return sum(
        squared_wasserstein(parts, ascending) * (parts.shape[2] / count)
        for parts, ascending in pairs
    ) / variance.clamp(min=TINY)


def unit_directions(count: int, generator: torch.Generator) -> Tensor:
    """(count, 3, PATCH, PATCH): random patches of norm 1, drawn on the CPU."""
    directions = torch.randn(count, 3, PATCH, PATCH, generator=generator)
    return directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class Content:
    """What is where in a picture: the features at every position, of Gatys, Ecker and Bethge,
    "Image Style Transfer Using Convolutional Neural Networks", 2016, equation 1.

    We depart from the paper: relative to the squared norm of the content's features, mean over
    the layers, so that a weight means the same at any size.
    """

    def __init__(self, content: Features, layers: Sequence[str]) -> None:
        self.wanted = {layer: content[layer].detach() for layer in layers}

    def __call__(self, output: Features) -> Tensor:
        errors = [
            relative_error(output[layer].float(), wanted.float())
            for layer, wanted in self.wanted.items()
        ]
        return torch.stack(errors).mean(0)


class TotalVariation:
    """Mean absolute difference of neighbouring pixels, rows plus columns, in units of the range
    [0, 1] (Rudin, Osher and Fatemi 1992, anisotropic): the one term that is not zero at the source.
    """

    def __init__(self, source: Features, layers: list[str], settings: Settings = PLAIN) -> None:
        self.tile = settings.tile

    def __call__(self, output: Features) -> Tensor:
        image = output["image"]
        down = wrapped(image, self.tile.replace("x", ""), 1, 1).diff(dim=2)
        across = wrapped(image, self.tile.replace("y", ""), 1, 1).diff(dim=3)
        return sum(steps.abs().mean((1, 2, 3)) for steps in (down, across))


TERMS = {
    "gram": Gram,
    "histogram": Histogram,
    "moments": Moments,
    "spectrum": Spectrum,
    "autocorrelation": Autocorrelation,
    "patches": Patches,
    "tv": TotalVariation,
}
