"""Whole paintings: what they show, their frames, and their sources."""

from dataclasses import replace

import pytest
import torch
from conftest import fast_first, noise_image
from torch.nn import functional as F

from engine import maps, painting
from engine.kinds import ALONG_AN_AXIS, PERIODICAL, STOCHASTIC
from engine.painting import paint, rounds_at, source_colours, too_small
from engine.spec import Spec, exemplar_of
from terms.base import Canvas


def frames_of(*exemplars, size=(40, 48), seed=0, kind=STOCHASTIC, layout=None, **canvas):
    exemplars = tuple(one if hasattr(one, "views") else exemplar_of(one) for one in exemplars)
    spec = Spec(exemplars, Canvas(size, **canvas), seed=seed, kind=kind)
    return paint(spec, size, layout)


def painted(*exemplars, **options):
    *_, last = frames_of(*exemplars, **options)
    return last


@pytest.mark.parametrize("shape", fast_first([((48, 80),), ((80, 48),)]))
@pytest.mark.parametrize("kind", [PERIODICAL, ALONG_AN_AXIS._replace(axis="y")])
def test_exemplars_of_any_kind_shape_and_number_are_painted(kind, shape, brief_painting):
    image = painted(noise_image(*shape), size=(32, 64), kind=kind).image
    assert image.shape == (1, 3, 32, 64) and image.isfinite().all()
    both = exemplar_of(noise_image(*shape), share=0.5), exemplar_of(noise_image(54, 46), share=0.5)
    image = painted(*both, size=(36, 40), kind=kind).image
    assert image.shape == (1, 3, 36, 40) and image.isfinite().all()


@pytest.mark.slow
def test_frames_count_layouts_and_rounds_by_their_pixels(monkeypatch):
    """An exemplar of 96 px is painted at 68 and 96 px, of 4608 and 9216 pixels: two layouts of the
    work of three rounds, and eight rounds at each scale, of half and of all the pixels."""
    *frames, last = frames_of(noise_image(96, 96), size=(40, 40))
    assert last.places.shape == (40, 40) and all(frame.places is None for frame in frames)
    assert [frame.scale for frame in frames] == [1] * 10 + [2] * 8
    assert {frame.scales for frame in frames} == {2}
    assert [frame.image.shape[2] for frame in frames] == [28] * 10 + [40] * 8
    work = torch.tensor([3.0, 3.0, *[1.0] * 8, *[2.0] * 8]).cumsum(0) / 30
    assert [frame.work for frame in frames] == pytest.approx(work.tolist())


@pytest.mark.slow
def test_rounds_start_from_the_layout_of_least_cost(monkeypatch):
    """The second of three; the third one is a copy."""
    starts, costs, laid = [], iter([(False, 2.0), (False, 1.0), (True, 0.0)]), []
    layout, paint_round = painting.quilt_layout, painting.paint_round

    def quilt(level):
        laid.append(layout(level))
        return laid[-1]

    def first_round(level, state):
        starts.append(state)
        return paint_round(level, state)

    monkeypatch.setattr("engine.layouts.LAYOUTS", 3)
    monkeypatch.setattr(painting, "layout_cost", lambda *_: next(costs))
    monkeypatch.setattr(painting, "quilt_layout", quilt)
    monkeypatch.setattr(painting, "paint_round", first_round)
    painted(noise_image(48, 48), size=(32, 32))
    assert starts[0].output_field is laid[1]


def test_a_flat_exemplar_gives_a_flat_painting(brief_painting):
    flat = torch.tensor((0.2, 0.5, 0.7)).view(1, 3, 1, 1).expand(1, 3, 64, 70)
    assert torch.allclose(painted(flat).image, flat[..., :40, :48], atol=1e-6)


@pytest.mark.slow
def test_a_painting_has_the_colours_of_the_exemplar_alone():
    """An exemplar of two colours, which are averaged at edges only."""
    picture = (F.interpolate(noise_image(8, 8), (64, 64)) > 0.5).float()[:, :1].expand(1, 3, 64, 64)
    image = painted(picture).image
    assert image.shape == (1, 3, 40, 48)
    assert ((image < 0.1) | (image > 0.9)).float().mean() > 0.7
    assert abs(image.mean() - picture.mean()) < 0.1
    assert torch.equal(image[:, 0], image[:, 1])


def test_a_seed_determines_the_painting(brief_painting):
    first, again, other = (painted(noise_image(48, 48), seed=seed).image for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.1


@pytest.mark.parametrize("wrap", fast_first(["x", "", "y", "xy"]))
def test_a_painting_tiles(wrap, brief_painting):
    """The step across the border is as large as any other, or larger where it does not tile."""
    smooth = F.avg_pool2d(noise_image(96, 96), 21, 1)
    image = painted(smooth, size=(48, 40), wrap=wrap).image
    for axis, dim in (("y", 2), ("x", 3)):
        steps = (image - image.roll(1, dim)).abs().transpose(0, dim).flatten(1).mean(1)
        assert (steps[0] < 2 * steps[1:].mean()) == (axis in wrap)


def test_only_masked_pixels_change(brief_painting):
    init, mask = noise_image(40, 48, 3), torch.zeros(1, 1, 40, 48, dtype=torch.bool)
    mask[..., 10:30, 10:30] = True
    image = painted(noise_image(64, 64), init=init, mask=mask).image
    changed = (image != init).any(1, keepdim=True)
    assert torch.equal(changed, mask)


def test_a_guide_determines_what_goes_where(brief_painting):
    """Black and white halves, which the guide of the output has the other way round."""
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., 32:] = 1
    exemplar = exemplar_of(picture)
    (view,) = exemplar.views
    views = (replace(view, guide=picture[:, :1]),)
    guide = torch.ones(1, 1, 48, 48)
    guide[..., 24:] = 0
    image = painted(replace(exemplar, views=views), size=(48, 48), guide=guide).image
    assert image[..., :20].mean() > 0.95 and image[..., 28:].mean() < 0.05


@pytest.mark.parametrize("share, size, seed", [(0.3, (40, 72), 0), (0.7, (32, 32), 1)], ids=str)
@pytest.mark.slow
def test_mixed_exemplars_keep_their_shares(share, size, seed, brief_painting):
    """The second one may be smaller than a block of the first."""
    black, white = torch.zeros(1, 3, 96, 96), torch.ones(1, 3, *size)
    both = exemplar_of(black, share=1 - share), exemplar_of(white, share=share)
    image = painted(*both, size=(96, 96), seed=seed).image
    assert image.mean().item() == pytest.approx(share, abs=0.1)


def test_a_given_layout_is_kept(brief_painting):
    """Red left and blue right. Each pixel is from the exemplar that matches, in spite of the
    shares."""
    red, blue = (
        torch.tensor(c).view(1, 3, 1, 1).expand(1, 3, 64, 64) for c in ([1.0, 0, 0], [0.0, 0, 1])
    )
    layout = torch.cat((red[..., :24], blue[..., :40]), 3)
    both = exemplar_of(red, share=0.5), exemplar_of(blue, share=0.5)
    for given in ({"layout": layout}, {"init": layout}):
        image = painted(*both, size=(64, 64), **given).image
        assert (image - layout).abs().mean() < 0.03


def test_a_given_layout_is_painted_from_half_the_size_on(brief_painting):
    """Of 23, 32, 45 and 64 px. An init is painted from the coarsest scale on."""
    exemplar, layout = noise_image(160, 160), noise_image(64, 64)
    for given, side in (({"layout": layout}, 32), ({"init": layout}, 23)):
        frame = next(frames_of(exemplar, size=(64, 64), **given))
        assert frame.image.shape == (1, 3, side, side)


def test_short_sides_are_named():
    for exemplar, size in ((noise_image(13, 40), (40, 40)), (noise_image(40, 40), (40, 13))):
        assert "sides of 14 or more" in too_small((exemplar_of(exemplar),), size)
    assert not too_small((exemplar_of(noise_image(14, 40)),), (40, 14))


@pytest.mark.parametrize("whole", fast_first([False, True]))
def test_sources_are_pixels_of_their_view(whole, brief_painting):
    """The second exemplar lies below the first in the atlas, and is padded. If it is not whole, two
    rows and columns at the border of the first one do not count."""
    first, second = noise_image(40, 30), noise_image(30, 44, 1)
    valid = torch.ones(1, 1, 40, 30, dtype=torch.bool)
    valid[..., :2, :] = valid[..., -2:] = False
    one = exemplar_of(first, share=0.5, valid=None if whole else valid)
    first, both = one.image, (one, exemplar_of(second, share=0.5))
    found = painted(*both)
    sources = maps.painted_correspondence(found.places, both)
    near = torch.stack([near for _, near in sources])
    assert torch.equal(near.amax(0), torch.zeros(40, 48)) and (near.amin(0) == -1).all()
    laid = source_colours(found.places, both)[0]
    for (place, near), picture in zip(sources, (first, second), strict=True):
        own = picture[0].flatten(1)[:, place]
        error = (own - found.image[0]).abs().mean(0)
        assert error[near == 0].mean() < 0.15
        assert torch.equal(own[:, near == 0], laid[:, near == 0])


def test_coarse_scales_have_more_rounds():
    assert [rounds_at(side) for side in (64, 128, 181, 256)] == [8, 8, 4, 2]


@pytest.mark.parametrize(
    "kind, size, sides",
    [
        (STOCHASTIC, 160, [57, 80, 113, 160]),  # 64 / 1.2 px or more
        (PERIODICAL, 160, [113, 160]),  # 128 / 1.2 px or more
        (STOCHASTIC, 20, [14, 20]),  # 14 / 1.2 px or more, but never less than 14
    ],
)
def test_the_sizes_of_scales(kind, size, sides):
    exemplars = (exemplar_of(noise_image(160, 180)),)
    scales = painting._scales(exemplars, (size, size), 1.0, kind, 0.0)
    assert [scale.size[0] for scale in scales] == sides
