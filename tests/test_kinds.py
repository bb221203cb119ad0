"""The kind of a texture."""

import math

import pytest
import torch
from conftest import noise_image, seeded
from torch.nn import functional as F

from engine.kinds import is_uneven, kind_of


def waves(*pairs: tuple[float, float]) -> torch.Tensor:
    y, x = torch.arange(128.0)[:, None], torch.arange(128.0)
    found = sum((2 * math.pi * (a * y + b * x)).sin() for a, b in pairs)
    return (found / (2 * len(pairs)) + 0.5).expand(1, 3, 128, 128)


def kinds() -> dict[str, torch.Tensor]:
    """A picture of every kind, in the order in which they are looked for."""
    rough = torch.rand(1, 1, 128, 128, generator=seeded())
    across = F.interpolate(rough[..., :16], (128, 128), mode="bicubic")
    bricks = F.interpolate(rough[..., :13, :7], (128, 128))
    ramp = torch.linspace(0, 1, 128).expand(1, 1, 128, 128)
    blotches = F.interpolate(rough[..., :24, :24], (128, 128), mode="bicubic")
    found = {
        "periodic": waves((0.1, 0.0), (0.0, 0.1)),
        "directional": across,
        "in courses": bricks,
        "not stationary": ramp * 0.8 + rough * 0.2,
        "composed of objects": blotches,
        "stochastic": rough,
    }
    return {name: image.expand(1, 3, 128, 128).clamp(0, 1) for name, image in found.items()}


@pytest.mark.parametrize("name", list(kinds()))
def test_the_kind_of_a_texture(name):
    found = kind_of(kinds()[name])
    assert found.name == name
    assert found.regular == (name in ("periodic", "in courses"))


def test_grain_runs_along_an_axis_of_the_picture_or_none():
    across = kinds()["directional"]
    assert kind_of(across).axis == "x" and kind_of(across.transpose(2, 3)).axis == "y"
    assert kind_of(waves((0.01, 0.012), (0.03, 0.035), (0.071, 0.067))).axis == ""
    assert kind_of(kinds()["stochastic"]).axis == ""


def test_any_picture_has_a_kind():
    for size in ((1, 1), (16, 16), (300, 20), (600, 520)):
        assert kind_of(torch.zeros(1, 3, *size)).name
        assert kind_of(noise_image(*size)).name


@pytest.mark.parametrize(
    "height, level, uneven",
    [
        (0.0, 0.1, True),  # smooth and dark
        (0.2, 0.0, False),  # as rough and dark
        (0.0, 0.5, False),  # smooth, of the same mean
        (0.2, 0.4, False),  # as rough, of the same mean
    ],
)
def test_a_picture_is_uneven_if_colour_and_detail_differ(height, level, uneven):
    """The left half is noise from 0.4 to 0.6, the right half from `level` to `level` + `height`.
    The means of 0.5 and 0.1 have a variance of 0.04, the noise of 0.2 / 12 ** 0.5 = 0.06."""
    picture = 0.4 + 0.2 * noise_image(128, 128)
    picture[..., 64:] = level + height * noise_image(128, 64, seed=1)
    for image in (picture, picture.transpose(2, 3), F.interpolate(picture, scale_factor=4.0)):
        assert is_uneven(image) == uneven
    assert not is_uneven(picture[..., 1:])  # 127 px
