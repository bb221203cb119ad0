"""What is decided before any slow work: shares, and the weight of every term."""

import numpy as np
import pytest
from PIL import Image

from command.arguments import parse
from command.plan import plan


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
