"""Standard streams that are closed, full, or that nobody reads: no picture is lost, no traceback
shown, and nothing is written into another file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fast_first, save_crops

from command import verdict
from command.display import print_stderr
from command.pictures import read_record
from command.streams import write, write_stdout
from Synthesis import main

ROOT = Path(__file__).resolve().parent.parent
STREAMS = [">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "| head -0"]
FULL = "No space left on device"


def in_shell(arguments, stream, cwd=ROOT, program="Synthesis.py"):
    """The program as a shell runs it; the exit code is the program's, not that of `head`."""
    line = f"set -o pipefail; {sys.executable} {program} {arguments} {stream}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def exemplars(tmp_path):
    """Two, that scores can be computed of."""
    save_crops(64, 64, tmp_path / "a.png", tmp_path / "b.png")
    return tmp_path


# ------------------------------------------------------------------------------ before all imports


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "<&- 2>&-"])
def test_descriptors_that_are_closed_are_no_file_that_is_opened_later(closed, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"import os, subprocess, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from command.start import open_streams; open_streams()\n"
        "file = os.open('found', os.O_CREAT | os.O_WRONLY)\n"
        "assert file > 2 and sys.stdin.read() == ''\n"
        "print('out'); print('err', file=sys.stderr); sys.stderr.flush()\n"
        "os.write(2, b'err\\n'); subprocess.run(['sh', '-c', 'echo err >&2'], check=True)\n"
    )
    done = in_shell("", closed + ("" if "<" in closed else "</dev/null"), tmp_path, program)
    assert done.returncode == 0 and (tmp_path / "found").read_bytes() == b""
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "out\n")
    assert done.stderr == ("" if "2>&-" in closed else "err\n" * 3)


def test_what_comes_before_the_handlers_is_next_to_nothing():
    """A signal before them is a traceback: `signal` and what it needs is all that is imported."""
    code = "import signal, sys; known = {*sys.modules}; import command.start; "
    code += "print(*{*sys.modules} - known)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert {*found.stdout.split()} == {"command", "command.start"}


# ------------------------------------------------------------------------- full, or nobody reads


@pytest.fixture
def full():
    with open("/dev/full", "w") as file:
        yield file


@pytest.fixture
def ended():
    """A pipe whose reader has ended."""
    out, into = os.pipe()
    os.close(out)
    with open(into, "w") as file:
        yield file


@pytest.fixture
def measured(monkeypatch):
    """`--score` without its seconds."""
    monkeypatch.setattr(verdict, "score", lambda *_: {})
    for name in ("as_table", "as_json"):
        monkeypatch.setattr(verdict, name, lambda scores: "scores")


INSTEAD = ["--help", "--help all", "--help tile", "--version", "--score b.png --gt_path a.png"]
INSTEAD += ["--score b.png --gt_path a.png --json"]


@pytest.mark.parametrize("flags", INSTEAD)
def test_what_is_for_a_full_stdout_alone_is_an_error(
    flags, exemplars, full, measured, monkeypatch, capfd
):
    monkeypatch.chdir(exemplars)
    monkeypatch.setattr(sys, "stdout", full)
    assert main(flags.split()) == 2
    assert capfd.readouterr().err == f"Synthesis.py: stdout: cannot be written ({FULL})\n"


@pytest.mark.parametrize("flags", INSTEAD)
def test_who_reads_no_more_ends_the_program_in_silence(
    flags, exemplars, ended, measured, monkeypatch, capfd
):
    monkeypatch.chdir(exemplars)
    monkeypatch.setattr(sys, "stdout", ended)
    with pytest.raises(SystemExit) as left:
        main(flags.split())
    assert left.value.code == 0 and capfd.readouterr().err == ""


def test_what_could_not_be_written_is_dropped_and_not_told_again():
    with open("/dev/full", "w") as stream:
        assert isinstance(write("lost", stream), OSError)
        assert write("lost as well", stream) is None  # and closing it, which writes, is no error


@pytest.mark.parametrize("stream", fast_first(["full", "ended"]))
def test_pictures_are_saved_and_told_of_once_on_a_full_stdout(
    stream, exemplars, narrow_net, monkeypatch, capfd, request
):
    monkeypatch.chdir(exemplars)
    monkeypatch.setattr(sys, "stdout", request.getfixturevalue(stream))
    flags = "--gt_path a.png b.png --epoch 2 --size 32 --device cpu --quiet --save_path out/"
    assert main(flags.split()) == 0
    told = f"Synthesis.py: stdout cannot be written ({FULL}), pictures are saved\n"
    assert capfd.readouterr().err == (told if stream == "full" else "")
    assert all(read_record(Path("out", name))["error"] for name in ("a.png", "b.png"))


def test_letters_that_stdout_lacks(tmp_path, monkeypatch):
    with open(tmp_path / "log", "w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        write_stdout("ä\n")
    assert (tmp_path / "log").read_text() == "?\n"


def test_a_library_that_lacks_streams_prints_nothing(monkeypatch):
    """As below pythonw."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    write_stdout("nothing")
    print_stderr(["nothing"])


# ------------------------------------------------------------------------------- as a shell has it

DRAFT = "--preset draft --device cpu --model vgg16-caffe --size 32 "
WAYS = {
    "one picture": DRAFT + "--gt_path a.png --save_path out/",
    "a list": DRAFT + "--gt_path a.png b.png --save_path out/",
    "two at a time": DRAFT + "--gt_path a.png b.png --save_path out/ --workers 2",
    "--score": "--score b.png --gt_path a.png",
    "--report": "--report out",
}


# Each way with the streams that it has code of its own for.
OWN = {
    "one picture": STREAMS,
    "a list": ["2>/dev/full", ">/dev/full", "| head -0"],
    "two at a time": ["2>&-", "<&- >&- 2>&-", ">/dev/full", "| head -0"],
    "--score": [">&-", ">/dev/full", "| head -0"],
    "--report": ["<&- >&- 2>&-", ">/dev/full", "| head -0"],
}
CASES = [(way, stream) for way, streams in OWN.items() for stream in streams]


@pytest.mark.parametrize("way, stream", fast_first(CASES))
def test_ways_with_streams(way, stream, exemplars, request, monkeypatch):
    """Pictures and pages as with all streams; of these alone a score on a full device fails."""
    out = exemplars / "out"
    if way == "--report":
        request.getfixturevalue("narrow_net")
        monkeypatch.chdir(exemplars)
        assert main(WAYS["one picture"].split()) == 0
    done = in_shell(WAYS[way], stream, exemplars, ROOT / "Synthesis.py")
    alone = way in ("--score", "--report") and stream == ">/dev/full"
    assert done.returncode == (2 if alone else 0), done.stderr
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert (FULL in done.stderr) == (stream == ">/dev/full")
    if "2>" in stream:
        assert done.stderr == ""
    if stream in ("<&-", "2>&-", "2>/dev/full"):
        expected = {"one picture": 1, "--report": 1, "--score": 10}.get(way, 2)
        assert len(done.stdout.splitlines()) >= expected and "Synthesis.py" not in done.stdout
    else:
        assert done.stdout == ""
    made = {"one picture": 1, "a list": 2, "two at a time": 2, "--report": 1}.get(way, 0)
    pictures = sorted(out.glob("*.png"))
    assert [path.name for path in pictures] == ["a.png", "b.png"][:made]
    assert all(read_record(path)["error"] < 1 for path in pictures)
    assert (out / "report.html").exists() == (way == "--report")


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--gt_path missing.png", "--size x"])
def test_errors_never_go_to_stdout(flags, exemplars):
    done = in_shell(flags, "2>&-", exemplars, ROOT / "Synthesis.py")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_the_library_needs_no_streams(closed, exemplars):
    program = exemplars / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from Synthesis import synthesize\n"
        "synthesize('a.png', preset='draft', size=(32, 32), device='cpu', model='vgg16-caffe',\n"
        "           save_path='made.png')\n"
    )
    done = in_shell("", closed, exemplars, program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert read_record(exemplars / "made.png")["error"] < 1
