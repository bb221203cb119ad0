"""What `--benchmark` measures, on a picture small enough to wait for."""

import json
import sys

import pytest
import torch
from PIL import Image

import Synthesis
from command import benchmark
from command.files import TEXTURES


class Here:
    """A pool of processes that does its work here, where constants are changed."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        self.result = lambda: function(*arguments)
        return self


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Arguments for one small size, of which one run of two is near enough."""
    for name, value in {"SIDES": (48,), "TIMED": 6, "STEPS": (2, 20), "PATIENCE": 60}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "ERRORS", (0.3, 1e-9))
    monkeypatch.setattr(benchmark, "_COLUMNS", ("side", "precision", "s/step", "s to 0.3", "GB"))
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(benchmark, "_seconds_until", lambda told, command: 1.5)
    Image.open(TEXTURES / "pebbles.png").crop((0, 0, 64, 64)).save(tmp_path / "corner.png")
    return ["--benchmark", "--gt_path", str(tmp_path / "corner.png"), "--device", "cpu", "--quiet"]


@pytest.mark.slow
def test_benchmark_as_json(small, capsys):
    assert Synthesis.main([*small, "--json", "--precision", "fp32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["net"] == "vgg16-caffe" and found["machine"]["first step"] == 1.5
    (row,) = found["rows"]
    assert (row["side"], row["precision"]) == (48, "fp32")
    assert 0 < row["s/step"] < 5 and 0 < row["of a product"] < 5 and 0.1 < row["GB"] < 20
    assert row["s to 0.3"] > 0 and row["s to 1e-09"] is None


def test_benchmark_as_a_table(small, capsys, monkeypatch):
    row = {"s/step": 0.25, "s to 0.3": None, "GB": 1.5}
    monkeypatch.setattr(benchmark, "measured", lambda *_: row)
    assert Synthesis.main([*small, "--precision", "fp32"]) == 0
    *machine, columns, line = capsys.readouterr().out.splitlines()
    assert "precision: fp32" in machine
    assert columns.split() == ["side", "precision", "s/step", "s", "to", "0.3", "GB"]
    assert line.split() == ["48", "fp32", "0.25", "-", "1.5"]
    assert len(columns) == len(line)


def test_a_precision_that_is_slower_is_measured_once(small, capsys, monkeypatch):
    def measured(run, argv, folder):
        seconds = {"fp32": 1.0, "bf16": 1.5}[argv[argv.index("--precision") + 1]]
        return {"s/step": seconds, "s to 0.3": None, "GB": 1.5}

    monkeypatch.setattr(benchmark, "measured", measured)
    monkeypatch.setattr(benchmark, "usable", lambda device: ("fp32", "bf16"))
    monkeypatch.setattr(benchmark, "SIDES", (48, 96))
    assert Synthesis.main([*small, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    found = [(row["side"], row["precision"]) for row in rows]
    assert found == [(48, "fp32"), (48, "bf16"), (96, "fp32")]


def test_the_rate_of_a_product_is_that_of_its_arithmetic(monkeypatch):
    """Five products of 10x10, the fastest of which takes half a second."""
    clock = iter([0, 2.0, 3, 3.5, 4, 8, 9, 12, 13, 14])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(benchmark, "MATRIX", 10)
    assert benchmark.product_rate(torch.device("cpu"), torch.float32) == 2000 / 0.5


@pytest.mark.parametrize(
    "arguments, told",
    [
        ("--gt_path leaf.jpg pebbles.png", "one exemplar, --gt_path has 2"),
        ("--gt_path missing.png", "missing.png"),
        ("--device cuda:9", "cuda:9"),
        ("--device cpu --precision tf32", "tf32"),
    ],
)
def test_benchmark_errors_are_one_line(arguments, told, capfd):
    assert Synthesis.main(["--benchmark", *arguments.split()]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line


def test_start_up_ends_with_the_line_that_is_told():
    """Of a program that says something else first, and would then go on for an hour."""
    lines = "print('loading', 1), time.sleep(0.3), print('from step 1'), time.sleep(3600)"
    program = f"import sys, time; sys.stdout = sys.stderr; {lines}"
    seconds = benchmark._seconds_until("from step 1", [sys.executable, "-u", "-c", program])
    assert 0.3 <= seconds < 60


@pytest.mark.slow
def test_start_up_ends_with_the_first_step(tmp_path):
    """Of a run that would take an hour, whose own line on stderr tells."""
    command = benchmark._first_step(str(tmp_path), ["--device", "cpu", "--model", "vgg16-caffe"])
    assert benchmark._seconds_until("from step 1", command) < 120
