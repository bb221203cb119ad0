"""Settings of a picture's record and of a file, laid under what is typed."""

import json

import numpy as np
import pytest
import torch
from conftest import fast_first, plan, save_crops
from PIL import Image

from command.arguments import argv_of, parse, request_of
from command.pictures import read_record, save_picture
from command.settings import digest
from command.weights import BUNDLE
from losses import LONG_RANGE_WEIGHT
from Synthesis import main
from utils import UserError

TINY = "--device cpu --quiet"


@pytest.fixture
def folder(tmp_path, monkeypatch, narrow_net):
    """Where exemplars of 40x36 and maps are, and we too."""
    save_crops(40, 36, *(tmp_path / f"{name}.png" for name in "abc"))
    half = np.repeat([[0] * 20 + [255] * 20], 36, 0).astype(np.uint8)
    Image.fromarray(half).save(tmp_path / "half.png")
    np.save(tmp_path / "v.npy", np.ones((2, 36, 40)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command):
    return main(f"{command} {TINY}".split())


@pytest.mark.parametrize(
    "flags",
    fast_first(
        [
            "--seed 3 --optimizer LBFGS --lr 0.5 --size 32x24 --scales 1",
            "--preset draft",
            "--method cnnmrf --patch_rotations -30 90 --match_every 2 --layers conv2_1",
            "--mix b.png:0.3 c.png",
            "--guide half.png half.png --method cnnmrf",
            "--style_image b.png --keep_color --content_layers conv1_1 --init noise",
            "--expand 48x40 --histogram 2 --spectrum 0",
            "--init b.png --mask half.png --no-rescale",
            "--orientation v.npy --tile xy --method cnnmrf",
            "--maps b.png --pool max --repaint 0.5",
            f"--weights {BUNDLE} --tolerance 0",
            "--count 2 --seed 5",
            "--exact_histogram color",
        ],
        4,
    ),
)
def test_from_makes_that_very_picture(flags, folder):
    steps = "" if "draft" in flags else "--epoch 4"
    assert run(f"--gt_path a.png {steps} --save_path one/{{stem}}.png {flags}") == 0
    for one in sorted(path for path in (folder / "one").iterdir() if "error" in read_record(path)):
        if one.stem.endswith("_tiled"):
            continue
        assert run(f"--from {one} --save_path two/{one.name}") == 0
        assert (folder / "two" / one.name).read_bytes() == one.read_bytes()


def test_what_is_said_is_laid_over_a_record(folder):
    assert run("--gt_path a.png --epoch 2 --tv 3 --save_path one.png") == 0
    said = parse("--from one.png --gt_path b.png --epoch 7 --save_path two.png".split())
    assert (said.gt_path, said.epoch, said.terms["tv"]) == (["b.png"], 7, 3)
    assert said.save_path.name == "two.png" and said.overwrite is False


def laid(folder, then, now):
    """The request of `--from`, of a picture that was made by other flags, and its only job."""
    assert run(f"--gt_path a.png --epoch 2 --save_path one.png --overwrite {then}") == 0
    request = parse(f"--from one.png --save_path two.png {now}".split())
    return request, plan(request)[0][0]


@pytest.mark.parametrize(
    "then, now, rate",
    [
        ("", "--optimizer LBFGS", 1.0),
        ("--optimizer LBFGS", "--optimizer Adam", 0.05),
        ("--lr 0.2", "--optimizer LBFGS", 0.2),  # it was typed
        ("--preset fast", "--preset draft --repaint 0.5", 0.05),
    ],
)
def test_a_step_size_that_followed_from_the_optimizer_follows_anew(then, now, rate, folder):
    assert laid(folder, then, now)[1].record["lr"] == rate


def test_layers_and_weights_that_followed_from_the_method_follow_anew(folder):
    _, job = laid(folder, "--tv 3", "--method cnnmrf")
    fresh, _ = plan(parse("--gt_path a.png --method cnnmrf --tv 3 --save_path new.png".split()))
    assert list(job.spec.layers) == ["relu3_1", "relu4_1"] == list(fresh[0].spec.layers)
    assert job.spec.weights == fresh[0].spec.weights
    assert (job.spec.weights["gram"], job.spec.weights["tv"]) == (10, 3)
    _, job = laid(folder, "--layers conv2_1", "--method cnnmrf")
    assert list(job.spec.layers) == ["relu2_1"]  # they were typed


def test_an_exemplar_that_repeats_gets_its_spectrum_and_its_own_size(folder):
    _, job = laid(folder, "", "--gt_path brick.png")
    assert job.spec.weights["spectrum"] == LONG_RANGE_WEIGHT and job.spec.canvas.size == (256, 256)
    _, job = laid(folder, "--spectrum 0 --size 64", "--gt_path brick.png")
    assert job.spec.weights["spectrum"] == 0 and job.spec.canvas.size == (64, 64)


@pytest.mark.parametrize(
    "then, now, epoch, optimizer",
    [
        ("--preset fast", "", 2, "LBFGS"),  # --epoch 2 is typed in either case
        ("--preset fast --epoch 7", "--preset photo", 7, "LBFGS"),  # typed then > preset now
        ("--preset fast", "--preset photo --epoch 9", 9, "LBFGS"),  # typed now > all
        ("--preset fast --optimizer Adam", "--preset photo", 2, "Adam"),
        ("--preset fast", "--preset draft --repaint 0.5", 2, "Adam"),  # never both presets
    ],
)
def test_typed_now_typed_then_preset_now_preset_then(then, now, epoch, optimizer, folder):
    request, _ = laid(folder, then, now)
    assert (request.epoch, request.optimizer) == (epoch, optimizer)


def test_a_preset_now_replaces_that_of_then(folder):
    """Of fast, 150 steps, and photo, 300."""
    record = {"gt_path": "a.png", "inputs": {}, "asked": {"gt_path": "a.png", "preset": "fast"}}
    save_picture(torch.zeros(1, 3, 8, 8), folder / "one.png", record)
    assert parse("--from one.png".split()).epoch == 150
    assert parse("--from one.png --preset photo".split()).epoch == 300
    assert parse("--from one.png --preset draft".split()).optimizer == "Adam"


@pytest.mark.parametrize(
    "now, changed",
    [
        ("", {}),
        ("--optimizer LBFGS", {"lr": None, "optimizer": "LBFGS"}),
        ("--method cnnmrf", {"layers": None, "method": "cnnmrf", "terms": {}}),
        ("--gt_path b.png", {"gt_path": ["b.png"], "terms": {"gram": 0, "tv": 3}}),
        ("--repaint 0.5", {"repaint": 0.5, "terms": {"gram": 0, "tv": 3}}),
        ("--expand 64", {"expand": (64, 64), "size": None}),
        ("--preset photo", {"epoch": 300, "optimizer": "LBFGS", "lr": None, "terms": {}}),
        ("--seed 4", {"seed": 4}),
        ("--device cpu", {"precision": "auto"}),
    ],
)
def test_of_flat_records_all_counts_as_typed_but_what_flags_make_wrong(now, changed, folder):
    flat = {"gt_path": "a.png", "inputs": {}, "size": "40x36", "optimizer": "Adam", "lr": 0.05}
    flat |= {"method": "gram", "layers": ["relu1_1"], "epoch": 7, "precision": "fp32"}
    flat |= {"gram": 0, "spectrum": 0, "tv": 3, "version": "0.2.1"}
    save_picture(torch.zeros(1, 3, 8, 8), folder / "one.png", flat)
    said = parse(f"--from one.png {now}".split())
    kept = {"gt_path": ["a.png"], "size": (36, 40), "optimizer": "Adam", "lr": 0.05, "seed": 0}
    kept |= {"method": "gram", "layers": [("relu1_1", 1.0)], "epoch": 7, "repaint": 0.0}
    kept |= {"terms": {"gram": 0, "spectrum": 0, "tv": 3}, "precision": "fp32", "expand": None}
    assert {name: getattr(said, name) for name in kept} == kept | changed


def test_a_record_keeps_apart_what_was_asked_and_what_was_decided(folder):
    assert run("--gt_path a.png --preset fast --epoch 2 --tv 3 --save_path one.png") == 0
    record = read_record(folder / "one.png")
    assert record["asked"] == {
        **{"gt_path": "a.png", "seed": 0, "preset": "fast", "epoch": 2, "tv": 3},
        **{"model": "vgg16-caffe", "precision": "fp32"},
    }
    assert (record["lr"], record["optimizer"], record["histogram"]) == (1.0, "LBFGS", 0.1)


def test_the_same_decisions_are_the_same_picture_however_they_are_typed(folder, capsys):
    assert run("--gt_path a.png --epoch 2 --save_path one.png") == 0
    for same in ("", "--lr 0.05", "--optimizer adam --method gram", "--from one.png"):
        capsys.readouterr()
        assert run(f"--gt_path a.png --epoch 2 --save_path one.png {same}") == 0
        assert "finished before" in capsys.readouterr().out
    assert run("--gt_path a.png --epoch 2 --save_path one.png --lr 0.06") == 2


def test_a_net_that_is_said_replaces_all_that_a_record_says_of_its_net(folder):
    record = {"inputs": {}, "gt_path": "a.png", "model": "vgg16-hed", "weights": "w.pth"}
    save_picture(torch.zeros(1, 3, 8, 8), folder / "one.png", record)
    said = parse("--from one.png --model vgg16".split())
    assert (said.model, said.weights) == ("vgg16", None)
    said = parse("--from one.png --weights other.pth".split())
    assert (said.model, str(said.weights)) == (None, "other.pth")


def test_a_picture_of_another_version_is_told(folder, capfd):
    assert run("--gt_path a.png --epoch 2 --save_path one.png") == 0
    old = read_record(folder / "one.png") | {"version": "0.1.0"}
    save_picture(torch.zeros(1, 3, 8, 8), folder / "old.png", old)
    for name, told in (("one", False), ("old", True)):
        capfd.readouterr()
        said = f"--from {name}.png --save_path two_{name}.png --device cpu"
        assert main(said.split()) == 0
        lines = [line for line in capfd.readouterr().err.splitlines() if "made by version" in line]
        assert [f"--from {name}.png: made by version 0.1.0" in line for line in lines] == [
            True
        ] * told


def test_a_moved_exemplar_is_found_and_another_refused(folder, capfd):
    (folder / "in").mkdir()
    (folder / "a.png").rename(folder / "in" / "a.png")
    assert run("--gt_path in/a.png --epoch 2 --save_path out/one.png") == 0
    assert read_record(folder / "out" / "one.png")["inputs"] == {
        "in/a.png": digest(folder / "in" / "a.png")
    }
    (folder / "in" / "a.png").rename(folder / "out" / "a.png")
    assert run("--from out/one.png --save_path two.png") == 0
    (folder / "out" / "a.png").write_bytes((folder / "b.png").read_bytes())
    capfd.readouterr()
    assert run("--from out/one.png --save_path three.png") == 2
    assert "made from in/a.png, which is missing or has changed" in capfd.readouterr().err
    assert run("--from out/one.png --gt_path b.png --save_path three.png") == 0


@pytest.mark.parametrize(
    "record, told",
    [
        ({}, "no record"),
        ({"gt_path": "a.png"}, "no record"),
        ({"inputs": {}, "gt_path": "a.png", "epoch": "many"}, "'many'"),
        ({"inputs": {}, "gt_path": ["a.png", "--save_path=a.png"]}, "looks like a flag"),
        ({"inputs": {}, "gt_path": "a.png", "guide": "x"}, "guide"),
        ({"inputs": {}, "gt_path": "a.png", "size": [1]}, "--from"),
        ({"inputs": {}, "gt_path": "a.png", "size": {"a": 1}}, "--from"),
        ({"inputs": {}, "gt_path": "a.png", "mix": [[1, 2, 3]]}, "--from"),
        ({"inputs": {"a.png": "0" * 64}, "gt_path": "a.png"}, "missing or has changed"),
        ({"inputs": {"a\0.png": "0" * 64}, "gt_path": "a\0.png"}, "missing or has changed"),
        ({"inputs": {"\ud800": "0" * 64}, "gt_path": "\ud800"}, "missing or has changed"),
        (
            {"inputs": {"/proc/self/mem": "0"}, "gt_path": "/proc/self/mem"},
            "missing or has changed",
        ),
        ({"inputs": {}, "gt_path": "a\0.png"}, "null byte"),
        ({"inputs": {}, "gt_path": "\ud800.png"}, "surrogates not allowed"),
        ({"inputs": {}, "gt_path": "a.png", "epoch": 10**400}, "1 to 1000000000"),
        ({"inputs": {}, "gt_path": "a.png", "model": "vgg16-hed"}, "no longer supported; --model"),
    ],
)
def test_records_are_not_trusted(record, told, folder, capfd):
    save_picture(torch.zeros(1, 3, 8, 8), folder / "one.png", record)
    assert run("--from one.png --save_path two.png") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line


def test_what_a_record_may_not_decide(folder):
    record = {"inputs": {}, "gt_path": "a.png", "save_path": "a.png", "overwrite": True}
    record |= {"from_picture": "b.png", "config": "c.toml", "quiet": True, "device": "cuda:7"}
    save_picture(torch.zeros(1, 3, 8, 8), folder / "one.png", record)
    said = parse(["--from", "one.png"])
    assert said == request_of(from_picture="one.png", gt_path=["a.png"])
    assert (str(said.save_path), said.overwrite, said.quiet) == ("result.jpg", False, False)
    assert said.device != "cuda:7"


def test_a_file_of_flags(folder):
    text = 'preset = "fast"\nsize = "24x16"\ngt_path = ["a.png", "b.png"]\ntv = 2\nrescale = true\n'
    (folder / "c.toml").write_text(text + 'guide = [["half.png", "half.png"]]\nquiet = true\n')
    said = parse("--config c.toml --tv 5 --gt_path c.png".split())
    assert (said.size, said.gt_path, said.guide) == ((16, 24), ["c.png"], [["half.png"] * 2])
    assert (said.rescale, said.optimizer, said.quiet) == (True, "LBFGS", True)
    assert said.terms == {"tv": 5} and said.epoch == 150
    assert {"preset", "size", "tv", "quiet"} <= said.typed  # a file is typed as well


@pytest.mark.parametrize(
    "text, told",
    [
        ("size = ", "c.toml"),
        ("sise = 3", "--sise"),
        ("epoch = 0", "'0'"),
        ("[epoch]\nmost = 3", "--config"),
        ('gt_path = ["--overwrite"]', "a flag"),
        ('overwrite = "no"', "--overwrite: 'no', allowed are true and false"),
        (b"\xff", "c.toml"),
        ("", "an empty file"),
        ("epoch = " + "[" * 20_000 + "]" * 20_000, "nested too deep"),
        (".".join(["epoch"] * 2000) + " = 1", "nested too deep"),
        ("#" * 2**20 + "\n", "larger than 1048576 bytes"),
        ('config = "other.toml"', "config is allowed on the command line only"),
        ('help = "all"', "help is allowed on the command line only"),
        (None, "No such file"),
    ],
)
def test_files_of_flags_that_are_none(text, told, folder, capfd):
    if text is not None:
        (folder / "c.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run("--config c.toml") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line


def test_a_file_that_asks_for_no_picture(folder):
    (folder / "c.toml").write_text('score = "a.png"\nquiet = true')
    assert parse("--config c.toml --json".split()).score == "a.png"
    with pytest.raises(UserError, match="--epoch: no effect with --score"):
        parse("--config c.toml --epoch 3".split())
    (folder / "c.toml").write_text('score = "a.png"\ngt_path = ["a.png", "b.png"]')
    with pytest.raises(UserError, match="--score: takes one exemplar, --gt_path names 2"):
        parse("--config c.toml".split())
    (folder / "c.toml").write_text('report = "out"')
    assert parse("--config c.toml".split()).page_alone
    assert not parse("--config c.toml --epoch 3".split()).page_alone


def test_a_file_of_windows(folder):
    (folder / "c.toml").write_bytes('epoch = 7\r\ninit = "ä.png"\r\n'.encode("utf-8-sig"))
    said = parse("--config c.toml".split())
    assert (said.epoch, said.init) == (7, "ä.png")


def test_flags_come_back_as_they_were(folder):
    said = "--mix b.png:0.25 c.png --patch_rotations -30 0.5 --expand 40x50 --keep_color --tv 0.1"
    request = parse(said.split())
    flags = {"mix": request.mix, "patch_rotations": request.patch_rotations, "tv": 0.1}
    flags |= {"expand": request.expand, "keep_color": True, "quiet": False, "init": None}
    assert parse(argv_of(json.loads(json.dumps(flags)))) == request
    with pytest.raises(UserError, match="a flag"):
        request_of(maps=["--score"])
