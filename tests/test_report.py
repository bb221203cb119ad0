"""The page of a folder of results."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from PIL import Image

from command import report
from command.arguments import parse
from command.pictures import read_record, save_picture
from command.results import CURVE
from Synthesis import main
from utils import TEXTURES


@pytest.fixture
def folder(tmp_path, monkeypatch, narrow_net):
    """A result with a snapshot, one whose exemplar is gone, and pictures that are not ours."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a<b>.png", "gone.png")):
        box = (70 * i, 0, 70 * i + 70, 66)
        Image.open(TEXTURES / "pebbles.png").crop(box).save(tmp_path / name)
    command = "--device cpu --quiet --epoch 4 --size 64 --seed 3 --save_every 2 --save_path out/"
    assert main(["--gt_path", "a<b>.png", "gone.png", "--tv", "0.5", *command.split()]) == 0
    (tmp_path / "gone.png").unlink()
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "other.png")
    (tmp_path / "out" / "broken.png").write_bytes(b"")
    return tmp_path / "out"


def data_of(page):
    text = page.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "") and "https:" not in text
    return json.loads(found[1])


def test_a_page_of_a_folder(folder, capsys):
    assert main(["--report", str(folder), "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    one, gone = data_of(folder / "report.html")
    assert (one["name"], one["exemplar"], gone["name"]) == ("a<b>.png", "a<b>.png", "gone.png")
    assert one["picture"].startswith("data:image/jpeg;base64,") and one["exemplar_picture"]
    assert one["error"] == read_record(folder / "a<b>.png")["error"]
    assert [step for step, _ in one["snapshots"]] == [2, 4]
    assert [point[0] for point in one["curve"]] == [1, 2, 3, 4]
    assert one["scores"]["colour"] > 0 and one["verdict"].split(":")[0] in ("good", "fair", "poor")
    assert gone["exemplar_picture"] is None and gone["scores"] == {} and gone["faults"] is None
    assert "<b>" not in (folder / "report.html").read_text()  # no name is taken for HTML


def test_a_run_ends_with_its_page(tmp_path, monkeypatch, narrow_net, capfd):
    monkeypatch.chdir(tmp_path)
    Image.open(TEXTURES / "pebbles.png").crop((0, 0, 70, 66)).save("a.png")
    command = "--gt_path a.png --device cpu --epoch 2 --size 64 --save_path out/b.png --report"
    assert main([*command.split(), "out"]) == 0
    assert [one["name"] for one in data_of(tmp_path / "out" / "report.html")] == ["b.png"]
    assert "report: out/report.html" in capfd.readouterr().err
    # What cannot end so is refused before anything is made.
    assert main([*command.replace("b.png", "c.png").split(), "."]) == 2
    assert capfd.readouterr().err.endswith("--report .: pictures are saved in out\n")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main([*command.replace("b.png", "c.png").split(), "out"]) == 2
    assert "give it alone afterwards" in capfd.readouterr().err
    assert not (tmp_path / "out" / "c.png").exists()


def test_the_command_makes_it_again(folder, capsys):
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
def test_records_are_not_trusted(change, folder, capsys):
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
