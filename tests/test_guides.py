"""Maps that say what goes where, and models of each region alone."""

import math
from functools import partial

import pytest
import torch
from conftest import built, criterion_of, noise, regional
from torch.nn import functional as F

from engine import guides
from engine.guides import joined, read_guide, which_exemplar
from engine.orientation import (
    AXIS_BINS,
    axes,
    axes_of_hue,
    axes_of_vectors,
    axis_bins,
    field,
    missing_turns,
    orientation_guide,
)
from terms.cnnmrf import CNNMRF
from terms.gram import Gram
from terms.guided import Guided
from terms.histogram import Histogram
from terms.matching import ExtraDistance, nearest_patches
from terms.regions import region_masks
from terms.sliced import Sliced
from utils import UserError, rotated_and_resized

RED, BLUE, WHITE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0)
NAMES = ("source.png", "output.png")


def picture(*rows):
    """Rows of colours -> (1, 3, H, W)."""
    return torch.tensor(rows).permute(2, 0, 1)[None]


def ramp(*levels):
    return torch.tensor(levels).view(1, 1, 1, -1).expand(1, 3, 4, -1)


# --------------------------------------------------------------------------------- reading maps


def test_each_colour_is_a_region():
    guide = read_guide(picture([RED, BLUE, BLUE]), picture([BLUE], [RED]), NAMES)
    # Sorted by colour: blue is region 0.
    assert guide.source_regions[0].tolist() == [[[[1, 0, 0]]]]
    assert guide.output_region.tolist() == [[[[0], [1]]]]
    assert guide.sources[0][0, :, 0, 0].tolist() == [0, 1]
    assert guide.output[0, :, :, 0].tolist() == [[1, 0], [0, 1]]


def test_a_region_without_a_source_is_named():
    with pytest.raises(UserError, match="source.png: has no #ffffff, which output.png"):
        read_guide(picture([RED, BLUE]), picture([RED, WHITE]), NAMES)


def test_many_colours_are_no_regions():
    with pytest.raises(UserError, match="colours; give 12 regions or fewer"):
        read_guide(noise(1, 3, 9, 9), noise(1, 3, 9, 9, seed=1), NAMES)


@pytest.mark.slow
def test_grey_is_a_progression_whose_steps_all_have_a_source():
    source, output = ramp(*torch.linspace(0.2, 0.6, 64).tolist()), ramp(0.0, 0.33, 1.0)
    guide = read_guide(source, output, NAMES)
    assert torch.equal(guide.sources[0], source[:, :1]) and torch.equal(guide.output, output[:, :1])
    shares = guide.source_regions[0].flatten().bincount() / (4 * 64)
    torch.testing.assert_close(shares, torch.full((guides.STEPS,), 1 / guides.STEPS))
    # Below and above all that the source has: its lowest and its highest step.
    assert guide.output_region[0, 0, 0].tolist() == [0, 2, guides.STEPS - 1]
    assert (guide.source_regions[0].diff(dim=3) >= 0).all()


def test_joined_guides_have_a_region_for_every_pair():
    one = read_guide(picture([RED, RED, BLUE]), picture([BLUE, RED]), NAMES)
    two = read_guide(picture([RED, BLUE, RED]), picture([RED, BLUE]), NAMES)
    both = joined([one, two])
    assert both.sources[0].shape == (1, 4, 1, 3)
    pairs = both.source_regions[0].flatten().tolist()
    assert len(set(pairs)) == 3
    assert both.output_region.flatten().tolist() == [pairs[2], pairs[1]]
    with pytest.raises(UserError, match="output maps combine regions"):
        joined([one, read_guide(picture([RED, BLUE, RED]), picture([BLUE, RED]), NAMES)])


def test_whole_exemplars_are_regions_from_dark_to_light():
    exemplars = [noise(1, 3, 3, 4), noise(1, 3, 5, 2)]
    guide = which_exemplar(exemplars, picture([WHITE, BLUE, BLUE]), "map.png")
    assert guide.output_region.tolist() == [[[[1, 0, 0]]]]
    assert [x.shape[2:] for x in guide.sources] == [(3, 4), (5, 2)]
    assert [x.unique().tolist() for x in guide.source_regions] == [[0], [1]]
    assert guide.sources[1][0, :, 0, 0].tolist() == [0, 1]
    with pytest.raises(UserError, match="map.png: 2 colours, needed are 3"):
        which_exemplar([*exemplars, exemplars[0]], picture([WHITE, BLUE]), "map.png")


def test_output_maps_are_brought_to_the_size_asked_for():
    wanted = picture([RED, BLUE], [BLUE, BLUE])
    guide = read_guide(picture([RED, BLUE]), wanted, NAMES, size=(4, 4))
    # Blue is region 0: labels stay labels, each now of 2x2 px.
    rows = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert guide.output_region[0, 0].tolist() == guide.output[0, 1].tolist() == rows
    assert guide.sources[0].shape == (1, 2, 1, 2)
    source = ramp(*torch.linspace(0, 1, 64).tolist())
    guide = read_guide(source, ramp(0.2, 0.68), NAMES, size=(4, 4))
    # A progression goes on between the middles of its two columns, at 1 and 3.
    torch.testing.assert_close(guide.output[0, 0, 0], torch.tensor([0.2, 0.32, 0.56, 0.68]))
    assert guide.output_region[0, 0, 0].tolist() == [1, 2, 4, 5]  # of 8 steps
    guide = which_exemplar([noise(1, 3, 3, 4)] * 2, picture([WHITE, BLUE]), "map.png", (1, 4))
    assert guide.output_region.tolist() == [[[[1, 1, 0, 0]]]]
    assert guide.output[0, 1].tolist() == [[1, 1, 0, 0]]


def test_joined_guides_may_ask_for_nothing_somewhere():
    """Places without an axis, beside labels: no statistics there, whatever the source has."""
    labels = read_guide(picture([RED, BLUE]), picture([BLUE, RED]), NAMES)
    region = torch.tensor([[[[0, -1]]]])
    axis = guides.Guide((torch.ones(1, 2, 1, 2),), torch.ones(1, 2, 1, 2), (0 * region,), region)
    assert (joined([labels, axis]).output_region >= 0).flatten().tolist() == [True, False]


def test_positions_of_a_layer_belong_to_what_most_of_them_is():
    regions = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [2, -1, -1, -1], [-1, -1, -1, -1]])
    masks = region_masks(regions[None, None], (2, 2), 3)
    # Top left is 0, top right 1, and below is nothing, but region 2 gets what little it has.
    assert masks.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


# --------------------------------------------------------------------------------- each region


def halves(height, width):
    """Left is region 0, right is region 1."""
    right = torch.arange(width) >= width // 2
    return right.long().expand(1, 1, height, width)


def test_regions_weigh_as_much_as_they_have_of_the_output():
    """One region of a quarter of the places and one of three quarters."""
    source, output = {"a": noise(1, 3, 8, 8)}, {"a": noise(1, 3, 8, 8, seed=1) ** 3}
    quarter = (torch.arange(8) >= 2).long().expand(1, 1, 8, 8)
    found = regional(Gram, source, ["a"], regions=((halves(8, 8),), quarter))(output)
    left, right = (
        built(Gram, {"a": source["a"][..., k : k + 4]}, ["a"])({"a": part})
        for k, part in ((0, output["a"][..., :2]), (4, output["a"][..., 2:]))
    )
    assert abs(left - right) > 0.05  # else any weights would do
    torch.testing.assert_close(found, left / 4 + 3 * right / 4)


@pytest.mark.parametrize("kind", [Gram, Histogram, Sliced])
def test_what_is_in_its_region_is_met_and_elsewhere_not(kind):
    source = {"image": noise(1, 3, 8, 8)}
    source["image"][..., 4:] = source["image"][..., 4:] ** 4
    swapped = {"image": source["image"].roll(4, 3)}
    settings = dict(regions=((halves(8, 8),), halves(8, 8)))
    other = dict(regions=((halves(8, 8),), 1 - halves(8, 8)))
    for output, regions in ((source, settings), (swapped, other)):
        model = regional(kind, source, ["image"], **regions)
        values = []
        for features in (output, swapped if output is source else source):
            model.rematch(features)
            values.append(model(features).item())
        assert values[0] < 1e-6 and values[1] > 0.1


def test_nothing_is_asked_of_what_has_no_region(tiny):
    source = tiny(noise(1, 3, 16, 16))
    nowhere = torch.zeros(1, 1, 16, 16, dtype=torch.int64)
    nowhere[..., 8:] = -1
    settings = dict(regions=((torch.zeros_like(nowhere),), nowhere))
    criterion = criterion_of(source, tiny.layers, "gram", {"histogram": 1.0}, **settings)
    image = noise(1, 3, 16, 16, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(criterion(tiny(image)).sum(), image)
    assert (gradient[..., :8] != 0).all() and (gradient[..., 12:] == 0).all()


def test_where_no_place_has_a_region_the_loss_is_zero_and_has_a_gradient(tiny):
    source = tiny(noise(1, 3, 16, 16))
    nowhere = torch.full((1, 1, 16, 16), -1)
    settings = dict(regions=((torch.zeros_like(nowhere),), nowhere))
    image = noise(2, 3, 16, 16, seed=1).requires_grad_()
    losses = regional(Gram, source, tiny.layers, **settings)(tiny(image))
    (gradient,) = torch.autograd.grad(losses.sum(), image)
    assert losses.tolist() == [0, 0] and (gradient == 0).all()


def test_shares_of_exemplars_hold_within_regions(tiny):
    """A mask makes a region of what may change; the exemplars are mixed in it as elsewhere."""
    pictures = [tiny(noise(1, 3, 16, 16, seed=seed)) for seed in (0, 1)]
    output = tiny(noise(1, 3, 16, 16, seed=2))
    whole = torch.zeros(1, 1, 16, 16, dtype=torch.int64)
    plain = dict(others=(pictures[1],), shares=(0.6, 0.4))
    for weights in ({"histogram": 1.0}, {"patches": 1.0}):
        values = []
        for settings in (plain, {**plain, "regions": ((whole,), whole)}):
            criterion = criterion_of(pictures[0], tiny.layers, "gram", weights, **settings)
            criterion.rematch(output)
            values.append(criterion(output))
        torch.testing.assert_close(*values)


def test_criterion_of_one_region_is_the_criterion(tiny):
    source, output = tiny(noise(1, 3, 16, 16)), tiny(noise(1, 3, 16, 12, seed=1))
    whole = [torch.zeros(1, 1, 16, width, dtype=torch.int64) for width in (16, 12)]
    settings = dict(regions=((whole[0],), whole[1]))
    for method in ("gram", "swd"):
        values = []
        for known in (dict(), settings):
            criterion = criterion_of(source, tiny.layers, method, None, **known)
            criterion.rematch(output)
            values.append(criterion(output))
        torch.testing.assert_close(*values)


# --------------------------------------------------------------------------------------- patches


def test_nearest_patches_of_the_same_guide_are_brute_force():
    output, source = noise(3, 7, 6) - 0.5, noise(3, 8, 9, seed=1) - 0.5
    here, there = noise(2, 5, 4, seed=2), noise(2, 6, 7, seed=3)
    index, height = nearest_patches(output, source, 3, (here, there))
    drawn, wanted = (F.unfold(maps[None], 3)[0].T for maps in (output, source))
    norms = drawn.norm(dim=1, keepdim=True)
    distances = torch.cdist(here.flatten(1).T, there.flatten(1).T).square()
    heights = drawn @ F.normalize(wanted, dim=1).T - norms * distances
    best, found = heights.max(1)
    torch.testing.assert_close(height.flatten(), best)
    assert torch.equal(index.flatten(), found // 7 * 9 + found % 7)
    plain = nearest_patches(output, source, 3)[0]
    assert not torch.equal(index, plain)


@pytest.mark.parametrize("kind", [CNNMRF, Guided])
def test_patches_match_within_their_region(kind, every_patch):
    # The right half of the source is what all of the output looks like; the left is asked for.
    output = {"a": noise(1, 4, 9, 9)}
    source = {"a": torch.cat((noise(1, 4, 9, 9, seed=1), output["a"]), 3)}
    guide = halves(9, 18).float()
    values = []
    for wanted in (1.0, 0.0):
        model = built(kind, source, ["a"], guide=((guide,), torch.full((1, 1, 9, 9), wanted)))
        model.rematch(output)
        values.append(model(output).item())
    assert values[0] < 1e-3 < 0.1 < values[1]


@pytest.mark.parametrize("kind", [CNNMRF, Guided])
def test_guides_of_turned_exemplars_are_turned_with_them(kind, every_patch):
    source, other = {"a": noise(1, 4, 9, 9)}, {"a": noise(1, 4, 9, 9, seed=1)}
    ones = torch.ones(1, 1, 9, 9)
    settings = dict(variants=(other,), guide=((ones, ones * 0), ones * 0))
    model = built(kind, source, ["a"], **settings)
    for output, met in ((other, True), (source, False)):
        model.rematch(output)
        assert (model(output).item() < 1e-3) == met


# ---------------------------------------------------------------------------------- orientation


def stripes(degrees, size=(64, 64)):
    """Stripes of 8 px that run at so many degrees counter-clockwise, as they look."""
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    angle = math.radians(degrees)
    across = x * math.sin(angle) + y * math.cos(angle)
    return (0.5 + 0.4 * (2 * math.pi * across / 8).sin()).expand(1, 3, *size)


def degrees_of(found):
    """Axes -> degrees counter-clockwise, 0 ... 180."""
    return (-torch.rad2deg(torch.atan2(found[:, 1], found[:, 0])) / 2) % 180


@pytest.mark.parametrize("degrees", [0, 20, 45, 90, 135, 170])
def test_axes_are_along_the_stripes(degrees):
    found = axes(stripes(degrees))
    error = (degrees_of(found) - degrees + 90) % 180 - 90
    assert error.abs().median() < 2 and found.norm(dim=1).median() > 0.95
    wanted = field(str(degrees), (64, 64))
    assert (wanted - found).norm(dim=1).median() < 0.1
    assert axes(torch.rand(1, 3, 64, 64)).norm(dim=1).median() < 0.3
    # Rounding may leave differences of 1e-8, whose squares are divided by 1e-8 or more.
    flat = axes(torch.full((1, 3, 9, 9), 0.4))
    torch.testing.assert_close(flat, torch.zeros(1, 2, 9, 9), atol=1e-6, rtol=0)


def test_fields_by_hand():
    middle, end = 4, 8
    # To the right of the centre, above it, and up and to the right.
    for name, expected in (("radial", (0, 90, 45)), ("circular", (90, 0, 135))):
        found = degrees_of(field(name, (9, 9)))[0]
        places = (middle, end), (0, middle), (0, end)
        assert [found[place].item() for place in places] == pytest.approx(expected, abs=1e-3)
    wave = degrees_of(field("wave", (5, 9)))[0]
    assert wave[:, middle].tolist() == pytest.approx([135] * 5)  # down at the crest's slope
    assert all(field(spec, (5, 5)) is None for spec in ("no", "nan", "inf"))
    assert degrees_of(field("-30", (2, 2))).flatten().tolist() == pytest.approx([150] * 4)


@pytest.mark.parametrize(
    "hue, degrees",
    [((1, 0, 0), 0), ((1, 1, 0), 30), ((0, 1, 0), 60), ((0, 1, 1), 90), ((0, 0, 1), 120)],
)
def test_hue_is_twice_the_angle(hue, degrees):
    found = degrees_of(axes_of_hue(torch.tensor(hue).float().view(1, 3, 1, 1)))
    assert found.item() == pytest.approx(degrees, abs=1e-3)


def test_vectors_are_axes_of_either_sign():
    vectors = torch.tensor([[2.0, -2.0, 0.0], [2.0, -2.0, 3.0]]).view(1, 2, 1, 3)
    # Right and down, left and up: one axis, 135 degrees; down is 90.
    found = degrees_of(axes_of_vectors(vectors)).flatten().tolist()
    assert found == pytest.approx([135, 135, 90])


def test_axis_bins_by_hand():
    unit = torch.cat([field(str(-degrees), (1, 1)) for degrees in (0, 11, 12, 22.5, 90, 170)], 3)
    assert axis_bins(unit).flatten().tolist() == [0, 0, 1, 1, 4, 0]
    assert (axis_bins(unit * 0.1) == -1).all()


def test_missing_turns_bring_what_is_wanted():
    exemplar = stripes(90)
    assert missing_turns(exemplar, field("90", (64, 64))) == []
    (turn,) = missing_turns(exemplar, field("45", (64, 64)))
    (turned,) = rotated_and_resized(exemplar, [turn], [])
    error = degrees_of(axes(turned)) - 45
    assert error.abs().median() < 2
    assert len(missing_turns(exemplar, field("circular", (64, 64)))) == AXIS_BINS - 1


def test_across_no_patch_fits_and_one_bin_off_the_features_decide():
    """Cosines of features are at most 2 apart, and unrelated ones 1."""
    guides = [
        orientation_guide(stripes(0), field(d, (8, 8)), lambda image: []) for d in ("90", "22.5")
    ]
    middle = guides[0].sources[0][..., 28:36, 28:36].flatten(2)[0].T
    outputs = (guide.output.flatten(2)[0].T for guide in guides)
    across, beside = (
        ExtraDistance(torch.zeros(()), one, middle).of_rows(slice(None)) for one in outputs
    )
    assert across.min() > 2 and 0.2 < beside.max() < 1


def test_orientation_asks_for_no_statistics_that_nothing_has():
    wanted = torch.cat((field("90", (8, 4)), field("0", (8, 4))), 3)
    guide = orientation_guide(stripes(0), wanted, lambda image: [])
    assert (guide.output_region[..., :4] == -1).all() and (guide.output_region[..., 4:] == 0).all()
    assert (guide.source_regions[0] == 0).all()
    turned = partial(rotated_and_resized, degrees=[90], factors=[])
    guide = orientation_guide(stripes(0), field("90", (8, 8)), turned)
    assert (guide.output_region == 4).all() and (guide.source_regions[1] == 4).float().mean() > 0.9
    assert len(guide.sources) == 2 and guide.sources[1].shape == (1, 2, 64, 64)


def test_a_flat_exemplar_is_one_region_whatever_axis_is_asked_for():
    flat = torch.full((1, 3, 16, 16), 0.4)
    guide = orientation_guide(flat, field("45", (8, 8)), lambda image: [image])
    assert [x.unique().tolist() for x in guide.source_regions] == [[0], [0]]
    assert guide.output_region.unique().tolist() == [0]


@pytest.mark.parametrize("kind", [CNNMRF, Guided])
def test_one_guide_is_that_of_every_picture_of_a_batch(kind, every_patch):
    source, batch = {"a": noise(1, 4, 9, 12)}, noise(2, 4, 9, 9, seed=1)
    settings = dict(guide=((halves(9, 12).float(),), halves(9, 9).float()))

    def value(output):
        model = built(kind, source, ["a"], **settings)
        model.rematch({"a": output})
        return model({"a": output})

    alone = torch.cat([value(output) for output in batch.split(1)])
    torch.testing.assert_close(value(batch), alone)
