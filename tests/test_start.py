"""The start of a scale."""

import pytest
import torch
from conftest import noise_image

from engine.schedule import Stage
from engine.spec import Spec, exemplar_of
from engine.start import partly_painted, with_detail_of_painting
from terms.base import Canvas
from utils import resize


@pytest.fixture
def spec():
    return Spec((exemplar_of(noise_image(32, 32)),), Canvas((16, 16)))


def test_a_picture_that_did_not_change_gets_the_pixels_of_the_painting(spec):
    painting = noise_image(24, 24) / 2 + 0.25
    coarse, fine = Stage((16, 16), (12, 12), 1), Stage((32, 32), (24, 24), 1)
    enlarged = resize(resize(painting, (12, 12)), (24, 24))
    found = with_detail_of_painting(spec, enlarged, painting, coarse, fine)
    torch.testing.assert_close(found, painting)
    # A change of the coarser scale is kept.
    found = with_detail_of_painting(spec, enlarged + 0.1, painting, coarse, fine)
    torch.testing.assert_close(found, painting + 0.1)


def test_noise_replaces_a_part_of_the_contrast_of_a_painting(spec):
    """0.8 of the contrast and 0.6 of the noise, as 0.8^2 + 0.6^2 = 1."""
    painting = torch.tensor([0.4, 0.6]).view(1, 1, 1, 2).repeat(1, 3, 8, 4)  # columns; mean 0.5
    white = torch.full((1, 3, 8, 8), 0.6)
    found = partly_painted(spec, painting, white)
    expected = torch.tensor([0.42, 0.58]) + 0.06
    torch.testing.assert_close(found, expected.view(1, 1, 1, 2).repeat(1, 3, 8, 4))
