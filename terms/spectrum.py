"""The power spectrum of the pixels: order over any distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models import Features
from terms.base import TINY, LayerWeights, Statistics, Term, TermInputs
from terms.valid import crop_to_valid
from utils import Size, size_of, wrapped

SPECTRUM_PADDING = 2  # times the size; with 1, lags wrap round, and order is lost at the rim


class Spectrum(Term):
    """The power spectrum of the pixels: Liu, Gousseau and Xia, "Texture Synthesis Through
    Convolutional Neural Networks and Spectrum Constraints", 2016.

    The squared distance between the output and the picture nearest to it that has the source's
    Fourier modulus and the source's phase differences between the channels: one phase for three
    channels. We depart from the paper in that windows of the source's size are compared, as many
    as cover the output by halves, so that the output may have any size; and that each is padded
    with zeros, so that its spectrum is that of lags that do not wrap round: a period that does not
    divide the size is spread over several frequencies, whose phases wrapping leaves free.

    With a mask the nearest picture is computed from all pixels, so that the order of the kept ones
    continues in the new ones, but only new ones count in the distance: Hirani and Totsuka,
    "Combining Frequency and Spatial Domain Information for Fast Interactive Image Noise Removal",
    1996.
    """

    needs_whole = "takes the Fourier transform of the picture"
    uses_pixels = True

    def __init__(self, inputs: TermInputs, layers: LayerWeights) -> None:
        self.sources = [
            (share, _Source(crop_to_valid(view.image.detach(), view.valid)))
            for share, view in inputs.weighted_views
        ]
        self.tile = inputs.canvas.tile
        asked = inputs.canvas.output_regions
        self.counts = None if asked is None else (asked >= 0).float()  # (1, 1, H, W)
        self.asked: dict[tuple[Size, Size], tuple[dict[int, Tensor], Tensor]] = {}

    def measure(self, output: Features) -> Statistics:
        found = [(share, *self._measured(one, output["image"])) for share, one in self.sources]
        energy = torch.stack([share * energy for share, _, energy in found]).sum()
        distance = torch.stack([share * distance for share, distance, _ in found]).sum(0)
        return {"distance": distance / energy}

    def _measured(self, source: _Source, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the mean squared distance of its windows, (B,), and the energy of the
        source's window."""
        image = image - source.mean
        size = height, width = source.window(size_of(image))
        spectrum, energy = source.spectrum_at(size)
        parts = self._windows(image, height, width)
        if self.counts is None:
            distances = torch.stack([_one_phase_distance(part, spectrum) for part in parts])
            return distances.mean(0), energy
        asked, share = self._asked(self.counts, size_of(image), size)
        distance = image.new_zeros(len(image))
        for i, counts in asked.items():
            distance = distance + _one_phase_distance(parts[i], spectrum, counts)
        return distance, energy * share

    def _windows(self, maps: Tensor, height: int, width: int) -> list[Tensor]:
        return _windows(wrapped(maps, self.tile, height // 2, width // 2), height, width)

    def _asked(self, counts: Tensor, size: Size, window: Size) -> tuple[dict[int, Tensor], Tensor]:
        """The windows of a picture of that size in which pixels count, by index, with 1 where they
        do and 0 elsewhere; and the sum of the shares of these pixels. Kept for the next call."""
        if (size, window) not in self.asked:
            windows = self._windows(F.adaptive_max_pool2d(counts, size), *window)
            asked = {i: part for i, part in enumerate(windows) if part.any()}
            means = (part.mean() for part in asked.values())
            share = sum(means, counts.new_zeros(())).clamp(min=TINY)
            self.asked[size, window] = asked, share
        return self.asked[size, window]

    def distance(self, statistics: Statistics) -> Tensor:
        return statistics["distance"]


class _Source:
    """An exemplar's pixels about their mean, and the spectra of its windows."""

    def __init__(self, image: Tensor) -> None:
        """(1, 3, h, w)"""
        self.mean = image.mean((2, 3), keepdim=True)
        self.image = image - self.mean
        self.spectra: dict[Size, tuple[Tensor, Tensor]] = {}

    def window(self, size: Size) -> Size:
        """The largest window that fits into the exemplar and into a picture of that size."""
        height, width = map(min, size, size_of(self.image))
        return height, width

    def spectrum_at(self, size: Size) -> tuple[Tensor, Tensor]:
        """(1, 3, 2 H, W + 1), the spectrum of the middle window, and its energy. Kept."""
        if size not in self.spectra:
            sources = _windows(self.image, *size)
            source = sources[len(sources) // 2]
            spectrum = torch.fft.rfft2(source, _padded(*size))
            self.spectra[size] = spectrum, source.square().sum().clamp(min=TINY)
        return self.spectra[size]


def _one_phase_distance(image: Tensor, wanted: Tensor, counts: Tensor | None = None) -> Tensor:
    """(B, 3, H, W), spectrum (1, 3, ...) -> (B,): squared distance of image from its nearest
    picture with the modulus and the phase differences of that spectrum.

    With `counts`, (1, 1, H, W) of 0 and 1, only of the pixels that are 1.
    """
    height, width = image.shape[2:]
    shape = _padded(height, width)
    # The nearest picture minimises the distance, so the gradient with respect to it is 0; that of
    # the distance of some of the pixels is not.
    with torch.set_grad_enabled(counts is not None and torch.is_grad_enabled()):
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
