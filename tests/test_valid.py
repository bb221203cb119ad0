"""What does not count of an exemplar: no statistic, patch or layout may depend on it."""

from dataclasses import replace

import pytest
import torch
from conftest import made, noise

from engine.painting import paint
from engine.schedule import schedule_of
from engine.spec import Spec, exemplar_of
from engine.synthesis import criterion_at
from losses import METHODS, TERMS
from terms.base import Canvas, Exemplar, View
from terms.regions import regions_of
from terms.valid import fill_invalid, largest_rectangle, usable_patches, valid_at
from utils import UserError

HALF = torch.full((1, 3, 32, 32), 0.5)


def marks(*rows):
    """(1, 1, H, W) of bool from rows of text, # for what counts."""
    return torch.tensor([[c == "#" for c in row] for row in rows])[None, None]


def test_a_position_counts_with_all_that_it_sees():
    valid = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    valid[..., 7] = False
    assert valid_at(valid, (8, 8))[0, 0, 0].tolist() == [True] * 6 + [False] * 2
    assert valid_at(valid, (4, 4))[0, 0, 0].tolist() == [True] * 2 + [False] * 2


def test_pixels_of_a_reduced_picture_are_valid_if_more_than_half_of_them_is():
    valid = marks("#.##", "...#", "####", "####")
    view = View({"image": torch.zeros(1, 3, 2, 2)}, valid=valid)
    assert regions_of(view)[0, 0].tolist() == [[-1, 0], [0, 0]]


def test_patches_that_are_usable():
    """Of 8 columns 7 count, 6 with their neighbours: four patches of 3 columns, of six."""
    valid = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    valid[..., 7] = False
    assert usable_patches(valid, (8, 8), 3)[0].tolist() == [True] * 4 + [False] * 2
    chequered = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 0
    assert usable_patches(chequered[None, None], (8, 8), 3).any()


@pytest.mark.parametrize("seed", range(5))
def test_largest_rectangle_is_brute_force(seed):
    inside = noise(1, 1, 7, 9, seed=seed) > 0.3
    (top, left), (height, width) = largest_rectangle(inside)
    assert inside[..., top : top + height, left : left + width].all()
    areas = [
        (b - a) * (d - c)
        for a in range(7)
        for b in range(a + 1, 8)
        for c in range(9)
        for d in range(c + 1, 10)
        if inside[..., a:b, c:d].all()
    ]
    assert height * width == max(areas)
    assert largest_rectangle(torch.zeros_like(inside)) == ((0, 0), (0, 0))


def test_largest_rectangle_of_a_large_picture():
    """Of 1024 px every second one is looked at; columns 100 to 899 are valid."""
    inside = torch.zeros(1, 1, 8, 1024, dtype=torch.bool)
    inside[..., 100:900] = True
    assert largest_rectangle(inside) == ((0, 100), (8, 800))


def test_what_is_filled_is_near_what_lies_beside_it():
    valid = marks(*["##..##"] * 6)
    image = torch.cat((torch.zeros(1, 1, 6, 3), torch.ones(1, 1, 6, 3)), 3)
    image[~valid] = 9
    found = fill_invalid(image, valid)
    assert torch.equal(found[valid], image[valid])
    assert found.min() == 0 and found.max() == 1 and found[..., 2].max() < found[..., 3].min()


def with_a_hole(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of noise, a part of which does not count; in the middle of that, where no position
    beside it sees it, is other noise for every seed."""
    valid = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    valid[..., 30:, 28:] = False
    image = noise(1, 3, 48, 48)
    image[..., 34:, 32:] = 3 * noise(1, 3, 14, 16, seed=seed)
    return image, valid


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("masked", [False, True], ids=["", "beside what is kept"])
def test_no_term_depends_on_what_does_not_count(method, masked, tiny):
    """Though it is not filled here."""
    losses = []
    for seed in (1, 2):
        image, valid = with_a_hole(seed)
        exemplar = Exemplar((View({"image": image}, valid=valid),))
        canvas = Canvas((32, 32))
        if masked:
            canvas = replace(canvas, mask=torch.arange(32).expand(1, 1, 32, 32) < 16, init=HALF)
        weights = dict.fromkeys(TERMS, 1.0)
        spec = Spec((exemplar,), canvas, method=method, weights=weights, max_patches=20)
        criterion = criterion_at(spec, tiny, (48, 48), (32, 32))
        output = tiny(noise(1, 3, 32, 32, seed=3))
        criterion.rematch(output)
        losses.append([term(output).item() for _, term in criterion.terms])
    assert losses[0] == losses[1] and len(losses[0]) == 1 + len(TERMS)


def painted(exemplars, size):
    *_, last = paint(Spec(exemplars, Canvas(size)), size)
    return last


@pytest.mark.slow
def test_no_picture_depends_on_what_does_not_count(tiny, brief_painting):
    pictures = []
    for seed in (1, 2):
        image, valid = with_a_hole(seed)
        exemplars = (exemplar_of(image.clamp(0, 1), (90,), valid=valid),)
        pictures.append(painted(exemplars, (40, 40)).image)
        pictures.append(made(Spec(exemplars, Canvas((32, 32)), steps=3), tiny).image)
    assert torch.equal(pictures[0], pictures[2]) and torch.equal(pictures[1], pictures[3])


def test_nothing_is_painted_of_what_does_not_count(brief_painting):
    """Black counts, white does not; interpolated between them are a few pixels at most."""
    _, valid = with_a_hole(0)
    white = (~valid).float().expand(1, 3, -1, -1)
    exemplar = Exemplar((View({"image": white}, valid=valid),))
    image = painted((exemplar,), (64, 64)).image
    assert image.mean() < 0.01


def test_what_counts_must_have_room_for_patches():
    """Stripes of 6 px are no place for patches of 7."""
    valid = (torch.arange(48) % 8 < 6).expand(1, 1, 48, 48)
    exemplar = exemplar_of(noise(1, 3, 48, 48), valid=valid)
    words = "opaque part of the exemplar of 5x48, painting needs sides of 14 or more"
    with pytest.raises(UserError, match=words):
        schedule_of(Spec((exemplar,), Canvas((32, 32)), repaint=1), ["conv1_1"])
