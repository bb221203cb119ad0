"""A run that goes on from a checkpoint ends in the bytes of one that was never stopped."""

import io
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import fast_first, made, plan, save_crops

from command import resume
from command.arguments import parse
from command.display import Display
from command.files import TEXTURES
from command.pictures import read_picture, read_record
from engine.spec import Spec, exemplar_of
from engine.synthesis import Frame, frames
from losses import METHODS
from Synthesis import main
from terms.base import Canvas

ROOT = Path(__file__).resolve().parent.parent


def kept(state):
    """As it comes back out of a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.fixture
def spec():
    picture = read_picture(TEXTURES / "pebbles.png")[0][..., :40, :36]
    return Spec((exemplar_of(picture),), Canvas((40, 36)), steps=32, match_every=2, seed=1)


OTHERS = {
    "tiled": dict(canvas=Canvas((40, 40), "xy")),
    "polished": dict(repaint=0.5, weights={"patches": 1.0, "histogram": 1.0}),
    "four scales": dict(scales=4),  # the noise of two is drawn on the way
    "one scale": dict(scales=1, weights={"spectrum": 1.0, "autocorrelation": 1.0}),
    "settles": dict(tolerance=0.9, steps=200),
    "rough": dict(precision="bf16"),
}


@pytest.mark.parametrize(
    "change, optimizer, moments",
    fast_first(
        [
            *(("gram", "Adam", 2), ("polished", "Adam", 2)),
            *(("cnnmrf", "LBFGS", 2), ("four scales", "Adam", 3)),
            *((change, "Adam", 5) for change in (*METHODS, *OTHERS)),
            *((change, "LBFGS", 5) for change in METHODS),
        ],
        fast=2,
    ),
)
def test_at_any_moment(change, optimizer, moments, spec, tiny, narrow_net):
    spec = replace(spec, optimizer=optimizer, **OTHERS.get(change, {"method": change}))
    if change not in ("one scale", "four scales", "polished"):
        spec = replace(spec, scales=2)
    states, reports = [], []
    for frame in frames(spec, tiny):
        reports.append((frame.step, frame.scale, frame.loss))
        if frame.state is not None:
            states.append((len(reports), kept(frame.state())))
    whole, plain = frame.made, made(spec, tiny)
    assert torch.equal(plain.image, whole.image)  # to be kept changes nothing
    assert len(states) >= 6
    for before, state in states[-1 :: -max(1, len(states) // moments)]:
        again = []
        for frame in frames(spec, tiny, state):
            again.append((frame.step, frame.scale, frame.loss))
        assert torch.equal(frame.made.image, whole.image)
        assert frame.made.shift == whole.shift
        if whole.places is not None:
            assert torch.equal(frame.made.places, whole.places)
        assert again == reports[before:]
    assert states[-1][0] > len(reports) / 2  # it does not begin anew


# ------------------------------------------------------------------------------------ in files


@pytest.fixture
def exemplar(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_crops(64, 64, path)
    monkeypatch.setattr(resume, "INTERVAL", 0.0)
    return path


def run(exemplar, name, *flags):
    command = ["--gt_path", str(exemplar), "--save_path", str(exemplar.parent / name)]
    return main([*command, *"--size 64 --epoch 20 --device cpu --quiet --resume".split(), *flags])


def test_checkpoints_are_half_a_minute_apart(tmp_path, monkeypatch):
    flags = ["--gt_path", "pebbles.png", "--size", "32", "--resume", "--save_path"]
    (job,), _ = plan(parse([*flags, str(tmp_path / "r.png")]))
    clock = iter([0, 10, 31, 31, 50, 62, 62])  # at the start, at each offer, after each file
    saved = []
    monkeypatch.setattr(resume, "save_bytes", lambda content, path: saved.append(path))
    with Display(job, {}, True, "lines") as display:
        monkeypatch.setattr(resume.time, "monotonic", lambda: next(clock))
        checkpoints = resume.Checkpoints(job, {}, display)
        frame = Frame(1, 1, 1, 0.5, torch.zeros(1, 3, 8, 8), job.spec.canvas, state=dict)
        counts = []
        for _ in range(4):
            checkpoints.save_if_due(frame)
            counts.append(len(saved))
    assert counts == [0, 1, 1, 2]


class Killed(BaseException):
    """Nothing of ours ends it in order."""


def killed_after(steps, monkeypatch, error=Killed):
    def killed(*args):
        for frame in frames(*args):
            yield frame
            if frame.step >= steps:
                raise error

    monkeypatch.setattr("command.make.frames", killed)


@pytest.mark.parametrize(
    "flags", fast_first(["--scales 2", "--optimizer LBFGS --method cnnmrf --match_every 4"])
)
def test_a_command_goes_on(flags, exemplar, narrow_net, monkeypatch, capfd):
    assert run(exemplar, "whole.png", *flags.split()) == 0
    folder = exemplar.parent
    assert not list(folder.glob("*.checkpoint"))
    with monkeypatch.context() as patched:
        killed_after(12, patched)
        with pytest.raises(Killed):
            run(exemplar, "r.png", *flags.split())
    assert (folder / "r.png.checkpoint").exists() and not (folder / "r.png").exists()
    done, resumed = torch.load(folder / "r.png.checkpoint")["course"]["work"], []
    assert 0.2 < done < 0.8
    plain = Display.resume_from

    def resume_from(self, course):
        resumed.append(course["work"])
        plain(self, course)

    monkeypatch.setattr(Display, "resume_from", resume_from)
    capfd.readouterr()
    assert run(exemplar, "r.png", *flags.split(), "--seed", "3") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "r.png.checkpoint is of other settings" in line
    assert run(exemplar, "r.png", *flags.split()) == 0
    assert resumed == [done]
    assert (folder / "r.png").read_bytes() == (folder / "whole.png").read_bytes()
    assert not list(folder.glob("*.checkpoint"))


def test_what_is_no_checkpoint_is_refused(exemplar, narrow_net, capfd):
    path = exemplar.parent / "r.png.checkpoint"
    for content in (b"", b"letter"):
        path.write_bytes(content)
        assert run(exemplar, "r.png") == 2
        assert "is no checkpoint" in capfd.readouterr().err and path.read_bytes() == content


def test_an_interrupted_picture_goes_on(exemplar, narrow_net, monkeypatch):
    assert run(exemplar, "whole.png") == 0
    with monkeypatch.context() as patched:
        killed_after(9, patched, KeyboardInterrupt)
        assert run(exemplar, "r.png") == 130
    assert "interrupted at step" in read_record(exemplar.parent / "r.png")
    assert run(exemplar, "r.png") == 0
    one, two = (exemplar.parent / name for name in ("r.png", "whole.png"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_what_goes_on_saves_the_snapshots_that_are_left(exemplar, narrow_net, monkeypatch):
    """Not those before, of a picture that stands at another step."""
    with monkeypatch.context() as patched:
        killed_after(9, patched, ConnectionError)
        with pytest.raises(ConnectionError):
            run(exemplar, "r.png", "--save_every", "2")
    snapshots = exemplar.parent.glob("r_*.png")
    assert sorted(int(path.stem[2:]) for path in snapshots) == [2, 4, 6, 8]
    for path in exemplar.parent.glob("r_*.png"):
        path.unlink()
    assert run(exemplar, "r.png", "--save_every", "2") == 0
    steps = sorted(int(path.stem[2:]) for path in exemplar.parent.glob("r_*.png"))
    assert steps[0] > 6 and steps == list(range(steps[0], steps[-1] + 1, 2))


@pytest.mark.slow
def test_kill_9_at_random_moments(exemplar):
    """Until it is made; what there is of the result at any time is whole."""
    folder = exemplar.parent
    flags = "--size 64 --epoch 150 --device cpu --model vgg16-caffe --resume"
    code = "import sys, Synthesis, command.resume as r; r.INTERVAL = 0.2; "
    code += "sys.exit(Synthesis.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--gt_path", str(exemplar), *flags.split()]
    command += ["--save_path"]
    subprocess.run([*command, str(folder / "whole.png")], cwd=ROOT, check=True)
    kills = 0
    for seconds in (1.0, 4.0, 5.0, 6.0, 60.0):
        with subprocess.Popen([*command, str(folder / "r.png")], cwd=ROOT) as process:
            end = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        if (folder / "r.png").exists():
            read_picture(folder / "r.png")
            if process.returncode == 0:
                break
    assert kills >= 2 and process.returncode == 0
    assert (folder / "r.png").read_bytes() == (folder / "whole.png").read_bytes()
    assert {path.name for path in folder.iterdir()} == {"a.png", "r.png", "whole.png"}
