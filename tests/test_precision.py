"""Which precision is picked, and that what is computed in it is nearly the same."""

import pytest
import torch
from PIL import Image

from command.files import TEXTURES
from command.pictures import read_record
from engine import precision
from engine.precision import offered, pick_precision
from Synthesis import main
from utils import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    "device, capability, best",
    [
        (CPU, None, "fp32"),
        (GPU, (9, 0), "tf32"),
        (GPU, (8, 0), "tf32"),
        (GPU, (7, 5), "fp32"),
        (torch.device("mps"), None, "fp32"),
    ],
)
def test_what_the_hardware_is_made_for_is_picked(device, capability, best, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    assert pick_precision("auto", device) == best


def test_what_takes_hundreds_of_times_as_long_is_not_usable(monkeypatch):
    seconds = {"fp32": 1.0, "bf16": 500.0}
    monkeypatch.setattr(precision, "convolution_seconds", lambda name, *_: seconds[name])
    assert precision.usable.__wrapped__(CPU) == ("fp32",)
    seconds["bf16"] = 1.5
    assert precision.usable.__wrapped__(CPU) == ("fp32", "bf16")


def test_what_a_device_lacks_is_refused():
    assert offered(GPU) == ("fp32", "tf32", "bf16")
    assert offered(torch.device("mps")) == ("fp32",)
    assert pick_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="tf32: on cpu there is fp32, bf16"):
        pick_precision("tf32", CPU)


def test_tf32_is_used_where_it_is_asked_for_alone():
    before = torch.backends.cudnn.allow_tf32
    for name, allowed in (("fp32", False), ("tf32", True), ("bf16", False)):
        with precision.convolving(name):
            assert torch.backends.cudnn.allow_tf32 == allowed
        assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["Adam", "LBFGS"])
def test_a_run_in_bfloat16_ends_as_near_to_the_exemplar(optimizer, tmp_path, capsys):
    exemplar, result = tmp_path / "corner.png", tmp_path / "result.png"
    Image.open(TEXTURES / "pebbles.png").crop((0, 0, 48, 48)).save(exemplar)
    command = ["--gt_path", str(exemplar), "--save_path", str(result), "--overwrite"]
    command += ["--model", "vgg16-caffe", "--device", "cpu", "--epoch", "16"]
    command += ["--optimizer", optimizer, "--precision"]
    errors = {}
    for name in ("fp32", "bf16"):
        assert main([*command, name]) == 0
        assert capsys.readouterr().out.split()[-1] == name == read_record(result)["precision"]
        errors[name] = read_record(result)["error"]
    assert errors["bf16"] != errors["fp32"]
    assert errors["bf16"] < 1.3 * errors["fp32"]
