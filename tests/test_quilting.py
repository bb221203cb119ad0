"""Image quilting."""

import math

import pytest
import torch
from conftest import seeded

from engine import quilting
from engine.kinds import ALONG_AN_AXIS, PERIODICAL, STOCHASTIC
from engine.quilting import QuiltSource, quilt

BLOCK = 20, 20


def quilted(
    maps, size, *, exemplars=None, shares=(1.0,), canvas=None, known=None, block=BLOCK, **options
):
    """Values of a quilt, and the field."""
    if exemplars is None:
        exemplars = torch.zeros(maps.shape[1:], dtype=torch.int64)
    canvas = torch.zeros(len(maps), *size) if canvas is None else canvas
    known = torch.zeros_like(canvas, dtype=torch.bool) if known is None else known
    source = QuiltSource(maps, exemplars, list(shares))
    field = quilt(source, canvas, known, block=block, generator=seeded(), **options)
    return maps[:, field.y, field.x], field


@pytest.mark.parametrize("wrap", ["", "xy"])
def test_blocks_continue_a_pattern(wrap):
    """A checkerboard of period 8, which also continues across the border of a tile."""
    y, x = torch.arange(40)[:, None], torch.arange(40)
    pattern = (y // 4 % 2 == x // 4 % 2).float().expand(3, 40, 40)
    found, _ = quilted(pattern, (48, 32), wrap=wrap)
    assert torch.equal(found[:, 8:], found[:, :-8]) and torch.equal(found[..., 8:], found[..., :-8])


@pytest.mark.slow
def test_exemplars_have_their_shares_of_the_blocks():
    maps = torch.cat((torch.zeros(3, 20, 20), torch.ones(3, 20, 20)), 1)
    exemplars = torch.arange(2).repeat_interleave(20)[:, None].expand(40, 20)
    found, _ = quilted(maps, (200, 200), exemplars=exemplars, shares=(0.25, 0.75))
    assert found.mean().item() == pytest.approx(0.75, abs=0.05)


def test_known_values_are_continued():
    """All rows of the source differ, so a block that fits continues each of them."""
    maps = torch.arange(40.0)[:, None].expand(3, 40, 40) / 40
    canvas = torch.zeros(3, 30, 30)
    known = torch.zeros_like(canvas, dtype=torch.bool)
    canvas[..., :4], known[..., :4] = maps[:, 5:35, :4], True
    found, _ = quilted(maps, (30, 30), canvas=canvas, known=known)
    assert torch.equal(found[..., 4:], maps[:, 5:35, 4:30])


def test_guides_of_the_canvas_select_blocks():
    """The image is flat. The guide of the source has the value 1 in its lower half, that of the
    canvas in its upper half."""
    maps = torch.zeros(4, 40, 40)
    maps[3, 20:] = 1
    canvas = torch.zeros(4, 40, 40)
    canvas[3, :20] = 1
    known = torch.zeros_like(canvas, dtype=torch.bool)
    known[3] = True
    found, _ = quilted(maps, (40, 40), canvas=canvas, known=known, block=(10, 10))
    assert (found[3] == canvas[3]).float().mean() > 0.8


def test_unused_parts_are_preferred():
    """Every block of a flat source fits. 16 blocks of 20 px cover more of 64 x 64 than random ones
    do."""
    _, field = quilted(torch.zeros(3, 64, 64), (60, 60))
    used = torch.zeros(64, 64)
    used[field.y.flatten(), field.x.flatten()] = 1
    drawn = torch.zeros(64, 64)
    for y, x in torch.randint(49, (25, 2), generator=seeded()).tolist():
        drawn[y : y + 12, x : x + 12] = 1
    assert used.mean() > drawn.mean()


def test_blocks_avoid_their_place_in_the_source():
    """The known rows ask for the blocks of that place. A fourth of a block is 5 px."""
    maps = torch.rand(3, 40, 40, generator=seeded())
    known = torch.zeros(3, 40, 40, dtype=torch.bool)
    known[:, :4] = True
    _, field = quilted(maps, (40, 40), canvas=maps.clone(), known=known)
    down, across = field.y - torch.arange(40)[:, None], field.x - torch.arange(40)
    assert (torch.maximum(down.abs(), across.abs()) >= 5)[4:].all()


def test_the_path_of_least_error():
    error = torch.tensor([[9.0, 1, 9, 9], [9, 9, 1, 9], [9, 9, 9, 1], [9, 9, 1, 9]])
    assert quilting._least_path(error).tolist() == [1, 2, 3, 2]


@pytest.mark.parametrize("quarter", range(4))
def test_a_block_is_laid_behind_the_cut(quarter):
    """Three columns on one side are covered, and errors are least in the middle one."""
    error = torch.full((5, 6), 9.0)
    error[:, 1] = 1
    known = torch.zeros(5, 6, dtype=torch.bool)
    known[:, :3] = True
    taken = quilting.inside_cuts(*(torch.rot90(x, quarter) for x in (error, known)))
    expected = (torch.arange(6) > 1).expand(5, 6)
    assert torch.equal(taken, torch.rot90(expected, quarter))


def test_blocks_of_any_shape_cover_the_canvas():
    """Rows of a ramp continue from block to block, so that the columns of the result are equal."""
    maps = torch.arange(40.0)[:, None].expand(3, 40, 40) / 40
    found, field = quilted(maps, (30, 50), block=(30, 9))
    assert torch.equal(field.y.diff(dim=0), torch.ones(29, 50, dtype=torch.int64))
    assert torch.equal(found, found[..., :1].expand(3, 30, 50))


@pytest.mark.parametrize("wrap", ["", "xy"])
@pytest.mark.parametrize("grain", ["y", "x"])
def test_blocks_along_a_grain_cover_the_canvas_and_start_anywhere(grain, wrap):
    """Without tiling the canvas has a margin of a block, 28 px, on both sides along the grain."""
    i = "yx".index(grain)
    block, side = [(28, 8), (8, 28)][i], 40 if wrap else 96
    size = [(side, 40), (40, side)][i]
    corners = quilting._block_corners(size, block, wrap, grain, seeded())
    covered, firsts = torch.zeros(size, dtype=torch.bool), {}
    for top, left in corners:
        rows, columns = (
            (n + torch.arange(b)) % z for n, b, z in zip((top, left), block, size, strict=True)
        )
        covered[rows[:, None], columns] = True
        firsts.setdefault((top, left)[1 - i], (top, left)[i])
    assert (covered if wrap else covered.narrow(i, 28, 40)).all()
    assert len(set(firsts.values())) > 1
    kind = ALONG_AN_AXIS._replace(axis=grain)
    _, field = quilted(torch.zeros(3, 40, 40), (40, 40), wrap=wrap, block=block, kind=kind)
    assert field.size == (40, 40)


@pytest.mark.parametrize("wrap", ["", "y"])
def test_expected_difference_is_low_where_the_source_matches_itself(wrap):
    """A wave of ten rows. What lies 14 rows below a block from row 0 is like rows 4 and 14, and
    unlike row 9, where the wave has the opposite sign and differs by four times its variance.
    Across the border of a tile of 16 rows it lies 2 rows above, like row 8."""
    wave = (torch.arange(60.0) * 2 * math.pi / 10).sin()[:, None].expand(3, 60, 60)
    order = quilting._Order(wave, (20, 20), (16, 60), wrap)
    order.laid.append(((0, 0), (0, 0)))
    difference = order.expected_difference((14, 0), (30, 40))[:, 3]
    assert difference[[8, 18] if wrap else [4, 14]].max() < 0.1
    variance = 3 * wave[0].var().item()
    assert difference[3 if wrap else 9].item() == pytest.approx(4 * variance, rel=0.1)
    order.laid *= 2  # two blocks that expect the same have that as their mean
    torch.testing.assert_close(order.expected_difference((14, 0), (30, 40))[:, 3], difference)


@pytest.mark.slow
def test_blocks_of_a_regular_texture_keep_its_order():
    """Stripes every 16 rows, with gaps wider than overlaps, so that the error does not align
    them."""
    rows = torch.arange(64.0)
    maps = (rows % 16 < 4).float()[:, None].expand(3, 64, 64).contiguous()
    off = []
    for kind in (STOCHASTIC, PERIODICAL):
        _, field = quilted(maps, (64, 64), block=(12, 12), kind=kind)
        offset = field.y - rows.long()[:, None]
        off.append((((offset - offset[0, 0]) % 16 + 1) % 16 > 2).float().mean().item())
    assert off[1] == 0 < 0.2 < off[0]
