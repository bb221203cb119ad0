"""Nearest-neighbour fields and the search for them."""

import pytest
import torch
from conftest import seeded

from engine.patchmatch import Candidates, NNField, PatchMatch


def all_usable(*size: int) -> torch.Tensor:
    return torch.ones(*size, dtype=torch.bool)


def search(queries, source, field, iterations, usable=None, **candidates):
    usable = all_usable(*source.shape[:2]) if usable is None else usable
    match = PatchMatch(queries, Candidates(source, usable, **candidates), seeded())
    return match(field, iterations), match


def test_offsets_propagate_to_the_right():
    field = NNField(torch.tensor([[10, 20]]), torch.tensor([[1, 2]]))
    right = field.propagate(0, 1, "")
    assert (right.y.tolist(), right.x.tolist()) == ([[10, 10]], [[2, 2]])
    wrapped = field.propagate(0, 1, "x")
    assert (wrapped.y.tolist(), wrapped.x.tolist()) == ([[20, 10]], [[3, 2]])


@pytest.mark.parametrize("wrap", ["", "x", "y", "xy"])
@pytest.mark.parametrize("down, across", [(2, 0), (-2, 0), (0, 1), (0, -9)])
def test_propagation_reads_the_neighbour_that_many_pixels_away(wrap, down, across):
    field = NNField.random((5, 6), (9, 9), seeded())
    found = field.propagate(down, across, wrap)
    for i in range(5):
        for j in range(6):
            row, column = i - down, j - across
            row = row % 5 if "y" in wrap else min(max(row, 0), 4)
            column = column % 6 if "x" in wrap else min(max(column, 0), 5)
            assert found.y[i, j] == field.y[row, column] + down
            assert found.x[i, j] == field.x[row, column] + across


def test_resizing_scales_offsets():
    """At twice the size, an offset of 5 px down is 10 px down for every pixel."""
    field = NNField(torch.tensor([[5], [6]]), torch.tensor([[0], [0]]))
    assert field.resize((4, 2), 2).y.tolist() == [[10, 10], [11, 11], [12, 12], [13, 13]]
    assert field.resize((4, 2), 2).x.tolist() == [[0, 1]] * 4


def test_offset_concentration():
    """Six of eight queries have one offset, two have another."""
    y = torch.tensor([[3, 3, 3, 0], [4, 4, 4, 1]])
    x = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 0]])
    assert NNField(y, x).offset_concentration() == pytest.approx((6 / 8) ** 2 + (2 / 8) ** 2)


def test_a_part_of_the_source_is_found():
    source = torch.rand(40, 44, 5, generator=seeded())
    field = NNField.random((25, 28), (40, 44), seeded(1))
    found, match = search(source[5:30, 3:31], source, field, 2)
    assert torch.equal(found.y, (torch.arange(25) + 5)[:, None].expand(25, 28))
    assert torch.equal(found.x, (torch.arange(28) + 3).expand(25, 28))
    assert not match.distance(found).any()


def test_distances_approach_those_of_brute_force():
    """For noise, whose neighbours do not help and which is therefore the hardest case."""
    queries, source = (torch.rand(16, 16, 3, generator=seeded(seed)) for seed in (0, 1))
    found, match = search(queries, source, NNField.random((16, 16), (16, 16), seeded(1)), 5)
    pairs = torch.cdist(queries.flatten(0, 1), source.flatten(0, 1)).square()
    index = found.flat(16).flatten()
    torch.testing.assert_close(match.distance(found).flatten(), pairs[torch.arange(256), index])
    mean = match.distance(found).mean()
    assert pairs.amin(1).mean() <= mean < 0.1 * pairs.mean()


def test_distances_do_not_depend_on_the_chunks(monkeypatch):
    queries, source = (torch.rand(6, 7, 3, generator=seeded(seed)) for seed in (0, 1))
    field = NNField.random((6, 7), (6, 7), seeded(2))
    match = PatchMatch(queries, Candidates(source, all_usable(6, 7)), seeded())
    whole = match.distance(field)
    monkeypatch.setattr("engine.patchmatch.chunk_size", lambda device: 10)
    assert torch.equal(match.distance(field), whole)


def test_equal_patches_of_a_lower_factor_are_preferred():
    factor = torch.ones(24, 12)
    factor[:12] = 2
    flat = torch.ones(24, 12, 3)
    field = NNField.random((12, 12), (24, 12), seeded(1))
    found, _ = search(flat[:12] * 0, flat, field, 2, cost_factor=factor)
    assert (found.y >= 12).all()


def test_a_lower_factor_does_not_outweigh_a_guide():
    """Pixels differ by 1 everywhere, guides by 1 where the factor is 0.1. That costs 0.1 + 2 there
    and 2 where the factor is 2."""
    factor = torch.full((24, 12), 2.0)
    factor[12:] = 0.1
    source = torch.ones(24, 12, 2)
    source[:12, :, 1] = 0
    field = NNField.random((12, 12), (24, 12), seeded(1))
    found, match = search(source[:12] * 0, source, field, 2, cost_factor=factor, guide_channels=1)
    assert (found.y < 12).all()
    assert torch.allclose(match._cost(found.flat(12).flatten()), torch.tensor(2.0))


def test_found_patches_are_usable_and_keep_their_label():
    queries, source = torch.rand(9, 9, 2, generator=seeded()), torch.rand(30, 12, 2)
    usable = all_usable(30, 12)
    usable[12:16] = False
    labels = torch.zeros(30, 12, dtype=torch.int64)
    labels[16:] = 1
    first = NNField(torch.full((9, 9), 3), torch.full((9, 9), 50))
    first.y[:, 4:] = 20
    found, _ = search(queries, source, first, 3, usable, labels=labels)
    assert usable[found.y, found.x].all()
    assert (found.y[:, :4] < 12).all() and (found.y[:, 4:] >= 16).all()
    unusable = NNField(torch.full((9, 9), 13), torch.full((9, 9), -4))
    found, _ = search(queries, source, unusable, 0, usable)
    assert usable[found.y, found.x].all()
