"""How good a synthesised texture is, without any pretrained net: what a careful reviewer checks.

Every score compares an output with its exemplar, both (1, 3, H, W) in [0, 1] and of any sizes.
A score means little alone, so each comes beside the value that one half of the exemplar has
against the other: two pieces of the same real texture.
"""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from command.arguments import Request
from command.display import say
from terms.autocorrelation import (
    PERIODIC,
    luminance_autocorrelation,
    period,
    self_correlation,
    without_shade,
)
from terms.base import resampled
from terms.patches import PATCH, PATCH_LEVELS, unit_directions
from utils import LEVELS, UserError, find_picture, read_picture

DIRECTIONS = 128
BINS = 64
LEAST_SIDE = 64  # px, so that a half of the exemplar still has three pyramid levels of patches
QUERY_STRIDE = 4  # px between the output patches whose copies are looked for
CHUNK = 2**25  # distances held at a time, 128 MiB


def wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """(..., n), (..., m) samples -> (...): Wasserstein-1 distance of their distributions."""
    count = max(a.shape[-1], b.shape[-1])
    a, b = (resampled(x.sort(-1).values, count) for x in (a, b))
    return (a - b).abs().mean(-1)


def colour(output: Tensor, source: Tensor) -> float:
    """Wasserstein-1 distance of the values of each channel, mean of the three, in grey levels."""
    return LEVELS * wasserstein(output[0].flatten(1), source[0].flatten(1)).mean().item()


def patches(output: Tensor, source: Tensor) -> float:
    """Sliced Wasserstein-1 distance of 7x7 patches over three pyramid levels, in grey levels.

    Random unit directions (Rabin et al. 2011), the same in every call.
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


def wavelet(output: Tensor, source: Tensor) -> float:
    """Kullback-Leibler divergence in nats of Haar coefficients, output from source.

    Mean over three levels, three orientations and three channels; histograms over four standard
    deviations of the source's band, the tails in the outermost bins.
    """
    # Averages and differences of 2x2 blocks: horizontal, vertical and diagonal detail.
    haar = torch.tensor([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 4
    divergences = []
    for level in range(PATCH_LEVELS):
        bands = []
        for image in (output, source):
            coarse = F.avg_pool2d(image, 2**level)[0][:, None]  # (3, 1, h, w)
            bands.append(F.conv2d(coarse, haar[:, None], stride=2).flatten(2).flatten(0, 1))
        for drawn, wanted in zip(*bands, strict=True):
            scale = 4 * max(wanted.std().item(), 0.5 / LEVELS)
            p, q = (_histogram(band / scale) for band in (drawn, wanted))
            divergences.append((p * (p / q).log()).sum())
    return torch.stack(divergences).mean().item()


def _histogram(values: Tensor) -> Tensor:
    counts = torch.histc(values.clamp(-1, 1), BINS, -1, 1) + 0.5  # no bin is impossible
    return counts / counts.sum()


def _reach(output: Tensor, source: Tensor) -> int:
    return min(*output.shape[-2:], *source.shape[-2:]) // 2


def autocorrelation(output: Tensor, source: Tensor) -> float:
    """RMS difference of the autocorrelations, over lags up to half of the shorter side."""
    reach = _reach(output, source)
    a, b = (luminance_autocorrelation(x, reach) for x in (output, source))
    return (a - b).square().mean().sqrt().item()


def peak(output: Tensor, source: Tensor) -> float:
    """The output's correlation with itself after the source's period, over the source's own.

    Light falling off over a picture is left out; the highest value within 2 px of the period
    counts. NaN where the source does not repeat clearly enough to be regular.
    """
    clear, y, x = period(source, _reach(output, source))
    if clear < PERIODIC:
        return math.nan
    reach = max(abs(y), abs(x)) + 2
    y, x = y + reach, x + reach
    drawn, wanted = (
        self_correlation(without_shade(image), reach)[y - 2 : y + 3, x - 2 : x + 3].max()
        for image in (output, source)
    )
    return (drawn / wanted).item()


def copied(output: Tensor, source: Tensor) -> float:
    """Share of 7x7 patches that were copied from the source together with their neighbours.

    A patch counts when its nearest source patch, the one 4 px to its right's and the one 4 px
    below's lie in the source as the three lie in the output: more than 11x11 pixels in one piece.
    """
    wanted = F.unfold(source, PATCH)[0]  # (P, M)
    drawn = F.unfold(output, PATCH, stride=QUERY_STRIDE)[0].T  # (N, P)
    half_norms = wanted.square().sum(0) / 2
    rows = max(1, CHUNK // wanted.shape[1])
    nearest = torch.cat([(half_norms - part @ wanted).argmin(1) for part in drawn.split(rows)])
    across = source.shape[-1] - PATCH + 1
    columns = (output.shape[-1] - PATCH) // QUERY_STRIDE + 1
    y, x = ((z.view(-1, columns)) for z in (nearest // across, nearest % across))
    right = (y[:, 1:] == y[:, :-1]) & (x[:, 1:] - x[:, :-1] == QUERY_STRIDE)
    below = (y[1:] - y[:-1] == QUERY_STRIDE) & (x[1:] == x[:-1])
    return (right[:-1] & below[:, :-1]).float().mean().item()


def unshifted(output: Tensor, source: Tensor) -> float:
    """RMSE of output and source laid over each other, over the source's standard deviation.

    0 for the exemplar itself, 1.41 for an unrelated picture of the same texture.
    """
    height, width = (min(output.shape[i], source.shape[i]) for i in (2, 3))
    a, b = (x[..., :height, :width] for x in (output, source))
    spread = (b - b.mean((2, 3), keepdim=True)).square().mean().sqrt()
    return ((a - b).square().mean().sqrt() / spread.clamp(min=1e-6)).item()


def seam(output: Tensor, source: Tensor) -> float:
    """Mean step across the borders of a 2x2 tiling over the mean step inside; 1 is seamless."""
    across = sum((output.select(d, 0) - output.select(d, -1)).abs().mean().item() for d in (2, 3))
    inside = sum(output.diff(dim=d).abs().mean().item() for d in (2, 3))
    return across / max(inside, 1e-6)


class Score(NamedTuple):
    """A score, and how to read it."""

    function: Callable[[Tensor, Tensor], float]
    reading: str


SCORES = {
    "colour": Score(colour, "Wasserstein-1 of each channel, grey levels; 0 is best"),
    "patches": Score(patches, "sliced Wasserstein of 7x7 patches, grey levels; 0 is best"),
    "wavelet": Score(wavelet, "KL divergence of wavelet bands, nats; 0 is best"),
    "autocorrelation": Score(autocorrelation, "RMS difference of autocorrelations; 0 is best"),
    "peak": Score(
        peak, "correlation after a period, over the exemplar's; 1 is best, nan: irregular"
    ),
    "copied": Score(copied, "share of patches copied with their neighbours; 0 is best"),
    "unshifted": Score(unshifted, "RMSE over the standard deviation; 0 is a copy, 1.41 unrelated"),
    "seam": Score(seam, "step across the border over the step inside; 1 tiles"),
}


@torch.no_grad()
def score(output: Tensor, exemplar: Tensor) -> dict[str, tuple[float, float]]:
    """Every score of an output, and the same of the exemplar's halves: name -> (value, halves).

    Both pictures (1, 3, H, W) in [0, 1] on the CPU, sides of `LEAST_SIDE` px or more. The halves
    are cut across the longer side.
    """
    longer = 2 if exemplar.shape[2] > exemplar.shape[3] else 3
    first, second = exemplar.split(exemplar.shape[longer] // 2, longer)[:2]
    return {
        name: (function(output, exemplar), function(second, first))
        for name, (function, _) in SCORES.items()
    }


def as_table(scores: dict[str, tuple[float, float]]) -> str:
    """What `score` returns as lines of text, each score with how to read it."""
    lines = [f"{'score':16} {'picture':>8} {'halves':>8}"]
    for name, (value, halves) in scores.items():
        lines.append(f"{name:16} {value:8.3f} {halves:8.3f}  {SCORES[name].reading}")
    return "\n".join(lines)


def as_json(scores: dict[str, tuple[float, float]]) -> str:
    """What `score` returns as `{name: {"picture": value, "halves": value}}`; NaN is null."""
    plain = {
        name: [None if math.isnan(value) else round(value, 6) for value in values]
        for name, values in scores.items()
    }
    return json.dumps({name: {"picture": a, "halves": b} for name, (a, b) in plain.items()})


def print_scores(request: Request) -> None:
    """What `--score` asks for, as a table or as JSON.

    Raises:
        UserError: several exemplars, or a picture that is missing or too small.
    """
    assert request.score is not None
    if len(request.gt_path) > 1:
        told = f"--score compares with one exemplar, --gt_path has {len(request.gt_path)}"
        raise UserError(told)
    pictures = []
    for path in (find_picture(request.score), find_picture(request.gt_path[0])):
        picture, notes = read_picture(path)
        height, width = picture.shape[-2:]
        if min(height, width) < LEAST_SIDE:
            raise UserError(f"{path}: {width}x{height}, scores need sides of {LEAST_SIDE} or more")
        say(notes, request.quiet)
        pictures.append(picture)
    scores = score(*pictures)
    print(as_json(scores) if request.json else as_table(scores))
