"""The sizes and steps of a synthesis, coarse to fine."""

from dataclasses import replace

import pytest
import torch
from conftest import fast_first, made

from engine import synthesis
from engine.scales import pyramid, split_steps
from engine.schedule import margin_of, schedule_of
from engine.spec import Spec, exemplar_of
from terms.base import Canvas
from utils import UserError


@pytest.mark.parametrize(
    "exemplar, output, scales, expected",
    [
        # Sides of the exemplar and of the output, coarse to fine.
        ((256, 256), (256, 256), None, [(64, 64), (128, 128), (256, 256)]),
        ((256, 256), (512, 512), None, [(64, 128), (128, 256), (256, 512)]),
        ((512, 512), (128, 128), None, [(64, 16), (128, 32), (256, 64), (512, 128)]),
        ((512, 512), (64, 64), None, [(128, 16), (256, 32), (512, 64)]),
        ((90, 90), (90, 90), None, [(90, 90)]),  # log2(90/64) = 0.49
        ((91, 91), (91, 91), None, [(64, 64), (91, 91)]),  # log2(91/64) = 0.508
        ((192, 192), (192, 192), None, [(64, 64), (111, 111), (192, 192)]),  # by the root of 3
        ((16, 16), (16, 16), None, [(16, 16)]),
        ((256, 256), (256, 256), 1, [(256, 256)]),
        ((64, 64), (64, 64), 3, [(16, 16), (32, 32), (64, 64)]),
    ],
)
def test_pyramid_of_squares(exemplar, output, scales, expected):
    sizes = pyramid(exemplar, output, scales, least=16)
    assert sizes == [((a, a), (b, b)) for a, b in expected]


def test_pyramid_goes_by_the_shorter_side_and_keeps_the_aspect():
    assert pyramid((300, 200), (100, 400), None, least=16) == [
        ((96, 64), (32, 128)),
        ((170, 113), (57, 226)),
        ((300, 200), (100, 400)),
    ]


def test_pyramid_refuses():
    with pytest.raises(UserError, match="^scales 6: .* 1 to 5"):
        pyramid((256, 300), (256, 256), 6, 16)
    with pytest.raises(UserError, match="exemplar of 300x15"):
        pyramid((15, 300), (64, 64), None, 16)
    with pytest.raises(UserError, match="output of 1x64"):
        pyramid((64, 64), (64, 1), None, 16)


def test_split_steps_by_hand():
    assert split_steps(219, 3) == [100, 70, 49]  # 1 + 0.7 + 0.49
    assert split_steps(170, 2) == [100, 70]
    assert split_steps(5, 1) == [5]


@pytest.mark.parametrize("scales", range(1, 8))
def test_split_steps_spends_all_and_most_at_the_coarse_scales(scales):
    for steps in (*range(1, 200), *range(200, 5000, 97)):
        shares = split_steps(steps, scales)
        assert sum(shares) == steps and min(shares) >= 0 and len(shares) == scales
        assert shares[0] == max(shares)


def test_pyramid_rounds_outputs_up_to_multiples():
    sizes = pyramid((256, 256), (250, 256), 3, 16, (8, 1))
    assert [output for _, output in sizes] == [(64, 64), (128, 128), (256, 256)]
    sizes = pyramid((256, 256), (300, 250), 3, 16, (1, 8))
    assert [output for _, output in sizes] == [(75, 64), (150, 128), (300, 256)]
    assert [exemplar for exemplar, _ in sizes] == [(64, 64), (128, 128), (256, 256)]


def spec_of(size, wrap="", repaint=0.42, source=256, **maps):
    exemplar = exemplar_of(torch.rand(1, 3, source, source))
    return Spec((exemplar,), Canvas(size, wrap, **maps), steps=100, repaint=repaint)


def stages_of(*arguments, **options):
    return schedule_of(spec_of(*arguments, **options), ["conv1_1", "conv2_1"]).stages


def test_a_painting_that_is_optimized_has_a_margin():
    """24 px at each border, at the finest of three scales. Painting takes 42 of 100 steps; 58 are
    35.1, 15.8 and 7.1, by the ratio 0.45."""
    painting, *scales = stages_of((256, 512))
    assert painting.is_painting and painting.steps == 42 and painting.size == (304, 560)
    assert [stage.size for stage in scales] == [(76, 140), (152, 280), (304, 560)]
    assert [stage.steps for stage in scales] == [35, 16, 7]


@pytest.mark.parametrize(
    "optimizer, repaint, source, size, expected",
    [
        ("Adam", 0.0, 256, 256, [False, False, True]),
        ("LBFGS", 0.0, 256, 256, [False, True, True]),
        ("Adam", 0.42, 256, 256, [False, True, True]),
        ("LBFGS", 0.0, 256, 20, [False, False, True]),  # 5, 10 and 20 px; painting needs 14
        ("LBFGS", 0.0, 20, 256, [False, False, True]),
    ],
)
def test_stages_whose_detail_is_painted(optimizer, repaint, source, size, expected):
    spec = spec_of((size, size), repaint=repaint, source=source)
    spec = replace(spec, optimizer=optimizer, scales=3)
    stages = schedule_of(spec, ["conv1_1", "conv2_1"]).stages
    assert [stage.paints_detail for stage in stages if not stage.is_painting] == expected


@pytest.mark.parametrize(
    "size, wrap, maps, expected",
    [
        ((256, 256), "x", (), (24, 0)),
        ((256, 256), "xy", (), (0, 0)),
        ((100, 300), "", (), (12, 12)),  # at most an eighth of the shorter side
        *(((256, 256), "", (name,), (0, 0)) for name in ("init", "mask", "guide", "regions")),
    ],
)
def test_the_margin(size, wrap, maps, expected):
    maps = {name: torch.zeros(1, 3, *size) for name in maps}
    assert margin_of(spec_of(size, wrap, **maps)) == expected


def test_pictures_that_are_not_optimized_from_a_painting_have_no_margin():
    (painting,) = stages_of((256, 256), repaint=1.0)
    *scales, last = stages_of((256, 256), content=torch.zeros(1, 3, 256, 256))
    assert last.is_painting and sum(stage.steps for stage in scales) == 58
    for stage in (painting, last, scales[-1], stages_of((256, 256), repaint=0.0)[-1]):
        assert stage.size == (256, 256)


@pytest.mark.parametrize(
    "scales, repaint, on",
    fast_first(
        [
            (3, 0.0, [True, True, False]),
            (1, 0.5, [True]),
            (2, 0.5, [True, False]),
            (1, 0.0, [True, False]),  # two stages of one size, the second with painted detail
        ],
        2,
    ),
)
def test_cross_correlation_is_omitted_at_the_finest_of_several_scales(
    scales, repaint, on, tiny, monkeypatch
):
    built, criterion_at = [], synthesis.criterion_at

    def recorded(spec, *sizes):
        criterion = criterion_at(spec, *sizes)
        built.append([type(term).__name__ for _, term in criterion.terms])
        return criterion

    monkeypatch.setattr(synthesis, "criterion_at", recorded)
    exemplars, canvas = (exemplar_of(torch.rand(1, 3, 32, 32)),), Canvas((32, 32))
    made(Spec(exemplars, canvas, steps=4 * scales, scales=scales, repaint=repaint), tiny)
    assert ["CrossCorrelation" in names for names in built] == on
    assert all(names[:1] == ["Gram"] and "Histogram" in names for names in built)
