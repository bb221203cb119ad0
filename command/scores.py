"""Scores of a synthesised texture that need no pretrained net.

A score compares an output with its exemplar (`source`), both (1, 3, H, W) in [0, 1] and of any
size. For reference, the same score compares one half of the exemplar with the other.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.colours import luma
from terms.autocorrelation import PERIODIC, pearson_autocorrelation, period, remove_shading
from terms.base import interpolate_quantiles
from terms.matching import gather_patches
from terms.patches import PATCH, PATCH_LEVELS, unit_directions
from utils import LEVELS, resize, scaled_size

DIRECTIONS = 128
LEAST_SIDE = 64  # px; half of it still has three pyramid levels of 7x7 patches
STRIDE = 4  # px between the patches whose nearest neighbours are searched
SMALL_SIDE = 128  # px, side of a square source as resized for the scores of objects
OBJECT = 12  # px, side of the patches of these scores
CHUNK = 2**25  # distances held at once, 128 MiB


def wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """Return the Wasserstein-1 distances (...) of samples (..., n) from samples (..., m)."""
    count = max(a.shape[-1], b.shape[-1])
    a, b = (interpolate_quantiles(x.sort(-1).values, count) for x in (a, b))
    return (a - b).abs().mean(-1)


def colour(output: Tensor, source: Tensor) -> float:
    """Wasserstein-1 distance of the values of a channel, mean over channels, in grey levels."""
    return LEVELS * wasserstein(output[0].flatten(1), source[0].flatten(1)).mean().item()


def patches(output: Tensor, source: Tensor) -> float:
    """Sliced Wasserstein-1 distance of 7x7 patches, mean over three pyramid levels, in grey levels.

    The random unit directions (Rabin et al. 2011) are the same in every call.
    """
    generator = torch.Generator().manual_seed(0)
    distances = []
    for level in range(PATCH_LEVELS):
        directions = unit_directions(DIRECTIONS, generator)
        projected = [
            F.conv2d(F.avg_pool2d(x, 2**level), directions)[0].flatten(1) for x in (output, source)
        ]
        distances.append(wasserstein(*projected).mean())
    return LEVELS * torch.stack(distances).mean().item()


def _fine(image: Tensor, side: int) -> Tensor:
    """Subtract the mean over windows of `side` px, an odd number."""
    return image - F.avg_pool2d(F.pad(image, [side // 2] * 4, "reflect"), side, 1)


def _log_ratio(output: float, source: float) -> float:
    """Return log2(output / source), each clamped to at least a quarter grey level."""
    return math.log2(max(output, 0.25 / LEVELS) / max(source, 0.25 / LEVELS))


def chroma(output: Tensor, source: Tensor) -> float:
    """Ratio of the RMS chroma finer than 3 px, output over source, in octaves.

    Coloured specks and fringes at edges give values above 0. Nets hardly respond to chroma.
    """
    strengths = [_fine(x - luma(x), 3).square().mean().sqrt().item() for x in (output, source)]
    return _log_ratio(*strengths)


def grain(output: Tensor, source: Tensor) -> float:
    """Ratio of the RMS luma finer than 5 px in the flattest fifth of 9x9 windows, output over
    source, in octaves.

    Hatching and noise in flat areas give values above 0, flat areas that lost their grain below 0.
    """
    strengths = []
    for image in (output, source):
        local = F.avg_pool2d(_fine(luma(image), 5).square(), 9, 4).flatten().sqrt().sort().values
        strengths.append(local[: max(1, len(local) // 5)].mean().item())
    return _log_ratio(*strengths)


def rim(output: Tensor, source: Tensor) -> float:
    """Ratio of the luma gradients in the two outermost lines to those inside, output over source,
    in octaves."""
    strengths = []
    for image in (output, source):
        grey = luma(image)[0, 0]
        steps = grey.diff(dim=0)[:, 1:].abs() + grey.diff(dim=1)[1:].abs()
        lines = torch.cat([steps[:2], steps[-2:], steps.T[:2], steps.T[-2:]], 1)
        strengths.append((lines.mean() / steps[4:-4, 4:-4].mean().clamp(min=1e-6)).item())
    return _log_ratio(*strengths)


def peak(output: Tensor, source: Tensor) -> float:
    """Autocorrelation of the output at the source's period, over that of the source.

    Low frequencies (shading) are removed. The maximum within 2 px of the period is used. NaN if the
    source is not periodic.
    """
    clear, y, x = period(source, min(*output.shape[-2:], *source.shape[-2:]) // 2)
    if clear < PERIODIC:
        return math.nan
    reach = max(abs(y), abs(x)) + 2
    y, x = y + reach, x + reach
    drawn, wanted = (
        pearson_autocorrelation(remove_shading(image), reach)[y - 2 : y + 3, x - 2 : x + 3].max()
        for image in (output, source)
    )
    return (drawn / wanted).item()


def copied(output: Tensor, source: Tensor) -> float:
    """Share of 7x7 patches that are copied from the source together with their neighbours.

    A patch counts if the nearest source patches of itself, of the patch 4 px to its right and of
    the one 4 px below have the same offsets: together 105 of 11x11 pixels.
    """
    return _kept(_nearest_places(output, source, PATCH), 1, 0)


def layout(output: Tensor, source: Tensor) -> float:
    """Share of positions whose surroundings have the layout of the source, up to stretching and
    detail.

    At a size of 128 px, a position counts if the nearest source patches (12x12) of itself, of the
    position 32 px to its right and of the one 32 px below have the same offsets within 4 px. Near 0
    for another picture of the texture; periodic textures have only one layout.
    """
    places = _nearest_places(*_small(output, source), OBJECT)
    reach = min(SMALL_SIDE // 4 // STRIDE, *(side // 2 for side in places.shape[1:]))
    return _kept(places, reach, 4)


def objects(output: Tensor, source: Tensor) -> float:
    """Mean squared distance of 12x12 patches from the nearest of the source, over its variance.

    At a size of 128 px; large for objects that are melted, torn or out of order.
    """
    return _mean_distance(*_small(output, source))


def used(output: Tensor, source: Tensor) -> float:
    """The reverse of `objects`: distance of the source's patches from the nearest of the output.

    Large if parts of the source are missing in the output.
    """
    return _mean_distance(*reversed(_small(output, source)))


def _small(output: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Resize both by the factor that gives the source SMALL_SIDE ** 2 pixels, or by a larger one if
    fewer than two patches would fit along a side."""
    least = min(*output.shape[2:], *source.shape[2:])
    factor = max(SMALL_SIDE / math.sqrt(math.prod(source.shape[2:])), 2 * OBJECT / least)
    return resize(output, scaled_size(output, factor)), resize(source, scaled_size(source, factor))


def _mean_distance(image: Tensor, searched: Tensor) -> float:
    places = _nearest_places(image, searched, OBJECT)
    there = gather_patches(searched, (places[0] * searched.shape[3] + places[1]).flatten(), OBJECT)
    here = F.unfold(image, OBJECT, stride=STRIDE)[0]
    # The variance of the pixels, mean over channels, is at least one squared grey level.
    variance = searched.var((2, 3), correction=0).mean().clamp(min=1 / LEVELS**2)
    return ((here - there).square().mean() / variance).item()


def _nearest_places(output: Tensor, source: Tensor, patch: int) -> Tensor:
    """Return (2, n, m): row and column of the source patch nearest to each output patch."""
    wanted = F.unfold(source, patch)[0]  # (P, M)
    drawn = F.unfold(output, patch, stride=STRIDE)[0].T  # (N, P)
    half_norms = wanted.square().sum(0) / 2
    rows = max(1, CHUNK // wanted.shape[1])
    nearest = torch.cat([(half_norms - part @ wanted).argmin(1) for part in drawn.split(rows)])
    across = source.shape[3] - patch + 1
    columns = (output.shape[3] - patch) // STRIDE + 1
    return torch.stack((nearest // across, nearest % across)).view(2, -1, columns)


def _kept(places: Tensor, reach: int, tolerance: int) -> float:
    """Return the share of positions whose neighbours to the right and below have the same offset.

    Args:
        places: (2, n, m) from `_nearest_places`.
        reach: Distance of the neighbours, in positions.
        tolerance: Largest difference of offsets, in px of the source along each axis.
    """
    here, step = places[:, :-reach, :-reach], reach * STRIDE
    right, below = places[:, :-reach, reach:] - here, places[:, reach:, :-reach] - here
    right[1] -= step
    below[0] -= step
    return ((right.abs() <= tolerance) & (below.abs() <= tolerance)).all(0).float().mean().item()


def unshifted(output: Tensor, source: Tensor) -> float:
    """RMSE between output and source, cropped to the same size, over the source's standard
    deviation.

    0 for the exemplar itself, 1.41 for an unrelated picture of the same texture.
    """
    height, width = (min(output.shape[i], source.shape[i]) for i in (2, 3))
    a, b = (x[..., :height, :width] for x in (output, source))
    spread = (b - b.mean((2, 3), keepdim=True)).square().mean().sqrt()
    return ((a - b).square().mean().sqrt() / spread.clamp(min=1e-6)).item()


def seam(output: Tensor, source: Tensor) -> float:
    """Mean gradient across the borders of a 2x2 tiling over that inside; 1 is seamless."""
    across = sum((output.select(d, 0) - output.select(d, -1)).abs().mean().item() for d in (2, 3))
    inside = sum(output.diff(dim=d).abs().mean().item() for d in (2, 3))
    return across / max(inside, 1e-6)


class Score(NamedTuple):
    """The function of a score, and how to read its values."""

    function: Callable[[Tensor, Tensor], float]
    reading: str


SCORES = {
    "colour": Score(colour, "Wasserstein-1 of each channel, grey levels; 0 is best"),
    "patches": Score(patches, "sliced Wasserstein of 7x7 patches, grey levels; 0 is best"),
    "chroma": Score(chroma, "fine colour differences, octaves; 0 is best, above: specks"),
    "grain": Score(grain, "detail of the flattest fifth, octaves; 0 is best"),
    "rim": Score(rim, "steps at the border over those inside, octaves; 0 is best"),
    "objects": Score(
        objects, "distance of 12x12 patches from the exemplar's, at 128 px; 0 is best"
    ),
    "used": Score(used, "distance of the exemplar's 12x12 patches from the picture's; 0 is best"),
    "peak": Score(
        peak, "correlation after a period, over the exemplar's; 1 is best, nan: irregular"
    ),
    "copied": Score(copied, "share of patches copied with their neighbours; 0 is best"),
    "layout": Score(layout, "share of places that lie as in the exemplar; 0 is best"),
    "unshifted": Score(unshifted, "RMSE over the standard deviation; 0 is a copy, 1.41 unrelated"),
    "seam": Score(seam, "step across the border over the step inside; 1 is seamless"),
}


@torch.no_grad()
def score(output: Tensor, exemplar: Tensor) -> dict[str, tuple[float, float]]:
    """Return all scores of an output and of the exemplar's halves: name -> (value, halves).

    Args:
        output: (1, 3, H, W) in [0, 1] on the CPU, with sides of LEAST_SIDE px or more.
        exemplar: As `output`, in its own size; the halves divide its longer side.
    """
    longer = 2 if exemplar.shape[2] > exemplar.shape[3] else 3
    first, second = exemplar.split(exemplar.shape[longer] // 2, longer)[:2]
    return {
        name: (function(output, exemplar), function(second, first))
        for name, (function, _) in SCORES.items()
    }
