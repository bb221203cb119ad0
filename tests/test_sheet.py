"""Results as one image, as an animation, and while they are made."""

import os
import sys

import pytest
import torch
from conftest import fast_first, save_crops
from PIL import Image

from command import display
from command.arguments import parse
from command.pictures import read_record
from command.plan import work_items
from command.sheet import BACKGROUND, CAPTION, FRAME, GAP, LAST, SIDE, snapshots_of
from engine.synthesis import frames
from engine.tiling import WHOLE, Tiling
from Synthesis import main


@pytest.fixture
def exemplar(tmp_path, monkeypatch, narrow_net):
    monkeypatch.chdir(tmp_path)
    save_crops(64, 48, tmp_path / "a.png", tmp_path / "b.png")
    return tmp_path / "a.png"


def run(*flags):
    return main([*"--size 32x24 --epoch 4 --device cpu --quiet".split(), *flags])


def cells(sheet):
    """Which places of a sheet have a picture."""
    width = (sheet.width - GAP) // (SIDE + GAP)
    height = (sheet.height - GAP) // (SIDE + CAPTION + GAP)
    found = []
    for row in range(height):
        for column in range(width):
            at = GAP + column * (SIDE + GAP) + 2, GAP + row * (SIDE + CAPTION + GAP) + CAPTION + 2
            found.append(sheet.getpixel(at) != BACKGROUND)
    return found


def test_a_sheet_of_one_picture(exemplar, tmp_path):
    flags = "--gt_path a.png --save_path r.png --save_every 2 --sheet s.png"
    assert run(*flags.split()) == 0
    sheet = Image.open(tmp_path / "s.png")
    assert cells(sheet) == [True] * 5 + [False] * 3  # exemplar, result, repeat, two snapshots
    x = GAP + SIDE + GAP
    shown = sheet.crop((x, GAP + CAPTION, x + 32, GAP + CAPTION + 24))
    assert shown.tobytes() == Image.open(tmp_path / "r.png").tobytes()
    assert snapshots_of(tmp_path / "r.png") == [
        (step, tmp_path / f"r_00000{step}.png") for step in (2, 4)
    ]


@pytest.mark.slow
def test_a_sheet_of_many(exemplar, tmp_path):
    assert run(*"--gt_path a.png b.png --count 2 --save_path out/ --sheet s.png".split()) == 0
    with Image.open(tmp_path / "s.png") as sheet:
        assert cells(sheet) == [True] * 6 + [False] * 2


@pytest.mark.parametrize("suffix, kind", [(".gif", "GIF"), (".webp", "WEBP")])
def test_an_animation(suffix, kind, exemplar, tmp_path):
    flags = "--gt_path a.png --save_path r.png --save_every 1 --animate"
    assert run(*flags.split(), f"w{suffix}") == 0
    with Image.open(tmp_path / f"w{suffix}") as film:
        assert (film.format, film.size) == (kind, (32, 24)) and film.n_frames > 1
        shown = 0
        for frame in range(film.n_frames):  # those that are the same are one, for longer
            film.seek(frame)
            film.load()
            shown += film.info["duration"]
    assert shown == 4 * FRAME + LAST


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--save_every 1 --animate w.png", ".gif"),
        ("--animate w.gif", "--save_every"),
        ("--count 2 --save_every 1 --animate w.gif", "shows one picture"),
        ("--save_every 1 --animate a.png/w.gif", "cannot be saved there"),
        ("--sheet s.txt", ".txt"),
        ("--epoch 2001 --save_every 2 --animate w.gif", None),
        ("--epoch 2002 --save_every 2 --animate w.gif", "1001 snapshots, at most 1000 are shown"),
        ("--epoch 998 --save_every 1 --sheet s.png", None),
        ("--epoch 999 --save_every 1 --sheet s.png", "2 pictures and 999 snapshots, at most 1000"),
        ("--count 1000 --sheet s.png", "1001 pictures, at most 1000"),
        ("--save_every 5 --animate w.gif", "--save_every"),
        ("--sheet a.png", "the same file as --gt_path a.png"),
    ],
)
def test_what_is_refused(flags, told, exemplar, tmp_path, capfd):
    if told is None:  # as much as is shown
        work_items(parse(["--gt_path", "a.png", "--save_path", "r.png", *flags.split()]))
        return
    assert run("--gt_path", "a.png", "--save_path", "r.png", *flags.split()) == 2
    assert not (tmp_path / "r.png").exists()
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line


MADE = "--gt_path a.png --save_path r.png --save_every 2 --sheet s.png --preview --animate".split()


@pytest.mark.parametrize(
    "name, film",
    fast_first(
        [
            *(("s.png", "w.gif"), ("film", "w.webp")),
            *(("r_000002.png", "w.gif"), ("r.preview.png", "w.webp")),
        ],
        2,
    ),
)
def test_what_lies_beside_a_result_is_replaced_only_where_it_is_ours(
    name, film, exemplar, tmp_path, capfd
):
    path = tmp_path / (film if name == "film" else name)
    path.write_bytes((tmp_path / "b.png").read_bytes())
    assert run(*MADE, film) == 2 and not (tmp_path / "r.png").exists()
    (line,) = capfd.readouterr().err.splitlines()
    assert path.name in line and "--overwrite" in line
    assert path.read_bytes() == (tmp_path / "b.png").read_bytes()
    assert run(*MADE, film, "--overwrite") == 0
    assert run(*MADE, film) == 0  # it is there, and ours


def test_snapshots_of_another_run_are_not_shown(exemplar, tmp_path):
    flags = "--gt_path a.png --save_path r.png".split()
    assert run(*flags, "--save_every", "1") == 0
    assert run(*flags, "--save_every", "2", "--seed", "1", "--overwrite") == 0
    assert [step for step, _ in snapshots_of(tmp_path / "r.png")] == [2, 4]
    (tmp_path / "r_000002.png").write_bytes(b"")
    assert [step for step, _ in snapshots_of(tmp_path / "r.png")] == [4]


@pytest.mark.skipif(sys.platform != "linux", reason="names may be any bytes")
def test_a_sheet_of_a_name_in_no_alphabet(exemplar, tmp_path):
    name = os.fsdecode(b"r\xff.png")
    assert run("--gt_path", "a.png", "--save_path", name, "--sheet", "s.png") == 0
    assert cells(Image.open(tmp_path / "s.png"))[:3] == [True] * 3


def test_a_preview_is_there_while_a_picture_is_made(exemplar, tmp_path, monkeypatch):
    seen = []

    def watched(*args):
        for frame in frames(*args):
            yield frame
            with Image.open(tmp_path / "r.preview.png") as picture:
                seen.append(picture.size)

    monkeypatch.setattr("command.make.frames", watched)
    monkeypatch.setattr(display, "PREVIEW_INTERVAL", 0)
    assert run("--gt_path", "a.png", "--save_path", "r.jpg", "--preview") == 0
    assert seen == [(32, 24)] * 4
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png", "r.jpg"}


@pytest.mark.slow
def test_smaller_blocks_where_memory_runs_out(exemplar, tmp_path, monkeypatch, capfd):
    tried = []

    def full(spec, *rest):
        tried.append(spec.finest_tiling.side)
        if spec.finest_tiling.side != 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return frames(spec, *rest)

    monkeypatch.setattr("command.make.TILE_SIDES", (48, 24, 16))
    monkeypatch.setattr("command.make.frames", full)
    command = "--gt_path a.png --save_path r.png --size 32 --epoch 2 --device cpu"
    assert main(command.split()) == 0
    assert tried == [None, 24, 16]
    assert "out of memory, repeated in tiles of 16 px" in capfd.readouterr().err
    assert read_record(tmp_path / "r.png")["error"] > 0
    monkeypatch.setattr("command.make.frames", lambda *_: (_ for _ in ()).throw(MemoryError()))
    assert main([*command.split(), "--seed", "1", "--overwrite", "--quiet"]) == 2
    assert "--max_memory" in capfd.readouterr().err


def test_where_memory_runs_out_at_a_coarse_scale_it_gets_the_blocks_of_the_finest(
    exemplar, monkeypatch
):
    tried = []

    def full(spec, *rest):
        tried.append(spec.tilings)
        raise torch.OutOfMemoryError("CUDA out of memory")

    def tiled(work, allowed):
        return work._replace(tile_side=24, graphs=2) if work.output == (32, 32) else work

    monkeypatch.setattr("command.make.TILE_SIDES", (48, 24, 16))
    monkeypatch.setattr("command.run.tiled_to_fit", tiled)
    monkeypatch.setattr("command.make.frames", full)
    command = "--gt_path a.png --save_path r.png --size 32 --scales 2 --device cpu --quiet"
    assert main(command.split()) == 2
    assert tried == [(WHOLE, Tiling(24, 2)), (Tiling(24),) * 2, (Tiling(16),) * 2]


def test_a_loss_that_is_no_number_is_one_line(exemplar, capfd, monkeypatch):
    def nan(*_):
        raise FloatingPointError("the loss of the first picture is nan")

    monkeypatch.setattr("command.make.frames", nan)
    assert run("--gt_path", "a.png", "--save_path", "r.png") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "is nan: give --precision fp32" in line
