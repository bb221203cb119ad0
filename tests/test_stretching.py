"""Stretched exemplars."""

import math

import pytest
import torch

from engine.stretching import STRAIN, double, stretch


def test_a_stretch_is_as_strong_as_it_says_and_no_more():
    """Of a ramp along x the slopes are 1, give or take the stretch along x."""
    ramp = torch.arange(256.0).expand(1, 1, 256, 256)
    found = stretch(ramp, 0)
    inside = found.diff(dim=3)[..., 20:-20, 20:-20] - 1
    assert inside.square().mean().sqrt() == pytest.approx(STRAIN, rel=0.15)
    # A wave of that slope is as high as its length by 2 pi, times the root of 2: 0.9 px.
    assert 0.5 < (found - ramp).abs().max() < 2.5
    assert torch.equal(found, stretch(ramp, 0))
    assert not torch.equal(found, stretch(ramp, 1))


def test_rows_and_columns_stay_straight_and_the_outermost_where_they_are():
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    for one, dim in ((ramp, 2), (ramp.transpose(2, 3), 3)):
        found = stretch(one, 0)
        assert found.diff(dim=dim).abs().max() < 1e-4 < found.sub(one).abs().max()
        along = found.select(dim, 0).flatten()
        assert along[0] == pytest.approx(0, abs=0.05) and along[-1] == pytest.approx(63, abs=0.05)


def test_what_lies_halfway_is_interpolated_without_blur():
    """Of waves of 4 px a mean of the two nearest pixels leaves cos(pi / 4), 0.71."""
    y, x = torch.arange(0, 24, 0.5)[:, None], torch.arange(0, 32, 0.5)
    wave = (math.pi / 2 * (x - y)).cos()[None, None]
    found = double(wave[..., ::2, ::2])
    assert found.shape == wave.shape
    torch.testing.assert_close(found[..., ::2, ::2], wave[..., ::2, ::2])
    error = (found - wave)[..., 14:-14, 14:-14].abs()
    assert error.max() < 0.02
