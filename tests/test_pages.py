"""README.md and the pages in docs/: their commands run, and their flags and links exist."""

import re
import shlex
import subprocess
import sys

import pytest
from experiments import PAGES, ROOT, code_of_pages
from PIL import Image

import losses
from command import canvas, verdict
from command.arguments import build_parser, parse
from command.files import TEXTURES
from command.pictures import read_picture
from Synthesis import main

README, *OTHERS = PAGES
METHODS_PAGE = ROOT / "docs" / "methods.md"
FOREIGN = {  # flags of pip, torchrun and srun, and of the README's own term
    "--brightness",
    *("--index-url", "--nproc_per_node"),
    *("--nodes", "--ntasks-per-node", "--gpus-per-task", "--kill-on-bad-exit"),
}


def arguments_of_pages() -> list[str]:
    """What follows `Synthesis.py` in each command of the pages."""
    found = re.findall(r"Synthesis\.py (.*?)(?:;|$)", code_of_pages(), re.MULTILINE)
    return list(dict.fromkeys(found))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("command", arguments_of_pages())
def test_every_command_of_the_pages_runs(command, tmp_path, monkeypatch, narrow_net):
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command.replace("$f", "textures/leaf.jpg"))

    def of_every_fourth_pixel(path, *kind):
        picture = read_picture(path, *kind)
        if path.is_relative_to(tmp_path):  # the first tile of a set
            return picture
        return picture._replace(pixels=picture.pixels[..., ::4, ::4])

    for module in (canvas, verdict):
        monkeypatch.setattr(module, "read_picture", of_every_fourth_pixel)
    args = parse(arguments)
    if args.score:
        assert main(arguments) == 0
        return
    is_pattern = "{" in str(args.save_path)  # or a folder
    save_path = tmp_path if is_pattern else tmp_path / args.save_path.name
    cheaper = ["--save_path", str(save_path), "--device", "cpu"]
    if args.report:
        cheaper += ["--report", str(tmp_path)]
    if args.repaint < 1:
        cheaper += ["--epoch", "1"]
    if not (args.mask or args.expand):  # whose size is that of what they keep
        cheaper += ["--size", "32"]
    if not args.weights:
        cheaper += ["--model", "vgg16-caffe"]
    assert main([*arguments, *cheaper]) == 0
    assert list(tmp_path.glob("*" if is_pattern else f"{save_path.stem}*"))


def test_the_command_that_the_user_fixed_is_the_first():
    assert arguments_of_pages()[0] == "--gt_path leaf.jpg --epoch 1000"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_page_exists(page):
    code = " ".join(re.findall(r"`([^`]+)`", without_code(page.read_text())))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", code))
    assert named <= build_parser().flags().keys() | FOREIGN


def anchors_of(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", without_code(page.read_text())):
        name, _, anchor = target.partition("#")
        if name.startswith("http"):
            continue
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_exists(page):
    for name in re.findall(r"`((?:\w+/)*\w+\.py)`", page.read_text()):
        assert (ROOT / name).is_file() or name == "terms/brightness.py", name  # a reader adds it


def test_the_readme_links_every_page():
    text = README.read_text()
    assert OTHERS and all(f"](docs/{page.name})" in text for page in OTHERS)


def test_every_page_says_first_whom_it_is_for():
    for page in OTHERS:
        assert re.match(r"# .+\n\nFor readers who ", page.read_text()), page.name


def test_the_page_of_methods_names_all_of_the_catalogue():
    text = METHODS_PAGE.read_text()
    assert re.findall(r"^\| `--(\w+)` \|", text, re.MULTILINE) == list(losses.TERMS)
    assert re.findall(r"^- \*\*`(\w+)`\*\*", text, re.MULTILINE) == list(losses.METHODS)


@pytest.mark.slow
def test_the_snippet_of_the_readme_runs_from_any_folder_without_torchvision(tmp_path):
    snippet, _ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippet.splitlines()) <= 6
    snippet = snippet.replace("path/to/this/folder", str(ROOT)).replace("epoch=300", "epoch=2")
    Image.open(TEXTURES / "leaf.jpg").crop((0, 0, 40, 40)).save(tmp_path / "leaf.jpg")
    snippet = snippet.replace("size=(256, 512)", 'size=(24, 48), model="vgg16-caffe"')
    snippet += "sys.exit('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    with Image.open(tmp_path / "wide.png") as picture:
        assert picture.size == (48, 24)


def test_every_paper_is_cited_and_every_citation_is_listed():
    listed = re.findall(
        r"^(\d+)\. ", METHODS_PAGE.read_text().split("## References")[1], re.MULTILINE
    )
    # Not intervals, such as [0, 1], nor the text of links.
    found = re.findall(
        r"\[([1-9]\d?(?:, [1-9]\d?)*)\](?!\()", "".join(p.read_text() for p in OTHERS)
    )
    assert listed == [str(i + 1) for i in range(len(listed))]
    assert {number for cited in found for number in cited.split(", ")} == set(listed)
