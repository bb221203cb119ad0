"""Borders, start, mask, content: what each does to pixels."""

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image
from test_pictures import colour_profile

from command.arguments import request_of
from command.canvas import Pictures, axes_at, canvas_of, drawn_axes, expanded, guide_of
from engine.colours import luma, matched_colours, mean_and_root, with_chroma, with_colours
from engine.finish import cut_at, whole
from engine.orientation import axis_bins
from engine.start import with_given_pixels
from terms.base import Canvas
from utils import UserError, resize


def rolled(image, wrap):
    return image.roll(cut_at(image, wrap), (2, 3))


def test_start_is_what_came_before_unless_there_is_an_init():
    before, init = noise(1, 3, 8, 8), noise(1, 3, 8, 8, seed=1)
    assert with_given_pixels(Canvas((8, 8)), before, everywhere=True) is before
    assert with_given_pixels(Canvas((8, 8), init=init), before, everywhere=True) is init
    # It has been left already.
    assert with_given_pixels(Canvas((8, 8), init=init), before, everywhere=False) is before


def test_a_canvas_has_one_size():
    with pytest.raises(ValueError, match=r"mask has the size \(8, 9\), not \(8, 8\)"):
        Canvas((8, 8), init=noise(1, 3, 8, 8), mask=noise(1, 1, 8, 9) > 0.5)


def test_a_tile_is_cut_where_the_step_is_nearest_to_the_mean():
    # Steps round the ring: 0.8, 0.6, 0.1 and 0.1, on average 0.4; nearest is that of 0.6.
    ring = torch.tensor([0.0, 0.6, 0.7, 0.8])
    across, down = (ring.view(shape).expand(1, 3, 4, 4) for shape in ((1, 4), (4, 1)))
    moved = torch.tensor([0.6, 0.7, 0.8, 0.0])
    assert torch.equal(rolled(across, "xy"), moved.expand(1, 3, 4, 4))
    assert torch.equal(rolled(down, "y"), moved.view(4, 1).expand(1, 3, 4, 4))
    assert torch.equal(rolled(across, "y"), across)


def test_what_is_kept_far_from_a_hole_does_not_count():
    """Else what fills the hole would make up for a picture of another texture around it."""
    mask = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    mask[..., 8, 9] = True
    region = Canvas((20, 20), init=noise(1, 3, 20, 20), mask=mask).output_regions
    assert (region[0, 0, 4:13, 5:14] == 0).all() and (region == 0).sum() == 9 * 9


def test_regions_hold_within_what_a_mask_lets_change():
    mask = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    mask[..., 8, 9] = True
    regions = torch.arange(20).expand(1, 1, 20, 20) // 10
    asked = Canvas((20, 20), init=noise(1, 3, 20, 20), mask=mask, regions=regions).output_regions
    assert asked[0, 0, 8].tolist() == [-1] * 5 + [0] * 5 + [1] * 4 + [-1] * 6


@pytest.mark.parametrize("wrap", ["", "x", "y", "xy"])
def test_what_counts_around_a_hole_wraps_with_the_tile(wrap):
    mask = torch.zeros(1, 1, 20, 24, dtype=torch.bool)
    mask[..., 0, 23] = True
    region = Canvas((20, 24), wrap, noise(1, 3, 20, 24), mask).output_regions
    rows, columns = {0, 1, 2, 3, 4}, {19, 20, 21, 22, 23}
    rows |= {16, 17, 18, 19} if "y" in wrap else set()
    columns |= {0, 1, 2, 3} if "x" in wrap else set()
    found = {tuple(place) for place in (region[0, 0] == 0).nonzero().tolist()}
    assert found == {(y, x) for y in rows for x in columns}


@pytest.mark.parametrize("name", ["init", "content", "guide"])
def test_what_says_where_something_is_to_be(name):
    assert not Canvas((8, 8)).has_layout
    assert Canvas((8, 8), **{name: noise(1, 3, 8, 8)}).has_layout


def test_what_the_mask_keeps_is_init_at_every_scale():
    init, mask = noise(1, 3, 8, 8, seed=1), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2, 5] = True
    canvas = Canvas((8, 8), init=init, mask=mask)
    for first in (True, False):
        before = noise(1, 1, 8, 8)  # one channel, of a grey exemplar
        start = with_given_pixels(canvas, before, everywhere=first)
        assert torch.equal(start[..., 2, 5], before[..., 2, 5].expand(1, 3))
        assert (start != init).any(1).sum() == 1
    # A small hole is a hole at every scale.
    assert canvas.mask_at((4, 4)).nonzero().tolist() == [[0, 0, 1, 2]]
    assert canvas.mask_at((2, 2)).nonzero().tolist() == [[0, 0, 0, 1]]
    assert canvas.mask_at((8, 8)) is mask
    assert Canvas((8, 8)).mask_at((4, 4)) is None


def test_finish_puts_back_what_is_kept():
    init, mask = noise(1, 3, 8, 8, seed=1), noise(1, 1, 8, 8) > 0.5
    image = noise(1, 3, 8, 8, seed=2)
    found = whole(Canvas((8, 8), init=init, mask=mask), image, (0, 0))
    assert torch.equal(found, torch.where(mask, image, init))
    assert torch.equal(whole(Canvas((8, 8), init=init), image, (0, 0)), image)


def test_finish_cuts_the_margin():
    image = noise(1, 3, 10, 14)
    found = whole(Canvas((8, 8)), image, (1, 3))
    assert torch.equal(found, image[..., 1:-1, 3:-3])
    small = resize(image, (5, 7))  # a coarser scale; the margin is in px of the canvas
    assert torch.equal(
        whole(Canvas((8, 8)), small, (1, 3)), resize(small, (10, 14))[..., 1:-1, 3:-3]
    )


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
    mean, root = mean_and_root(pixels)
    torch.testing.assert_close(mean[:, 0], palette[:count].double().mean(0))
    torch.testing.assert_close(root, root.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(root @ root, pixels.double().cov(), atol=1e-12, rtol=0)
    assert torch.linalg.matrix_rank(root, atol=1e-6) == count - 1
    torch.testing.assert_close(mean_and_root(pixels[:1])[1], pixels[:1].double().std(1)[:, None])


def test_styles_of_one_and_two_colours_get_the_contents_as_far_as_they_have_axes():
    content = 0.4 + 0.2 * noise(1, 3, 30, 30)
    mean, root = mean_and_root(content[0].flatten(1))
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


# ------------------------------------------------------------------- what is said by other pictures


def drawn(path, *columns, dtype=np.uint8, **options):
    """A picture of 4 rows, all of the same pixels."""
    Image.fromarray(np.array([columns] * 4, dtype)).save(path, **options)
    return str(path)


def size_in(path):
    with Image.open(path) as picture:
        return picture.size[::-1]


def mask_of(path, tmp_path):
    width = size_in(path)[1]
    init = drawn(tmp_path / "init.png", *[(90, 120, 60)] * width)
    request = request_of(gt_path=init, init=init, mask=path)
    pictures = Pictures()
    exemplar = pictures.read(init).pixels
    return canvas_of(request, (4, width), exemplar, None, pictures).mask[0, 0, 0].tolist()


def test_what_is_transparent_is_black_in_a_mask(tmp_path):
    whites = [(255, 255, 255, alpha) for alpha in (0, 127, 128, 255)]
    path = drawn(tmp_path / "layer.png", *whites, (0, 0, 0, 255), (0, 0, 0, 0))
    assert mask_of(path, tmp_path) == [False, False, True, True, False, False]
    path = drawn(tmp_path / "clear.png", *[(255, 255, 255, 0)] * 4)
    with pytest.raises(UserError, match="clear.png: no pixel is white"):
        mask_of(path, tmp_path)


def test_masks_of_other_sorts_are_white_from_the_middle_on(tmp_path):
    deep = drawn(tmp_path / "deep.png", 0, 32767, 32768, 65535, dtype=np.uint16)
    assert mask_of(deep, tmp_path) == [False, False, True, True]
    levels = [(level,) * 3 for level in [0] * 8 + [100] * 8 + [150] * 8 + [255] * 8]
    lossy = drawn(tmp_path / "lossy.jpg", *levels, quality=90)
    assert mask_of(lossy, tmp_path) == [False] * 16 + [True] * 16


def guide_of_pictures(source, output, tmp_path):
    exemplar = torch.rand(1, 3, *size_in(source))
    request = request_of(gt_path="leaf.jpg", guide=[(source, output)])
    return guide_of(request, size_in(output), [exemplar], None, lambda maps: [], Pictures())


def test_what_is_transparent_is_a_region_in_a_guide(tmp_path):
    red, hidden, edge = (255, 0, 0, 255), (9, 200, 3, 0), (255, 0, 0, 100)
    source = drawn(tmp_path / "source.png", red, hidden, edge)
    output = drawn(tmp_path / "output.png", (1, 2, 3, 50), red)
    guide = guide_of_pictures(source, output, tmp_path)
    # Transparent, whatever colour it hides, is region 0, and red is 1.
    assert guide.source_regions[0][0, 0, 0].tolist() == [1, 0, 0]
    assert guide.output_region[0, 0, 0].tolist() == [0, 1]
    opaque = drawn(tmp_path / "opaque.png", red[:3], (0, 0, 0))
    with pytest.raises(UserError, match="opaque.png: has no transparent place, which"):
        guide_of_pictures(opaque, output, tmp_path)
    # Black is not transparent.
    both = drawn(tmp_path / "both.png", (0, 0, 0, 255), (0, 0, 0, 0), red)
    regions = guide_of_pictures(both, output, tmp_path).source_regions[0][0, 0, 0]
    assert regions.tolist() == [1, 0, 2]


def test_what_is_transparent_is_the_darkest_in_a_map_of_exemplars(tmp_path):
    black, clear = (0, 0, 0, 255), (255, 255, 255, 0)
    output = drawn(tmp_path / "output.png", black, clear, clear)
    request = request_of(gt_path="leaf.jpg", mix=["wood.png"], guide=[("mix", output)])
    exemplars = [torch.rand(1, 3, 8, 8), torch.rand(1, 3, 6, 6)]
    guide = guide_of(request, (4, 3), exemplars, None, lambda maps: [], Pictures())
    assert guide.output_region[0, 0, 0].tolist() == [1, 0, 0]


def test_a_progression_may_be_transparent_in_places(tmp_path):
    ramp = [(level,) * 3 + (255,) for level in range(40, 240, 4)]
    source = drawn(tmp_path / "source.png", *ramp, *[(250, 250, 250, 0)] * 10)
    # Black is darker than all that the source has, and is met by its darkest.
    output = drawn(tmp_path / "output.png", (0, 0, 0, 255), ramp[-1], (0, 0, 0, 0), *ramp)
    guide = guide_of_pictures(source, output, tmp_path)
    here, there = guide.output_region[0, 0, 0], guide.source_regions[0][0, 0, 0]
    clear = there[-1]
    assert (there == clear).tolist() == [False] * 50 + [True] * 10
    assert (here == clear).tolist() == [False, False, True] + [False] * 50
    assert here[0] == there[0] and here[1] == there[49] and torch.equal(here[3:], there[:50])
    # Of patches, it is the distance that tells: 1 from what is transparent, and from it to grey.
    distances = (guide.output[0, :, 0, 2, None] - guide.sources[0][0, :, 0]).square().sum(0)
    assert (distances[-10:] == 0).all() and (distances[:-10] >= 1).all()
    with pytest.raises(UserError, match="has no transparent place"):
        guide_of_pictures(drawn(tmp_path / "opaque.png", *ramp), output, tmp_path)


def test_labels_may_be_numbers_of_16_bits(tmp_path):
    """The numbers of a segmentation, 0, 1, 2, are all black to the eye."""
    source = drawn(tmp_path / "source.png", 0, 1, 2, dtype=np.uint16)
    output = drawn(tmp_path / "output.png", 2, 1, dtype=np.uint16)
    guide = guide_of_pictures(source, output, tmp_path)
    assert guide.source_regions[0][0, 0, 0].tolist() == [0, 1, 2]
    assert guide.output_region[0, 0, 0].tolist() == [2, 1]
    missing = drawn(tmp_path / "missing.png", 2, 3, dtype=np.uint16)
    with pytest.raises(UserError, match="has no #000300030003, which"):
        guide_of_pictures(source, missing, tmp_path)


def test_what_is_transparent_has_no_axis(tmp_path):
    path = drawn(tmp_path / "hue.png", (255, 0, 0, 255), (0, 255, 0, 0), (0, 255, 0, 255))
    found = drawn_axes(path, Pictures())
    assert axis_bins(axes_at(path, found, (4, 3)))[0, 0, 0].tolist()[:2] == [0, -1]
    assert found.norm(dim=1)[0, 0].tolist() == pytest.approx([1, 0, 1])
    tinted = drawn(tmp_path / "tinted.png", (255, 0, 0), (120, 124, 118), (128, 128, 128))
    found = drawn_axes(tinted, Pictures())
    assert found.norm(dim=1)[0, 0].tolist() == pytest.approx([1, 0, 0])  # as JPEG tints grey
    for name, colour in (("clear.png", (255, 0, 0, 0)), ("grey.png", (90, 90, 90, 255))):
        path = drawn(tmp_path / name, colour, colour)
        with pytest.raises(UserError, match=f"{name}: no pixel has an axis"):
            drawn_axes(path, Pictures())
    np.save(tmp_path / "none.npy", np.zeros((2, 4, 4)))
    with pytest.raises(UserError, match="none.npy: no pixel has an axis"):
        drawn_axes(str(tmp_path / "none.npy"), Pictures())


@pytest.mark.parametrize("kind", ["id", "mask", "axes", "data", "normal"])
def test_only_colours_are_managed(kind, tmp_path):
    """A profile of light in place of sRGB's curve: as a colour, 128 is 188."""
    path = drawn(tmp_path / "a.png", 128, 128, icc_profile=colour_profile(b"GRAY"))
    assert (255 * Pictures().read(path, kind).pixels[0, 0, 0]).round().tolist() == [128, 128]
    assert (255 * Pictures().read(path).pixels[0, 0, 0]).round().tolist() == [188, 188]
