"""docs/benchmark.py on a picture small enough to wait for."""

import json

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import models
from command.files import TEXTURES
from command.weights import load_weights
from docs import benchmark
from models import Extractor
from utils import UserError

CPU = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def corner(monkeypatch, tmp_path):
    """Flags for one small exemplar; the second run of two reaches the first error."""
    for name, value in {"SIDES": (48,), "TIMED": 6, "STEPS": (2, 20), "LONGEST_STEP": 60}.items():
        monkeypatch.setattr(benchmark, name, value)
    columns = ("side", "precision", "s/step", "s to 0.3", "s to 1e-09", "GB")
    monkeypatch.setattr(benchmark, "ERRORS", (0.3, 1e-9))
    monkeypatch.setattr(benchmark, "COLUMNS", columns)
    Image.open(TEXTURES / "pebbles.png").crop((0, 0, 64, 64)).save(tmp_path / "corner.png")
    return ["--gt_path", str(tmp_path / "corner.png")]


@pytest.fixture
def no_start(monkeypatch):
    monkeypatch.setattr(benchmark, "seconds_to_first_step", lambda flags: 1.5)


@pytest.mark.slow
def test_operations_are_those_that_torch_counts(monkeypatch):
    monkeypatch.setattr(models, "LEAST_CHANNELS", 1000)  # no Winograd convolutions
    layers = ["relu1_2", "relu4_1"]
    weights = load_weights("vgg16-caffe", None, layers).weights
    extractor = Extractor(weights, "vgg16-caffe", layers)
    with FlopCounterMode(display=False) as counter:
        extractor(torch.rand(1, 3, 64, 64))
    assert benchmark.trunk_flops("vgg16-caffe", layers) * 64**2 == counter.get_total_flops()


@pytest.mark.slow
def test_a_machine_is_measured(corner, capsys):
    assert benchmark.main([*corner, *CPU, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["net"] == "vgg16-caffe" and found["machine"]["precision"] == "fp32"
    assert 0 < found["machine"]["first step"] < 300
    (row,) = found["rows"]
    assert (row["side"], row["precision"]) == (48, "fp32")
    assert 0 < row["s/step"] < 5 and 0 < row["of a product"] < 5 and 0.1 < row["GB"] < 20
    assert row["s to 0.3"] > 0 and row["s to 1e-09"] is None


@pytest.mark.slow
def test_rows_are_a_table(corner, no_start, capsys, monkeypatch):
    row = {"side": 48, "precision": "fp32", "s/step": 0.25, "GB": 1.5}
    row |= {"s to 0.3": None, "s to 1e-09": None}
    monkeypatch.setattr(benchmark, "measure", lambda *_: row)
    assert benchmark.main([*corner, *CPU]) == 0
    *machine, columns, line = capsys.readouterr().out.splitlines()
    assert "precision: fp32" in machine and "first step: 1.5" in machine
    assert columns.split() == "side precision s/step s to 0.3 s to 1e-09 GB".split()
    assert line.split() == ["48", "fp32", "0.25", "-", "-", "1.5"]
    assert len(columns) == len(line)


def test_a_precision_that_is_slower_is_measured_once(tmp_path, monkeypatch):
    def measure(path, net, precision, device):
        return {"side": path.stem, "precision": precision, "s/step": seconds[precision]}

    seconds = {"fp32": 1.0, "tf32": 0.5, "bf16": 1.5}
    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "SIDES", (48, 96))
    found = benchmark.rows(torch.rand(1, 3, 64, 64), "", tuple(seconds), None, tmp_path)
    assert [(row["side"], row["precision"]) for row in found] == [
        *(("48", "fp32"), ("48", "tf32"), ("48", "bf16")),
        *(("96", "fp32"), ("96", "tf32")),
    ]


def test_an_error_is_reached_by_the_first_run_that_is_near_enough(tmp_path, monkeypatch):
    """Errors 0.1, 0.01 and 0.001 after 75, 150 and 300 steps of 0.1 s."""
    log, errors, runs = tmp_path / "log", {75: 0.1, 150: 0.01, 300: 0.001, 600: 0.0001}, []

    def steps_of(flags):
        runs.append(steps := int(flags[-1]))
        log.write_text(json.dumps({"record": {"error": errors[steps]}, "seconds": steps / 10}))
        return []

    monkeypatch.setattr(benchmark, "steps_of", steps_of)
    monkeypatch.setattr(benchmark, "ERRORS", (0.02, 0.01, 0.002))
    found = benchmark.seconds_to_errors([], log)
    assert found == {0.02: 15, 0.01: 15, 0.002: 30} and runs == [75, 150, 300]


def test_the_rate_of_a_product_is_that_of_its_arithmetic(monkeypatch):
    """Five products of 10x10, the fastest of which takes half a second."""
    clock = iter([0, 2.0, 3, 3.5, 4, 8, 9, 12, 13, 14])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(benchmark, "MATRIX", 10)
    assert benchmark.product_rate(torch.device("cpu"), torch.float32) == 2000 / 0.5


@pytest.mark.parametrize(
    "arguments, named",
    [
        ("--gt_path missing.png", "missing.png"),
        ("--device cuda:9", "cuda:9"),
        ("--device cpu --precision tf32", "tf32"),
    ],
)
def test_errors_are_one_line(arguments, named, capsys):
    assert benchmark.main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark.py: ") and named in line


@pytest.mark.slow
def test_a_command_that_fails_is_an_error():
    with pytest.raises(UserError, match="^--gt_path .*'missing.png'|^'missing.png'"):
        list(benchmark.steps_of(["--gt_path", "missing.png", "--device", "cpu"]))
