"""The start of a scale."""

import torch
from conftest import noise_image

from engine.schedule import Stage
from engine.spec import Spec, exemplar_of
from engine.start import partly_painted, start_of, with_painted_detail
from terms.base import Canvas


def test_noise_replaces_a_part_of_the_contrast_of_a_painting():
    """0.8 of the contrast and 0.6 of the noise, as 0.8^2 + 0.6^2 = 1."""
    painting = torch.tensor([0.4, 0.6]).view(1, 1, 1, 2).repeat(1, 3, 8, 4)  # columns; mean 0.5
    white = torch.full((1, 3, 8, 8), 0.6)
    spec = Spec((exemplar_of(painting),), Canvas((8, 8)))
    found = partly_painted(spec, painting, white)
    expected = torch.tensor([0.42, 0.58]) + 0.06
    torch.testing.assert_close(found, expected.view(1, 1, 1, 2).repeat(1, 3, 8, 4))


def test_detail_is_painted_from_the_exemplar_at_the_size_of_the_stage():
    """Stripes with a period of 8 px, halved, have one of 4 px: 8 in a width of 32 px, not 4."""
    stripes = (torch.arange(64) // 4 % 2).float().expand(1, 3, 64, 64) * 0.6 + 0.2
    spec = Spec((exemplar_of(stripes),), Canvas((64, 64)))
    flat = 0.49 + 0.02 * noise_image(32, 32)
    found = with_painted_detail(spec, flat, Stage((32, 32), (32, 32), 1))
    spectrum = torch.fft.rfft(found[0, 0].mean(0) - found[0, 0].mean()).abs()
    assert spectrum[6:11].sum() > 2 * spectrum[2:6].sum()


def test_the_first_stage_starts_from_a_given_picture_or_from_the_painting_of_its_layout():
    init, painting = (torch.full((1, 3, 16, 16), value) for value in (0.2, 0.8))
    spec = Spec((exemplar_of(noise_image(16, 16)),), Canvas((16, 16), init=init))
    for start, expected in ((None, init), (painting, painting)):
        found = start_of(spec, [Stage((16, 16), (16, 16), 1)], None, start, torch.Generator())
        near, far = ((found - x).abs().mean() for x in (expected, init + painting - expected))
        assert near < far
