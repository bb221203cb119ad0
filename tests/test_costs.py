"""Estimates of memory and time against counts by hand, against torch's own, and measured peaks."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
import Synthesis
from command import costs
from command.arguments import parse
from command.costs import (
    FLOAT,
    PROGRAM_BYTES,
    Workload,
    cost_note,
    estimated_bytes,
    estimated_flops,
    tiled_to_fit,
    time_note,
)
from command.files import TEXTURES
from command.pictures import read_picture, read_record, save_picture
from command.plan import can_crop, job_of, plan, work_items
from command.weights import load_weights
from losses import METHODS
from models import Extractor, halos, resolve_layers
from terms.gram import FIRST_LAYERS
from utils import UserError, resize

ROOT = Path(__file__).resolve().parent.parent
LAYERS = resolve_layers(FIRST_LAYERS, "vgg19")
CPU = torch.device("cpu")
LARGE = [((256, 256), (2048, 2048))]  # of exemplar and output


def run_of(side: int, **options) -> Workload:
    return Workload("vgg19", LAYERS, [((side, side), (side, side))], LAYERS, **options)


@pytest.mark.slow
def test_arithmetic_is_what_torch_counts(monkeypatch):
    monkeypatch.setattr(models, "LEAST_CHANNELS", 1000)  # all of it by plain convolutions
    weights = load_weights("vgg16-caffe", None, LAYERS).weights
    extractor = Extractor(weights, "vgg16-caffe", LAYERS)
    with FlopCounterMode(display=False) as counter:
        extractor(torch.rand(1, 3, 64, 64))
    assert costs.trunk_flops("vgg16-caffe", LAYERS) * 64**2 == counter.get_total_flops()


@pytest.mark.slow
def test_graphs_of_blocks_are_what_autograd_keeps():
    weights = load_weights("vgg16-caffe", None, LAYERS).weights
    extractor, kept = Extractor(weights, "vgg16-caffe", LAYERS), {}
    frozen = {parameter.data_ptr() for parameter in extractor.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        extractor(torch.rand(1, 3, 128, 128, requires_grad=True))
    found = sum(storage.nbytes() for storage in kept.values()) / 128**2
    work = Workload("vgg16-caffe", LAYERS, LARGE, LAYERS, tile_side=512)
    graph = estimated_bytes(work._replace(graphs=2)) - estimated_bytes(work)
    side = 512 + 2 * halos(LAYERS, "vgg16-caffe")["image"]
    assert graph / side**2 == pytest.approx(found)


def test_lbfgs_keeps_pairs_of_pictures():
    side, pixels = 512, 512**2
    for steps, pairs in ((5, 5), (1000, 20)):
        more = estimated_bytes(run_of(side, optimizer="LBFGS", steps=steps))
        more -= estimated_bytes(run_of(side, steps=steps))
        assert more == pytest.approx(pairs * 2 * 3 * 4 * pixels)


def test_time_follows_pixels_and_steps():
    """One step at 256x256 through relu4_1 of VGG-19 is 63 GFLOP (482 688 a pixel, and back)."""
    one, two = (estimated_flops(run_of(256, steps=steps)) for steps in (1, 2))
    assert (two - one) / costs.OVERHEAD == pytest.approx(2 * 482_688 * 256**2)
    one, two = (estimated_flops(run_of(512, steps=steps)) for steps in (1, 2))
    assert (two - one) / costs.OVERHEAD == pytest.approx(2 * 482_688 * 512**2)


def test_steps_of_each_scale():
    """The finer of two scales has 0.7 times as many steps, here 0.45 times if painting takes 42 of
    100 steps."""
    scales = [((64, 64), (64, 64)), ((128, 128), (128, 128))]
    run = Workload("vgg19", LAYERS, scales, LAYERS, steps=100)
    assert run.steps_at == [59, 41]
    assert run._replace(repaint=0.42, step_ratio=0.45).steps_at == [40, 18]


def test_matching_grows_with_the_square_of_the_pixels():
    """conv3_1, of 256 channels at a sixteenth of the pixels, every pair once in 20 steps."""
    layers, found = ["relu3_1"], []
    for method in ("gram", "cnnmrf"):
        scales = [((512, 512), (512, 512))]
        found.append(estimated_flops(Workload("vgg19", layers, scales, layers, method, steps=40)))
    assert found[1] - found[0] == pytest.approx(2 * (2 * 256 * (512**2 / 16) ** 2))


# ------------------------------------------------------------------------------ what is said


def test_small_runs_are_not_worth_a_line(monkeypatch):
    monkeypatch.setattr(costs, "convolution_rate", lambda device: 1e10)
    run = run_of(128, steps=10)
    assert cost_note("a.png", run, 8e9) is None and time_note(run, 1, CPU) is None


def test_large_and_long_runs_are_worth_a_line_each(monkeypatch):
    run = run_of(1024, steps=2000, optimizer="LBFGS")
    size = estimated_bytes(run)
    monkeypatch.setattr(costs, "convolution_rate", lambda device: estimated_flops(run) / 720)
    line = cost_note("large.png", run, 1.9 * size)
    assert line.startswith("large.png: 1024x1024 from an exemplar of 1024x1024 needs about ")
    assert f"{size / 1e9:.3g} GB" in line and "--size" in line and "--optimizer Adam" in line
    assert cost_note("large.png", run, math.inf) is None
    assert time_note(run, 1, CPU) == "this may take 12 min, less with a smaller --epoch"
    assert time_note(run, 5, CPU).startswith("this may take 60 min for 5 pictures, less")
    painted = run._replace(repaint=1.0)
    monkeypatch.setattr(costs, "convolution_rate", lambda device: estimated_flops(painted) / 720)
    assert time_note(painted, 1, CPU) == "this may take 12 min, less with a smaller --size"


def test_the_time_of_a_list_is_told_once(monkeypatch, capfd, tmp_path, narrow_net):
    """Three pictures of 20 minutes each."""
    for name in "abc":
        save_picture(torch.rand(1, 3, 40, 40), tmp_path / f"{name}.png", {})
    monkeypatch.setattr(costs, "convolution_rate", lambda device: 1.0)
    monkeypatch.setattr(costs, "estimated_flops", lambda run: 1200.0)
    monkeypatch.setattr(costs, "SLOWEST", 0)
    flags = ["--gt_path", str(tmp_path), "--save_path", f"{tmp_path}/out/", "--device", "cpu"]
    assert Synthesis.main([*flags, "--epoch", "1"]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "may take" in line]
    assert lines == ["this may take 60 min for 3 pictures, less with a smaller --epoch"]


def test_what_needs_less_memory_is_named():
    work = Workload("vgg19", LAYERS, [((64, 64), (600, 600))], LAYERS, "swd", steps=1)
    line = cost_note("a.png", work, 1.5 * estimated_bytes(work))
    assert line.endswith("; less with a smaller --size or exemplar, --method gram")
    untiled = work._replace(method="gram", terms=("crosscorrelation",))
    work = untiled._replace(tile_side=256)
    line = cost_note("a.png", work, 1.5 * estimated_bytes(work))
    assert line.endswith("; less with a smaller --size or exemplar, --crosscorrelation 0")
    several = work._replace(scales=[((32, 32), (300, 300)), *work.scales])
    for other in (untiled, several):  # in which the term takes no memory
        assert "--crosscorrelation" not in cost_note("a.png", other, estimated_bytes(other))


def test_what_cannot_fit_is_refused_before_the_weights_are_read(monkeypatch, capfd, tmp_path):
    exemplar = tmp_path / "exemplar.png"
    save_picture(torch.rand(1, 3, 100, 120), exemplar, {})

    def read(*arguments, **options):
        raise AssertionError("the weights are read")

    monkeypatch.setattr("command.run.load_weights", read)
    monkeypatch.setattr(costs, "available_bytes", lambda device: 1e8)
    arguments = ["--gt_path", str(exemplar), "--save_path", str(tmp_path / "out.png")]
    assert Synthesis.main([*arguments, "--size", "1000", "--device", "cpu", "--quiet"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "1000x1000 from an exemplar of 120x100" in line and "GB are allowed" in line
    assert line.endswith("give a smaller --size or exemplar")


@pytest.mark.slow
def test_of_an_exemplar_that_does_not_fit_the_middle_is_used(
    monkeypatch, capfd, tmp_path, narrow_net
):
    picture = resize(read_picture(TEXTURES / "pebbles.png")[0], (1000, 1000))
    save_picture(picture, tmp_path / "a.png", {})
    monkeypatch.setattr("command.run.allowed_bytes", lambda *_: 700.0**2)
    monkeypatch.setattr("command.run.cost_note", lambda *_: None)
    # Halved, it has 707x707; halved again 500x500.
    monkeypatch.setattr("command.run.estimated_bytes", lambda run: math.prod(run.scales[-1][0]))
    out = tmp_path / "out.png"
    flags = ["--gt_path", tmp_path / "a.png", "--save_path", out, *"--device cpu --epoch 1".split()]
    assert Synthesis.main([*map(str, flags), "--size", "32"]) == 0
    assert "a.png: too large for the memory, its centre of 500x500" in capfd.readouterr().err
    assert read_record(out)["exemplar_size"] == "500x500"
    request = parse([*map(str, flags[:2]), "--save_path", str(tmp_path / "new.png")])
    (job,), _ = plan(request)
    middle = job_of(request, work_items(request)[0][0], 250_000)[0].spec.exemplars[0].image
    assert torch.equal(middle, job.spec.exemplars[0].image[..., 250:750, 250:750])
    assert not can_crop(request, job)  # without --size the output is as large as the exemplar
    assert can_crop(parse(["--size", "32"]), job)
    assert not can_crop(parse(["--size", "32", "--maps", "a.png"]), job)


# -------------------------------------------------------------------------------------- blocks


def test_as_large_blocks_as_may_be():
    run = Workload("vgg19", LAYERS, LARGE, LAYERS)
    whole, *blocks = (run._replace(tile_side=side) for side in (None, *costs.TILE_SIDES))
    sizes = [estimated_bytes(way) for way in (whole, *blocks)]
    assert sizes == sorted(sizes, reverse=True)
    for way, size in zip((whole, *blocks), sizes, strict=True):
        assert costs.tiled_to_fit(run, costs.SAFETY_FACTOR * size) == way
    assert costs.tiled_to_fit(run, 1e9) == blocks[-1]  # which is refused
    # A picture no larger than the smallest tile is evaluated as a whole.
    assert costs.tiled_to_fit(run_of(256), 1e9).tile_side is None


def test_what_is_left_goes_into_graphs(monkeypatch):
    """Of a block of 512 px and 30 around it, 64 + 64 + 32 + 32 + 4 * 16 + 8 floats a pixel."""
    monkeypatch.setattr(costs, "TILE_SIDES", (512,))
    run = Workload("vgg19", LAYERS, LARGE, LAYERS, tile_side=512)
    size, graph = estimated_bytes(run), 4 * 264 * 572**2
    for more, graphs in ((0.5, 1), (2.5, 3), (9.5, 10)):
        found = costs.tiled_to_fit(
            run._replace(tile_side=None), costs.FRAGMENTATION * (size + more * graph)
        )
        assert (found.tile_side, found.graphs) == (512, graphs)
        assert not costs.is_tight(found, costs.FRAGMENTATION * (size + more * graph))


def test_lbfgs_forgets_sooner_before_it_is_refused():
    run = Workload("vgg19", LAYERS, LARGE, LAYERS, optimizer="LBFGS", steps=1000)
    least = {m: estimated_bytes(run._replace(tile_side=256, memory=m)) for m in costs.MEMORIES}
    assert list(least.values()) == sorted(least.values(), reverse=True)
    for memory, size in least.items():
        assert costs.tiled_to_fit(run, costs.SAFETY_FACTOR * size).memory == memory
    assert costs.tiled_to_fit(run, 1e12) == run
    adam = run._replace(optimizer="Adam")
    assert costs.tiled_to_fit(adam, 0).memory == adam.memory
    short = run._replace(memory=5)
    note = cost_note("a.png", short, estimated_bytes(short))
    assert "a history of 5 steps instead of 20" in note


def test_of_a_block_all_features_are_held_of_the_picture_only_those_that_are_needed_whole():
    """conv4_1 of VGG-19 sees 30 px further."""
    one = Workload("vgg19", LAYERS, LARGE, LAYERS, tile_side=512)
    graph = estimated_bytes(one._replace(graphs=2)) - estimated_bytes(one)
    assert graph == FLOAT * 264 * (512 + 60) ** 2  # 64 + 64 + 32 + 32 + 4 * 16 + 8 floats a pixel
    more = estimated_bytes(one._replace(whole=["relu3_1", "relu4_1"])) - estimated_bytes(one)
    assert more == 4 * 2 * (256 / 16 + 512 / 64) * 2048**2


def test_most_of_what_is_free_is_allowed_or_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(costs, "available_bytes", lambda device: 10e9)
    assert costs.allowed_bytes(None, CPU) == 0.9 * (10e9 + PROGRAM_BYTES)
    assert costs.allowed_bytes(None, CPU, processes=4) == 0.9 * (10e9 + PROGRAM_BYTES) / 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    gpu = torch.device("cuda:0")
    for beside, sharing in ((8, 1), (9, 2)):
        allowed = costs.allowed_bytes(None, gpu, beside)
        assert allowed == 0.9 * (10e9 + PROGRAM_BYTES) / sharing
    assert costs.allowed_bytes(4e9, CPU) == 4e9
    assert costs.allowed_bytes(40e9, CPU) == 10e9 + PROGRAM_BYTES


def test_a_run_by_blocks_is_tight_where_holes_do_not_fit():
    run = Workload("vgg19", LAYERS, LARGE, LAYERS, tile_side=512)
    size = estimated_bytes(run)
    assert costs.is_tight(run, 1.39 * size) and not costs.is_tight(run, 1.41 * size)
    assert not costs.is_tight(run._replace(tile_side=None), size)


def test_coarse_scales_are_looked_at_in_what_fits_of_them():
    sizes = [((64, 64), (512, 512)), ((128, 128), (1024, 1024)), ((256, 256), (2048, 2048))]
    run = Workload("vgg19", LAYERS, sizes, LAYERS)
    allowed = costs.SAFETY_FACTOR * estimated_bytes(run._replace(tile_side=256))
    found = costs.workloads_at_scales(tiled_to_fit(run, allowed), allowed)
    assert [way.scales for way in found] == [sizes[:1], sizes[:2], sizes]
    assert [(way.tile_side, way.graphs) for way in found] == [(None, 1), (512, 1), (256, 1)]
    for way, size in zip(found, sizes, strict=True):
        assert way == tiled_to_fit(run._replace(scales=[size]), allowed)._replace(scales=way.scales)


def test_layers_of_the_cross_correlation_are_needed_whole_at_coarse_scales():
    """The finest of several scales does not need them; a single scale does."""
    whole = ["relu2_1", "relu3_1", "relu4_1"]
    for flags, finest in (("", []), ("--scales 1", whole)):
        request = parse(["--gt_path", "pebbles.png", *flags.split()])
        (job,), _ = plan(request)
        work = Workload.of(job, "vgg16-caffe")
        assert work.whole == finest and work.whole_if_coarse == whole
        *coarse, last = costs.workloads_at_scales(work, 1e12)
        assert last.whole == finest and len(coarse) == (0 if flags else 2)
        assert all(way.whole == whole for way in coarse)


def test_what_is_surely_within_has_a_fifth_to_spare():
    run = Workload("vgg19", LAYERS, LARGE, LAYERS, tile_side=512)
    size = estimated_bytes(run)
    assert costs.fits_within(run, 1.21 * size)
    assert not costs.fits_within(run, 1.19 * size)


def test_little_memory_is_told():
    with pytest.raises(UserError, match="needs about [0-9.]+ GB of memory, 0.001 GB are allowed"):
        cost_note("a.png", run_of(256), 1e6)


# ------------------------------------------------------------------------------ measured peaks

MEASURE = """
import sys, Synthesis
assert Synthesis.main(sys.argv[1:]) == 0
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


def peaks(folder: Path, side: int, *options: str) -> tuple[float, float]:
    """Estimated and measured peak of the resident memory of a whole run, in bytes."""
    exemplar = folder / f"{side}.png"
    save_picture(resize(read_picture(TEXTURES / "pebbles.png")[0], (side, side)), exemplar, {})
    arguments = ["--gt_path", str(exemplar), "--save_path", str(folder / "out.png"), "--quiet"]
    (folder / "out.png").unlink(missing_ok=True)
    arguments += ["--model", "vgg16-caffe", "--device", "cpu", "--scales", "1", *options]
    (job,), _ = plan(request := parse(arguments))
    command = [sys.executable, "-c", MEASURE, *arguments]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # The kernel's own high-water mark: that of getrusage begins with the parent's.
    run = Workload.of(job, "vgg16-caffe")
    if request.max_memory is not None:
        run = tiled_to_fit(run, request.max_memory)
    return estimated_bytes(run), 1024 * int(said.splitlines()[-1])


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are of Linux")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("optimizer, steps", [("Adam", (2, 2, 2)), ("LBFGS", (24, 8, 2))])
def test_estimates_are_near_measured_peaks(optimizer, steps, tmp_path):
    """Also what is beyond the program itself, which is most of it at 128x128.

    One step alone takes a tenth less than those after it: what was freed has no holes yet.
    """
    found = []
    for side, count in zip((128, 256, 512), steps, strict=True):
        options = ["--optimizer", optimizer, "--epoch", str(count)]
        found.append(peaks(tmp_path, side, *options))
    for estimated, measured in found:
        assert estimated == pytest.approx(measured, rel=0.25)
    (small, small_measured), _, (large, large_measured) = found
    assert large - small == pytest.approx(large_measured - small_measured, rel=0.3)
    assert small > PROGRAM_BYTES


@linux
@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "gram"])
def test_estimates_of_other_methods_are_near_measured_peaks(method, tmp_path):
    estimated, measured = peaks(tmp_path, 192, "--method", method, "--epoch", "2")
    assert estimated == pytest.approx(measured, rel=0.25)


@linux
@pytest.mark.slow
def test_the_estimate_of_a_large_exemplar_is_near_its_measured_peak(tmp_path):
    estimated, measured = peaks(tmp_path, 640, "--size", "64", "--epoch", "1")
    assert estimated == pytest.approx(measured, rel=0.25)


@linux
@pytest.mark.slow
def test_a_large_picture_keeps_to_what_is_allowed(tmp_path):
    """Untiled, the run would take 3.1 GB. It has one scale, at which the cross-correlation would
    need whole layers."""
    options = ["--size", "1024", "--epoch", "2", "--tolerance", "0", "--max_memory", "1.6GB"]
    options += ["--crosscorrelation", "0"]
    estimated, measured = peaks(tmp_path, 128, *options)
    assert estimated <= 1.6e9 and measured <= 1.6e9
    assert estimated == pytest.approx(measured, rel=0.25)
