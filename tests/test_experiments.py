"""docs/experiments.py makes what the pages show, and they name the experiment."""

import re
import shlex
from collections import Counter

import experiments
import pytest
from experiments import DOCS, EXPERIMENTS, FIXED, PAGES

from command.arguments import parse

TEXT = "".join(page.read_text() for page in PAGES)
# A photo and maps, which are given to commands.
INPUTS = {"cat.jpg", "damaged.png", "disc.png", "hole.png", "lichen_map.png", "ramp.png"}
INPUTS |= {"pebbles_height.png", "pebbles_normal.png"}


def files(name, flags):
    """What a command saves: the picture, its repeat and its maps, or the floor of its tiles."""
    request = parse(shlex.split(flags))
    if request.tile_set:
        return [f"{name}_floor.png"]
    maps = [f"{name}_{re.split('[/.]', path)[-2]}.png" for path in request.maps]
    return [f"{name}.png", *([f"{name}_tiled.png"] if request.tile else []), *maps]


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_command_parses(experiment):
    for flags in experiment.commands.values():
        assert parse(shlex.split(f"{flags} {FIXED}")).model == "vgg16-caffe"


def test_every_picture_is_made_by_one_experiment():
    made = Counter(
        file
        for experiment in EXPERIMENTS.values()
        for name, flags in experiment.commands.items()
        for file in files(name, flags)
    )
    shown = experiments.pictures_of_pages()
    assert {file: made[file] for file in shown - INPUTS} == dict.fromkeys(shown - INPUTS, 1)
    assert not INPUTS & made.keys()
    pictures = {path.name for kind in ("png", "jpg") for path in DOCS.glob(f"*.{kind}")}
    assert pictures == shown | INPUTS
    assert all(f"docs/{name}" in TEXT for name in INPUTS)


def test_every_experiment_is_named_beside_what_it_makes():
    named = re.findall(r"`python docs/experiments\.py ([\w\s]+)`", TEXT)
    assert set(" ".join(named).split()) == set(EXPERIMENTS)


def test_commands_that_the_pages_show_are_the_ones_that_run():
    commands = experiments.commands_of_pages()
    ran = {name: flags for one in EXPERIMENTS.values() for name, flags in one.commands.items()}
    shown = [name for name in commands if f"{name}.png" in experiments.pictures_of_pages()]
    assert len(shown) > 10 and all(ran[name] == commands[name] for name in shown)


def test_without_names_experiments_are_listed(capsys):
    assert experiments.main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(EXPERIMENTS)


def test_an_unknown_name_costs_one_line(capsys):
    assert experiments.main(["first", "second"]) == 2
    out, told = capsys.readouterr()
    assert not out and told.count("\n") == 1
    assert "'second'" in told and all(name in told for name in EXPERIMENTS)
