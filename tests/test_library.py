"""Pictures from Python: what is taken, what comes back, and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fast_first, save_crops
from PIL import Image

import Synthesis
from command.memory import held
from command.pictures import read_picture, read_record
from engine.synthesis import Frame
from Synthesis import synthesize
from utils import UserError

QUICK = {"epoch": 2, "size": 32, "device": "cpu"}


@pytest.fixture
def folder(tmp_path, monkeypatch, narrow_net):
    """Where exemplars of 40x36 are, and we too."""
    save_crops(40, 36, tmp_path / "a.png", tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "several, count",
    fast_first(
        [
            (dict(gt_path="a.png"), None),
            (dict(gt_path="a.png", count=3), 3),
            (dict(gt_path=["a.png", "b.png"]), 2),
            (dict(gt_path=["a.png"]), 1),
            (dict(gt_path="."), 2),
            (dict(gt_path="[a]*.png"), 1),
            (dict(image_path="a.png", style_image="b.png"), None),
        ],
        3,
    ),
)
def test_a_list_comes_back_where_several_are_asked_for(several, count, folder):
    found = synthesize(**several, **QUICK)
    assert isinstance(found, list) == (count is not None)
    images = found if isinstance(found, list) else [found]
    assert [image.shape for image in images] == [(1, 3, 32, 32)] * (count or 1)
    if "count" in several:
        assert torch.equal(images[2], synthesize("a.png", seed=2, **QUICK))


def test_without_a_path_nothing_is_written_and_nothing_is_said(folder, capfd):
    for flags in ({}, {"tile": "xy"}, {"preset": "draft", "epoch": None}):
        synthesize("a.png", **QUICK | flags)
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png"]
    assert capfd.readouterr() == ("", "")
    synthesize("a.png", **QUICK, quiet=False)
    assert "scale" in capfd.readouterr().err


@pytest.mark.parametrize(
    "flags, told",
    [
        ({"maps": "b.png"}, "--maps: writes files beside the result, give save_path"),
        ({"save_every": 1}, "--save_every"),
        ({"resume": True}, "--resume"),
        ({"score": "b.png", **dict.fromkeys(QUICK)}, "--score: makes no picture"),
        ({"json": True}, "--json: makes no picture"),
        ({"size": np.zeros(2)}, "--size: takes no picture"),
        ({"sise": 3}, "--sise: no such flag"),
        ({"lr": 0.1, "preset": "draft", "epoch": None}, "--lr: no effect"),
    ],
)
def test_what_has_no_meaning_here_is_refused(flags, told, folder):
    with pytest.raises(UserError, match=told):
        synthesize("a.png", **QUICK | flags)
    with pytest.raises(TypeError):
        synthesize("a.png", "b.png")


def test_a_second_call_returns_the_pixels_of_the_first(folder):
    first, second = (synthesize("a.png", save_path="r.jpg", **QUICK) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first, synthesize("a.png", **QUICK))
    assert not torch.equal(first, read_picture(folder / "r.jpg")[0])
    with pytest.raises(UserError, match="another file is there"):
        synthesize("b.png", save_path="r.jpg", **QUICK)


def levels(picture=None):
    return np.asarray(picture or Image.open("a.png"))


GIVEN = [
    lambda: levels(),
    lambda: (levels() / 255).astype(np.float32),
    lambda: levels() / 255,
    lambda: levels()[:, ::-1][:, ::-1],
    lambda: levels().astype(np.uint16) * 257,
    lambda: torch.from_numpy(levels().copy()).movedim(2, 0),
    lambda: read_picture(Path("a.png")).pixels,
    lambda: read_picture(Path("a.png")).pixels[0].double().requires_grad_(),
    lambda: Image.open("a.png"),
    lambda: Image.open("a.png").convert("RGBA"),
]


def test_an_exemplar_in_memory_has_the_pixels_of_its_file(folder):
    wanted = read_picture(Path("a.png")).pixels
    for given in GIVEN:
        found = held(given()).picture
        torch.testing.assert_close(found.over_mean, wanted, atol=1e-6, rtol=0)
        assert not (found.grey or found.pixels.requires_grad)


def test_an_exemplar_in_memory_gives_the_picture_of_its_file(folder):
    wanted = synthesize("a.png", **QUICK)
    for given in (levels(), Image.open("a.png").convert("RGBA"), Path("a.png")):
        torch.testing.assert_close(synthesize(given, **QUICK), wanted, atol=1e-4, rtol=0)


def test_values_are_those_of_files():
    """Grey of 0, 51 and 255 of 255: 0, 0.2 and 1."""
    grey = np.array([[0, 51, 255]], np.uint8)
    wanted = torch.tensor([0, 0.2, 1]).expand(1, 3, 1, 3)
    tensor = torch.tensor([[0, 0.2, 1]])
    for one in (grey, Image.fromarray(grey), tensor, tensor[None], tensor[None, None]):
        found = held(one).picture
        assert torch.equal(found.pixels, wanted) and found.grey
    assert held(grey > 100).picture.pixels[0, 0].tolist() == [[0, 0, 1]]
    deep = Image.fromarray(np.array([[0, 13107, 65535]], np.uint16))
    assert torch.equal(held(deep).picture.pixels, wanted) and held(deep).picture.bits == 16
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert held(cmyk).picture.pixels[0, :, 0, 0].tolist() == [1, 0, 0]
    assert held(grey).name == held(torch.from_numpy(grey)).name
    assert len({held(one).name for one in (grey, grey.T, 255 - grey)}) == 3


@pytest.mark.parametrize(
    "value, told",
    [
        (np.zeros((3, 8, 9)), r"shape \(3, 8, 9\), allowed are arrays of \(H, W, 3\)"),
        (torch.zeros(8, 9, 3), r"shape \(8, 9, 3\), allowed are tensors of \(1, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8), r"\(2, 3, 8, 8\)"),
        (np.zeros((8, 0, 3)), r"\(8, 0, 3\)"),
        (np.full((8, 8, 3), 200.0), "floats from 200 to 200, allowed are 0 to 1"),
        (np.full((8, 8, 3), np.nan), "floats from nan"),
        (np.zeros((8, 8, 3), np.int64), "a picture of int64"),
        (Image.new("RGBA", (8, 8)), "^--gt_path: every pixel is transparent"),
    ],
)
def test_pictures_in_memory_that_are_none(value, told, folder):
    with pytest.raises(UserError, match=told):
        synthesize(value, **QUICK)


def test_every_flag_of_pictures_takes_them(folder):
    a, b = (levels(Image.open(f"{name}.png")) for name in "ab")
    half = np.repeat([[False] * 20 + [True] * 20], 36, 0)
    quick = QUICK | {"size": None}

    def same(**flags):
        files = {name: value[0] for name, value in flags.items()}
        arrays = {name: value[1] for name, value in flags.items()}
        found = [
            synthesize(gt_path=one.pop("gt_path", None), **quick, **one) for one in (files, arrays)
        ]
        torch.testing.assert_close(*found, atol=1e-4, rtol=0)

    Image.fromarray(half).save("half.png")
    exemplar = "a.png", a
    same(image_path=exemplar, style_image=("b.png", b))
    same(gt_path=exemplar, init=("b.png", b), mask=("half.png", half))
    same(gt_path=exemplar, mix=(["b.png:0.3"], [(b, 0.3)]))
    same(gt_path=exemplar, guide=([["half.png", "half.png"]], [(half, half)]))


@pytest.mark.slow
def test_the_record_names_a_picture_in_memory_by_its_digest(folder):
    value = held(levels())
    synthesize(levels(), save_path="out/{stem}.png", sheet="s.png", maps=[levels()], **QUICK)
    path = folder / "out" / f"{value.name}.png"
    record = read_record(path)
    assert record["gt_path"] == record["asked"]["gt_path"] == value.name == record["exemplar"]
    assert record["inputs"] == {value.name: value.sha256} and len(value.sha256) == 64
    assert (
        json.dumps(record["asked"]) and (folder / "out" / f"{value.name}_{value.name}.png").exists()
    )
    with pytest.raises(UserError, match=f"made from {value.name}, a picture in memory"):
        synthesize(from_picture=path)
    again = synthesize(
        levels(), from_picture=path, maps=[levels()], save_path="again.png", device="cpu"
    )
    assert torch.equal(again, synthesize(levels(), **QUICK))
    assert Synthesis.main(["--report", "out"]) == 0


def test_from_alone_makes_that_picture_and_not_the_default_exemplar(folder):
    image = synthesize("a.png", save_path="r.png", **QUICK)
    assert torch.equal(synthesize(from_picture="r.png", device="cpu"), image)


def test_an_error_and_an_interrupt_are_raised(folder, monkeypatch):
    (folder / "c.png").write_bytes(b"")
    with pytest.raises(UserError, match="c.png"):
        synthesize(["a.png", "c.png"], **QUICK)

    def stopped(spec, *_):
        yield Frame(1, 1, 1, 0.5, torch.rand(1, 3, 32, 32), spec.canvas, 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr("command.make.frames", stopped)
    with pytest.raises(KeyboardInterrupt):
        synthesize("a.png", **QUICK)
