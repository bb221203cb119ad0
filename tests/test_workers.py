"""Pictures that are made at the same time, each by a process of its own."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import fast_first, plan, save_crops

import Synthesis
from command import workers
from command.arguments import parse
from command.interrupts import Stopped
from command.ranks import ProcessRank
from command.results import Failed, Result
from command.run import run, workers_at_best
from command.workers import Worker, Workers

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--device", "cpu", "--epoch", "3", "--size", "32", "--quiet"]


# ------------------------------------------------------------------- of the command, as it is used


@pytest.mark.slow
def test_pictures_failures_and_exit_code_are_those_of_one_process(tmp_path, narrow_weights, capfd):
    folder = tmp_path / "in"
    folder.mkdir()
    save_crops(40, 40, *(folder / f"{name}.png" for name in "acd"))
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:300])
    said = {}
    for count in "12":
        flags = ["--gt_path", str(folder), "--save_path", f"{tmp_path}/{count}/", *TINY]
        flags += ["--workers", count, "--log", f"{tmp_path}/{count}.jsonl"]
        assert Synthesis.main(flags) == 1
        out, err = capfd.readouterr()
        said[count] = [Path(line.split("  ")[0]).name for line in out.splitlines()], err
        assert len(Path(f"{tmp_path}/{count}.jsonl").read_text().splitlines()) == 4
    assert said["1"] == said["2"] and said["2"][0] == ["a.png", "c.png", "d.png"]
    for name in said["1"][0]:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


COMMAND = "Synthesis.py --gt_path pebbles.png --size 64 --device cpu --model vgg16-caffe --count 8"


def begun(tmp_path, *flags):
    """The command in a process group of its own, once two pictures are being made."""
    command = subprocess.Popen(
        [sys.executable, *COMMAND.split(), "--tolerance", "0", "--epoch", "100000", *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len([path for path in tmp_path.iterdir() if "preview" in path.name]) < 2:
        assert command.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return command


def children(process):
    found = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_all_pictures_that_are_being_made(number, code, tmp_path):
    """By default eight small ones are made two at a time. A terminal sends Ctrl-C to the group."""
    command = begun(tmp_path, "--preview", "--save_path", f"{tmp_path}/")
    own = children(command)
    os.killpg(command.pid, number)
    out, err = command.communicate(timeout=60)
    assert command.returncode == code
    assert [Path(line.split("  ")[0]).name for line in out.splitlines()] == [
        *("pebbles_0.png", "pebbles_1.png")
    ]
    assert err.splitlines()[-1] == "Synthesis.py: interrupted" and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pebbles_0.png", "pebbles_1.png"]
    assert len(own) == 2 and not any(Path(f"/proc/{one}").exists() for one in own)


@pytest.mark.slow
def test_a_process_that_is_killed_costs_a_line(tmp_path):
    command = begun(tmp_path, "--preview", "--save_path", f"{tmp_path}/")
    os.kill(children(command)[0], signal.SIGKILL)
    said = command.stderr.readline()
    while "code -9" not in said:
        assert said
        said = command.stderr.readline()
    assert "pebbles.png: its worker process" in said and "--workers 1" in said
    time.sleep(1)  # until the line is printed, and the next outcome is waited for
    command.terminate()
    out, _ = command.communicate(timeout=60)
    assert command.returncode == 143 and out.splitlines()


@pytest.mark.parametrize(
    "flags, expected",
    fast_first(
        [
            ("--size 256", True),
            ("--size 257x256", False),
            ("--size 257x256 --workers 2", True),
            ("--size 256 --max_memory 1.5GB", False),  # for one of them
            ("--size 256 --max_memory 1.5GB --workers 2", False),
        ],
        2,
    ),
)
def test_which_are_made_beside_others(flags, expected, monkeypatch, tmp_path, narrow_net):
    class Nobody(Workers):
        def outcomes(self, tasks, fits, here):
            assert self.count == 2 and self.arguments[-1] == "lines"
            yield from (Failed(job.exemplar, str(fits(job))) for job in tasks)

    monkeypatch.setattr("command.run.Workers", Nobody)
    monkeypatch.setattr("command.run.workers_at_best", lambda device, own, pictures: 2)
    command = f"--gt_path pebbles.png --count 2 --device cpu --save_path {tmp_path}/ {flags}"
    for outcome in run(parse(command.split()), spawn=True):
        assert outcome.line == str(expected)


@pytest.mark.slow
def test_a_library_starts_no_processes_unasked(monkeypatch, tmp_path, narrow_net):
    """They would not know of methods that the program has added."""
    counts = []

    class Counted(Workers):
        def __init__(self, count, *told):
            super().__init__(count, *told)
            counts.append(count)

    monkeypatch.setattr("command.run.Workers", Counted)
    monkeypatch.setattr("command.run.workers_at_best", lambda device, own, pictures: 2)
    flags = ["--gt_path", "pebbles.png", "--count", "2", "--save_path", f"{tmp_path}/", *TINY]
    assert [type(one) for one in run(parse(flags))] == [Result, Result]
    assert counts == [1]


# ------------------------------------------------------------------------------- without processes


def jobs(count, tmp_path):
    flags = ["--save_path", f"{tmp_path}/", "--count", str(count), *TINY]
    return plan(parse(["--gt_path", "pebbles.png", *flags]))[0]


def result(job, stopped=None):
    return Result(job.save_path, torch.zeros(1, 3, 2, 2), {}, 0.0, stopped)


class Scripted:
    """In place of a `Worker`: the outcome of each job is what a function makes of its number."""

    made: list[int] = []

    def __init__(self, told, stderr):
        self.process = self
        self.asked_to_stop = threading.Event()

    def terminate(self):
        self.asked_to_stop.set()

    def end(self):
        return -9

    def outcome(self, job):
        Scripted.made.append(job.spec.seed)
        return self.script(job.spec.seed, job, self.asked_to_stop)


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(workers, "Worker", Scripted)
    Scripted.made = []
    return lambda script: monkeypatch.setattr(Scripted, "script", staticmethod(script), False)


def names(outcomes):
    return [one.path.stem if isinstance(one, Result) else one.line for one in outcomes]


def test_outcomes_come_in_the_order_of_the_list(scripted, tmp_path):
    second = threading.Event()

    def script(seed, job, _):
        if seed == 0:
            assert second.wait(10)  # both are made at the same time
        if seed == 1:
            second.set()
        return result(job)

    scripted(script)
    one, two, three = jobs(3, tmp_path)
    broken = Failed(Path("x.png"), "x.png: broken")
    with Workers(2) as own:
        found = own.outcomes([one, broken, two, three], lambda job: True, None)
        assert names(found) == ["pebbles_0", "x.png: broken", "pebbles_1", "pebbles_2"]


@pytest.mark.slow
def test_one_that_does_not_fit_beside_others_is_made_alone(scripted, tmp_path):
    at_work = []

    def script(seed, job, _):
        at_work.append(seed)
        time.sleep(0.1)
        at_work.remove(seed)
        return result(job)

    def here(job):
        assert not at_work
        return result(job)

    scripted(script)
    with Workers(2) as own:
        found = own.outcomes(jobs(4, tmp_path), lambda job: job.spec.seed != 2, here)
        assert names(found) == [f"pebbles_{seed}" for seed in range(4)]
    assert sorted(Scripted.made) == [0, 1, 3]


@pytest.mark.slow
def test_no_more_are_read_than_are_made_soon(scripted, tmp_path):
    scripted(lambda seed, job, _: result(job))
    for count, most in ((1, 1), (2, 3)):
        read = []
        tasks = (read.append(job) or job for job in jobs(8, tmp_path))
        with Workers(count) as own:
            next(own.outcomes(tasks, lambda job: True, result))
        assert len(read) == most


def test_an_interruption_ends_with_the_pictures_as_they_stand(scripted, tmp_path):
    """Two are being made, of which the second has had no step yet; a third waits."""
    working = threading.Barrier(3)

    def script(seed, job, asked_to_stop):
        working.wait(10)
        assert asked_to_stop.wait(10)
        if seed == 1:
            raise EOFError
        return result(job, Stopped(signal.SIGTERM))

    def tasks():
        yield from jobs(3, tmp_path)[:2]
        working.wait(10)
        raise Stopped(signal.SIGINT)

    scripted(script)
    found = []
    with pytest.raises(Stopped) as raised, Workers(2) as own:
        for outcome in own.outcomes(tasks(), lambda job: True, None):
            found.append(outcome)
    assert raised.value.exit_code == 130 and names(found) == ["pebbles_0"]


@pytest.mark.slow
def test_one_that_was_stopped_alone_stops_the_others(scripted, tmp_path):
    working = threading.Barrier(2)

    def script(seed, job, asked_to_stop):
        working.wait(10)
        if seed == 1:
            assert asked_to_stop.wait(10)
        return result(job, Stopped(signal.SIGTERM))

    scripted(script)
    found = []
    with pytest.raises(Stopped), Workers(2) as own:
        for outcome in own.outcomes(jobs(8, tmp_path), lambda job: True, None):
            found.append(outcome)
    assert names(found) == ["pebbles_0", "pebbles_1"] and sorted(Scripted.made) == [0, 1]


def test_a_dead_one_is_replaced(scripted, tmp_path):
    def script(seed, job, _):
        if seed == 0:
            raise EOFError
        return result(job)

    scripted(script)
    with Workers(2) as own:
        first, *others = names(own.outcomes(jobs(5, tmp_path), lambda job: True, None))
        assert len(own.all) <= 3
    assert "pebbles.png: its worker process ended with code -9" in first
    assert others == [f"pebbles_{seed}" for seed in range(1, 5)]


TOLD = """
import os, pickle, sys
pickle.load(sys.stdin.buffer)
seen = os.environ["OMP_WAIT_POLICY"], os.getsid(0) == os.getpid(), sys.path
pickle.dump((pickle.load(sys.stdin.buffer), seen), sys.stdout.buffer)
"""


def test_a_process_sleeps_while_it_waits_and_sees_neither_terminal_nor_folder(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(workers, "PROGRAM", [*workers.PROGRAM[:2], "-c", TOLD])
    monkeypatch.chdir(tmp_path)
    worker = Worker("told", 2)
    job, (policy, alone, path) = worker.outcome("a job")
    assert (job, policy, alone) == ("a job", "PASSIVE", True)
    assert not {"", str(tmp_path)} & set(path)
    with pytest.raises(EOFError):
        pickle.load(worker.process.stdout)
    assert worker.end() == 0


@pytest.mark.parametrize(
    "device, rank, pictures, expected",
    [
        ("cpu", ProcessRank(), 8, 2),
        ("cpu", ProcessRank(), 7, 1),
        ("cuda", ProcessRank(), 8, 1),
        ("cpu", ProcessRank(0, 2), 8, 1),
    ],
)
def test_two_at_a_time_by_default(device, rank, pictures, expected, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert workers_at_best(torch.device(device), rank, pictures) == expected
