"""Every control beside every other one, through the command: a picture of the size that the rule
says, or one line; never a traceback."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import fast_first
from PIL import Image

import Synthesis
from command import results
from command.flags import FLAGS
from engine import schedule
from utils import resize


class Control(NamedTuple):
    flags: str
    rank: int  # in the rule for the output's size: the lowest one decides
    size: tuple[int, int] | None = None  # (width, height) that it asks for


EXEMPLAR = (32, 36)
CONTROLS = {
    "tile": Control("--tile xy", 9),
    "size": Control("--size 32x44", 0, (32, 44)),
    "expand": Control("--expand 44x48", 1, (44, 48)),
    "mask": Control("--init init.png --mask mask.png", 2, (34, 32)),
    "labels": Control("--guide labels.png wanted_labels.png", 4, (40, 32)),
    "grey": Control("--guide grey.png wanted_grey.png", 4, (36, 40)),
    "mix by a map": Control("--mix other.png --guide mix wanted_mix.png", 4, (38, 34)),
    "hue": Control("--orientation hue.png", 5, (40, 36)),
    "vectors": Control("--orientation vectors.npy", 5, (42, 34)),
    "init": Control("--init start.png", 6, (38, 32)),
    "style": Control("--style_image style.png --keep_color", 3, EXEMPLAR),
    "mix": Control("--mix other.png:0.3", 9),
    "degrees": Control("--orientation 45", 9),
    "maps": Control("--maps height.png", 9),
    "terms": Control("--spectrum 0.1 --autocorrelation 0.1 --patches 1 --tv 1", 9),
    "two scales": Control("--scales 2 --optimizer LBFGS --gram 0 --layers conv1_1 conv2_1", 9),
    "turned": Control("--patch_rotations 30", 9),
    "resized": Control("--patch_scales 1.5", 9),
}
# Controls that are tested on their own: they need others, or a seamless tile.
UNPAIRED = {"tile_set", "edges_of", "alpha", "content_layers", "content_weight", "exact_histogram"}
KEEPS = {"mask", "expand"}
GUIDES = {"labels", "grey"}
MIXES = {"mix", "mix by a map"}
TURNS = {"degrees", "hue", "vectors", "turned", "resized"}
# Pairs that one line refuses: any of the first beside any of the second.
REFUSED = [
    (KEEPS, {"size", "style"}),
    ({"mask"}, {"expand"}),
    (MIXES, {"maps", *GUIDES, *TURNS}),
    ({"grey"}, {"hue", "vectors"}),  # no place of this exemplar has such a grey and such an axis
]
# The same flag cannot be said twice with two values, except for --guide.
SAME_FLAG = [{"mask", "init"}, {"degrees", "hue", "vectors"}, MIXES]
PATCHES_ONLY = {"turned", "resized"}


def refused(one, two):
    return any(
        (one in some and two in others) or (two in some and one in others)
        for some, others in REFUSED
    )


PAIRS = [
    (one, two)
    for one, two in combinations(CONTROLS, 2)
    if not any({one, two} <= flags for flags in SAME_FLAG)
]


def test_every_control_is_paired_with_others():
    words = " ".join(control.flags for control in CONTROLS.values()).split()
    paired = {word.removeprefix("--") for word in words}
    assert FLAGS["control"].keys() - paired == UNPAIRED


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with every file that the controls name."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)

    def save(name, array):
        Image.fromarray(array.astype(np.uint8)).save(folder / f"{name}.png")

    def texture(size):
        coarse = torch.from_numpy(random.random((1, 3, size[1] // 4, size[0] // 4)))
        return 255 * resize(coarse, size[::-1])[0].permute(1, 2, 0).numpy()

    def halves(size, top, bottom):
        rows = np.arange(size[1])[:, None]
        return np.where(rows < size[1] // 2, top, bottom) + np.zeros(size[0])

    def ramp(size):
        return np.linspace(0, 255, size[0]) + np.zeros((size[1], 1))

    for name in ("exemplar", "style", "height"):
        save(name, texture(EXEMPLAR))
    save("other", texture((36, 32)))
    save("init", texture(CONTROLS["mask"].size))
    save("start", texture(CONTROLS["init"].size))
    mask = np.zeros(CONTROLS["mask"].size[::-1])
    mask[8:20, 10:30] = 255
    save("mask", mask)
    save("labels", halves(EXEMPLAR, 60, 200))
    save("wanted_labels", halves(CONTROLS["labels"].size, 200, 60))
    save("wanted_mix", halves(CONTROLS["mix by a map"].size, 10, 240))
    save("grey", ramp(EXEMPLAR))
    save("wanted_grey", ramp(CONTROLS["grey"].size))
    save("hue", np.full((*CONTROLS["hue"].size[::-1], 3), (255, 120, 0)))
    np.save(folder / "vectors.npy", np.ones((2, *CONTROLS["vectors"].size[::-1])))
    return folder


FAST = {"tile", "mask"}  # which meet all others; the rest takes longer


def expected_size(one, two):
    """The rule, from the table above."""
    asked = [CONTROLS[name] for name in (one, two) if CONTROLS[name].size]
    return min(asked, key=lambda control: control.rank).size if asked else EXEMPLAR


@pytest.mark.parametrize("method", fast_first(["gram", "cnnmrf"]))
@pytest.mark.parametrize(
    "one", fast_first(sorted(CONTROLS, key=lambda name: name not in FAST), len(FAST))
)
def test_every_pair_of_controls(one, method, pictures, narrow_net, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(pictures)
    monkeypatch.setattr(results, "saved_error", lambda *_: 0.0)  # is not of what is controlled
    if method == "gram":  # those of patches are painted
        monkeypatch.setattr(schedule, "_paintable", lambda *_: False)
    for pair in PAIRS:
        if pair[0] != one or (method == "gram" and PATCHES_ONLY & {*pair}):
            continue
        command = f"--gt_path exemplar.png --device cpu --epoch 1 --method {method} "
        command += " ".join(CONTROLS[name].flags for name in pair)
        result = tmp_path / f"{pair[1]}.png"
        code = Synthesis.main([*command.split(), "--save_path", str(result)])
        err = capfd.readouterr().err
        assert code == (2 if refused(*pair) else 0), (command, err)
        if code == 2:
            assert len(err.splitlines()) == 1 and err.startswith("Synthesis.py: "), command
        else:
            with Image.open(result) as picture:
                assert picture.size == expected_size(*pair), command
