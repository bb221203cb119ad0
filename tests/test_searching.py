"""Rounds of painting, in strips and by several processes."""

from dataclasses import replace

import pytest
import torch
from conftest import in_threads, level_of, noise_image, seeded

from engine import searching
from engine.levels import fill_rows
from engine.patchmatch import NNField, PatchMatch
from engine.searching import HALO, describe_strip, paint_round, state_of_layout, upsample
from engine.voting import main_source
from terms.matching import row_slices
from terms.process_group import SINGLE_PROCESS


@pytest.mark.parametrize("wrap", ["", "x", "y", "xy"])
def test_a_strip_has_descriptors_and_field_of_the_whole(wrap):
    level = level_of(noise_image(30, 34), (40, 28), wrap=wrap)
    state = state_of_layout(level, noise_image(40, 28, 1))
    whole = level.describe(state.image, None, wrap)
    height = len(whole)
    for rows in row_slices(height, 12):
        descriptors, field, inside, strip_tile = describe_strip(level, state, rows)
        first, last = rows.start - HALO, rows.stop + HALO
        if "y" not in wrap:
            first, last = max(first, 0), min(last, height)
        at = torch.arange(first, last) % height
        assert at[inside].tolist() == [n % height for n in range(rows.start, rows.stop)]
        assert strip_tile == wrap.strip("y")
        torch.testing.assert_close(descriptors, whole[at])
        assert torch.equal(field.y, state.output_field.y[at])


def test_a_round_in_strips_finds_patches_as_near_as_at_once(monkeypatch):
    level = level_of(noise_image(30, 34), (60, 32), wrap="y")
    state = state_of_layout(level, noise_image(60, 32, 1))
    weights = []
    for strips in (False, True):
        if strips:
            monkeypatch.setattr(searching, "MAX_DESCRIPTORS", 32 * 16)
            monkeypatch.setattr(searching, "SOURCE_CHUNK", 32 * 8)
        level.generator.manual_seed(0)
        weights.append(paint_round(level, state).weights)
    assert not torch.equal(*weights)
    distances = [weight.pow(-1 / searching.VOTE_EXPONENT).mean().item() for weight in weights]
    assert distances[1] == pytest.approx(distances[0], rel=0.05)


def test_a_round_divides_distances_by_those_of_the_nearest_output_patches(monkeypatch):
    """The upper half of the source is in the output already, and the lower half is its negative. A
    grey output is equally far from both, and the upper half is not used again."""
    upper = noise_image(20, 30)
    level = level_of(torch.cat((upper, 1 - upper), 2), (20, 30))
    state = state_of_layout(level, upper)
    _, nearest = searching._search_output(level, state)
    assert nearest[:14].mean() < 0.2 * nearest[20:].mean()
    grey = replace(state, image=torch.full((1, 3, 20, 30), 0.5))
    monkeypatch.setattr(searching, "_search_output", lambda *_: (state.source_field, nearest))
    assert (paint_round(level, grey).output_field.y >= 14).all()  # no patch of the upper half


def test_upsampling_continues_at_the_size_of_the_level():
    coarse, fine = (level_of(noise_image(40, 44), (n, n), factor=n / 40) for n in (20, 40))
    y, x = (torch.arange(14) for _ in "yx")
    still = NNField(y[:, None].expand(14, 14), x.expand(14, 14))
    state = searching.PaintingState(0.5, still, still, coarse.atlas.image)
    found = upsample(fine, state)
    assert found.output_field.size == fine.patches and found.source_field.size == (34, 38)
    torch.testing.assert_close(found.image, fine.atlas.image[..., :40])


@pytest.mark.slow
def test_several_processes_paint_what_one_paints(monkeypatch):
    monkeypatch.setattr(searching, "MAX_DESCRIPTORS", 40 * 12)
    monkeypatch.setattr(searching, "SOURCE_CHUNK", 40 * 12)
    monkeypatch.setattr("engine.voting.chunk_size", lambda device: 40 * 12)
    calls, search = [], PatchMatch.__call__
    monkeypatch.setattr(PatchMatch, "__call__", lambda *args: calls.append(1) or search(*args))

    def two_rounds(group=SINGLE_PROCESS):
        level = level_of(noise_image(40, 44), (40, 40), wrap="y", group=group)
        state = state_of_layout(level, noise_image(40, 40, 1))
        for _ in range(2):
            state = paint_round(level, state)
        return state.image, main_source(level, state.output_field, state.weights)

    image, pixels = two_rounds()
    alone = len(calls)
    for found in in_threads(3, two_rounds):
        assert torch.equal(found[0], image) and torch.equal(found[1], pixels)
    assert len(calls) == 2 * alone  # each strip is searched by one process


def test_a_single_part_is_computed_by_every_process():
    calls = []

    def compute(group):
        output = torch.zeros(2, 5)
        rows = torch.rand(2, 5, generator=seeded())
        fill_rows([output], [(slice(0, 2),)], lambda _: calls.append(1) or [rows], group)
        return torch.equal(output, rows)

    assert all(in_threads(2, compute)) and len(calls) == 2
