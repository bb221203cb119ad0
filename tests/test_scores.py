"""Each score by what it must catch, and by hand where a hand suffices."""

import json
import math
import re

import pytest
import torch
from conftest import built
from torch.nn import functional as F

from command import scores
from command.files import TEXTURES
from command.pictures import read_picture, save_picture
from command.scores import SCORES, score
from command.verdict import FAULTS, verdict
from docs.agreement import JUDGED, agreement, preferences
from engine.stretching import stretch
from Synthesis import main
from terms.patches import Patches


@pytest.fixture(scope="module")
def pebbles():
    return read_picture(TEXTURES / "pebbles.png")[0][..., :128, :128].contiguous()


@pytest.fixture(scope="module")
def stripes():
    """A 128x128 wave with a period of 16 px along x."""
    wave = 0.5 + 0.4 * torch.sin(torch.arange(128) * (2 * math.pi / 16))
    return wave.expand(1, 3, 128, 128).contiguous()


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Compare objects at half of the size, in a sixteenth of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scores, "SMALL_SIDE", 64)
        yield


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


def test_chroma_and_grain_are_octaves(pebbles):
    # Fine colour differences of four times the strength in a picture that is grey otherwise.
    torch.manual_seed(0)
    grey = torch.linspace(0.3, 0.7, 64).expand(1, 3, 64, 64)
    noise = torch.randn(1, 3, 64, 64)
    noise = 0.02 * (noise - scores.luma(noise))
    assert scores.chroma(grey + 4 * noise, grey + noise) == pytest.approx(2, abs=0.01)
    assert scores.grain(grey + 4 * noise, grey + noise) == pytest.approx(0, abs=1e-3)
    # Checks of 8 grey levels against checks of 2, everywhere alike.
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 - 0.5
    checks = checks.expand(1, 3, 64, 64)
    found = scores.grain(0.5 + checks * 8 / 255, 0.5 + checks * 2 / 255)
    assert found == pytest.approx(2, abs=0.01)
    assert scores.grain(blurred(pebbles), pebbles) < -0.5


def test_rim_is_the_octaves_of_its_steps():
    # Steps of 0.1 inside and of 0.4 across the outermost two lines of all four sides.
    steps = torch.full((33,), 0.1)
    steps[[0, 1, -2, -1]] = 0.4
    zigzag = F.pad((steps * torch.tensor([1, -1] * 17)[:33]).cumsum(0), (1, 0)) + 0.3
    plain = F.pad((0.1 * torch.tensor([1, -1] * 17)[:33]).cumsum(0), (1, 0)) + 0.3
    flat = torch.ones(34)
    one, other = ((x[:, None] * flat + flat[:, None] * x) / 2 for x in (zigzag, plain))
    found = scores.rim(one.expand(1, 3, 34, 34), other.expand(1, 3, 34, 34))
    # Along a side the steps across are 0.4 and most of those beside them 0.1, as a mean of n.
    lines, ends = 2 * (33 - 4), 2 * 4
    mean = (lines * (0.4 + 0.1) + ends * (0.4 + 0.4)) / (lines + ends)
    assert found == pytest.approx(math.log2(mean / 0.2), abs=1e-3)


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
        values = {name: SCORES[name].function(picture, picture) for name in SCORES}
        for name in set(SCORES) - {"copied", "layout", "peak", "seam"}:
            assert values[name] == pytest.approx(0, abs=1e-6), name
        assert verdict(values)[0] == pytest.approx(0, abs=1e-5)
    assert scores.copied(pebbles, pebbles) == scores.layout(pebbles, pebbles) == 1
    assert scores.peak(stripes, stripes) == 1
    assert math.isnan(scores.peak(pebbles, pebbles))


@pytest.mark.slow
def test_a_pixel_shuffle_leaves_the_colours_alone(pebbles):
    output = shuffled(pebbles)
    assert scores.colour(output, pebbles) == pytest.approx(0, abs=1e-4)
    assert scores.patches(output, pebbles) > 5
    assert scores.objects(output, pebbles) > 0.2
    assert scores.copied(output, pebbles) < 0.01


@pytest.mark.slow
def test_a_blur(pebbles):
    output = blurred(pebbles)
    assert scores.patches(output, pebbles) > 0.3


def test_a_circular_shift_is_a_copy(pebbles):
    output = pebbles.roll((40, 24), (2, 3))
    assert scores.colour(output, pebbles) == pytest.approx(0, abs=1e-4)
    assert scores.unshifted(output, pebbles) > 0.8
    assert scores.copied(output, pebbles) > 0.7


@pytest.mark.slow
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


def test_objects_and_used_are_means_of_brute_force(pebbles, monkeypatch):
    monkeypatch.setattr(scores, "SMALL_SIDE", 128)  # the source's own
    source, output = pebbles, pebbles.flip(3)[..., :40, :60]
    wanted, drawn = (F.unfold(x, 12)[0].T for x in (source, output))
    squares = torch.cdist(drawn, wanted).square() / drawn.shape[1]
    variance = source.var((2, 3), correction=0).mean()
    every_fourth = squares.amin(1).view(29, 49)[::4, ::4].mean() / variance
    assert scores.objects(output, source) == pytest.approx(every_fourth.item(), rel=1e-3)
    every_fourth = squares.amin(0).view(117, 117)[::4, ::4].mean() / variance
    variance_of_output = output.var((2, 3), correction=0).mean() / variance
    found = scores.used(output, source) * variance_of_output
    assert found == pytest.approx(every_fourth.item(), rel=1e-3)


def test_half_of_an_exemplar_is_missing(stripes):
    both = torch.cat([stripes[..., :64], 0.5 + 0 * stripes[..., :64]], 3)
    assert scores.objects(both[..., 4:60].repeat(1, 1, 1, 2), both) < 0.3
    missing = scores.used(0.5 + 0 * stripes, both)
    # Of the patches that start at 0, 4, ... 116, fifteen lie in the stripes, some reach into them.
    assert missing > 0.4
    assert scores.objects(0.5 + 0 * stripes, both) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_stretched_exemplar_has_its_layout(pebbles, seed):
    output = stretch(pebbles, seed)
    assert scores.layout(output, pebbles) > 0.95
    assert scores.copied(output, pebbles) < 0.5
    other = read_picture(TEXTURES / "pebbles.png")[0][..., 128:, 128:]
    assert scores.layout(other, pebbles) < 0.02


@pytest.mark.slow
def test_pictures_of_other_sizes(pebbles):
    values = score(pebbles[..., :90, :70], pebbles)
    assert list(values) == list(SCORES)
    assert all(math.isfinite(a) for name, (a, _) in values.items() if name != "peak")


@pytest.mark.slow
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
        term.rematch({})


# ----------------------------------------------------------------------------------- the verdict


SEEN = {fault.score for fault in FAULTS} | {"copied", "layout"}


def specks(image):
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return image + 0.1 * (noise - scores.luma(noise))


def rimmed(image):
    image = image.clone()
    noise = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    inside = F.pad(torch.ones(124, 124), (2, 2, 2, 2)).bool()
    return image.where(inside, noise)


@pytest.mark.parametrize(
    "spoilt, words",
    [
        (specks, "coloured specks"),
        (lambda image: image + 0.04, "colours off"),
        (lambda image: blurred(blurred(image)), "flat places too smooth"),
        (
            lambda image: image[..., :128, :40].repeat(1, 1, 1, 3),
            "parts of the exemplar are missing",
        ),
        (lambda image: image.roll((30, 50), (2, 3)), "; copied from the exemplar in pieces"),
        (lambda image: stretch(image, 0), "; repeats the exemplar's layout"),
        (rimmed, "a rim"),
    ],
)
def test_the_verdict_names_what_was_done(spoilt, words, pebbles):
    output = spoilt(pebbles)
    total, told = verdict({name: SCORES[name].function(output, pebbles) for name in SEEN})
    assert words in told, told


@pytest.mark.parametrize(
    "pairs, least", [(280, 80), (352, 79), (455, 75), (524, 73), (639, 72), (661, 72)]
)
def test_the_verdict_is_that_of_people(pairs, least, tmp_path):
    """72 pairs were added with version 0.6.0, 103 with 0.7.0, 69 with 0.8.0, 115 with
    0.9.0, 22 with 0.10.0."""
    path = tmp_path / "judged.csv"
    path.write_text("".join(JUDGED.read_text().splitlines(keepends=True)[: 1 + pairs]))
    *_, last = agreement(path)
    shares = [int(share) for share in re.findall(r"(\d+)%", last)]
    assert last.startswith("| **verdict**") and shares[-1] >= least  # of all pairs
    assert all(fault.weight >= 0 for fault in FAULTS)


def test_agreement_by_hand(tmp_path):
    """Three pairs: one where less colour is preferred, one where more is, one without majority."""
    names = [name for name in SCORES if name not in ("seam", "unshifted")]
    lines = ["exemplar,half,A,B,answers," + ",".join(f"{n} {x}" for n in names for x in "AB")]
    for half, answers in (("tuning", "A A"), ("held out", "B tie"), ("tuning", "A B")):
        numbers = ["1", "2", *["0"] * (2 * len(names) - 2)]
        lines.append(f"leaf,{half},one,other,{answers}," + ",".join(numbers))
    (tmp_path / "judged.csv").write_text("\n".join(lines))
    table = agreement(tmp_path / "judged.csv")
    assert table[0] == "| | tuning (1 pairs) | held out (1 pairs) | all (2 pairs) |"
    assert table[2:4] == ["| colour | 100% | 0% | 50% |", "| patches | 50% | 50% | 50% |"]
    assert table[-1] == "| **verdict** | 100% | 0% | 50% |"
    assert preferences(tmp_path / "judged.csv")[2:] == [
        "| one | other | held out | 0 | 1 | 1 | 25% |",
        "| one | other | tuning | 3 | 0 | 1 | 75% |",
    ]


# ------------------------------------------------------------------------------ the command line


@pytest.fixture
def pictures(tmp_path, pebbles):
    for name, picture in (("exemplar", pebbles), ("output", blurred(pebbles))):
        save_picture(picture, tmp_path / f"{name}.png", {})
    return ["--gt_path", str(tmp_path / "exemplar.png"), "--score", str(tmp_path / "output.png")]


@pytest.fixture(scope="module")
def scored(pebbles):
    """Of the file `output.png` of `pictures`."""
    return score(blurred(pebbles).mul(255).round() / 255, pebbles)


def test_score_prints_a_table(pictures, capsys, scored, monkeypatch):
    monkeypatch.setattr("command.verdict.score", lambda *_: scored)
    assert main(pictures) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*SCORES, "verdict:"]
    assert lines[0].split() == ["score", "picture", "halves"]


@pytest.mark.slow
def test_score_prints_json(pictures, capsys, scored):
    assert main([*pictures, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [*SCORES, "verdict"]
    assert found["verdict"].pop("words").startswith("poor: flat places too smooth")
    for name, values in found.items():
        if name == "verdict":
            continue
        for value, wanted in zip((values["picture"], values["halves"]), scored[name], strict=True):
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
