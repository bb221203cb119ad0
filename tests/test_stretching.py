"""Stretched exemplars."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import noise_image

from engine.kinds import PERIODICAL
from engine.spec import Spec
from engine.stretching import STRAIN, double, stretch, with_stretched_exemplars
from terms.base import Canvas, Exemplar, View
from terms.valid import NEARLY_ALL


def test_the_strain_of_a_stretch():
    """A ramp along x has slope 1 plus the stretch along x. A wave of that strain has an amplitude
    of 0.9 px: its length by 2 pi, times the root of 2."""
    ramp = torch.arange(256.0).expand(1, 1, 256, 256)
    found = stretch(ramp, 0)
    inside = found.diff(dim=3)[..., 20:-20, 20:-20] - 1
    assert inside.square().mean().sqrt() == pytest.approx(STRAIN, rel=0.15)
    assert 0.5 < (found - ramp).abs().max() < 2.5
    assert torch.equal(found, stretch(ramp, 0))
    assert not torch.equal(found, stretch(ramp, 1))


def test_rows_and_columns_stay_straight_and_the_outermost_stay_in_place():
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    for one, dim in ((ramp, 2), (ramp.transpose(2, 3), 3)):
        found = stretch(one, 0)
        assert found.diff(dim=dim).abs().max() < 1e-4 < found.sub(one).abs().max()
        along = found.select(dim, 0).flatten()
        assert along[0] == pytest.approx(0, abs=0.05) and along[-1] == pytest.approx(63, abs=0.05)


@pytest.fixture
def striped():
    """Image, guide and valid mask are the same vertical stripes of 5 px."""
    stripe = (torch.arange(40) // 5 % 2).float().expand(1, 1, 32, 40)
    view = View({"image": stripe.expand(1, 3, 32, 40)}, guide=stripe, valid=stripe > 0)
    return Spec((Exemplar((view,), share=0.4),), Canvas((32, 40)), seed=3)


def test_image_guide_and_valid_mask_of_a_view_are_stretched_alike(striped):
    (before,), (found,) = striped.exemplars, with_stretched_exemplars(striped).exemplars
    assert found.share == 0.4
    image, guide, valid = found.image[:, :1], found.views[0].guide, found.valid
    torch.testing.assert_close(image, guide)
    assert (image - before.image).abs().max() > 0.1
    assert torch.equal(valid, image > NEARLY_ALL) and not torch.equal(valid, before.valid)


@pytest.mark.parametrize("period", [(0, -15), (60, 0)])
def test_periodic_textures_are_not_stretched(period, striped):
    spec = replace(striped, kind=PERIODICAL._replace(period=period))
    assert with_stretched_exemplars(spec) is spec


def test_pixels_halfway_are_interpolated_without_blur():
    """For waves of 4 px a mean of the two nearest pixels has the amplitude cos(pi / 4), 0.71."""
    y, x = torch.arange(0, 24, 0.5)[:, None], torch.arange(0, 32, 0.5)
    wave = (math.pi / 2 * (x - y)).cos()[None, None]
    found = double(wave[..., ::2, ::2])
    assert found.shape == wave.shape
    torch.testing.assert_close(found[..., ::2, ::2], wave[..., ::2, ::2])
    error = (found - wave)[..., 14:-14, 14:-14].abs()
    assert error.max() < 0.02


def test_a_stretch_adds_no_values():
    image = noise_image(24, 24)
    found = stretch(image, 0)
    assert found.min() >= image.min() and found.max() <= image.max()
