"""Borders, start, mask, content: what each does to pixels."""

import pytest
import torch

from command.canvas import expanded
from engine.colours import colours, luma, matched_colours, with_chroma, with_colours
from engine.synthesis import _started, cut, finished
from terms.base import Canvas
from utils import resize, scaled


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_start_is_what_came_before_unless_there_is_an_init():
    before, init = noise(1, 3, 8, 8), noise(1, 3, 8, 8, seed=1)
    assert _started(Canvas((8, 8)), before, first=True) is before
    assert _started(Canvas((8, 8), init=init), before, first=True) is init
    # It has been left already.
    assert _started(Canvas((8, 8), init=init), before, first=False) is before


def test_a_canvas_has_one_size():
    with pytest.raises(ValueError, match=r"mask has the size \(8, 9\), not \(8, 8\)"):
        Canvas((8, 8), init=noise(1, 3, 8, 8), mask=noise(1, 1, 8, 9) > 0.5)


def test_a_tile_is_cut_where_the_step_is_nearest_to_the_mean():
    # Steps round the ring: 0.8, 0.6, 0.1 and 0.1, on average 0.4; nearest is that of 0.6.
    ring = torch.tensor([0.0, 0.6, 0.7, 0.8])
    across, down = (ring.view(shape).expand(1, 3, 4, 4) for shape in ((1, 4), (4, 1)))
    moved = torch.tensor([0.6, 0.7, 0.8, 0.0])
    assert torch.equal(cut(across, "xy"), moved.expand(1, 3, 4, 4))
    assert torch.equal(cut(down, "y"), moved.view(4, 1).expand(1, 3, 4, 4))
    assert torch.equal(cut(across, "y"), across)


def test_what_is_kept_far_from_a_hole_does_not_count():
    """Else what fills the hole would make up for a picture of another texture around it."""
    mask = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    mask[..., 8, 9] = True
    region = Canvas((20, 20), init=noise(1, 3, 20, 20), mask=mask).asked
    assert (region[0, 0, 4:13, 5:14] == 0).all() and (region == 0).sum() == 9 * 9


def test_regions_hold_within_what_a_mask_lets_change():
    mask = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    mask[..., 8, 9] = True
    regions = torch.arange(20).expand(1, 1, 20, 20) // 10
    asked = Canvas((20, 20), init=noise(1, 3, 20, 20), mask=mask, regions=regions).asked
    assert asked[0, 0, 8].tolist() == [-1] * 5 + [0] * 5 + [1] * 4 + [-1] * 6


@pytest.mark.parametrize("tile", ["", "x", "y", "xy"])
def test_what_counts_around_a_hole_wraps_with_the_tile(tile):
    mask = torch.zeros(1, 1, 20, 24, dtype=torch.bool)
    mask[..., 0, 23] = True
    region = Canvas((20, 24), tile, noise(1, 3, 20, 24), mask).asked
    rows, columns = {0, 1, 2, 3, 4}, {19, 20, 21, 22, 23}
    rows |= {16, 17, 18, 19} if "y" in tile else set()
    columns |= {0, 1, 2, 3} if "x" in tile else set()
    found = {tuple(place) for place in (region[0, 0] == 0).nonzero().tolist()}
    assert found == {(y, x) for y in rows for x in columns}


@pytest.mark.parametrize("name", ["init", "content", "guide"])
def test_what_says_where_something_is_to_be(name):
    assert not Canvas((8, 8)).placed
    assert Canvas((8, 8), **{name: noise(1, 3, 8, 8)}).placed


def test_what_the_mask_keeps_is_init_at_every_scale():
    init, mask = noise(1, 3, 8, 8, seed=1), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2, 5] = True
    canvas = Canvas((8, 8), init=init, mask=mask)
    for first in (True, False):
        before = noise(1, 1, 8, 8)  # one channel, of a grey exemplar
        start = _started(canvas, before, first)
        assert torch.equal(start[..., 2, 5], before[..., 2, 5].expand(1, 3))
        assert (start != init).any(1).sum() == 1
    # A small hole is a hole at every scale.
    assert canvas.mask_at((4, 4)).nonzero().tolist() == [[0, 0, 1, 2]]
    assert canvas.mask_at((2, 2)).nonzero().tolist() == [[0, 0, 0, 1]]
    assert canvas.mask_at((8, 8)) is mask
    assert Canvas((8, 8)).mask_at((4, 4)) is None


def test_mixed_exemplars_are_resized_as_the_exemplar_is():
    board = torch.tensor([[0.0, 1], [1, 0]]).repeat(10, 15).expand(1, 3, 20, 30)
    half = resize(board, scaled(board, 0.5))
    assert half.shape == (1, 3, 10, 15)
    assert (half[..., 1:-1, 1:-1] - 0.5).abs().max() < 0.1  # antialiased
    assert scaled(board, 0.01) == (1, 1)


def test_finish_puts_back_what_is_kept():
    init, mask = noise(1, 3, 8, 8, seed=1), noise(1, 1, 8, 8) > 0.5
    image = noise(1, 3, 8, 8, seed=2)
    found = finished(Canvas((8, 8), init=init, mask=mask), image)
    assert torch.equal(found, torch.where(mask, image, init))
    assert torch.equal(finished(Canvas((8, 8), init=init), image), image)


def test_expanded_by_hand():
    image = torch.arange(1.0, 7).view(1, 1, 2, 3).expand(1, 3, 2, 3)
    canvas, mask = expanded(image, (3, 5))
    assert canvas[0, 0].tolist() == [[0, 1, 2, 3, 0], [0, 4, 5, 6, 0], [0, 0, 0, 0, 0]]
    assert torch.equal(mask, (canvas == 0)[:, :1])
    canvas, mask = expanded(image, (2, 3))
    assert torch.equal(canvas, image) and not mask.any()


def test_colours_are_distributed_as_the_exemplars():
    """Of one channel every pixel gets the exemplar's value of the same rank, exactly."""
    image = torch.tensor([0.1, 0.9, 0.5, 0.2]).view(1, 1, 2, 2)
    exemplar = torch.tensor([0.8, 0.3, 0.4, 0.6]).view(1, 1, 1, 4)
    found = with_colours(image, exemplar)
    torch.testing.assert_close(found, torch.tensor([0.3, 0.8, 0.6, 0.4]).view(1, 1, 2, 2))


def test_colours_of_three_channels_are_distributed_nearly_as_the_exemplars():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 40, 30, generator=generator)
    exemplar = torch.rand(1, 3, 20, 70, generator=generator)
    exemplar = 0.2 + 0.3 * exemplar + 0.3 * exemplar[:, :1]  # channels that depend on each other
    found, wanted = with_colours(image, exemplar)[0].flatten(1), exemplar[0].flatten(1)
    assert (found.mean(1) - wanted.mean(1)).abs().max() < 0.01
    assert (found.cov() - wanted.cov()).abs().max() < 0.2 * wanted.cov().abs().max()
    assert torch.equal(with_colours(image, exemplar), with_colours(image, exemplar))


def test_matched_colours_have_mean_and_covariance_of_the_content():
    style, content = (0.4 + 0.2 * noise(1, 3, 30, 30, seed=seed) for seed in (0, 1))
    content = content[:, [0, 1, 1]] * torch.tensor([0.5, 1, 1.2]).view(1, 3, 1, 1)
    found, wanted = (x[0].flatten(1) for x in (matched_colours(style, content), content))
    torch.testing.assert_close(found.mean(1), wanted.mean(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.cov(), wanted.cov(), atol=2e-4, rtol=0)
    torch.testing.assert_close(matched_colours(style, style), style, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_root_of_a_covariance_needs_no_full_rank(count):
    """So many colours span so many axes less one; the root's square is the covariance."""
    palette = torch.tensor([[10, 60, 200], [240, 220, 20], [90, 200, 70], [250, 10, 90]]) / 255
    pixels = palette[torch.arange(1200) % count].T
    mean, root = colours(pixels)
    torch.testing.assert_close(mean[:, 0], palette[:count].double().mean(0))
    torch.testing.assert_close(root, root.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(root @ root, pixels.double().cov(), atol=1e-12, rtol=0)
    assert torch.linalg.matrix_rank(root, atol=1e-6) == count - 1
    torch.testing.assert_close(colours(pixels[:1])[1], pixels[:1].double().std(1)[:, None])


def test_styles_of_one_and_two_colours_get_the_contents_as_far_as_they_have_axes():
    content = 0.4 + 0.2 * noise(1, 3, 30, 30)
    mean, root = colours(content[0].flatten(1))
    flat = torch.tensor([0.9, 0.1, 0.4]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    found = matched_colours(flat, content)
    torch.testing.assert_close(found, mean.float().view(1, 3, 1, 1).expand_as(flat))
    # Half of the pixels on either side of the mean, by the deviation along the one axis there is.
    dark, light = torch.tensor([10, 60, 200]) / 255, torch.tensor([240, 220, 20]) / 255
    odd = torch.arange(20_000) % 2 > 0
    style = torch.where(odd, light[:, None], dark[:, None]).view(1, 3, 100, 200)
    axis = torch.nn.functional.normalize((light - dark).double(), dim=0)
    found = matched_colours(style, content)[0].flatten(1).double()
    expected = mean + torch.where(odd, 1, -1) * (root @ axis)[:, None]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_chroma_is_the_contents_and_luma_the_pictures():
    image, content = (0.4 + 0.2 * noise(1, 3, 5, 5, seed=seed) for seed in (0, 1))
    found = with_chroma(image, content)
    torch.testing.assert_close(luma(found), luma(image))
    torch.testing.assert_close(found[:, 0] - found[:, 2], content[:, 0] - content[:, 2])
    assert luma(torch.ones(1, 3, 1, 1)).item() == pytest.approx(1)
