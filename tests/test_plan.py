"""What is decided before any slow work: shares, and the weight of every term."""

import numpy as np
import pytest
import torch
from PIL import Image

from command import plan as planning
from command.arguments import parse
from command.plan import plan
from utils import TEXTURES, UserError


def planned(*options):
    """The only job of a command line, and the notes on it."""
    (job,), notes = plan(parse([*options, "--size", "128"]))
    return job.spec, notes


@pytest.fixture
def halves(tmp_path):
    """A label map of two halves, as large as the exemplars."""
    path = tmp_path / "halves.png"
    Image.fromarray(np.repeat([[0] * 128 + [255] * 128], 256, 0).astype(np.uint8)).save(path)
    return str(path)


def test_what_sees_the_whole_picture_is_off_beside_guides(halves):
    brick = ["--gt_path", "brick.png"]
    alone, notes = planned(*brick)
    assert alone.weights["spectrum"] > 0
    assert any("57 px across and 0 px down" in note for note in notes)
    said = "--autocorrelation", "0.5", "--patches", "2"
    guided, notes = planned(*brick, "--guide", halves, halves, *said)
    assert guided.weights["spectrum"] == guided.weights["autocorrelation"] == 0
    assert guided.weights["patches"] == 2
    (note,) = (note for note in notes if "guides" in note)
    assert note.startswith("spectrum, autocorrelation: off")
    assert not any("repeats" in note for note in notes)


@pytest.mark.parametrize(
    "mix, expected",
    [
        ("brick.png", (1 / 2, 1 / 2)),
        ("brick.png:0.3", (0.7, 0.3)),
        ("brick.png grass.png", (1 / 3, 1 / 3, 1 / 3)),
        ("brick.png:0.4 grass.png", (0.3, 0.4, 0.3)),
    ],
)
def test_the_exemplar_has_an_equal_part_of_what_is_left(mix, expected):
    spec, _ = planned("--gt_path", "pebbles.png", "--mix", *mix.split())
    assert [one.share for one in spec.exemplars] == pytest.approx(expected)


@pytest.fixture
def discs(tmp_path):
    """Noise with two discs: one is transparent, or painted black; the mask of the other."""
    y, x = np.mgrid[:64, :64]
    disc = (y - 32) ** 2 + (x - 32) ** 2 < 100
    noise = np.random.default_rng(0).integers(100, 256, (64, 64, 3), dtype=np.uint8)
    alpha = np.where(disc, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack((noise, alpha))).save(tmp_path / "cut.png")
    Image.fromarray(np.where(disc[..., None], 0, noise)).save(tmp_path / "black.png")
    Image.fromarray(255 * disc.astype(np.uint8)).save(tmp_path / "disc.png")
    Image.fromarray(np.zeros((64, 64, 4), np.uint8)).save(tmp_path / "nothing.png")
    return tmp_path, torch.from_numpy(disc)


def jobs(folder, *options):
    (job,), _ = plan(parse([str(folder / one) if one.endswith(".png") else one for one in options]))
    return job.spec


def test_what_is_transparent_of_any_exemplar_does_not_count(discs):
    folder, disc = discs
    mixed = jobs(folder, "--gt_path", "black.png", "--mix", "cut.png")
    assert mixed.exemplars[0].valid is None
    assert torch.equal(mixed.exemplars[1].valid[0, 0], ~disc)
    styled = jobs(folder, "--image_path", "black.png", "--style_image", "cut.png")
    assert torch.equal(styled.exemplars[0].valid[0, 0], ~disc)
    turned = jobs(folder, "--gt_path", "cut.png", "--method", "cnnmrf", "--patch_rotations", "90")
    for view in turned.exemplars[0].views:
        assert torch.equal(view.valid[0, 0], ~disc) == (view is turned.exemplars[0].views[0])
        assert view.image.min() > 0.3  # filled by what counts


def test_what_is_made_anew_of_a_picture_is_no_source_of_it(discs):
    folder, disc = discs
    fill = "--init", "black.png", "--mask", "disc.png"
    same = jobs(folder, "--gt_path", "black.png", *fill)
    assert torch.equal(same.exemplars[0].valid[0, 0], ~disc)
    assert same.exemplars[0].image.min() > 0.3
    assert jobs(folder, "--gt_path", "disc.png", *fill).exemplars[0].valid is None


def test_a_hole_in_the_start_is_what_is_made_anew(discs):
    folder, disc = discs
    spec = jobs(folder, "--gt_path", "cut.png", "--init", "cut.png")
    assert torch.equal(spec.canvas.mask[0, 0], disc)
    assert torch.equal(spec.exemplars[0].valid[0, 0], ~disc)
    said = jobs(folder, "--gt_path", "cut.png", "--init", "cut.png", "--mask", "black.png")
    assert not torch.equal(said.canvas.mask[0, 0], disc)


def test_where_nothing_is_opaque_there_is_no_texture(discs):
    folder, _ = discs
    with pytest.raises(UserError, match=r"nothing\.png: .*transparent"):
        jobs(folder, "--gt_path", "nothing.png")
    Image.new("RGBA", (64, 64), (9, 9, 9, 128)).save(folder / "glass.png")
    with pytest.raises(UserError, match=r"glass\.png: no pixel is opaque"):
        jobs(folder, "--gt_path", "glass.png")
    with pytest.raises(UserError, match="all of the exemplar is made anew"):
        white = folder / "white.png"
        Image.new("L", (64, 64), 255).save(white)
        jobs(folder, "--gt_path", "black.png", "--init", "black.png", "--mask", "white.png")


@pytest.mark.parametrize(
    "flags, told",
    [
        # 64 px are 16 at the coarsest of three scales, all that conv4_1 needs, and half of it is 8.
        (
            "--gt_path a.png --scales 3 --method cnnmrf --patch_scales 0.5",
            "a copy of a.png becomes 8x8 at the coarsest scale, allowed are sides of 16 or more: "
            "give --scales 1, where it has 32x32",
        ),
        (
            "--gt_path a.png --scales 3 --mix b.png",
            "--mix b.png: it becomes 8x8 at the coarsest scale, allowed are sides of 16 or more: "
            "give --scales 1, where it has 32x32",
        ),
        (
            "--gt_path a.png --scales 3 --mix c.png",
            "--mix c.png: it becomes 2x2 at the coarsest scale, allowed are sides of 16 or more: "
            "give a larger picture",
        ),
        ("--gt_path c.png", "c.png: exemplar of 8x8: the shorter side must have 16 pixels or more"),
    ],
)
def test_what_is_too_small_is_named(flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, side in (("a", 64), ("b", 32), ("c", 8)):
        Image.open(TEXTURES / "pebbles.png").crop((0, 0, side, side)).save(f"{name}.png")
    with pytest.raises(UserError, match=told):
        plan(parse([*flags.split(), "--size", "64", "--model", "vgg16-caffe"]))


def test_copies_for_which_there_is_no_memory(monkeypatch):
    """256x256 with 12 bytes a pixel are 0.8 MB, and twenty a hundred times as large 1.6 GB."""
    flags = ["--method", "cnnmrf", "--patch_scales", *["10"] * 20]
    monkeypatch.setattr(planning, "available_bytes", lambda device: 3.0e9)
    monkeypatch.setattr(planning, "exemplar_of", lambda *_: pytest.fail("made"))
    with pytest.raises(UserError, match=r"copies takes 3\.1 GB, 3\.0 are free"):
        planned("--gt_path", "pebbles.png", *flags)
