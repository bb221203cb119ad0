"""Detail of a painting beside the colours of an optimised picture."""

import pytest
import torch
from conftest import fast_first
from torch.nn import functional as F

from engine import colours
from engine.colours import with_fine_detail
from utils import pad_axes


@pytest.mark.parametrize("wrap", fast_first(["x", "", "xy"]))
def test_what_is_smooth_is_the_mean_around_it(wrap):
    maps = torch.rand(1, 3, 14, 17, dtype=torch.float64)
    around = pad_axes(maps, wrap, "".join(axis for axis in "yx" if axis not in wrap), 4)
    torch.testing.assert_close(colours._smooth(maps, wrap), F.avg_pool2d(around, 9, 1))


def test_fine_detail_is_the_paintings_and_all_else_is_the_pictures():
    painting = torch.full((1, 3, 36, 36), 0.5)
    redder = painting + torch.tensor((0.1, 0.0, -0.1)).view(1, 3, 1, 1)
    assert torch.allclose(with_fine_detail(redder, painting), redder, atol=1e-6)
    specks = painting.clone()
    specks[..., ::9, ::9] += 0.3  # one in 81 px
    assert torch.allclose(with_fine_detail(specks, painting, "xy"), painting + 0.3 / 81, atol=1e-6)
