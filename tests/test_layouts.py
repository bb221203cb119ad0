"""First layouts: their blocks, their number and how they are ranked."""

from dataclasses import replace

import pytest
import torch
from conftest import level_of, noise_image, seeded
from torch.nn import functional as F

from engine import layouts
from engine.kinds import ALONG_AN_AXIS, STOCHASTIC
from engine.layouts import layout_cost, layout_count, quilt_layout
from engine.patchmatch import NNField
from engine.spec import exemplar_of
from engine.voting import vote


def test_large_outputs_have_fewer_layouts(monkeypatch):
    monkeypatch.setattr(layouts, "LAYOUTS", 12)
    assert [layout_count((side, side)) for side in (64, 256, 512, 1024)] == [12, 12, 3, 1]


def test_the_middle_of_a_patch_has_the_source_of_its_pixel():
    """Rows of the source are 0, 1, 2 ... in the first channel, so that a block which continues
    known rows gives each output patch the rows of its middle pixel."""
    image = (torch.arange(40.0) / 40).view(1, 1, 40, 1).expand(1, 3, 40, 44)
    mask = torch.ones(1, 1, 20, 24, dtype=torch.bool)
    mask[..., :7] = False
    level = level_of(image, (20, 24), init=image[..., 8:28, :24], mask=mask)
    field = quilt_layout(level)
    assert field.size == (14, 18) and torch.equal(
        field.y[:, 8:], (torch.arange(14) + 8)[:, None].expand(14, 10)
    )


@pytest.mark.slow
def test_a_layout_lies_in_the_atlas_and_keeps_the_shares():
    """A quarter of the output is from the second exemplar, which is smaller than a block of the
    first would be."""
    both = (
        exemplar_of(noise_image(64, 64), share=0.75),
        exemplar_of(noise_image(20, 64), share=0.25),
    )
    level = level_of(both, (80, 80), wrap="xy")
    field = quilt_layout(level)
    assert level.usable[field.y, field.x].all()
    share = (level.atlas.exemplars[field.y, field.x] == 1).float().mean()
    assert share == pytest.approx(0.25, abs=0.1)


def test_the_size_of_blocks():
    """0.31 of 40 px, along a grain all of it; of two exemplars half of the smaller one; and half
    of what does not fit. Of 80 valid columns 79 count, which are 40 at half the size, where only 39
    of them do."""
    one = exemplar_of(noise_image(40, 64))
    assert layouts._block_size(level_of(one, (40, 40)), "") == (12, 12)
    assert layouts._block_size(level_of(one, (40, 40)), "y") == (40, 12)
    assert layouts._block_size(level_of(one, (40, 40), factor=0.5), "") == (6, 6)
    both = one, exemplar_of(noise_image(20, 30))
    assert layouts._block_size(level_of(both, (40, 40)), "x") == (10, 10)
    valid = (torch.arange(100) < 80).expand(1, 1, 100, 100)
    stripe = exemplar_of(noise_image(100, 100), valid=valid)
    assert layouts._block_size(level_of(stripe, (40, 40), factor=0.5), "x") == (7, 20)


def test_the_kind_is_that_of_one_unguided_view(monkeypatch):
    """With a rotated copy or with a guide, blocks of a texture with a grain are those of others."""
    kinds = []

    def quilt(source, canvas, known, *, kind, **options):
        kinds.append(kind)
        return NNField(*torch.zeros(2, *canvas.shape[1:], dtype=torch.int64))

    monkeypatch.setattr(layouts, "quilt", quilt)
    kind = ALONG_AN_AXIS._replace(axis="y")
    one, copied = (exemplar_of(noise_image(40, 40), turns) for turns in ((), (90,)))
    views = (replace(one.views[0], guide=torch.zeros(1, 1, 40, 40)),)
    guided = replace(one, views=views)
    quilt_layout(level_of(one, (40, 40), kind=kind))
    quilt_layout(level_of(copied, (40, 40), kind=kind))
    quilt_layout(level_of(guided, (40, 40), kind=kind, guide=torch.zeros(1, 1, 40, 40)))
    assert kinds == [kind, STOCHASTIC, STOCHASTIC]


def test_layouts_are_ranked_by_coherence_and_completeness_and_copies_last():
    """One that is torn, the exemplar itself, and its quarters in another order."""
    exemplar = F.interpolate(noise_image(16, 16), (64, 64), mode="bicubic").clamp(0, 1)
    level = level_of(exemplar, (64, 64))
    rows, columns = torch.arange(58)[:, None].expand(58, 58), torch.arange(58).expand(58, 58)
    shuffled = torch.randperm(58, generator=seeded())
    fields = {
        "torn": NNField(rows[shuffled], columns[:, shuffled]),
        "copied": NNField(rows, columns),
        "in quarters": NNField(rows.roll((29, 29), (0, 1)), columns.roll((29, 29), (0, 1))),
        "one quarter": NNField(rows % 29, columns % 29),
    }
    costs = {name: layout_cost(level, one, vote(level, one)) for name, one in fields.items()}
    assert min(costs, key=costs.get) == "in quarters" and max(costs, key=costs.get) == "copied"
    assert costs["copied"][1] < 1e-9 and costs["one quarter"][1] > 2 * costs["in quarters"][1]


def test_the_mean_nearest_distance_is_that_of_brute_force():
    queries, candidates = torch.rand(30, 3, generator=seeded()), torch.rand(20, 3)
    expected = torch.cdist(queries, candidates).square().amin(1).mean().item()
    assert layouts._mean_nearest(queries, candidates) == pytest.approx(expected)
