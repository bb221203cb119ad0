"""Pictures with exactly the distribution of an exemplar: luminance or channels, by ranks."""

import numpy as np
import pytest
import torch
from conftest import fast_first, noise_image
from PIL import Image

from command.files import TEXTURES
from command.pictures import read_record
from engine.colours import luma
from engine.histogram import luminance, ranked, with_exact_histogram
from Synthesis import main


def grey(*levels, rows=1):
    """(1, 3, rows, n) of these levels of 255."""
    return torch.tensor(levels).view(1, 1, rows, -1).expand(1, 3, -1, -1) / 255


def levels_of(image):
    return (255 * image[0]).round().long()


def thousandths(levels):
    """The luma (3, ...) -> (...) in thousandths of a level, sorted."""
    red, green, blue = levels.flatten(1)
    return (299 * red + 587 * green + 114 * blue).sort().values


@pytest.mark.parametrize("how", ["luminance", "color"])
def test_a_grey_picture_gets_the_values_of_equal_rank(how):
    image = torch.tensor([0.5, 0.1, 0.9, 0.2]).expand(1, 3, 1, 4)
    four = with_exact_histogram(image, grey(7, 3, 200, 90), how, 255)
    assert levels_of(four).tolist() == [[[90, 3, 200, 7]]] * 3
    # Of eight values, those at 1/8, 3/8, 5/8 and 7/8 of the order; of two, each twice.
    some = with_exact_histogram(image, grey(1, 2, 3, 4, 5, 6, 7, 8), how, 255)
    assert levels_of(some)[0].tolist() == [[6, 2, 8, 4]]
    assert levels_of(with_exact_histogram(image, grey(9, 5), how, 255))[0].tolist() == [
        [9, 5, 9, 5]
    ]


def test_luminance_is_exact_once_rounded_and_colours_keep_their_hue():
    image, exemplar = noise_image(24, 32), noise_image(32, 24, seed=1) ** 2
    exemplar = (255 * exemplar).round() / 255
    found = with_exact_histogram(image, exemplar, "luminance", 255)
    ours, theirs = (thousandths(levels_of(x)) for x in (found, exemplar))
    assert torch.equal((ours + 500) // 1000, (theirs + 500) // 1000)
    assert (ours - theirs).abs().max() <= 190
    assert torch.allclose(255 * found, (255 * found).round(), atol=1e-4)
    # Less the luma, a colour is a multiple, at most 1, of what it was; up to the rounding.
    before, after = (255 * (x - luma(x)) for x in (image, found))
    share = (before * after).sum(1) / before.square().sum(1)
    assert share.max() < 1.2 and (after - share[:, None] * before).abs().max() < 1.5
    assert (share > 0.9).float().mean() > 0.5


def test_colours_without_room_get_less_saturated_and_not_another_luminance():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    found = with_exact_histogram(red, grey(200), "luminance", 255)
    # 200 of grey and (255 - 200) / (255 - 76.245) of the difference of red from its luma are 255,
    # 176.5, 176.5; of the eight colours around, this one has the luma 200.023.
    assert levels_of(found).flatten().tolist() == [254, 177, 177]
    for end in (0, 255):
        assert levels_of(with_exact_histogram(red, grey(end), "luminance", 255)).unique() == end


def test_each_channel_is_exact():
    image, exemplar = noise_image(20, 20), noise_image(20, 20, seed=1) ** 3
    found = with_exact_histogram(image, exemplar, "color", 65535)
    for ours, theirs, was in zip(found[0], exemplar[0], image[0], strict=True):
        wanted = (65535 * theirs.flatten().double()).round().sort().values
        assert torch.equal((65535 * ours.flatten().double()).round().sort().values, wanted)
        assert (ours.flatten()[was.flatten().argsort()].diff() >= 0).all()


@pytest.mark.parametrize("how", ["luminance", "color"])
def test_pixels_outside_a_mask_are_kept_and_have_no_rank(how):
    image, mask = noise_image(8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:4, 2:4] = True
    found = with_exact_histogram(image, grey(10, 20, 30, 40), how, 255, mask=mask)
    assert torch.equal(found.where(~mask, 0), image.where(~mask, 0))
    new = found[..., 2:4, 2:4]
    for plane in new.split(1, 1) if how == "color" else [luma(new)]:
        assert levels_of(plane).flatten().sort().values.tolist() == [10, 20, 30, 40]


def test_equal_values_are_ordered_by_what_surrounds_them():
    plane = torch.zeros(1, 1, 27, 27)
    plane[..., 9, 20] = 1
    places = ranked(plane)
    ranks = torch.empty(27 * 27).scatter(0, places, torch.arange(27.0 * 27)).view(27, 27)
    assert ranks[9, 20] == 27 * 27 - 1
    rings = [torch.zeros(27, 27, dtype=torch.bool) for _ in range(2)]
    for ring, reach in zip(rings, (1, 4), strict=True):  # whose windows of 3 and 9 px hold it
        ring[9 - reach : 10 + reach, 20 - reach : 21 + reach] = True
    near, far = ranks[rings[0]], ranks[rings[1] & ~rings[0]]
    assert near.min() > far.max() and far.min() > ranks[~rings[1]].max()
    assert torch.equal(places, ranked(plane))


def test_what_surrounds_a_pixel_wraps_with_the_tile():
    plane = torch.zeros(1, 1, 9, 9)
    plane[..., 4, 0] = 1
    second = set(ranked(plane, "x")[-9:].tolist()) - {4 * 9}
    assert second == {9 * y + x for y in (3, 4, 5) for x in (8, 0, 1)} - {4 * 9}


def test_equal_surroundings_leave_no_gradient():
    places = ranked(torch.zeros(1, 1, 30, 30))
    assert sorted(places.tolist()) == list(range(900))
    halves = places.view(2, 450).double().mean(1) / 900
    assert torch.allclose(halves, torch.tensor(0.5, dtype=torch.float64), atol=0.05)


def test_statistics_of_luminance():
    image = grey(0, 255, 51, 51)
    assert luminance(image) == pytest.approx((0.35, np.std([0, 1, 0.2, 0.2])))
    mask = torch.tensor([False, False, True, True]).view(1, 1, 1, 4)
    assert luminance(image, mask) == pytest.approx((0.2, 0.0), abs=1e-7)


# --------------------------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path, monkeypatch, narrow_net):
    """Where exemplars of 40x36 are: in colour, grey and partly transparent; and we too."""
    leaf = Image.open(TEXTURES / "leaf.jpg").crop((0, 0, 40, 36))
    leaf.save(tmp_path / "a.png")
    leaf.convert("L").save(tmp_path / "grey.png")
    hole = np.full((36, 40), 255, np.uint8)
    hole[:12, :12] = 0
    white = Image.fromarray(np.where(hole[..., None], np.asarray(leaf), 255).astype(np.uint8))
    white.putalpha(Image.fromarray(hole))
    white.save(tmp_path / "cut.png")
    Image.fromarray(hole).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command):
    steps = "" if "best" in command else "--epoch 2"
    return main(f"--device cpu --exact_histogram {steps} {command}".split())


def sorted_grey(path):
    return np.sort(np.asarray(Image.open(path).convert("L")).ravel())


@pytest.mark.parametrize(
    "flags", fast_first(["", "--method swd --tile xy", "--preset best", "--bits 16"])
)
def test_the_saved_file_has_the_exemplars_luminance(flags, folder, capfd):
    assert run(f"--gt_path grey.png --save_path out.png {flags}") == 0
    if "16" not in flags:
        assert np.array_equal(sorted_grey("out.png"), sorted_grey("grey.png"))
    values = np.asarray(Image.open("grey.png"), float)
    wanted = pytest.approx([values.mean(), values.std()], abs=6e-4)
    told = read_record(folder / "out.png")["luminance"]
    assert told == {"exemplar": wanted, "result": wanted}
    mean, deviation = f"{values.mean():.2f}", f"{values.std():.2f}"
    assert (
        f"grey.png: luminance of exemplar and result, 0 to 255: mean {mean} and {mean}, "
        f"standard deviation {deviation} and {deviation}\n"
    ) in capfd.readouterr().err


def test_transparent_pixels_have_no_part_in_the_distribution(folder):
    assert run("--gt_path cut.png --save_path out.png --size 36") == 0
    opaque = np.asarray(Image.open("a.png").convert("L"))[np.asarray(Image.open("mask.png")) > 0]
    assert np.array_equal(sorted_grey("out.png"), np.sort(opaque))


def test_a_mask_keeps_pixels_and_what_is_new_has_the_distribution(folder, capfd):
    assert run("--gt_path grey.png --init a.png --mask mask.png --save_path out.png") == 0
    new = np.asarray(Image.open("mask.png")) > 0
    found, init = (np.asarray(Image.open(name)) for name in ("out.png", "a.png"))
    assert np.array_equal(found[~new], init[~new])
    known = np.sort(np.asarray(Image.open("grey.png")).ravel())
    places = (2 * np.arange(new.sum()) + 1) * known.size // (2 * new.sum())
    luma = np.sort(found[new] @ (0.299, 0.587, 0.114))
    assert np.abs(luma - known[places]).max() < 0.2
    assert run("--gt_path grey.png --init a.png --mask mask.png --save_path out.jpg") == 0
    kept = "out.jpg: JPEG changes the pixels that are kept and the values of --exact_histogram, "
    assert kept in capfd.readouterr().err


def test_it_can_be_left_out_again(folder):
    assert run("--gt_path a.png --save_path out.png --quiet") == 0
    assert (
        main("--from out.png --exact_histogram off --save_path off.png --device cpu".split()) == 0
    )
    assert "luminance" in read_record(folder / "out.png")
    assert "luminance" not in read_record(folder / "off.png")


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--exact_histogram x", "--exact_histogram: 'x': give luminance, color or off"),
        ("--exact_histogram --mix a.png", "--exact_histogram: not allowed with --mix, as it takes"),
        ("--exact_histogram --tile_set 2", "--exact_histogram: not allowed with --tile_set, who"),
        ("--exact_histogram --alpha", "--exact_histogram: not allowed with --alpha, as the"),
        ("--exact_histogram --guide a.png a.png", "--exact_histogram: not allowed with --guide, "),
        ("--exact_histogram --style_image a.png --keep_color", "not allowed with --keep_color, wh"),
    ],
)
def test_what_is_refused(flags, line, folder, capfd):
    assert main(["--gt_path", "a.png", *flags.split()]) == 2
    (told,) = capfd.readouterr().err.splitlines()
    assert line in told
