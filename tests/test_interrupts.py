"""Signals: none costs a picture, and none is lost."""

import os
import signal

import pytest
from conftest import save_crops
from PIL import Image

import Synthesis
from command import interrupts, results, workers
from command.files import ROOT
from command.interrupts import Stopped, defer_signals, raise_on_signals
from command.pictures import read_record
from command.start import SIGNALS, exit_on_signals
from engine import painting

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture(autouse=True)
def handlers():
    """Those of the program, and afterwards those that were."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    exit_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def exemplar(tmp_path, narrow_net):
    path = tmp_path / "a.png"
    save_crops(40, 40, path)
    return path


def send(number):
    os.kill(os.getpid(), number)


def test_a_signal_waits_for_the_end_of_the_block_and_comes_once():
    raise_on_signals()
    done = []
    with pytest.raises(Stopped) as stopped:
        with defer_signals():
            send(signal.SIGTERM)
            send(signal.SIGINT)
            done.append("saved")
    assert done == ["saved"] and stopped.value.exit_code == 143
    with defer_signals():
        done.append("no signal")
    assert signal.getsignal(signal.SIGTERM) is interrupts._raise


def test_a_signal_that_is_ignored_stays_so():
    """As nohup has it; and it hides no other one."""
    raise_on_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with defer_signals():
        send(signal.SIGHUP)
    with pytest.raises(Stopped) as stopped:
        with defer_signals():
            send(signal.SIGHUP)
            send(signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number, code", CODES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_while_a_picture_is_saved_ends_the_batch_with_it(
    number, code, when, exemplar, tmp_path, monkeypatch, capfd
):
    save = results.save_picture

    def interrupted(*arguments):
        if when == "before":
            send(number)
        save(*arguments)
        if when == "after":
            send(number)
            send(number)

    monkeypatch.setattr(results, "save_picture", interrupted)
    flags = f"--gt_path {exemplar} --count 3 --size 32 --epoch 2 --device cpu --quiet "
    assert Synthesis.main([*flags.split(), "--save_path", f"{tmp_path}/out/"]) == code
    out, err = capfd.readouterr()
    (made,) = (tmp_path / "out").iterdir()
    assert made.name == "a_0.png" and [line.split()[0] for line in out.splitlines()] == [str(made)]
    assert err == "Synthesis.py: interrupted\n"
    record = read_record(made)
    assert record["error"] > 0 and "interrupted at step" not in record


def test_a_picture_that_cannot_be_saved_is_told_of_beside_a_signal(
    exemplar, tmp_path, monkeypatch, capfd
):
    def full(image, path, *others):
        send(signal.SIGINT)
        raise results.UserError(f"{path}: cannot be saved (No space left on device)")

    monkeypatch.setattr(results, "save_picture", full)
    flags = f"--gt_path {exemplar} --count 2 --size 32 --epoch 2 --device cpu --quiet "
    assert Synthesis.main([*flags.split(), "--save_path", f"{tmp_path}/out/"]) == 130
    first, last = capfd.readouterr().err.splitlines()
    assert "No space left on device" in first and last.startswith("Synthesis.py: interrupted")


@pytest.mark.slow
def test_a_signal_while_another_process_saves_a_picture_ends_the_batch(
    exemplar, tmp_path, monkeypatch, capfd
):
    patch = f"""import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from command import results
from command.serve import serve
save = results.save_picture
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    save(*arguments)
results.save_picture = interrupted
serve()"""
    monkeypatch.setattr(workers, "PROGRAM", [*workers.PROGRAM[:2], "-c", patch])
    flags = f"--gt_path {exemplar} --count 6 --size 32 --epoch 2 --device cpu --quiet --workers 2 "
    assert Synthesis.main([*flags.split(), "--save_path", f"{tmp_path}/out/"]) == 143
    out, err = capfd.readouterr()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names and {*names} <= {"a_0.png", "a_1.png"} and len(out.splitlines()) == len(names)
    assert all(read_record(tmp_path / "out" / name)["error"] > 0 for name in names)
    assert err == "Synthesis.py: interrupted\n"


def test_a_picture_is_there_once_a_layout_was_tried(exemplar, tmp_path, monkeypatch, capfd):
    """Before the first round, which at 1024x1024 comes after a quarter of the time."""

    def stopped(level, state):
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(painting, "paint_round", stopped)
    flags = f"--gt_path {exemplar} --preset draft --size 48x40 --device cpu --quiet --save_path "
    assert Synthesis.main([*flags.split(), f"{tmp_path}/made.png"]) == 130
    assert capfd.readouterr().err == "Synthesis.py: interrupted\n"
    with Image.open(tmp_path / "made.png") as picture:
        assert picture.size == (48, 40) and len(picture.getcolors(48 * 40)) > 100
    # A layout counts as three rounds, of which there is one: 3/4 of 100.
    assert read_record(tmp_path / "made.png")["interrupted at step"] == 75
