"""Each score by what it must catch, and by hand where a hand suffices."""

import json
import math

import pytest
import torch
from conftest import built
from torch.nn import functional as F

from command import scores
from command.scores import SCORES, score
from Synthesis import main
from terms.autocorrelation import luminance_autocorrelation
from terms.patches import Patches
from utils import TEXTURES, read_picture, save_picture


@pytest.fixture(scope="module")
def pebbles():
    return read_picture(TEXTURES / "pebbles.png")[0][..., :128, :128].contiguous()


@pytest.fixture(scope="module")
def stripes():
    """A 128x128 wave with a period of 16 px along x."""
    wave = 0.5 + 0.4 * torch.sin(torch.arange(128) * (2 * math.pi / 16))
    return wave.expand(1, 3, 128, 128).contiguous()


def shuffled(image):
    order = torch.randperm(image[0, 0].numel(), generator=torch.Generator().manual_seed(0))
    return image.flatten(2)[..., order].view_as(image)


def blurred(image):
    return F.avg_pool2d(F.pad(image, (1, 1, 1, 1), "reflect"), 3, 1)


# -------------------------------------------------------------------------------------- by hand


def test_wasserstein_by_hand():
    # Sorted 0 1 3 against 1 2 5: distances 1, 1 and 2.
    assert scores.wasserstein(torch.tensor([3.0, 0, 1]), torch.tensor([5.0, 2, 1])) == 4 / 3
    # Four samples against two: 0 0 1 1 against the line through 0 and 1 at 0 0.25 0.75 1.
    distance = scores.wasserstein(torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1]))
    assert distance == pytest.approx((0 + 0.25 + 0.25 + 0) / 4)


def test_brightness_is_so_many_grey_levels(pebbles):
    assert scores.colour(pebbles * 0.5 + 10 / 255, pebbles * 0.5) == pytest.approx(10, abs=1e-3)


def test_seam_by_hand():
    # Along x: steps of 0.1 inside, 0.3 across; along y nothing changes.
    ramp = torch.tensor([0.0, 0.1, 0.2, 0.3]).expand(1, 3, 4, 4)
    assert scores.seam(ramp, ramp) == pytest.approx(3)
    wave = torch.tensor([0.0, 0.1, 0.2, 0.1]).expand(1, 3, 4, 4)
    assert scores.seam(wave, wave) == pytest.approx(1)


def test_unshifted_by_hand():
    # A standard deviation of 0.5; black instead of half white: sqrt(1/2) / 0.5.
    source = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 3, 16, 16)
    assert scores.unshifted(torch.zeros_like(source), source) == pytest.approx(2**0.5)


def test_autocorrelation_is_the_sum_over_pairs(pebbles):
    small = pebbles[..., :12, :10]
    grey = small[0].double().mean(0)
    grey = grey - grey.mean()
    found = luminance_autocorrelation(small, 4)
    for dy, dx in ((0, 0), (3, 1), (2, -4), (-1, 2)):
        total = pairs = 0.0
        for y in range(12):
            for x in range(10):
                if 0 <= y + dy < 12 and 0 <= x + dx < 10:
                    total += grey[y, x] * grey[y + dy, x + dx]
                    pairs += 1
        expected = total / pairs / grey.square().mean()
        assert found[4 + dy, 4 + dx].item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_nearest_patch_is_that_of_brute_force(pebbles, monkeypatch):
    source, output = pebbles[..., :20, :24], pebbles[..., 30:60, 30:52]
    wanted, drawn = (F.unfold(x, 7, stride=s)[0].T for x, s in ((source, 1), (output, 4)))
    expected = torch.cdist(drawn, wanted).argmin(1)
    y, x = expected // 18, expected % 18  # 24 - 7 + 1 patches across
    y, x = y.view(6, 4), x.view(6, 4)
    kept = (y[:-1, 1:] == y[:-1, :-1]) & (x[:-1, 1:] - x[:-1, :-1] == 4)
    kept &= (y[1:, :-1] - y[:-1, :-1] == 4) & (x[1:, :-1] == x[:-1, :-1])
    for chunk in (1, 2**25):
        monkeypatch.setattr(scores, "CHUNK", chunk)
        assert scores.copied(output, source) == pytest.approx(kept.float().mean().item())


# -------------------------------------------------------------------------- what must be caught


def test_identical_pictures(pebbles, stripes):
    for picture in (pebbles, stripes):
        for name in ("colour", "patches", "wavelet", "autocorrelation", "unshifted"):
            assert SCORES[name].function(picture, picture) == pytest.approx(0, abs=1e-6), name
    assert scores.copied(pebbles, pebbles) == 1
    assert scores.peak(stripes, stripes) == 1
    assert math.isnan(scores.peak(pebbles, pebbles))


def test_a_pixel_shuffle_leaves_the_colours_alone(pebbles):
    output = shuffled(pebbles)
    assert scores.colour(output, pebbles) == pytest.approx(0, abs=1e-4)
    assert scores.patches(output, pebbles) > 5
    assert scores.wavelet(output, pebbles) > 0.3
    assert scores.autocorrelation(output, pebbles) > 0.05
    assert scores.copied(output, pebbles) < 0.01


def test_a_blur(pebbles):
    output = blurred(pebbles)
    assert scores.wavelet(output, pebbles) > 0.02
    assert scores.patches(output, pebbles) > 0.3


def test_a_circular_shift_is_a_copy(pebbles):
    output = pebbles.roll((40, 24), (2, 3))
    assert scores.colour(output, pebbles) == pytest.approx(0, abs=1e-4)
    assert scores.unshifted(output, pebbles) > 0.8
    assert scores.copied(output, pebbles) > 0.7


def test_another_piece_of_the_texture_is_no_copy():
    whole = read_picture(TEXTURES / "pebbles.png")[0]
    first, second = whole.split(128, 3)
    assert scores.copied(second, first) < 0.1
    assert 1.2 < scores.unshifted(second, first) < 1.6


def test_a_lost_period(stripes):
    assert scores.peak(shuffled(stripes), stripes) < 0.1
    assert scores.peak(stripes.roll(5, 3), stripes) == pytest.approx(1, abs=0.02)
    lit = torch.linspace(0, 0.5, 128).view(128, 1) + shuffled(stripes) / 2
    assert abs(scores.peak(lit, stripes)) < 0.1  # light from one side is no period
    faded = 0.5 * stripes + 0.5 * shuffled(stripes)
    assert scores.peak(faded, stripes) == pytest.approx(0.5, abs=0.1)


def test_pictures_of_other_sizes(pebbles):
    values = score(pebbles[..., :90, :70], pebbles)
    assert list(values) == list(SCORES)
    assert all(math.isfinite(a) for name, (a, _) in values.items() if name != "peak")


def test_patches_are_judged_by_directions_that_none_was_fitted_to(pebbles, monkeypatch):
    drawn = []
    plain = scores.unit_directions
    monkeypatch.setattr(
        scores, "unit_directions", lambda *args: drawn.append(plain(*args)) or drawn[-1]
    )
    scores.patches(pebbles[..., :32, :32], pebbles)
    judged = torch.cat(drawn).flatten(1)
    term = built(Patches, {"image": pebbles[..., :64, :64]}, [])
    for _ in range(2):
        fitted = torch.cat([directions for _, directions, _ in term.levels]).flatten(1)
        # Unit vectors of 147 numbers: by chance their cosines spread by 1 / sqrt(147), 0.08.
        assert (fitted @ judged.T).abs().max() < 0.6
        term.renew({})


# ------------------------------------------------------------------------------ the command line


@pytest.fixture
def pictures(tmp_path, pebbles):
    for name, picture in (("exemplar", pebbles), ("output", blurred(pebbles))):
        save_picture(picture, tmp_path / f"{name}.png", {})
    return ["--gt_path", str(tmp_path / "exemplar.png"), "--score", str(tmp_path / "output.png")]


def test_score_prints_a_table(pictures, capsys):
    assert main(pictures) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(SCORES)
    assert lines[0].split() == ["score", "picture", "halves"]


def test_score_prints_json(pictures, capsys, pebbles):
    assert main([*pictures, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(SCORES)
    expected = score(blurred(pebbles).mul(255).round() / 255, pebbles)
    for name, values in found.items():
        for value, wanted in zip(
            (values["picture"], values["halves"]), expected[name], strict=True
        ):
            assert value is None if math.isnan(wanted) else value == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    "arguments, told",
    [
        ("--score missing.png", "missing.png"),
        ("--score textures/leaf.jpg --gt_path leaf.jpg pebbles.png", "one exemplar"),
        ("--json", "--score"),
    ],
)
def test_score_errors_are_one_line(arguments, told, capfd):
    assert main(arguments.split()) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line


def test_score_refuses_what_is_too_small(pictures, tmp_path, pebbles, capfd):
    save_picture(pebbles[..., :63, :128], tmp_path / "small.png", {})
    assert main([*pictures[:2], "--score", str(tmp_path / "small.png")]) == 2
    assert "128x63" in capfd.readouterr().err
