"""Estimates of memory against counts by hand, against what autograd keeps, and measured peaks."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import plan

import Synthesis
from command import costs
from command.arguments import parse
from command.costs import (
    FLOAT,
    PROGRAM_BYTES,
    Workload,
    estimated_bytes,
    features_per_pixel,
    memory_note,
    tiled_to_fit,
    workloads_of,
)
from command.files import TEXTURES
from command.pictures import read_picture, read_record, save_picture
from command.plan import can_crop, job_of, work_items
from command.weights import load_weights
from losses import METHODS
from models import Extractor, halos, resolve_layers
from terms.gram import FIRST_LAYERS
from utils import UserError, resize

ROOT = Path(__file__).resolve().parent.parent
LAYERS = resolve_layers(FIRST_LAYERS, "vgg19")
CPU = torch.device("cpu")


def jobs_of(*flags: str):
    return plan(parse(["--gt_path", "pebbles.png", *flags]))[0]


def works_of(*flags: str, net: str = "vgg19") -> list[Workload]:
    return workloads_of(jobs_of(*flags)[0], net)


LARGE = works_of("--size", "2048")[-1]  # from an exemplar of 256x256


def test_features_per_pixel():
    """64 channels at full size, 128 at a quarter of the pixels; a pooling divides by 4."""
    found = features_per_pixel("vgg19", ["relu2_1", "relu1_2"])
    assert found == {"relu1_1": 64, "relu1_2": 64, "pool1": 16, "relu2_1": 32}


def test_step_of_a_whole_picture():
    """Of 64 + 64 + 32 + 32 + 4 * 16 + 8 floats of features per pixel, all but relu3_3 and relu3_4
    are in the loss. The largest layer has 64."""
    _, _, work = works_of()
    assert work.graph == 264 and work.backward == 264 - 2 * 16 + 2 * 64 + 16
    floats = costs.PICTURE * 2 + costs.TERMS["histogram"] + work.graph + work.backward
    assert estimated_bytes(work) == PROGRAM_BYTES + FLOAT * floats * 256**2


def test_methods_that_sort_or_match_take_more():
    """The layers of swd have 64 + 32 + 16 + 8 floats per pixel: held of the exemplar, and sorted of
    the output."""
    gram, swd = (works_of("--method", method)[-1] for method in ("gram", "swd"))
    assert swd.held - gram.held == 120
    assert swd.kept - gram.kept == costs.SORTED * 120


@pytest.mark.slow
def test_graphs_of_tiles_are_what_autograd_keeps():
    weights = load_weights("vgg16-caffe", None, LAYERS[:-1]).weights
    layers = resolve_layers(FIRST_LAYERS, "vgg16-caffe")
    extractor, kept = Extractor(weights, "vgg16-caffe", layers), {}
    frozen = {parameter.data_ptr() for parameter in extractor.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        extractor(torch.rand(1, 3, 128, 128, requires_grad=True))
    found = sum(storage.nbytes() for storage in kept.values()) / 128**2
    assert FLOAT * works_of(net="vgg16-caffe")[-1].graph == pytest.approx(found)


def test_lbfgs_keeps_pairs_of_pictures():
    adam, lbfgs = (works_of("--optimizer", name)[-1] for name in ("Adam", "LBFGS"))
    more = estimated_bytes(lbfgs) - estimated_bytes(adam)
    assert more == pytest.approx(20 * 2 * 3 * FLOAT * 256**2)


def test_layers_of_the_cross_correlation_are_needed_whole_at_coarse_scales():
    """Without tiles at the finest of several scales; a single scale needs them. Both the layers
    and their gradients have 32 + 16 + 8 floats per pixel."""
    assert [work.whole for work in works_of()] == [2 * 56, 2 * 56, 0]
    assert [work.whole for work in works_of("--scales", "1")] == [2 * 56]


def test_patches_of_guided_are_bounded():
    """A patch has 49 positions of 512 channels. In each direction every fourth position of
    conv4_1, or every 32nd pixel, has one. Those of the output need a gradient."""
    for limit, patches in (("50", 50 + 2 * 50), ("10000", 8 * 8 + 2 * 64 * 64)):
        flags = ["--method", "guided", "--layers", "conv4_1", "--max_patches", limit]
        work = works_of(*flags, "--size", "2048")[-1]
        assert work.matching == FLOAT * 512 * 49 * patches


# ------------------------------------------------------------------------------------- messages


def test_small_runs_have_no_note():
    (job,) = jobs_of()
    assert memory_note(job, works_of()[-1], 8e9) is None


def test_large_runs_have_a_note():
    (job,) = jobs_of("--size", "1024", "--optimizer", "LBFGS", "--method", "swd")
    work = workloads_of(job, "vgg19")[-1]
    size = estimated_bytes(work)
    line = memory_note(job, work, 1.9 * size)
    assert line.startswith(f"{job.name}: 1024x1024 from an exemplar of 256x256 needs about ")
    assert f"{size / 1e9:.3g} GB" in line
    less = "; less with a smaller --size or exemplar, --optimizer Adam, --method gram"
    assert line.endswith(less)
    assert memory_note(job, work, 2.1 * size) is None
    short = work._replace(memory=5)
    assert "a history of 5 steps instead of 20" in memory_note(job, short, estimated_bytes(short))


def test_too_little_memory_is_an_error():
    (job,) = jobs_of()
    with pytest.raises(UserError, match="needs about [0-9.]+ GB of memory, 0.001 GB are allowed"):
        memory_note(job, works_of()[-1], 1e6)


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
    monkeypatch.setattr("command.run.memory_note", lambda *_: None)
    # Halved, it has 707x707; halved again 500x500.
    monkeypatch.setattr("command.run.estimated_bytes", lambda work: math.prod(work.exemplar))
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


# ---------------------------------------------------------------------------------------- tiles


def test_tiles_are_as_large_as_fits():
    whole, *tiled = (LARGE._replace(tile_side=side) for side in (None, *costs.TILE_SIDES))
    sizes = [estimated_bytes(work) for work in (whole, *tiled)]
    assert sizes == sorted(sizes, reverse=True)
    for work, size in zip((whole, *tiled), sizes, strict=True):
        assert tiled_to_fit(LARGE, costs.SAFETY_FACTOR * size) == work
    assert tiled_to_fit(LARGE, 1e9) == tiled[-1]  # which is refused
    # A picture no larger than the smallest tile is evaluated as a whole.
    assert tiled_to_fit(works_of()[-1], 1e6).tile_side is None


def test_remaining_memory_keeps_graphs(monkeypatch):
    """Of a tile of 512 px with a halo of 30, each has 264 floats per pixel."""
    monkeypatch.setattr(costs, "TILE_SIDES", (512,))
    size, graph = estimated_bytes(LARGE._replace(tile_side=512)), 4 * 264 * 572**2
    for more, graphs in ((0.5, 1), (2.5, 3), (9.5, 10)):
        allowed = costs.FRAGMENTATION * (size + more * graph)
        found = tiled_to_fit(LARGE, allowed)
        assert (found.tile_side, found.graphs) == (512, graphs)
        assert not costs.is_tight(found, allowed)


def test_lbfgs_keeps_a_shorter_history_before_it_is_refused():
    work = LARGE._replace(uses_history=True)
    least = {m: estimated_bytes(work._replace(tile_side=256, memory=m)) for m in costs.MEMORIES}
    assert list(least.values()) == sorted(least.values(), reverse=True)
    for memory, size in least.items():
        assert tiled_to_fit(work, costs.SAFETY_FACTOR * size).memory == memory
    assert tiled_to_fit(work, 1e12) == work
    assert tiled_to_fit(LARGE, 0).memory == LARGE.memory


def test_a_tile_has_a_halo_and_whole_layers_belong_to_the_picture():
    """conv4_1 of VGG-19 depends on 30 px on each side."""
    assert LARGE.halo == halos(LAYERS, "vgg19")["image"] == 30
    tile = LARGE._replace(tile_side=512)
    graph = estimated_bytes(tile._replace(graphs=2)) - estimated_bytes(tile)
    assert graph == FLOAT * 264 * (512 + 60) ** 2
    more = estimated_bytes(tile._replace(whole=48)) - estimated_bytes(tile)
    assert more == FLOAT * 48 * 2048**2
    assert estimated_bytes(LARGE._replace(whole=48)) == estimated_bytes(LARGE)


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


def test_tiles_are_tight_where_fragments_do_not_fit():
    tile = LARGE._replace(tile_side=512)
    size = estimated_bytes(tile)
    assert costs.is_tight(tile, 1.39 * size) and not costs.is_tight(tile, 1.41 * size)
    assert not costs.is_tight(LARGE, size)


def test_each_scale_has_the_largest_tiles_that_fit(monkeypatch):
    *coarse, finest = works_of("--size", "2048")
    allowed = costs.SAFETY_FACTOR * estimated_bytes(finest._replace(tile_side=256))
    sides = [tiled_to_fit(work, allowed).tile_side for work in (*coarse, finest)]
    assert sides == [None, 256, 256]


def test_a_fifth_to_spare_is_needed():
    size = estimated_bytes(LARGE)
    assert costs.fits_within(LARGE, 1.21 * size)
    assert not costs.fits_within(LARGE, 1.19 * size)


# ------------------------------------------------------------------------------ measured peaks

ERROR = 1 / 3  # of the estimate
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
    work = workloads_of(job, "vgg16-caffe")[-1]
    if request.max_memory is not None:
        work = tiled_to_fit(work, request.max_memory)
    return estimated_bytes(work), 1024 * int(said.splitlines()[-1])


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
        assert estimated == pytest.approx(measured, rel=ERROR)
    (small, small_measured), _, (large, large_measured) = found
    assert large - small == pytest.approx(large_measured - small_measured, rel=0.4)
    assert small > PROGRAM_BYTES


@linux
@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "gram"])
def test_estimates_of_other_methods_are_near_measured_peaks(method, tmp_path):
    estimated, measured = peaks(tmp_path, 192, "--method", method, "--epoch", "2")
    assert estimated == pytest.approx(measured, rel=ERROR)


@linux
@pytest.mark.slow
def test_the_estimate_of_a_large_exemplar_is_near_its_measured_peak(tmp_path):
    estimated, measured = peaks(tmp_path, 640, "--size", "64", "--epoch", "1")
    assert estimated == pytest.approx(measured, rel=ERROR)


@linux
@pytest.mark.slow
def test_a_large_picture_keeps_to_what_is_allowed(tmp_path):
    """Untiled, the run would take 3.1 GB. It has one scale, at which the cross-correlation would
    need whole layers."""
    options = ["--size", "1024", "--epoch", "2", "--tolerance", "0", "--max_memory", "1.6GB"]
    options += ["--crosscorrelation", "0"]
    estimated, measured = peaks(tmp_path, 128, *options)
    assert estimated <= 1.6e9 and measured <= 1.6e9
    assert estimated == pytest.approx(measured, rel=ERROR)
