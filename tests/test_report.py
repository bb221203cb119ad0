"""The page of a folder of results."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import save_crops
from PIL import Image, PngImagePlugin

from command import report
from command.arguments import parse
from command.pictures import read_record, save_picture
from command.results import CURVE
from Synthesis import main


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch, narrow_net):
    """A result with snapshots, one whose exemplar is gone, and pictures that are not ours."""
    made_once = tmp_path_factory.getbasetemp() / "of a report"
    if not made_once.exists():
        made_once.mkdir()
        monkeypatch.chdir(made_once)
        _make_folder()
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def _make_folder():
    save_crops(70, 66, "a<b>.png", "gone.png")
    command = "--device cpu --quiet --epoch 4 --size 64 --seed 3 --save_every 2 --save_path out/"
    assert main(["--gt_path", "a<b>.png", "gone.png", "--tv", "0.5", *command.split()]) == 0
    Path("gone.png").unlink()
    Image.new("RGB", (8, 8)).save(Path("out", "other.png"))
    Path("out", "broken.png").write_bytes(b"")


def data_of(page):
    text = page.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "") and "https:" not in text
    return json.loads(found[1])


@pytest.mark.slow
def test_a_page_of_a_folder(folder, capsys):
    assert main(["--report", str(folder), "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    one, broken, gone = data_of(folder / "report.html")
    assert broken["name"] == "broken.png" and "an empty file" in broken["failed"]
    assert (one["name"], one["exemplar"], gone["name"]) == ("a<b>.png", "a<b>.png", "gone.png")
    assert one["picture"].startswith("data:image/jpeg;base64,") and one["exemplar_picture"]
    assert one["error"] == read_record(folder / "a<b>.png")["error"]
    assert [step for step, _ in one["snapshots"]] == [2, 4]
    assert [point[0] for point in one["curve"]] == [1, 2, 3, 4]
    assert one["scores"]["colour"] > 0 and one["verdict"].split(":")[0] in ("good", "fair", "poor")
    assert gone["exemplar_picture"] is None and gone["scores"] == {} and gone["faults"] is None
    assert "<b>" not in (folder / "report.html").read_text()  # no name is taken for HTML


def test_a_run_ends_with_its_page(tmp_path, unscored, monkeypatch, narrow_net, capfd):
    monkeypatch.chdir(tmp_path)
    save_crops(70, 66, "a.png")
    command = "--gt_path a.png --device cpu --epoch 2 --size 32 --save_path out/b.png --report"
    assert main([*command.split(), "out"]) == 0
    assert [one["name"] for one in data_of(tmp_path / "out" / "report.html")] == ["b.png"]
    assert "report: out/report.html" in capfd.readouterr().err
    # What cannot end so is refused before anything is made.
    assert main([*command.replace("b.png", "c.png").split(), "."]) == 2
    assert capfd.readouterr().err.endswith(
        "--report .: this run saves pictures in out, give that\n"
    )
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main([*command.replace("b.png", "c.png").split(), "out"]) == 2
    assert "--report: not with several processes" in capfd.readouterr().err
    assert main([*command.replace("--report", "--sheet").split(), "s.png"]) == 2
    assert "--sheet: not with several processes" in capfd.readouterr().err
    assert not (tmp_path / "out" / "c.png").exists()


def test_the_command_makes_it_again(folder, unscored, capsys):
    assert main(["--report", str(folder), "--quiet"]) == 0
    command = shlex.split(data_of(folder / "report.html")[0]["command"])
    assert command[:2] == ["python", "Synthesis.py"]
    said = parse(command[2:])
    assert (said.epoch, said.seed, said.size, said.terms["tv"]) == (4, 3, (64, 64), 0.5)
    assert main([*command[2:-1], "again.png", "--device", "cpu", "--quiet"]) == 0
    assert (folder.parent / "again.png").read_bytes() == (folder / "a<b>.png").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {CURVE: "x"},
        {CURVE: [[1, 2], ["a", 1, 1], [0, 1, 1], [1, 1, float("nan")]]},
        {"inputs": 3},
        {"inputs": {"a<b>.png": 5}},
        {"error": "x", "exemplar": {"a": "</script>"}, "size": 4},
        {"mix": [[1, 2, 3]], "guide": 7},
    ],
)
def test_records_are_not_trusted(change, folder, unscored, capsys):
    path = folder / "a<b>.png"
    save_picture(torch.zeros(1, 3, 64, 64), path, read_record(path) | change)
    assert main(["--report", str(folder), "--quiet"]) == 0
    assert data_of(folder / "report.html")[0]["name"] == "a<b>.png"


def test_where_there_is_nothing_to_report(tmp_path, capfd):
    for place in (tmp_path, tmp_path / "no"):
        assert main(["--report", str(place)]) == 2
        assert f"{place}" in capfd.readouterr().err


USE = """
<script>
const seen = [];
const key = (name) => document.body.dispatchEvent(
  new KeyboardEvent("keydown", {key: name, bubbles: true}));
const say = (what) => seen.push(what);
say(shown.length);
$("sort").value = "Gram error"; $("sort").onchange(); say(shown[0].error); say(shown[499].error);
$("filter").value = "seed 77"; $("filter").oninput(); say(shown.length);
$("filter").value = ""; $("filter").oninput();
key("ArrowRight"); key("ArrowRight"); key("Enter");
say($("one").hidden); say($("one").querySelector("h2").textContent);
say($("one").querySelectorAll("img").length);
key("ArrowLeft"); say($("one").querySelector("h2").textContent);
key("Escape"); say($("one").hidden);
document.title = JSON.stringify(seen);
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
def test_the_page_works_with_500_results(tmp_path, monkeypatch):
    picture = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for i in range(500):
        record = {"gt_path": "a.png", "inputs": {}, "error": (i * 7 % 500) / 500}
        record |= {"seed": i, CURVE: [[1, 1, 0.5], [2, 1, 0.25]]}
        save_picture(picture, tmp_path / f"r{i:03d}.png", record)
    page = report.write_report(tmp_path, quiet=True)
    page.write_text(page.read_text().replace("</body>", USE + "</body>"))
    flags = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom".split()
    done = subprocess.run(
        ["chromium", *flags, f"file://{page}"], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr
    seen = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert seen == [500, 0, 0.998, 5, False, "r143.png", 1, "r000.png", True]


@pytest.fixture
def unscored(monkeypatch):
    """Where scores, a second each, are not what a test is about."""
    monkeypatch.setattr(report, "SCORES", {})


def entries(folder):
    """What the page of a folder has, by name."""
    assert main(["--report", str(folder), "--quiet"]) == 0
    return {one["name"]: one for one in data_of(folder / "report.html")}


@pytest.mark.slow
def test_repeats_and_maps_are_no_results(tmp_path, unscored, monkeypatch, narrow_net, capsys):
    monkeypatch.chdir(tmp_path)
    save_crops(70, 66, "a.png")
    command = "--gt_path a.png --device cpu --quiet --epoch 2 --size 32 --maps a.png --count 2"
    flags = "--save_every 1 --sheet out/all.png --save_path"
    for tile in ("x", "xy"):
        out = f"out/{tile}_tiled.png"  # a result may have such a name, too
        assert main([*command.split(), "--tile", tile, *flags.split(), out]) == 0
        (tmp_path / "out" / "all.png").unlink()
    assert len(list((tmp_path / "out").iterdir())) == 2 * 2 * 5
    assert set(entries(tmp_path / "out")) == {
        f"{tile}_tiled_{seed}.png" for tile in ("x", "xy") for seed in (0, 1)
    }


def test_a_result_that_cannot_be_read_is_on_the_page(folder, unscored, capsys):
    whole = (folder / "a<b>.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "a<b>_000002.png").write_bytes((folder / "a<b>_000002.png").read_bytes()[:-300])
    found = entries(folder)
    assert set(found) == {"a<b>.png", "half.png", "broken.png", "gone.png"}
    assert "half.png: cannot be read" in found["half.png"]["failed"]
    assert found["half.png"]["picture"] is None and found["a<b>.png"]["failed"] == ""
    assert [step for step, _ in found["a<b>.png"]["snapshots"]] == [4]


DEEP = 900  # lists, which a record may nest


def nested(depth):
    found = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"error": 10**400},
        {"error": 10**400, CURVE: [[1, 1, 10**400], [2, 1, 0.5]]},
        {"gt_path": "/proc/self/mem", "inputs": {"/proc/self/mem": "0" * 64}},
        {"gt_path": "/proc/kmsg", "inputs": {"/proc/kmsg": "0" * 64}},
        {"gt_path": "a\0.png", "inputs": {"a\0.png": "0" * 64}, "exemplar": "a\0.png"},
        {"gt_path": "\ud800.png", "inputs": {"\ud800.png": "0"}, "exemplar": "\ud800"},
        {"mix": nested(DEEP), "layers": nested(DEEP), "tile": [1], "size": 10**400},
        {"tile": "xyxy", "guide": [["\0", "\udfff"]], "seed": 10**400, "preset": {"a": 1}},
    ],
)
def test_no_record_stops_the_page(change, folder, unscored, capsys):
    record = read_record(folder / "gone.png") | change
    save_picture(torch.rand(1, 3, 64, 64), folder / "changed.png", record)
    found = entries(folder)
    assert set(found) == {"a<b>.png", "broken.png", "changed.png", "gone.png"}
    changed = found["changed.png"]
    assert changed["picture"] and (changed["error"] is None) == ("error" in change)
    assert [point[0] for point in changed["curve"]] == ([2] if CURVE in change else [1, 2, 3, 4])


def test_a_record_nested_too_deep_is_none(folder, unscored, capsys):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("synthesis", '{"error": ' + "[" * 20_000 + "]" * 20_000 + "}")
    Image.new("RGB", (64, 64)).save(folder / "deep.png", pnginfo=chunks)
    assert "deep.png" not in entries(folder)


def test_what_failed_is_on_the_page_of_its_run(tmp_path, unscored, monkeypatch, narrow_net, capfd):
    monkeypatch.chdir(tmp_path)
    save_crops(70, 66, "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    command = "--gt_path a.png b.png --device cpu --epoch 2 --size 32 --save_path out --report out"
    assert main(command.split()) == 1
    failed, made = data_of(tmp_path / "out" / "report.html")
    assert (failed["name"], made["name"]) == ("b.png", "a.png")
    assert "b.png: cannot be read" in failed["failed"] and made["failed"] == ""
    assert "report: scoring pictures, 1 in all" in capfd.readouterr().err


def test_of_many_snapshots_some_are_shown(folder, unscored, capsys, monkeypatch):
    monkeypatch.setattr(report, "MOST_SNAPSHOTS", 2)
    record = read_record(folder / "a<b>.png")
    for step in (1, 3):
        save_picture(
            torch.rand(1, 3, 64, 64), folder / f"a<b>_00000{step}.png", record | {"step": step}
        )
    assert [step for step, _ in entries(folder)["a<b>.png"]["snapshots"]] == [2, 4]
