"""Painting with the exemplar's pixels: places, the search for them, quilting, and the picture."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import in_threads
from torch.nn import functional as F

from engine import colours, maps, painting, quilting
from engine.colours import with_fine_detail
from engine.correspondences import PATCH, Descriptor, Places, Search, Undescribed
from engine.kinds import ALONG_AN_AXIS, PERIODICAL, STOCHASTIC, kind_of
from engine.painting import paint, value_of
from engine.quilting import quilted
from engine.stretching import STRAIN, doubled, stretch
from engine.synthesis import exemplar_of
from terms.base import Canvas
from terms.matching import row_slices
from utils import UserError, pad_axes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=generator(seed))


def painted(*exemplars, size=(40, 48), seed=0, kind=STOCHASTIC, **canvas):
    exemplars = tuple(one if hasattr(one, "views") else exemplar_of(one) for one in exemplars)
    canvas = Canvas(size, **canvas)
    return value_of(paint(exemplars, canvas, size=size, seed=seed, kind=kind))


def all_usable(*size: int) -> torch.Tensor:
    return torch.ones(*size, dtype=torch.bool)


# ------------------------------------------------------------------------------------ the search


def test_what_goes_on_from_a_neighbour_is_seen_from_it():
    places = Places(torch.tensor([[10, 20]]), torch.tensor([[1, 2]]))
    right = places.seen_from(0, 1, "")  # each patch sees its left neighbour's place, one px on
    assert (right.y.tolist(), right.x.tolist()) == ([[10, 10]], [[2, 2]])
    round_the_border = places.seen_from(0, 1, "x")
    assert (round_the_border.y.tolist(), round_the_border.x.tolist()) == ([[20, 10]], [[3, 2]])


def test_places_keep_their_offsets_when_they_are_resized():
    """At twice the size what was 5 px further down is 10 px further down, pixel for pixel."""
    places = Places(torch.tensor([[5], [6]]), torch.tensor([[0], [0]]))
    assert places.resized((4, 2), 2).y.tolist() == [[10, 10], [11, 11], [12, 12], [13, 13]]
    assert places.resized((4, 2), 2).x.tolist() == [[0, 1]] * 4


def test_the_search_finds_a_part_of_the_source():
    source = torch.rand(40, 44, 5, generator=generator())
    search = Search(source[5:30, 3:31], source, all_usable(40, 44), generator())
    found = search(Places.drawn((25, 28), (40, 44), generator(1)), 2)
    assert torch.equal(found.y, (torch.arange(25) + 5)[:, None].expand(25, 28))
    assert torch.equal(found.x, (torch.arange(28) + 3).expand(25, 28))
    assert not search.distance(found).any()


def test_the_search_is_near_to_comparing_all_pairs():
    """Of noise, where no neighbour helps, and which the field's pictures are not."""
    output, source = (torch.rand(20, 20, 3, generator=generator(seed)) for seed in (0, 1))
    search = Search(output, source, all_usable(20, 20), generator())
    found = search.distance(search(Places.drawn((20, 20), (20, 20), generator(1)), 8)).mean()
    pairs = torch.cdist(output.flatten(0, 1), source.flatten(0, 1)).square()
    assert pairs.amin(1).mean() <= found < 0.1 * pairs.mean()


def test_of_equal_patches_the_search_takes_those_of_the_lower_factor():
    factor = torch.ones(24, 12)
    factor[:12] = 2
    flat = torch.ones(24, 12, 3)
    search = Search(flat[:12] * 0, flat, all_usable(24, 12), generator(), factor=factor)
    assert (search(Places.drawn((12, 12), (24, 12), generator(1)), 2).y >= 12).all()


def test_a_lower_factor_does_not_outweigh_a_guide():
    """Pixels differ everywhere by 1, the guide in the half of the lower factor by 1 as well: that
    costs 0.1 + 2 there, and 2 where it is asked for."""
    factor = torch.full((24, 12), 2.0)
    factor[12:] = 0.1
    source = torch.ones(24, 12, 2)
    source[:12, :, 1] = 0
    search = Search(source[:12] * 0, source, all_usable(24, 12), generator(), "", factor, None, 1)
    found = search(Places.drawn((12, 12), (24, 12), generator(1)), 2)
    assert (found.y < 12).all()
    assert torch.allclose(search._cost(found.flat(12).flatten()), torch.tensor(2.0))


def test_the_search_ends_at_patches_that_there_are_and_of_their_kind():
    output, source = torch.rand(9, 9, 2, generator=generator()), torch.rand(30, 12, 2)
    usable = all_usable(30, 12)
    usable[12:16] = False
    kinds = torch.zeros(30, 12, dtype=torch.int64)
    kinds[16:] = 1
    first = Places(torch.arange(81).view(9, 9) % 40 - 5, torch.full((9, 9), 50))
    first.y[:, :4], first.y[:, 4:] = 3, 20
    found = Search(output, source, usable, generator(), kinds=kinds)(first, 3)
    assert usable[found.y, found.x].all()
    assert (found.y[:, :4] < 12).all() and (found.y[:, 4:] >= 16).all()
    outside = Places(torch.full((9, 9), 13), torch.full((9, 9), -4))
    found = Search(output, source, usable, generator())(outside, 0)
    assert usable[found.y, found.x].all()


def test_distances_of_descriptors_are_mean_squares():
    """Of a picture that a few components hold, which is so for sums of a few waves."""
    y, x = torch.arange(30.0)[:, None], torch.arange(26.0)
    picture = torch.stack([(0.7 * x + y).sin(), (x - 0.3 * y).cos(), (x * 0.2 + y).cos()])[None] / 2
    guide = torch.rand(1, 2, 30, 26, generator=generator())
    describe = Descriptor(picture, all_usable(24, 20), generator())
    found = describe(picture, guide)
    patches = F.unfold(picture, PATCH)[0].T
    means = F.unfold(guide, PATCH)[0].view(2, PATCH**2, -1).mean(1).T
    wanted = torch.cdist(patches, patches).square() / (3 * PATCH**2)
    wanted = wanted + torch.cdist(means, means).square()
    flat = found.flatten(0, 1)
    assert (torch.cdist(flat, flat).square() - wanted).abs().max() < 1e-4
    assert describe(picture, None, "xy").shape[:2] == (30, 26)


@pytest.mark.parametrize("tile", ["", "x", "y", "xy"])
def test_patches_are_described_one_by_one_as_all_at_once(tile):
    picture, guide = noise(30, 26), torch.rand(1, 2, 30, 26, generator=generator())
    describe = Descriptor(picture, all_usable(24, 20), generator())
    wanted = describe(picture, guide, tile).flatten(0, 1)
    found = Undescribed(describe, picture, guide, tile).at(torch.arange(len(wanted)))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("tile", ["", "x", "y", "xy"])
def test_a_strip_is_what_it_is_of_the_whole(tile):
    """And so is what lies before it and behind it."""
    exemplars = (exemplar_of(noise(40, 44)),)
    canvas = Canvas((40, 48), tile)
    painter = painting._Painter(exemplars, canvas, STOCHASTIC, 0)
    assert not list(painter.begin(1.0, canvas.size, noise(40, 48, seed=1)))
    whole = painter.describe(painter.image, None, tile)
    height = len(whole)
    for rows in row_slices(height, 12):
        output, places, inside, goes_on = painter._strip(rows)
        assert inside.stop - inside.start == rows.stop - rows.start and goes_on == tile.strip("y")
        first = rows.start - inside.start
        at = torch.arange(first, first + len(output))
        assert "y" in tile or (at[0] >= 0 and at[-1] < height)
        assert (at[0], at[-1]) == (max(rows.start - 8, 0), min(rows.stop + 7, height - 1)) or (
            "y" in tile and (at[0], at[-1]) == (rows.start - 8, rows.stop + 7)
        )
        torch.testing.assert_close(output, whole[at % height])
        assert torch.equal(places.y, painter.places.y[at % height])


def test_large_pictures_are_painted_in_strips(monkeypatch):
    """Of a flat exemplar with one bright row nothing else comes than what is in it."""
    exemplar = torch.full((1, 3, 40, 40), 0.2)
    exemplar[..., 20:, :] = 0.7
    whole = painted(exemplar, size=(60, 60), tile="y")
    monkeypatch.setattr(painting, "MAX_DESCRIPTORS", 60 * 16)
    found = painted(exemplar, size=(60, 60), tile="y")
    assert found.image.shape == whole.image.shape and not torch.equal(found.image, whole.image)
    for one in (found, whole):
        near = torch.minimum((one.image - 0.2).abs(), (one.image - 0.7).abs())
        assert near.mean() < 0.02


@pytest.mark.parametrize("tile", ["", "x", "y", "xy"])
def test_a_picture_is_the_weighted_mean_of_its_patches(tile, monkeypatch):
    monkeypatch.setattr(painting, "at_a_time", lambda device: 15 * 6)  # in strips
    exemplars, canvas = (exemplar_of(noise(40, 44)),), Canvas((16, 15), tile)
    painter = painting._Painter(exemplars, canvas, STOCHASTIC, 0)
    assert not list(painter.begin(1.0, canvas.size, noise(16, 15, seed=1)))
    weights = torch.rand(painter.places.y.shape, generator=generator(1))
    painter._vote(weights)
    total, weight = torch.zeros(3, 16, 15), torch.zeros(16, 15)
    most, pixels = torch.zeros(16, 15), torch.zeros(16, 15, dtype=torch.int64)
    for i, j in np.ndindex(*weights.shape):
        y = painter.places.y[i, j].clamp(0, 40 - PATCH).item()
        x = painter.places.x[i, j].clamp(0, 44 - PATCH).item()
        for down, across in np.ndindex(PATCH, PATCH):
            to, own = ((i + down) % 16, (j + across) % 15), (y + down, x + across)
            total[:, *to] += weights[i, j] * painter.source.picture[0, :, *own]
            weight[to] += weights[i, j]
            if weights[i, j] > most[to]:
                most[to], pixels[to] = weights[i, j], own[0] * 44 + own[1]
    torch.testing.assert_close(painter.image[0], total / weight)
    assert torch.equal(painter.pixels, pixels)


def test_several_processes_paint_what_one_paints(monkeypatch, brief_painting):
    count = 3
    for name in ("MAX_DESCRIPTORS", "BACK"):
        monkeypatch.setattr(painting, name, 60 * 12)
    searched, search = [], painting.Search.__call__
    monkeypatch.setattr(
        painting.Search, "__call__", lambda *args: searched.append(1) or search(*args)
    )
    canvas = Canvas((60, 60), "y")
    exemplars = (exemplar_of(noise(64, 64)),)
    told = {"size": canvas.size, "seed": 3}
    one = value_of(paint(exemplars, canvas, **told))
    alone = len(searched)
    for found in in_threads(
        count, lambda group: value_of(paint(exemplars, canvas, group=group, **told))
    ):
        assert torch.equal(found.image, one.image)
        assert torch.equal(found.places, one.places)
    assert len(searched) - alone < 1.5 * alone  # what is small, each does for itself


# ------------------------------------------------------------------------------------ the layout


BLOCK = 20, 20


def layout(source, size, owner=None, shares=(1.0,), tile="", canvas=None, known=None, block=BLOCK):
    owner = torch.zeros(source.shape[1:], dtype=torch.int64) if owner is None else owner
    canvas = torch.zeros(len(source), *size) if canvas is None else canvas
    known = torch.zeros_like(canvas, dtype=torch.bool) if known is None else known
    found = quilted(source, owner, canvas, known, list(shares), tile, generator(), block)
    return source[:, found.y, found.x], found


@pytest.mark.parametrize("tile", ["", "xy"])
def test_blocks_of_a_pattern_go_on_in_it(tile):
    y, x = torch.arange(40)[:, None], torch.arange(40)
    pattern = (y // 4 % 2 == x // 4 % 2).float().expand(3, 40, 40)
    found, _ = layout(pattern, (48, 32), tile=tile)
    assert torch.equal(found[:, 8:], found[:, :-8]) and torch.equal(found[..., 8:], found[..., :-8])


def test_exemplars_have_their_shares_of_the_blocks():
    source = torch.cat((torch.zeros(3, 20, 20), torch.ones(3, 20, 20)), 1)
    owner = torch.arange(2).repeat_interleave(20)[:, None].expand(40, 20)
    found, _ = layout(source, (200, 200), owner, (0.25, 0.75))
    assert found.mean().item() == pytest.approx(0.75, abs=0.05)


def test_what_is_known_is_gone_on_with():
    """Rows of the source are all different, so a block that fits goes on row by row."""
    source = torch.arange(40.0)[:, None].expand(3, 40, 40) / 40
    canvas = torch.zeros(3, 30, 30)
    known = torch.zeros_like(canvas, dtype=torch.bool)
    canvas[..., :4], known[..., :4] = source[:, 5:35, :4], True
    found, _ = layout(source, (30, 30), canvas=canvas, known=known)
    assert torch.equal(found[..., 4:], source[:, 5:35, 4:30])


def test_every_part_is_used_before_any_is_used_again():
    """Of flat sources every block fits; 16 blocks of 16 px cover most of 64 x 64."""
    _, found = layout(torch.zeros(3, 64, 64), (60, 60))
    used = torch.zeros(64, 64)
    used[found.y.flatten(), found.x.flatten()] = 1
    drawn = torch.zeros(64, 64)
    for y, x in torch.randint(49, (25, 2), generator=generator()).tolist():
        drawn[y : y + 12, x : x + 12] = 1
    assert used.mean() > drawn.mean()


def test_no_block_goes_where_it_is_in_the_source():
    """Rows that are known ask for the very blocks that lie there; a fourth of a block is 5 px."""
    source = torch.rand(3, 40, 40, generator=generator())
    known = torch.zeros(3, 40, 40, dtype=torch.bool)
    known[:, :4] = True
    _, found = layout(source, (40, 40), canvas=source.clone(), known=known)
    down, across = found.y - torch.arange(40)[:, None], found.x - torch.arange(40)
    assert (torch.maximum(down.abs(), across.abs()) >= 5)[4:].all()


def test_a_cut_goes_where_the_error_is_least():
    error = torch.tensor([[9.0, 1, 9, 9], [9, 9, 1, 9], [9, 9, 9, 1], [9, 9, 1, 9]])
    assert quilting._path(error).tolist() == [1, 2, 3, 2]


def test_blocks_of_any_shape_cover_the_canvas():
    """Rows of a ramp go on from one block to the next, so all columns of a block row are alike."""
    source = torch.arange(40.0)[:, None].expand(3, 40, 40) / 40
    found, places = layout(source, (30, 50), block=(30, 9))
    assert torch.equal(places.y.diff(dim=0), torch.ones(29, 50, dtype=torch.int64))
    assert torch.equal(found, found[..., :1].expand(3, 30, 50))


@pytest.mark.parametrize("tile", ["", "xy"])
@pytest.mark.parametrize("grain", ["y", "x"])
def test_blocks_along_a_grain_cover_the_canvas_and_end_anywhere(grain, tile):
    """Every pixel of the canvas, which goes on by a block on both sides if it does not wrap."""
    i = "yx".index(grain)
    block, side = [(28, 8), (8, 28)][i], 40 if tile else 96
    size = [(side, 40), (40, side)][i]
    corners = quilting._corners(size, block, tile, grain, generator())
    covered, firsts = torch.zeros(size, dtype=torch.bool), {}
    for top, left in corners:
        rows, columns = (
            (n + torch.arange(b)) % z for n, b, z in zip((top, left), block, size, strict=True)
        )
        covered[rows[:, None], columns] = True
        firsts.setdefault((top, left)[1 - i], (top, left)[i])
    assert (covered if tile else covered.narrow(i, 28, 40)).all()
    assert len(set(firsts.values())) > 1
    flat = torch.zeros(3, 40, 40)
    known = torch.zeros(3, 40, 40, dtype=torch.bool)
    kind = ALONG_AN_AXIS._replace(axis=grain)
    owner = torch.zeros(40, 40, dtype=torch.int64)
    found = quilted(flat, owner, flat, known, [1.0], tile, generator(), block, kind)
    assert found.y.shape == found.x.shape == (40, 40)


@pytest.mark.parametrize("shape", [(48, 80), (80, 48)])
@pytest.mark.parametrize("kind", [PERIODICAL, ALONG_AN_AXIS._replace(axis="y")])
def test_exemplars_of_any_shape_and_number_are_painted_in_order(kind, shape, brief_painting):
    assert painted(noise(*shape), size=(32, 64), kind=kind).image.shape == (1, 3, 32, 64)
    both = exemplar_of(noise(*shape), share=0.5), exemplar_of(noise(54, 46), share=0.5)
    assert painted(*both, size=(36, 40), kind=kind).image.shape == (1, 3, 36, 40)


@pytest.mark.parametrize("tile", ["", "y"])
def test_a_block_is_expected_where_the_source_is_like_itself(tile):
    """A wave of ten rows: what lies 14 rows below a block at row 0 is like rows 4 and 14, and
    unlike row 9, which has the wave's other sign and differs by four times its variance. Round a
    border of 16 rows it lies 2 above, and is like row 8."""
    wave = (torch.arange(60.0) * 2 * math.pi / 10).sin()[:, None].expand(3, 60, 60)
    order = quilting._Order(wave, (20, 20), (16, 60), tile)
    order.laid.append(((0, 0), (0, 0)))
    missing = order.missing((14, 0), (30, 40))[:, 3]
    assert missing[[8, 18] if tile else [4, 14]].max() < 0.1
    variance = 3 * wave[0].var().item()
    assert missing[3 if tile else 9].item() == pytest.approx(4 * variance, rel=0.1)


def test_blocks_that_fit_anywhere_keep_the_order_if_that_is_asked_for():
    """A wave down the rows with gaps wider than the rims of blocks, so that rims say nothing."""
    rows = torch.arange(64.0)
    source = (rows % 16 < 4).float()[:, None].expand(3, 64, 64).contiguous()
    owner = torch.zeros(64, 64, dtype=torch.int64)
    known = torch.zeros(3, 64, 64, dtype=torch.bool)
    off = []
    for kind in (STOCHASTIC, PERIODICAL):
        args = source, owner, torch.zeros(3, 64, 64), known, [1.0], "", generator(), (12, 12)
        moved = quilted(*args, kind).y - rows.long()[:, None]
        off.append((((moved - moved[0, 0]) % 16 + 1) % 16 > 2).float().mean().item())
    assert off[1] == 0 < 0.2 < off[0]


# ----------------------------------------------------------------------------------- the picture


def test_a_flat_exemplar_gives_a_flat_picture():
    flat = torch.tensor((0.2, 0.5, 0.7)).view(1, 3, 1, 1).expand(1, 3, 64, 70)
    assert torch.allclose(painted(flat).image, flat[..., :40, :48], atol=1e-6)


def test_a_painting_is_of_the_exemplars_colours_and_none_of_its_own():
    """Of an exemplar in two colours, which the stretch mixes at edges alone."""
    picture = (F.interpolate(noise(8, 8), (64, 64)) > 0.5).float()[:, :1].expand(1, 3, 64, 64)
    image = painted(picture).image
    assert image.shape == (1, 3, 40, 48)
    assert ((image < 0.1) | (image > 0.9)).float().mean() > 0.7
    assert abs(image.mean() - picture.mean()) < 0.1
    assert torch.equal(image[:, 0], image[:, 1])


def test_the_same_seed_is_the_same_painting_and_another_is_another():
    first, again, other = (painted(noise(48, 48), seed=seed).image for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.1


@pytest.mark.parametrize("tile", ["", "x", "y", "xy"])
def test_a_painting_tiles(tile):
    """The step across the border is that of any other place, and a large one if it does not."""
    smooth = F.avg_pool2d(noise(96, 96), 21, 1)
    image = painted(smooth, size=(48, 40), tile=tile).image
    for axis, dim in (("y", 2), ("x", 3)):
        steps = (image - image.roll(1, dim)).abs().transpose(0, dim).flatten(1).mean(1)
        assert (steps[0] < 2 * steps[1:].mean()) == (axis in tile)


def test_what_is_kept_is_kept_and_only_that():
    init, mask = noise(40, 48, 3), torch.zeros(1, 1, 40, 48, dtype=torch.bool)
    mask[..., 10:30, 10:30] = True
    image = painted(noise(64, 64), init=init, mask=mask).image
    assert torch.equal(image[..., :10, :], init[..., :10, :])
    assert not torch.equal(image[..., 10:30, 10:30], init[..., 10:30, 10:30])


def test_a_guide_says_what_goes_where():
    """Black and white halves, which the guide asks for the other way round."""
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., 32:] = 1
    exemplar = exemplar_of(picture)
    (view,) = exemplar.views
    views = (replace(view, guide=picture[:, :1]),)
    wanted = torch.ones(1, 1, 48, 48)
    wanted[..., 24:] = 0
    image = painted(replace(exemplar, views=views), size=(48, 48), guide=wanted).image
    assert image[..., :20].mean() > 0.95 and image[..., 28:].mean() < 0.05


@pytest.mark.parametrize(
    "share, size, seed", [(0.3, (40, 72), 0), (0.7, (32, 32), 1), (0.3, (32, 32), 2)], ids=str
)
def test_exemplars_that_are_mixed_keep_their_shares(share, size, seed):
    """The second one may be smaller than a block of the first."""
    black, white = torch.zeros(1, 3, 128, 128), torch.ones(1, 3, *size)
    both = exemplar_of(black, share=1 - share), exemplar_of(white, share=share)
    image = painted(*both, size=(96, 96), seed=seed).image
    assert image.mean().item() == pytest.approx(share, abs=0.1)


def test_a_layout_stays_where_it_is():
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., 32:] = 1
    canvas = Canvas((64, 64))
    wanted = picture.flip(3)
    frames = paint((exemplar_of(picture),), canvas, size=(64, 64), seed=0, layout=wanted)
    image = value_of(frames).image
    assert (image - wanted).abs().mean() < 0.1


def test_what_a_layout_has_of_several_exemplars_is_found_in_each():
    """Red left and blue right, painted from a red and a blue exemplar: no pixel is of the other."""
    red, blue = (
        torch.tensor(c).view(1, 3, 1, 1).expand(1, 3, 64, 64) for c in ([1.0, 0, 0], [0.0, 0, 1])
    )
    wanted = torch.cat((red[..., :32], blue[..., :32]), 3)
    both = exemplar_of(red, share=0.5), exemplar_of(blue, share=0.5)
    frames = paint(both, Canvas((64, 64)), size=(64, 64), seed=0, layout=wanted)
    image = value_of(frames).image
    assert (image - wanted).abs().mean() < 0.02


def test_small_pictures_are_refused():
    for exemplar, size in ((noise(13, 40), (40, 40)), (noise(40, 40), (40, 13))):
        with pytest.raises(UserError, match="sides of 14 or more"):
            painted(exemplar, size=size)


def test_every_place_is_of_the_view_that_it_was_painted_from():
    """The second exemplar lies below the first, and beside it is nothing: a map that holds a 1 for
    every pixel of its own view is carried as 1."""
    first, second = noise(40, 30), noise(30, 44, 1)
    both = painted(exemplar_of(first, share=0.5), exemplar_of(second, share=0.5))
    found = maps.painted_from(both)
    assert len(found) == 2
    near = torch.stack([near for _, near in found])
    assert torch.equal(near.amax(0), torch.zeros(40, 48)) and (near.amin(0) == -1).all()
    for (place, near), picture in zip(found, (first, second), strict=True):
        there = stretch(picture, 0)[0].flatten(1)[:, place]
        error = (there - both.image[0]).abs().mean(0)
        assert error[near == 0].mean() < 0.1


# ----------------------------------------------------------------------------------- the stretch


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
    found = doubled(wave[..., ::2, ::2])
    assert found.shape == wave.shape
    torch.testing.assert_close(found[..., ::2, ::2], wave[..., ::2, ::2])
    error = (found - wave)[..., 14:-14, 14:-14].abs()
    assert error.max() < 0.02


def test_the_chance_that_two_places_are_of_one_piece():
    """Six of eight places go on from their neighbours, and two are of another piece."""
    y = torch.tensor([[3, 3, 3, 0], [4, 4, 4, 1]])
    x = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 0]])
    assert Places(y, x).offset_concentration() == pytest.approx((6 / 8) ** 2 + (2 / 8) ** 2)


def test_of_some_layouts_the_best_is_taken_but_no_copy(monkeypatch):
    """One that is torn, the exemplar in one piece, and its quarters in another order."""
    exemplar = F.interpolate(noise(16, 16), (64, 64), mode="bicubic").clamp(0, 1)
    rows, columns = torch.arange(64)[:, None].expand(64, 64), torch.arange(64).expand(64, 64)
    shuffled = torch.randperm(64, generator=generator())
    layouts = {
        "torn": Places(rows[shuffled], columns[:, shuffled]),
        "copied": Places(rows, columns),
        "in quarters": Places(rows.roll((32, 32), (0, 1)), columns.roll((32, 32), (0, 1))),
    }
    laid = []

    def quilted(*arguments):
        laid.append(list(layouts)[len(laid)])
        return layouts[laid[-1]]

    monkeypatch.setattr(painting, "LAYOUTS", 3)
    monkeypatch.setattr(painting, "quilted", quilted)
    monkeypatch.setattr(painting, "stretched", lambda exemplars, seed: exemplars)
    monkeypatch.setattr(painting, "COMPLETENESS", 1.0)
    image = painted(exemplar, size=(64, 64)).image
    assert laid == list(layouts)
    assert (image - exemplar.roll((32, 32), (2, 3))).abs().mean() < 0.02


def test_a_layout_is_neither_torn_nor_lacks_anything(monkeypatch):
    """Of layouts by how torn they are times how much is missing, 1 x 9, 2 x 2 and 9 x 1."""
    values = iter((1.0, 9.0, 2.0, 2.0, 9.0, 1.0))
    drawn = generator()
    layouts = [Places(*torch.randint(50, (2, 64, 64), generator=drawn)) for _ in range(3)]
    taken = iter(layouts)
    monkeypatch.setattr(painting, "LAYOUTS", 3)
    monkeypatch.setattr(painting, "_rounds", lambda *arguments: 0)
    monkeypatch.setattr(painting, "quilted", lambda *arguments: next(taken))
    monkeypatch.setattr(painting, "stretched", lambda exemplars, seed: exemplars)
    monkeypatch.setattr(painting, "_mean_nearest", lambda *arguments: next(values))
    exemplar = noise(56, 56)
    found = painted(exemplar, size=(64, 64))
    monkeypatch.setattr(painting, "LAYOUTS", 1)
    monkeypatch.setattr(painting, "_mean_nearest", lambda *arguments: 0.0)
    taken = iter(layouts[1:])
    assert torch.equal(found.image, painted(exemplar, size=(64, 64)).image)


def test_coarse_scales_have_more_rounds():
    """Of an exemplar of 256 px: at 64, 128, 181 and 256 px."""
    exemplars = (exemplar_of(torch.zeros(1, 3, 256, 300)),)
    factors = (0.25, 0.5, 2**-0.5, 1)
    assert [painting._rounds(exemplars, factor) for factor in factors] == [8, 8, 4, 2]


def test_fewer_layouts_are_tried_of_what_is_large(monkeypatch):
    monkeypatch.setattr(painting, "LAYOUTS", 12)
    assert [painting._layouts((side, side)) for side in (64, 256, 512, 1024)] == [12, 12, 3, 1]


# ------------------------------------------------------------------------- what is left of colour


@pytest.mark.parametrize("tile", ["", "x", "xy"])
def test_what_is_smooth_is_the_mean_around_it(tile):
    maps = torch.rand(1, 3, 14, 17, dtype=torch.float64)
    around = pad_axes(maps, tile, "".join(axis for axis in "yx" if axis not in tile), 4)
    torch.testing.assert_close(colours._smooth(maps, tile), F.avg_pool2d(around, 9, 1))


def test_fine_detail_is_the_paintings_and_all_else_is_the_pictures():
    painting = torch.full((1, 3, 36, 36), 0.5)
    redder = painting + torch.tensor((0.1, 0.0, -0.1)).view(1, 3, 1, 1)
    assert torch.allclose(with_fine_detail(redder, painting), redder, atol=1e-6)
    specks = painting.clone()
    specks[..., ::9, ::9] += 0.3  # one in 81 px
    assert torch.allclose(with_fine_detail(specks, painting, "xy"), painting + 0.3 / 81, atol=1e-6)


# --------------------------------------------------------------------------------------- the kind


def waves(*pairs: tuple[float, float]) -> torch.Tensor:
    y, x = torch.arange(128.0)[:, None], torch.arange(128.0)
    found = sum((2 * math.pi * (a * y + b * x)).sin() for a, b in pairs)
    return (found / (2 * len(pairs)) + 0.5).expand(1, 3, 128, 128)


def kinds() -> dict[str, torch.Tensor]:
    """A picture of every kind, in the order in which they are looked for."""
    rough = torch.rand(1, 1, 128, 128, generator=generator())
    across = F.interpolate(rough[..., :16], (128, 128), mode="bicubic")
    bricks = F.interpolate(rough[..., :13, :7], (128, 128))
    ramp = torch.linspace(0, 1, 128).expand(1, 1, 128, 128)
    blotches = F.interpolate(rough[..., :24, :24], (128, 128), mode="bicubic")
    found = {
        "periodic": waves((0.1, 0.0), (0.0, 0.1)),
        "directional": across,
        "in courses": bricks,
        "not stationary": ramp * 0.8 + rough * 0.2,
        "with objects": blotches,
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
        assert kind_of(noise(*size)).name
