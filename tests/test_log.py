"""What is told of a run while it goes on, and kept of it."""

import json
from itertools import pairwise

import pytest
import torch
from conftest import plan, save_crops

from command import display
from command import log as log_of_runs
from command.arguments import parse
from command.display import Display, duration
from command.pictures import read_record
from command.results import RunStats
from engine.synthesis import Frame
from Synthesis import main


@pytest.fixture
def exemplar(tmp_path, narrow_net):
    path = tmp_path / "a.png"
    save_crops(64, 64, path)
    return path


def run(exemplar, *flags):
    command = ["--gt_path", str(exemplar), "--save_path", str(exemplar.parent / "r.png")]
    return main([*command, "--size", "64", "--device", "cpu", *map(str, flags)])


def test_a_line_for_every_picture(exemplar, tmp_path, monkeypatch):
    monkeypatch.setattr(log_of_runs, "POINTS", 12)
    log = tmp_path / "logs" / "run.jsonl"
    (tmp_path / "b.png").write_bytes(b"no picture")
    flags = ["--epoch", "30", "--tolerance", "0", "--scales", "2", "--log", log, "--quiet"]
    assert run(exemplar, *flags) == 0
    assert run(exemplar, *flags) == 0
    many = ["--gt_path", str(exemplar), str(tmp_path / "b.png"), "--save_path", f"{tmp_path}/out/"]
    assert main([*many, "--device", "cpu", "--epoch", "2", "--log", str(log), "--quiet"]) == 1
    made, again, _, failed = map(json.loads, log.read_text().splitlines())
    record = read_record(tmp_path / "r.png")
    assert record.pop("curve")[-1] == made["curve"][-1] and made["record"] == record
    assert (made["reason"], again["reason"], failed["reason"]) == (
        *("finished", "finished before", "failed"),
    )
    assert sum(made["phases"].values()) <= made["seconds"] + 0.016  # three numbers, rounded to 0.01
    assert {"scale 1/2 32x32", "scale 2/2 64x64"} == made["phases"].keys()
    steps, scales, losses = zip(*made["curve"], strict=True)
    assert len(steps) == 12 and steps[0] == 1 and list(steps) == sorted(steps) and steps[-1] == 30
    assert set(scales) == {1, 2} and all(loss > 0 for loss in losses)
    assert made["peak_bytes"] > 1e8 and len(made["weights_sha256"]) == 64
    assert failed["exemplar"].endswith("b.png") and "b.png" in failed["error"]


def test_a_log_that_cannot_be_written_is_refused(exemplar, tmp_path, capfd):
    for path in (tmp_path, tmp_path / "a.png" / "log"):
        assert run(exemplar, "--log", path, "--quiet") == 2
        assert f"--log {path}" in capfd.readouterr().err


def test_progress_for_machines(exemplar, capfd):
    assert run(exemplar, "--epoch", "10", "--progress", "json", "--scales", "2") == 0
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["step"] for line in lines if line["error"] is not None] == list(range(1, 11))
    fractions = [line["fraction"] for line in lines]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert lines[-1]["left"] == 0 and lines[0]["left"] > 0 and lines[0]["picture"] == "a.png"


@pytest.mark.slow
def test_a_line_a_minute_where_there_is_no_terminal(exemplar, capfd, monkeypatch):
    monkeypatch.setattr(display, "LINE_INTERVAL", 0)
    assert run(exemplar, "--epoch", "10", "--scales", "2") == 0
    lines = capfd.readouterr().err.splitlines()
    assert sum("from step" in line for line in lines) == 2
    assert any("at this scale" in line and line.endswith(" left") for line in lines)


@pytest.mark.parametrize(
    "count, most, kept",
    [
        (398, 200, 200),
        (1000, 60, 60),
        (5, 3, [1, 3, 5]),
        (3, 60, [1, 2, 3]),
        (1, 60, [1]),
        (0, 60, []),
    ],
)
def test_a_curve_keeps_as_many_points_as_it_may(count, most, kept):
    stats = RunStats({}, [(step, 1, 0.5) for step in range(1, count + 1)], 0.0)
    steps = [step for step, _, _ in stats.points(most)]
    if isinstance(kept, list):
        assert steps == kept
    else:
        gaps = {later - step for step, later in pairwise(steps)}
        assert len(steps) == kept and (steps[0], steps[-1]) == (1, count)
        assert max(gaps) - min(gaps) <= 1


def test_the_time_left_counts_the_work_of_this_run_alone(exemplar, monkeypatch):
    """10 s for a hundredth of the work, after another run has done half of it: 490 s for 0.49."""
    (job,), _ = plan(parse(["--gt_path", str(exemplar), "--save_path", str(exemplar) + ".new.png"]))
    with Display(job, {}, True, "text") as shown:
        frame = Frame(510, 1, 1, 0.51, torch.zeros(1, 3, 64, 64), job.spec.canvas, 0.5)
        assert shown._left(frame, shown.started + 10) == pytest.approx(10 * 0.49 / 0.51)
        shown.resume_from({"curve": [], "phases": {}, "work": 0.5})
        assert shown.progress["work"] == 0.5 and shown.bar.initial == 0.5
        assert shown._left(frame, shown.started + 10) == pytest.approx(490)
        shown.show(frame)
        assert shown.progress["work"] == 0.51


def testdurations():
    assert [duration(s) for s in (3.4, 119, 600, 9000)] == ["3 s", "119 s", "10 min", "2.5 h"]


@pytest.mark.slow
def test_lines_are_appended_to_a_log_and_to_nothing_else(exemplar, tmp_path, capfd):
    """A log is known by how its first line begins."""
    log = tmp_path / "run.jsonl"
    flags = ["--log", log, *"--quiet --epoch 2 --overwrite --seed".split()]
    for seed in ("0", "1"):
        assert run(exemplar, *flags, seed) == 0
    assert [json.loads(line)["record"]["seed"] for line in log.read_text().splitlines()] == [0, 1]
    for content in (b"letter", b"{}\n", exemplar.read_bytes()):
        log.write_bytes(content)
        capfd.readouterr()
        assert run(exemplar, *flags, "2") == 2
        assert "another file is there" in capfd.readouterr().err and log.read_bytes() == content
