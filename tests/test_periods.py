"""Periods of exemplars, and sizes that hold whole repeats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import plan
from PIL import Image

from command.arguments import parse
from command.files import TEXTURES
from command.periods import nearest_side
from command.pictures import read_picture, read_record
from Synthesis import main
from terms.autocorrelation import repeats
from utils import UserError


def picture(values):
    return torch.from_numpy(values).float().expand(1, 3, *values.shape)


def bricks(height, width, course, brick, offset):
    """A wall with light joints of 2 px; each course is offset by this share of a brick."""
    y, x = np.mgrid[:height, :width] + 0.5
    across = (x + np.floor(y / course) * offset * brick) % brick
    wall = np.where((across < 2) | (y % course < 2), 0.9, 0.4)
    return picture(wall + np.random.default_rng(0).normal(0, 0.05, wall.shape))


def board(side):
    squares = np.arange(128) // side
    return picture((squares[:, None] + squares) % 2 * 1.0)


def wave(lag):
    return np.sin(2 * np.pi * np.arange(128) / lag) / 4 + 0.25


@pytest.mark.parametrize(
    "image, periods",
    [
        (board(8), (16, 16)),  # the shortest period, of (8, 8), is oblique
        (board(13), (26, 26)),
        (bricks(256, 256, 20, 50, 1 / 2), (40, 50)),  # a course matches the one after the next
        (bricks(256, 200, 16, 36, 1 / 3), (48, 36)),
        (bricks(256, 256, 21.3, 43.7, 1 / 2), (42.6, 43.7)),
        (bricks(200, 300, 17.25, 30.5, 0), (17.25, 30.5)),
        (picture(wave(11.5)[:, None] + np.zeros(128)), (11.5, 0)),
        (picture(wave(13.7) + np.zeros((128, 1))), (0, 13.7)),
        (picture(wave(10)[:, None] + wave(13.7)), (10, 13.7)),
        (picture(np.zeros((40, 50))), (0, 0)),
    ],
)
def test_periods_along_the_axes(image, periods):
    assert repeats(image) == pytest.approx(periods, abs=0.06)


def test_a_large_picture_is_reduced_for_the_search():
    assert repeats(bricks(560, 530, 40.4, 81.3, 1 / 2)) == pytest.approx((80.8, 81.3), abs=0.1)


@pytest.mark.parametrize(
    "name, periods", [("brick", (42.5, 57.3)), ("tiles", (45.7, 45.7)), ("weave", (35.6, 35.6))]
)
def test_periods_of_exemplars(name, periods):
    found = repeats(read_picture(TEXTURES / f"{name}.png").pixels)
    assert found == pytest.approx(periods, abs=0.1)


@pytest.mark.parametrize(
    "near, period, multiple, side",
    [
        (512, 43.0, 1, 516),  # 12 periods; 11 are 473
        (512, 21.5, 1, 516),  # 24; 23 are 494.5
        (512, 57.3, 1, 516),  # 9 are 515.7
        (512, 53.3, 1, 533),  # 10; 9 are 479.7, farther
        (10, 43.0, 1, 43),
        (512, 0, 1, 512),
        (510, 0, 8, 512),
        (509, 0, 8, 512),
        (507, 0, 8, 504),
        (3, 0, 8, 8),
        (512, 46, 1, 506),
        (512, 46, 8, 552),  # 12 periods, 69 times 8; 11 are 506
        (512, 43, 8, 516),  # none of 473, 516, 559 is a multiple of 8
    ],
)
def test_the_nearest_side_that_holds_whole_periods(near, period, multiple, side):
    assert nearest_side(near, period, multiple) == side


# --------------------------------------------------------------------------------- the command


@pytest.fixture
def walls(tmp_path, monkeypatch, narrow_net):
    """Where exemplars are that repeat after 32 x 24 px, after 20 rows, and not; and we too."""

    def save(name, image):
        levels = (255 * image[0].clamp(0, 1)).byte().movedim(0, 2)
        Image.fromarray(levels.numpy()).save(tmp_path / f"{name}.png")

    save("wall", bricks(128, 128, 12, 32, 1 / 2))
    save("rows", picture(wave(20)[:, None] + np.zeros(128)))
    save("noise", picture(np.random.default_rng(0).random((64, 64))))
    monkeypatch.chdir(tmp_path)


def told(flags):
    """The notes, and the size (height, width), of the only job of these flags."""
    (job,), notes = plan(parse([*flags.split(), "--save_path", "out.png"]))
    words = "repeat", "auto"
    return job.spec.canvas.size, [note for note in notes if any(word in note for word in words)]


@pytest.mark.parametrize(
    "flags, line",
    [
        ("wall", "; the nearest size that holds whole repeats is 128x120"),
        ("wall --size 65x71", "; 65x71 holds whole repeats"),  # each 1 px off
        ("wall --size 66x70 --tile y", "; 66x70 holds no whole repeats along --tile y, 64x72 does"),
        ("wall --size 64x70 --tile x", "; the nearest size that holds whole repeats is 64x72"),
        ("wall --size 64x96 --tile xy", "; 64x96 holds whole repeats"),
        ("wall --size 64x96 --preset best --tile xy", "; 64x96 holds whole repeats"),
        ("wall --init noise.png --size 70", ""),  # as it is the size of a layout
    ],
)  # fmt: skip
def test_the_period_is_told_once_with_a_size_that_holds_it(flags, line, walls):
    _, notes = told(f"--gt_path {flags.replace('wall', 'wall.png', 1)}")
    assert notes == [f"wall.png repeats every 32.0x24.0 px{line}"]


def test_other_periods(walls):
    _, (note,) = told("--gt_path rows.png --size 77x41")
    assert note == "rows.png repeats every 20.0 px down; 77x41 holds whole repeats"
    assert told("--gt_path noise.png --tile xy --size 64") == ((64, 64), [])


@pytest.mark.parametrize(
    "flags, size",
    [
        ("wall.png --size auto:100", (96, 96)),
        ("wall.png --size auto:88x40", (48, 96)),  # 64 columns and 24 rows are farther
        ("wall.png --size Auto:100 --tile xy", (96, 96)),
        ("rows.png --size auto:77x66", (60, 77)),
        ("rows.png --size auto:77x66 --tile x", (60, 80)),  # rounded to the stride
        ("noise.png --size auto:50", (50, 50)),
        ("noise.png --size auto:50 --tile xy", (48, 48)),
    ],
)
def test_the_size_that_is_taken_is_told(flags, size, walls):
    found, notes = told(f"--gt_path {flags}")
    assert found == size
    why = ", as the exemplar has no period" if "noise" in flags else ""
    asked = flags.split()[2].lower()
    assert f"--size {asked}: {size[1]}x{size[0]}{why}" in notes


def test_from_takes_the_size_again(walls):
    flags = "--device cpu --quiet --epoch 1"
    assert main(f"--gt_path wall.png --size auto:40 --save_path one.png {flags}".split()) == 0
    assert read_record(Path("one.png"))["size"] == "32x48"
    assert main("--from one.png --save_path two.png --device cpu --quiet".split()) == 0
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    assert main("--from one.png --gt_path noise.png --save_path three.png --quiet".split()) == 0
    assert read_record(Path("three.png"))["size"] == "40x40"


VALUES = "auto:0", "auto:abc", "auto:99999999", "auto:", "auto", "auto:5x0"


@pytest.mark.parametrize("value", VALUES)
def test_sizes_that_are_refused(value):
    with pytest.raises(UserError, match=r"--size: 'auto.*' is not a size: give auto:N or auto:W"):
        parse(["--size", value])


def test_a_size_near_another_does_not_replace_that_of_kept_pixels(walls):
    kept = "--mask noise.png keeps pixels of 64x64 exactly"
    with pytest.raises(UserError, match=kept):
        told("--gt_path wall.png --size auto:90 --init noise.png --mask noise.png")
