"""What is decided before any slow work: shares, and the weight of every term."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import made, plan
from PIL import Image

from command import plan as planning
from command.arguments import parse
from command.effects import OF_STEPS, effect_notes
from command.files import TEXTURES
from command.pictures import save_picture
from command.plan import work_items
from losses import PRESETS, TERMS
from utils import UserError


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
    assert any("57.3x42.5 px" in note for note in notes)
    said = "--autocorrelation", "0.5", "--patches", "2"
    guided, notes = planned(*brick, "--guide", halves, halves, *said)
    off = ("spectrum", "autocorrelation", "crosscorrelation")
    assert [guided.weights[name] for name in off] == [0, 0, 0]
    assert guided.weights["patches"] == 2
    (note,) = (note for note in notes if "guides" in note)
    assert note.startswith("spectrum, autocorrelation: off")
    assert not any("--spectrum" in note for note in notes)


@pytest.mark.slow
def test_cross_correlation_is_on_where_the_arrangement_is_free(tmp_path):
    """A note reports that the term is off only if its flag is given."""
    hole = tmp_path / "hole.png"
    Image.fromarray(np.pad(np.full((64, 64), 255, np.uint8), 96)).save(hole)
    pebbles = ["--gt_path", "pebbles.png"]
    masked = [*pebbles, "--mask", str(hole), "--init", "pebbles.png", "--size", "256"]
    photo = ["--style_image", "brick.png", "--image_path", "pebbles.png"]
    weights = {}
    for name, options in {"alone": pebbles, "masked": masked, "photo": photo}.items():
        (job,), notes = plan(parse(options))
        weights[name] = job.spec.weights["crosscorrelation"]
        assert not any("crosscorrelation" in note for note in notes)
    assert weights == {"alone": 1, "masked": 0, "photo": 0}
    asked = ["--crosscorrelation", "0.5"]
    (job,), notes = plan(parse([*masked, *asked]))
    assert job.spec.weights["crosscorrelation"] == 0
    assert any(note.startswith("crosscorrelation: off with kept pixels") for note in notes)
    (job,), _ = plan(parse([*photo, *asked]))
    assert job.spec.weights["crosscorrelation"] == 0.5


def test_cross_correlation_adds_layers_only_if_asked():
    """Without its flag, the term adds no layers to those of --layers."""
    one = ["--gt_path", "pebbles.png", "--layers", "conv1_1"]
    (job,), _ = plan(parse(one))
    assert job.trunk_layers == ["relu1_1"]
    (job,), _ = plan(parse([*one, "--crosscorrelation", "1"]))
    assert "relu4_1" in job.trunk_layers


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
    with pytest.raises(UserError, match="covers all of the exemplar"):
        white = folder / "white.png"
        Image.new("L", (64, 64), 255).save(white)
        jobs(folder, "--gt_path", "black.png", "--init", "black.png", "--mask", "white.png")


# ---------------------------------------------------------------------- flags without an effect

WITHOUT_EFFECT = [
    *("--method cnnmrf", "--layers conv2_1", "--pool max", "--rescale filter", "--lr 0.1"),
    *("--optimizer LBFGS", "--tolerance 0.1", "--scales 1", "--match_every 3", "--max_patches 9"),
    *(f"--{term} 2" for term in TERMS),
]


@pytest.mark.parametrize("flag", [*WITHOUT_EFFECT, "--epoch 7000"])
@pytest.mark.parametrize("painted", ["--repaint 1", "--preset draft"])
def test_what_painting_has_no_use_for_is_refused(flag, painted):
    name = flag.split()[0]
    with pytest.raises(UserError, match=rf"^{name}: no effect on .*--repaint 1.*--repaint 0\.5"):
        work_items(parse([*painted.split(), *flag.split()]))


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--repaint 0.999 --lr 0.1 --epoch 100", "--lr: no effect"),  # no step of 100 is left
        ("--style_image leaf.jpg --preset draft --content_weight 1", "--content_weight: no effect"),
        ("--style_image leaf.jpg --preset draft --init brick.png", "--init: no effect"),
        ("--epoch 50 --save_every 51", "--save_every: no effect with --epoch 50"),
        (
            "--match_every 3",
            "--match_every: no effect with --method gram, only with swd, cnnmrf, guided",
        ),
        (
            "--max_patches 9 --method swd",
            "--max_patches: no effect with --method swd, only with guided",
        ),
        (
            "--patch_scales 0.8",
            "--patch_scales: no effect with --method gram, only with cnnmrf, guided",
        ),
        ("--progress json --quiet", "--progress json: no effect with --quiet"),
    ],
)
def test_other_flags_without_an_effect_are_refused(flags, told):
    with pytest.raises(UserError) as caught:
        work_items(parse(flags.split()))
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    "flags",
    [
        "--preset best --seed 3 --count 2 --quiet --overwrite --device cpu --precision fp32",
        "--preset best --max_memory 4GB --model vgg16-caffe --tile xy --init brick.png",
        "--preset best --patch_rotations 90 --patch_scales 0.8",
        "--preset best --style_image leaf.jpg --keep_color --init content",
        "--preset best --repaint 0.5 --lr 0.1 --method cnnmrf --epoch 10",
        "--repaint 0.999 --lr 0.1",  # one step of 1000 is left
        "--save_every 50 --epoch 50",
        "--preset best --save_every 10 --epoch 30",
    ],
)
def test_flags_with_an_effect_or_of_shell_loops_are_taken(flags):
    assert work_items(parse(flags.split()))


@pytest.mark.slow
def test_painting_reads_none_of_what_is_refused_and_all_that_is_not(tiny, tmp_path, narrow_net):
    """Painted with the first, the picture has the same pixels, with the others it has not."""

    def painted(flags):
        request = replace(parse(["--repaint", "1", *flags.split()]), typed=frozenset())
        (job,), _ = plan(replace(request, gt_path=[str(tmp_path / "a.png")], size=(20, 20)))
        return made(job.spec, tiny).image

    for name in "ab":
        save_picture(torch.rand(1, 3, 20, 20), tmp_path / f"{name}.png", {})
    plain = painted("")
    assert {flag.split()[0][2:] for flag in WITHOUT_EFFECT} == {*OF_STEPS} - {
        *("content_layers", "content_weight")
    }
    for flag in (*WITHOUT_EFFECT, "--epoch 7000"):
        method = {"--match_every": "--method swd", "--max_patches": "--method guided"}
        assert torch.equal(painted(f"{flag} {method.get(flag.split()[0], '')}"), plain), flag
    init = f"--init {tmp_path / 'b.png'}"
    for flag in ("--seed 1", "--patch_rotations 90", "--patch_scales 0.8", "--tile xy", init):
        assert not torch.equal(painted(flag), plain), flag


@pytest.mark.parametrize(
    "flags, share, told",
    [
        ("--gt_path leaf.jpg --size 512x256", 1, "composed of objects: painted with its pixels ("),
        ("--gt_path leaf.jpg --size 513x256", 0, "composed of objects: optimised by gram ("),
        (
            "--gt_path brick.png --size 512",
            1,
            "periodic: painted with its pixels, rows and columns straight (",
        ),
        # A grain along an axis.
        ("--gt_path wood.png --size 512", 1, "directional: painted with its pixels ("),
        (
            "--gt_path leaf.jpg --mix pebbles.png --size 512",
            1,
            "composed of objects: painted with its pixels (",
        ),
        ("--gt_path leaf.jpg --expand 400", 1, "composed of objects: painted with its pixels ("),
        # A flag of the optimization is not ignored.
        ("--gt_path brick.png --method cnnmrf", 0, "periodic: optimised by cnnmrf ("),
        ("--gt_path brick.png --epoch 500", 0, "periodic: optimised by gram ("),
        (
            "--gt_path leaf.jpg --size 512 --patch_scales 0.8",
            1,
            "objects: painted with its pixels (",
        ),
        ("--gt_path brick.png --repaint 0.5", 0.5, "columns straight, then optimised by gram"),
    ],
)
def test_what_the_preset_best_does_with_an_exemplar(flags, share, told):
    (job,), notes = plan(parse(["--preset", "best", *flags.split()]))
    assert (job.spec.repaint, job.record["repaint"]) == (share, share)
    assert any(told in note for note in notes)


def test_only_a_painting_depends_on_the_kind():
    for flags, kind in (("", "stochastic"), ("--repaint 0.5", "periodic")):
        (job,), _ = plan(parse(["--gt_path", "brick.png", *flags.split()]))
        assert job.spec.kind.name == kind


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--gt_path docs/cat.jpg", ["cat.jpg"]),
        ("--gt_path leaf.jpg --mix docs/cat.jpg", ["docs/cat.jpg"]),
        ("--gt_path docs/cat.jpg --expand 400", ["cat.jpg"]),
        ("--gt_path leaf.jpg pebbles.png brick.png grass.png", []),
        ("--image_path leaf.jpg --style_image docs/cat.jpg", []),  # a painting, for example
        ("--gt_path docs/cat.jpg --guide {labels} {labels}", []),
    ],
)
def test_what_may_be_no_texture_is_told(flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(TEXTURES.parent)
    labels = tmp_path / "labels.png"
    with Image.open("docs/cat.jpg") as cat:
        Image.new("RGB", cat.size, "red").save(labels)
    _, notes = plan(parse(flags.format(labels=labels).split()))
    assert [note.split()[0] for note in notes if "perhaps no texture" in note] == told


def test_presets_hold_no_flag_without_an_effect():
    for name, flags in PRESETS.items():
        spelled = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        assert work_items(parse([*spelled, "--save_every", "10"])), name  # which --epoch numbers


def test_what_is_not_refused_is_told():
    request = parse("--preset draft --resume --workers 3".split())
    resume, workers = effect_notes(request, 1)
    assert resume.startswith("--resume: painting saves no checkpoints")
    assert workers.startswith("--workers 3: one picture is made by")
    assert effect_notes(parse("--resume --workers 3".split()), 2) == []


def test_flags_of_a_record_without_an_effect_are_told(tmp_path):
    record = {"gt_path": "leaf.jpg", "inputs": {}}
    record["asked"] = {"gt_path": "leaf.jpg", "lr": 0.2, "tv": 3, "seed": 4}
    save_picture(torch.zeros(1, 3, 8, 8), tmp_path / "one.png", record)
    request = parse(["--from", str(tmp_path / "one.png"), "--preset", "draft"])
    assert work_items(request)
    (note,) = effect_notes(request, 1)
    assert note.endswith("flags of its record have no effect here: --lr, --tv")
    record["asked"] |= {"method": "cnnmrf", "match_every": 3}
    save_picture(torch.zeros(1, 3, 8, 8), tmp_path / "one.png", record)
    request = parse(["--from", str(tmp_path / "one.png"), "--method", "gram"])
    assert work_items(request)
    (note,) = effect_notes(request, 1)
    assert note.endswith("flags of its record have no effect here: --match_every")
    record["asked"] |= {"patch_scales": [0.8]}
    save_picture(torch.zeros(1, 3, 8, 8), tmp_path / "one.png", record)
    with pytest.raises(UserError, match="--patch_scales: no effect with --method gram"):
        work_items(parse(["--from", str(tmp_path / "one.png"), "--method", "gram"]))


def test_a_picture_does_not_grow_to_its_own_size():
    with pytest.raises(UserError, match="--expand 256x256: the size of the picture, nothing"):
        plan(parse("--gt_path pebbles.png --expand 256".split()))


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
    with pytest.raises(UserError, match=r"copies need 3\.1 GB of memory, 3\.0 GB are free"):
        planned("--gt_path", "pebbles.png", *flags)
