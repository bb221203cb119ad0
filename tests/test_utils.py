"""Devices, sizes and memory; every expected value can be had by hand."""

import math
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import utils
from command import processes
from utils import UserError


@pytest.fixture(params=[0, 2], ids=["no GPU", "two GPUs"])
def gpus(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def test_device_by_default(gpus):
    device, note = processes.pick_device(None)
    assert device == torch.device("cuda:0" if gpus else "cpu")
    assert (note is None) if gpus else ("CPU" in note and "\n" not in note)


def test_device_by_name(gpus):
    assert processes.pick_device("CPU") == (torch.device("cpu"), None)
    for name, device in (("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")):
        if gpus:
            assert processes.pick_device(name) == (torch.device(device), None)
        else:
            with pytest.raises(UserError, match=re.escape(repr(name))):
                processes.pick_device(name)


def test_apples_gpu_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device, _ = processes.pick_device("MPS")
    assert device == torch.device("mps") and processes.pick_device(None)[0].type == "cpu"
    assert utils.memory_format_for(device) == torch.contiguous_format
    assert utils.memory_format_for(torch.device("cpu")) == torch.channels_last


@pytest.mark.parametrize("name", ["gpu", "cuda:7", "cuda:x", "cuda:-1", "meta", "mps", "xpu", ""])
def test_device_that_is_not_there(gpus, name):
    with pytest.raises(UserError) as raised:
        processes.pick_device(name)
    line = str(raised.value)
    assert repr(name) in line and line.endswith("cpu, cuda:0, cuda:1" if gpus else "has cpu")


# --------------------------------------------------------------------------------------- sizes


def test_resize_leaves_the_same_size_alone():
    grey = torch.full((1, 3, 4, 4), 0.5)
    assert utils.resize(grey, (4, 4)) is grey
    assert utils.resize(grey, (3, 5)).shape == (1, 3, 3, 5)


def test_resize_stays_in_the_box():
    step = (torch.arange(8) > 3).float().expand(1, 3, 8, 8)
    enlarged = utils.resize(step, (32, 32))
    assert enlarged.min() == 0 and enlarged.max() == 1  # bicubic alone gives -0.07 and 1.07


@pytest.mark.parametrize("wrap", ["x", "y", "xy"])
@pytest.mark.parametrize(
    "old, new",
    [((48, 64), (24, 32)), ((24, 32), (48, 64)), ((31, 32), (32, 31)), ((64, 60), (5, 50))],
)
def test_resize_sees_of_what_repeats_as_much_as_of_nine_copies(old, new, wrap, monkeypatch):
    image = torch.rand(1, 3, *old, generator=torch.Generator().manual_seed(0))
    down, across = (3 if axis in wrap else 1 for axis in "yx")
    size = down * new[0], across * new[1]
    copies = F.interpolate(image.repeat(1, 1, down, across), size, mode="bicubic", antialias=True)
    (top, left) = down // 2 * new[0], across // 2 * new[1]
    expected = copies[..., top : top + new[0], left : left + new[1]].clamp(0, 1)

    seen, interpolate = [], F.interpolate
    monkeypatch.setattr(
        F, "interpolate", lambda x, *args, **kw: seen.append(x.shape) or interpolate(x, *args, **kw)
    )
    torch.testing.assert_close(utils.resize(image, new, wrap), expected, rtol=0, atol=1e-4)
    if (old, new) == ((24, 32), (48, 64)):
        # 2 px of the picture on either side, of one axis at a time.
        width, height = 32 + 4 * ("x" in wrap), 24 + 4 * ("y" in wrap)
        assert seen == [(1, 3, 24, width), (1, 3, height, 64)]


@pytest.mark.parametrize("wrap", ["", "x", "y", "xy"])
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_padded_is_what_pytorch_makes_and_folded_its_gradient(wrap, mode, layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 2, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    x = x.contiguous(memory_format=layout)
    expected = F.pad(x, (1, 1, 0, 0), "circular" if "x" in wrap else mode)
    expected = F.pad(expected, (0, 0, 1, 1), "circular" if "y" in wrap else mode)
    found = utils.pad(x, wrap, mode)
    assert torch.equal(found, expected) and found.is_contiguous(memory_format=layout)
    upstream = torch.rand(2, 3, 4, 7, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(utils.pad_backward(upstream.clone(), wrap, mode), gradient)


def test_wrapped_by_hand():
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    assert utils.wrapped(maps, "", 1, 1) is maps
    assert utils.wrapped(maps, "x", 1, 2).tolist() == [[[[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]]]]
    assert utils.wrapped(maps, "y", 1, 2).tolist() == [[[[0, 1, 2], [3, 4, 5], [0, 1, 2]]]]
    assert utils.wrapped(maps, "xy", 1, 0).tolist() == [[[[0, 1, 2], [3, 4, 5], [0, 1, 2]]]]


def test_surrounded_by_hand():
    maps = torch.arange(1, 5.0).view(1, 1, 1, 4).expand(-1, -1, 2, -1)
    for wraps, mirrors, row in (
        ("", "", [1, 2, 3, 4]),
        ("", "x", [2, 1, 1, 2, 3, 4, 4, 3]),
        ("x", "y", [3, 4, 1, 2, 3, 4, 1, 2]),
    ):
        found = utils.pad_axes(maps, wraps, mirrors, 2)
        assert found.shape[2] == (6 if mirrors == "y" else 2)
        assert all(line == row for line in found[0, 0].tolist())
    assert utils.pad_axes(maps.mT, "y", "", 2)[0, 0, :, 1].tolist() == [3, 4, 1, 2, 3, 4, 1, 2]


@pytest.mark.parametrize("wraps, mirrors", [("", "xy"), ("x", "y"), ("y", "x"), ("xy", "")])
def test_every_pixel_is_in_as_many_windows_of_what_is_surrounded(wraps, mirrors):
    image = torch.zeros(1, 1, 8, 9, requires_grad=True)
    F.avg_pool2d(utils.pad_axes(image, wraps, mirrors, 3), 7, 1).sum().backward()
    torch.testing.assert_close(image.grad, torch.ones(1, 1, 8, 9))


def test_resize_is_antialiased():
    stripes = (torch.arange(48) % 2).float().expand(1, 3, 48, 48)
    # Every third column would be 1, 0, 1, 0; the mean of the stripes is 1/2.
    assert (utils.resize(stripes, (16, 16))[..., 2:-2] - 0.5).abs().max() < 0.1


def ramp(height, width, across, down):
    """Grey of the mean 0.5 that changes by so much a pixel to the right, and down."""
    y, x = (torch.arange(n) - (n - 1) / 2 for n in (height, width))
    return (0.5 + across * x[None, :] + down * y[:, None]).expand(1, 3, height, width)


def test_turned_and_resized_is_every_pair_but_the_picture_itself():
    image = ramp(20, 30, 0.01, 0.005)
    found = utils.rotated_and_resized(image, [90, 180], [0.5, 1.5])
    # Of 0, 90 and 180 degrees: as it is, half, and half as much again.
    sizes = [(10, 15), (30, 45), (30, 20), (15, 10), (45, 30), (20, 30), (10, 15), (30, 45)]
    assert [tuple(other.shape[2:]) for other in found] == sizes
    assert utils.rotated_and_resized(image, [], []) == []
    (half,) = utils.rotated_and_resized(image, [], [0.5])
    assert torch.equal(half, utils.resize(image, (10, 15)))
    (tiny,) = utils.rotated_and_resized(image, [], [0.001])
    assert tiny.shape == (1, 3, 1, 1)


@pytest.mark.parametrize("degrees, quarters", [(90, 1), (180, 2), (270, 3), (-90, 3), (450, 1)])
def test_quarter_turns_are_exact(degrees, quarters):
    image = torch.rand(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    (turned,) = utils.rotated_and_resized(image, [degrees], [])
    assert torch.equal(turned, torch.rot90(image, quarters, (2, 3)))


def test_turning_is_counter_clockwise():
    corner = torch.zeros(1, 1, 4, 6)
    corner[0, 0, 0, 5] = 1  # top right goes to top left
    assert utils.rotated_and_resized(corner, [90], [])[0][0, 0, 0, 0] == 1
    # What rises to the right rises up to the right after 30 degrees: down, it falls by the sine.
    (turned,) = utils.rotated_and_resized(ramp(60, 60, 0.01, 0), [30], [])
    middle = turned[0, 0, 10:-10, 10:-10]
    assert middle.diff(dim=1).mean().item() == pytest.approx(0.01 * math.cos(math.pi / 6), rel=0.01)
    assert middle.diff(dim=0).mean().item() == pytest.approx(-0.01 / 2, rel=0.01)


@pytest.mark.parametrize("near", [-1e-3, 1e-3, 90 - 1e-3, 90 + 1e-3, 180 - 1e-3, 270 + 1e-3])
def test_nearly_a_quarter_turn_is_nearly_exact(near):
    image = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    image = utils.resize(image, (45, 45))  # smooth
    (turned,) = utils.rotated_and_resized(image, [near], [])
    exact = torch.rot90(image, round(near / 90), (2, 3))
    # One pixel less either way, so that pixels lie in the middle of four.
    assert turned.shape == (1, 3, 44, 44)
    between = F.avg_pool2d(exact, 2, 1)
    assert (turned - between).abs().max() < 0.05
    for other in (*(torch.rot90(between, k, (2, 3)) for k in (1, 2, 3)), between.flip(3)):
        assert (turned - other).abs().max() > 0.2


@pytest.mark.parametrize("shape", [(40, 40), (30, 51), (64, 17)])
@pytest.mark.parametrize("degrees", [1, 30, 45, 77.5, 100, 211, -15, 359])
def test_turned_pictures_have_no_empty_corners(shape, degrees):
    constant = torch.full((1, 3, *shape), 0.6)
    (turned,) = utils.rotated_and_resized(constant, [degrees], [])
    torch.testing.assert_close(turned, torch.full_like(turned, 0.6))
    # A ramp that leaves the picture is not reflected: every pixel lies where the plane says.
    height, width = shape
    across = 0.4 / width
    (turned,) = utils.rotated_and_resized(ramp(height, width, across, 0), [degrees], [])
    assert turned.min() > 0.29 and turned.max() < 0.71
    angle = math.radians(degrees)
    expected = ramp(*turned.shape[2:], across * math.cos(angle), -across * math.sin(angle))
    assert (turned - expected).abs().max() < across


@pytest.mark.parametrize("degrees", [10, 45, 130])
def test_turned_pictures_are_as_large_as_they_can_be(degrees):
    height, width = 60, 90
    (turned,) = utils.rotated_and_resized(torch.rand(1, 1, height, width), [degrees], [])
    h, w = turned.shape[2:]
    if degrees > 90:  # turned by a quarter, and by the rest
        height, width = width, height
    assert abs(h / height - w / width) < 1 / min(h, w)  # the same aspect, but for rounding
    angle = math.radians(degrees % 90)

    def bounds(h, w):  # of the part, turned back, in the picture
        return (
            w * math.sin(angle) + h * math.cos(angle),
            w * math.cos(angle) + h * math.sin(angle),
        )

    down, across = bounds(h, w)
    assert down <= height and across <= width
    down, across = bounds(h + 1, w + 1)
    assert down > height or across > width


def test_turned_pictures_stay_in_the_box():
    steps = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(0)).round()
    for turned in utils.rotated_and_resized(steps, [20, 45], [0.7, 1.3]):
        assert turned.min() >= 0 and turned.max() <= 1  # bicubic alone leaves it


# ---------------------------------------------------------------------------------- memory


def group(folder, limit: dict[str, str], used: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in limit.items():
        (folder / name).write_text(text)
    (folder / "memory.stat").write_text(f"{used}\nfile 7\n")


FAULTS = """
import resource, numpy
from command import processes

def faults():
    numpy.ones(2**23)  # 64 MB: 16384 pages, which are freed again
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
for tight in (True, False):
    processes.keep_freed_memory(tight)
    print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept():
    """But not at first, and not where memory is tight."""
    command, folder = [sys.executable, "-c", FAULTS], Path(utils.__file__).parent
    done = subprocess.run(command, capture_output=True, check=True, cwd=folder)
    before, tight, kept = map(int, done.stdout.split())
    assert kept < 10 < min(before, tight)


def test_available_memory_is_the_least_of_what_limits_it(tmp_path, monkeypatch):
    memory, own, groups = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "groups"
    monkeypatch.setattr(utils, "MEMINFO", memory)
    monkeypatch.setattr(utils, "OWN_CGROUPS", own)
    monkeypatch.setattr(utils, "CGROUPS", groups)
    cpu = torch.device("cpu")
    assert utils.available_bytes(cpu) > 2**20  # all that there is, on systems without these files
    memory.write_text("MemTotal:       4000 kB\nMemFree:        10 kB\nMemAvailable:    3000 kB\n")
    assert utils.available_bytes(cpu) == 3000 * 1024
    own.write_text("0::/user/me\n4:memory:/job\n3:cpu:/elsewhere\n")
    assert utils.available_bytes(cpu) == 3000 * 1024
    group(groups / "user/me", {"memory.max": "max\n"}, "anon 100")
    assert utils.available_bytes(cpu) == 3000 * 1024
    group(groups, {"memory.max": "2000000\n"}, "anon 500000")  # a container's own root
    assert utils.available_bytes(cpu) == 1_500_000
    group(groups / "memory/job", {"memory.limit_in_bytes": "900000\n"}, "total_rss 100000")
    assert utils.available_bytes(cpu) == 800_000
    # Slurm sets the limit of a job on the group that holds those of its steps.
    own.write_text("0::/slurm/job_7/step_0/task_0\n")
    group(groups / "slurm/job_7/step_0/task_0", {"memory.max": "max\n"}, "anon 100")
    group(groups / "slurm/job_7", {"memory.max": "1000000\n"}, "anon 300000")
    assert utils.available_bytes(cpu) == 700_000
    # The same of version 1; each level counts by what is used in it.
    own.write_text("4:memory:/slurm/job_7/step_0\n")
    limits = groups / "memory/slurm"
    group(limits / "job_7/step_0", {"memory.limit_in_bytes": "900000\n"}, "total_rss 100000")
    group(limits / "job_7", {"memory.limit_in_bytes": "950000\n"}, "total_rss 350000")
    assert utils.available_bytes(cpu) == 600_000


def test_available_memory_may_be_unknown(tmp_path, monkeypatch):
    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(utils, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(utils.os, "sysconf", unknown)
    assert utils.available_bytes(torch.device("cpu")) == math.inf
