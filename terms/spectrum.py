"""Power spectrum of the pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import TINY, LayerWeights, Statistics, Term, TermInputs
from terms.valid import weighted_sources
from utils import Size, size_of, wrapped

SPECTRUM_PADDING = 2  # times the size; at 1, lags wrap around and order is lost at the borders


class Spectrum(Term):
    """Spectrum constraint of Liu, Gousseau and Xia, "Texture Synthesis Through Convolutional Neural
    Networks and Spectrum Constraints", 2016.

    The loss is the squared distance of the output from its projection onto the set of pictures that
    have the modulus of the source's Fourier transform and the source's phase differences between
    channels: at each frequency, one phase is free for all three channels.

    Departures from the paper: the output is compared in windows of the source's size, each
    overlapping the next by at least half, so that it may have any size; windows are padded with
    zeros, so that lags do not wrap around. Without padding, a period that does not divide the size
    is spread over several frequencies, whose relative phases are free. The distance is relative to
    the squared norm of the source.

    With a mask, the projection uses all pixels, so that order continues from the kept pixels into
    the new ones, and the distance uses the new pixels only: Hirani and Totsuka, "Combining
    Frequency and Spatial Domain Information for Fast Interactive Image Noise Removal", 1996.
    """

    needs_whole = "takes the Fourier transform of the picture"
    uses_pixels = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.sources = [
            (share, _Source(image)) for share, image in weighted_sources(inputs, "image")
        ]
        self.wrap = inputs.canvas.wrap
        regions = inputs.canvas.output_regions
        # (1, 1, H, W), 1 in any region, else 0; None: the whole output is a single region.
        self.weights = None if regions is None else (regions >= 0).float()
        self.weighted: dict[tuple[Size, Size], tuple[dict[int, Tensor], Tensor]] = {}

    def measure(self, output: Features) -> Statistics:
        found = [(share, *self._measured(one, output["image"])) for share, one in self.sources]
        energy = torch.stack([share * energy for share, _, energy in found]).sum()
        distance = torch.stack([share * distance for share, distance, _ in found]).sum(0)
        return {"distance": distance / energy}

    def _measured(self, source: _Source, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return a squared distance of (B, 3, H, W), (B,), and an energy, (); their ratio is the
        error relative to the source, mean over windows or, with weights, over pixels."""
        image = image - source.mean
        size = height, width = source.window(size_of(image))
        spectrum, energy = source.spectrum_at(size)
        windows = self._windows(image, height, width)
        if self.weights is None:
            distances = torch.stack([_one_phase_distance(part, spectrum) for part in windows])
            return distances.mean(0), energy
        weighted, share = self._weighted_windows(self.weights, size_of(image), size)
        distance = image.new_zeros(len(image))
        for i, weights in weighted.items():
            distance = distance + _one_phase_distance(windows[i], spectrum, weights)
        return distance, energy * share

    def _windows(self, maps: Tensor, height: int, width: int) -> list[Tensor]:
        return _windows(wrapped(maps, self.wrap, height // 2, width // 2), height, width)

    def _weighted_windows(
        self, weights: Tensor, size: Size, window: Size
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Cut the weights into windows. The result is cached.

        Returns:
            index of each window that has a pixel of weight 1 -> weights, (1, 1, h, w).
            Sum over windows of the mean weight.
        """
        if (size, window) not in self.weighted:
            windows = self._windows(F.adaptive_max_pool2d(weights, size), *window)
            weighted = {i: part for i, part in enumerate(windows) if part.any()}
            means = (part.mean() for part in weighted.values())
            share = sum(means, weights.new_zeros(())).clamp(min=TINY)
            self.weighted[size, window] = weighted, share
        return self.weighted[size, window]

    def distance(self, statistics: Statistics) -> Tensor:
        return statistics["distance"]


class _Source:
    """Pixels of an exemplar minus their mean, and spectra of windows of them."""

    def __init__(self, image: Tensor) -> None:
        """
        Args:
            image: (1, 3, h, w).
        """
        self.mean = image.mean((2, 3), keepdim=True)
        self.image = image - self.mean
        self.spectra: dict[Size, tuple[Tensor, Tensor]] = {}

    def window(self, size: Size) -> Size:
        """Return the size of the largest window that fits into the exemplar and into `size`."""
        height, width = map(min, size, size_of(self.image))
        return height, width

    def spectrum_at(self, size: Size) -> tuple[Tensor, Tensor]:
        """Return the spectrum, (1, 3, 2 H, W + 1), and the energy, (), of the middle window of size
        (H, W). The result is cached."""
        if size not in self.spectra:
            sources = _windows(self.image, *size)
            source = sources[len(sources) // 2]
            spectrum = torch.fft.rfft2(source, _padded(*size))
            self.spectra[size] = spectrum, source.square().sum().clamp(min=TINY)
        return self.spectra[size]


def _one_phase_distance(image: Tensor, source: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the squared distance of a picture from its projection onto the set of pictures that
    have the modulus and the phase differences between channels of a spectrum.

    Args:
        image: (B, 3, H, W).
        source: spectrum, (1, 3, 2 H, W + 1).
        weights: of the pixels, (1, 1, H, W) of 0 and 1; None: all 1.

    Returns:
        (B,)
    """
    height, width = image.shape[2:]
    shape = _padded(height, width)
    # The projection minimises the unweighted distance, whose gradient through the projection is
    # therefore 0. That of a weighted distance is not.
    with torch.set_grad_enabled(weights is not None and torch.is_grad_enabled()):
        common = (torch.fft.rfft2(image, shape) * source.conj()).sum(1, keepdim=True)
        phase = torch.polar(torch.ones_like(common.abs()), common.angle())
        nearest = torch.fft.irfft2(phase * source, shape)
    if weights is not None:
        return ((image - nearest[..., :height, :width]).square() * weights).sum((1, 2, 3))
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
    """Return the starts of the fewest windows that cover a length, each overlapping the next by at
    least half."""
    count = 1 + math.ceil(2 * (length - window) / window)
    return [round(i * (length - window) / max(count - 1, 1)) for i in range(count)]
