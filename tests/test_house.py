"""The plan of the house: what may import what, and where a new thing goes."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fast_first
from PIL import Image

import losses
import Synthesis
from command.pictures import read_picture, read_record
from terms.base import Term

ROOT = Path(__file__).resolve().parent.parent
# From the ground up: a room may import those before it, and files of its own.
ROOMS = ["utils", "weights", "models", "terms", "losses", "engine", "command", "Synthesis"]


def files_of(room: str) -> list[Path]:
    folder = ROOT / room
    return sorted(folder.glob("*.py")) if folder.is_dir() else [ROOT / f"{room}.py"]


def imported(path: Path) -> set[str]:
    """The first part of the name of everything that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def test_every_file_is_in_a_room():
    outside = {"tests", "textures", "docs"}
    found = {p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] not in outside}
    found = {p for p in found if not any(part.startswith(".") for part in p.parts)}
    assert found == {path for room in ROOMS for path in files_of(room)}


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_imports_upwards(room):
    above = set(ROOMS[ROOMS.index(room) + 1 :])
    for path in files_of(room):
        assert not imported(path) & above, path


def test_no_file_only_hands_on_what_others_define():
    for path in [path for room in ROOMS for path in files_of(room)]:
        if path.name != "__init__.py":
            kinds = (ast.FunctionDef, ast.ClassDef)
            assert any(isinstance(node, kinds) for node in ast.parse(path.read_text()).body), path


def test_functions_and_classes_are_short():
    """At most 45 and 150 lines, docstrings included."""
    limits = {ast.FunctionDef: 45, ast.ClassDef: 150}
    for path in [path for room in ROOMS for path in files_of(room)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if limit := limits.get(type(node)):
                assert node.end_lineno - node.lineno < limit, (path, node.name)


def test_arguments_end_at_the_plan():
    for room in ROOMS:
        if room != "command":
            for path in files_of(room):
                assert "argparse" not in path.read_text(), path


def brightness_of_the_readme() -> type[Term]:
    """The term that the README shows."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(code, names)
    return names["Brightness"]


Brightness = brightness_of_the_readme()


@pytest.fixture
def brightness():
    losses.add_term("brightness", Brightness, "mean of the pixels")
    losses.add_method("bright", Brightness, "mean of the pixels alone", ["conv1_1"], {})
    yield
    del losses.TERMS["brightness"], losses.METHODS["bright"]


@pytest.mark.parametrize(
    "flags",
    fast_first(["--method bright --epoch 90", "--brightness 100 --epoch 30 --optimizer LBFGS"]),
)
def test_a_term_and_a_method_from_outside_run_through_the_command(
    flags, brightness, tmp_path, narrow_net
):
    """One class and one line each: the flag, its help, the record and the picture follow."""
    exemplar, result = tmp_path / "light.png", tmp_path / "result.png"
    Image.new("RGB", (32, 32), (250, 200, 150)).save(exemplar)
    start = tmp_path / "dark.png"
    Image.new("RGB", (32, 32), (60, 60, 60)).save(start)
    arguments = ["--gt_path", str(exemplar), "--init", str(start), "--save_path", str(result)]
    arguments += ["--model", "vgg16-caffe", "--device", "cpu", "--histogram", "0"]
    arguments += ["--epoch", "30", *flags.split()]
    assert Synthesis.main(arguments) == 0
    mean = 255 * read_picture(result)[0].mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([250.0, 200.0, 150.0]), atol=12, rtol=0)
    record = read_record(result)
    assert record["brightness"] == (100 if "--brightness" in flags else 0)


def test_help_comes_from_the_catalogue(brightness, capsys):
    with pytest.raises(SystemExit):
        Synthesis.main(["--help", "all"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--brightness WEIGHT mean of the pixels; default 0" in told
    assert "bright: mean of the pixels alone" in told
    for entry in (*losses.TERMS.values(), *losses.METHODS.values()):
        assert entry.help in told


def test_what_has_no_help_or_name_of_its_own_is_not_offered(brightness):
    with pytest.raises(ValueError, match="help is missing"):
        losses.add_term("silent", Brightness, " ")
    with pytest.raises(ValueError, match="the name exists"):
        losses.add_term("gram", Brightness, "mean of the pixels")
    with pytest.raises(ValueError, match="the name exists"):
        losses.add_method("swd", Brightness, "mean of the pixels", [], {})
    with pytest.raises(ValueError, match="no such terms: glow"):
        losses.add_method("glowing", Brightness, "mean of the pixels", [], {"glow": 1.0})


def test_the_library_makes_the_picture_of_the_command(tmp_path, narrow_net, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # exemplars are found from any folder
    flags = ["--size", "40x32", "--epoch", "3", "--tv", "0.1", "--model", "vgg16-caffe"]
    assert Synthesis.main(["--gt_path", "leaf.jpg", *flags, "--save_path", "command.png"]) == 0
    capfd.readouterr()
    image = Synthesis.synthesize(
        "leaf.jpg", size=(32, 40), epoch=3, tv=0.1, model="vgg16-caffe", save_path="library.png"
    )
    assert capfd.readouterr() == ("", "")
    assert image.shape == (1, 3, 32, 40)
    assert Path("library.png").read_bytes() == Path("command.png").read_bytes()
    saved = read_picture(Path("library.png"))[0]
    torch.testing.assert_close(saved, image, atol=0.5 / 255 + 1e-6, rtol=0)
