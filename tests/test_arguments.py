"""What the command line takes and refuses; its errors as a whole are in test_synthesis.py."""

import argparse
from dataclasses import fields, replace

import pytest

from command import arguments, flags
from command.arguments import build_parser
from utils import UserError


@pytest.mark.parametrize(
    "text, size",
    [("512", (512, 512)), ("512x256", (256, 512)), ("3X4", (4, 3)), ("65500x1", (1, 65500))],
)
def test_parse_size(text, size):
    assert flags.parse_size(text) == size


@pytest.mark.parametrize(
    "text", "0 0x8 8x0 -5 8x-5 65501 8x65501 8x x8 8x8x8 1.5 1e3 big 8*8".split() + ["", "9" * 5000]
)
def test_parse_size_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="65500") as caught:
        flags.parse_size(text)
    assert repr(text) in str(caught.value)


def test_parse_bool():
    assert [flags.parse_bool(word, "") for word in ("True", "YES", "1", "on")] == [True] * 4
    assert [flags.parse_bool(word, "") for word in ("False", "no", "0", "OFF")] == [False] * 4
    for word in ("", "maybe", "2", "None"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{word!r}: give True or False"):
            flags.parse_bool(word, "True or False")


def test_a_preset_gives_way_to_what_is_said(monkeypatch):
    monkeypatch.setitem(arguments.PRESETS, "fast", {"optimizer": "LBFGS", "tv": 1, "patches": 10})
    plain, fast = arguments.parse([]), arguments.parse(["--preset", "fast"])
    assert (plain.optimizer, plain.terms) == ("Adam", {})
    assert (fast.optimizer, fast.terms) == ("LBFGS", {"tv": 1, "patches": 10})
    said = arguments.parse(["--tv", "2", "--preset", "fast", "--optimizer", "Adam"])
    assert (said.optimizer, said.terms) == ("Adam", {"tv": 2, "patches": 10})


def test_presets_are_what_the_parser_takes():
    for name, preset in arguments.PRESETS.items():
        spelled = [word for flag, value in preset.items() for word in (f"--{flag}", str(value))]
        said, found = arguments.parse(spelled), arguments.parse(["--preset", name])
        assert replace(said, preset=name) == found


def test_help_shows_every_default():
    text = " ".join(build_parser().format_help().split())
    assert text.startswith("usage: python Synthesis.py --gt_path leaf.jpg --epoch 1000 python")
    for default in ("leaf.jpg", "result.jpg", "gram", "avg", "True", "vgg19", "cuda:0", "1000"):
        assert f"default {default}" in text
    assert "Adam 0.05, LBFGS 1" in text
    assert "content loss; default conv4_1" in text
    assert "the same for all sizes; default 0.05" in text


@pytest.mark.parametrize(
    "flag, one, two",
    [
        ("gt_path", "a.png", "b.png"),
        ("mix", ("a.png", None), ("b.png", 0.3)),
        ("maps", "a.png", "b.png"),
        ("layers", ("conv1_1", 1.0), ("conv2_1", 2.0)),
        ("content_layers", "conv1_1", "conv2_1"),
        ("patch_rotations", 30.0, 60.0),
        ("patch_scales", 0.5, 2.0),
    ],
)
def test_a_flag_of_several_values_may_be_given_again(flag, one, two):
    pairs = {"mix": ["a.png", "b.png:0.3"], "layers": ["conv1_1", "conv2_1:2"]}
    words = pairs.get(flag, [str(one), str(two)])
    assert getattr(arguments.parse([f"--{flag}", *words]), flag) == [one, two]
    again = [word for value in words for word in (f"--{flag}", value)]
    assert getattr(arguments.parse(again), flag) == [one, two]
    assert getattr(arguments.parse(["--preset", "best", *again]), flag) == [one, two]


def test_the_first_value_takes_the_defaults_place():
    assert arguments.parse([]).gt_path == ("leaf.jpg",)
    assert arguments.parse(["--image_path", "a.png", "--gt_path", "b.png"]).gt_path == [
        "a.png",
        "b.png",
    ]
    assert arguments.parse([]).gt_path == ("leaf.jpg",)


@pytest.mark.parametrize(
    "flag", ["--size 64", "--preset best", "--save_path a.png", "--tv 1", "--from a.png"]
)
def test_score_refuses_what_it_has_no_use_for(flag):
    arguments.parse("--score a.png --gt_path b.png --json --quiet".split())
    with pytest.raises(UserError, match=f"{flag.split()[0]}: no effect with --score"):
        arguments.parse(f"--score a.png {flag}".split())


def test_a_flag_that_has_moved_says_where():
    with pytest.raises(UserError, match="^--benchmark: no such flag, run python docs/benchmark.py"):
        arguments.parse(["--benchmark", "--json"])


@pytest.mark.parametrize(
    "text, size",
    [
        ("4GB", 4e9),
        ("4g", 4e9),
        (" 1.5 gb ", 1.5e9),
        ("800M", 8e8),
        ("2000000", 2e6),
        ("1tb", 1e12),
    ],
)
def test_parse_bytes(text, size):
    assert flags.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4", "-1GB", "4GiB", "GB", "nan", "1e9", "4 GB 2", "1" * 400])
def test_parse_bytes_refuses(text):
    with pytest.raises(argparse.ArgumentTypeError, match="give a size like 4GB"):
        flags.parse_bytes(text)


def said(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(argv)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_has_three_lengths(capsys):
    first, everything = said(["--help"], capsys), said(["-h", "all"], capsys)
    assert first == arguments.FIRST and len(first.splitlines()) < 24  # a screen
    assert first.count("python Synthesis.py") == 3
    assert "--autocorrelation" in everything and "--autocorrelation" not in first
    one = said(["--help", "tile"], capsys)
    assert "--tile" in one and flags.EXAMPLES["tile"] in one and "--size N" not in one
    assert said(["--help", "image_path"], capsys) == said(["--help", "gt_path"], capsys)
    with pytest.raises(UserError, match="--tile"):
        build_parser().parse_args(["--help", "tyle"])


def test_every_example_parses_and_every_control_has_one():
    controls = flags.FLAGS["control"] | flags.FLAGS["pictures"]
    assert controls.keys() - {"save_every"} <= flags.EXAMPLES.keys()
    known = set(build_parser().flags())
    for name, example in flags.EXAMPLES.items():
        words = example.split()
        assert set(word for word in words if word.startswith("--")) <= known
        if name not in ("from_picture", "config"):  # which read files
            assert getattr(arguments.parse(words), name)
    for line in arguments.FIRST.splitlines():
        if "python Synthesis.py" in line:
            arguments.parse(line.split()[2:])


def test_every_flag_is_a_field_and_every_field_a_flag():
    inner = {"terms", "page_alone", "asked", "typed", "pictures"}
    assert {one.name for one in fields(flags.Request)} - inner == flags.FLAG_OF.keys()


@pytest.mark.parametrize("flag, value", [("--max_memory", "-4GB"), ("--seed", "-.5x")])
def test_what_begins_like_a_negative_number_is_a_value(flag, value):
    with pytest.raises(UserError, match=f"{flag}.*'{value}'"):
        arguments.parse([flag, value])


def test_version(capsys):
    assert said(["--version"], capsys).startswith(arguments.VERSION)


@pytest.mark.parametrize(
    "word, near", [("--epochs", "--epoch"), ("--gtpath=a.png", "--gt_path"), ("--xyzzy", None)]
)
def test_did_you_mean(word, near):
    with pytest.raises(UserError) as caught:
        arguments.parse([word])
    assert str(caught.value).startswith(word.partition("=")[0])
    assert (f"did you mean {near}?" in str(caught.value)) == (near is not None)


@pytest.mark.parametrize(
    "argv, flag",
    [
        (["--mask", ""], "--mask"),
        (["--init="], "--init"),
        (["--gt_path", "a.png", ""], "--gt_path"),
        (["", "--size", "3"], "an argument"),
    ],
)
def test_an_empty_value_is_no_value(argv, flag):
    """As a shell makes it of a variable that is not set; it would be ignored."""
    with pytest.raises(UserError, match=f"^{flag}: an empty value$"):
        arguments.parse(argv)


@pytest.mark.parametrize(
    "flag, most",
    [
        ("epoch", 10**9),
        ("save_every", 10**9),
        ("match_every", 10**9),
        ("count", 10**5),
        ("workers", 1024),
    ],
)
def test_more_than_anybody_means_is_refused(flag, most):
    assert getattr(arguments.parse([f"--{flag}", str(most)]), flag) == most
    for value in (most + 1, 0, 10**400):
        with pytest.raises(UserError, match=f"from 1 to {most}$"):
            arguments.parse([f"--{flag}", str(value)])
