"""Several processes: which jobs are whose, and one picture of several."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ErrorHandler,
    ProcessFailure,
)
from torch.distributed.run import get_args_parser

import command.ranks
import Synthesis
from command.arguments import build_parser, parse
from command.make import saved_result
from command.pictures import save_picture
from command.plan import work_items
from command.ranks import ProcessRank, process_group_of, process_rank
from command.results import Result, RunStats, record_of
from command.run import net_of, planned, run
from engine.synthesis import Frame
from terms.process_group import COALESCED_BELOW, ProcessGroup
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, ProcessRank(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, ProcessRank(3, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, ProcessRank(0, 1, 0)),
        ({"RANK": "x", "WORLD_SIZE": "8", "LOCAL_RANK": "0"}, ProcessRank(0, 1, 0)),
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"},
            ProcessRank(1, 2, 0),
        ),
        (
            dict(RANK="1", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2"),
            ProcessRank(1, 4, 1, 2),
        ),
        (
            dict(
                SLURM_PROCID="1",
                SLURM_STEP_NUM_TASKS="12",
                SLURM_LOCALID="1",
                SLURM_STEP_TASKS_PER_NODE="6(x2)",
            ),
            ProcessRank(1, 12, 1, 6),
        ),
        # A script in an allocation, without srun: else it would make every second picture only.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, ProcessRank(0, 1, 0)),
    ],
)
def test_the_rank_is_that_of_the_launcher(variables, expected):
    assert process_rank(variables) == expected


@pytest.mark.parametrize("values", ["8 8 0", "-1 8 0", "0 0 0", "1 8 -1"])
@pytest.mark.parametrize("names", command.ranks.VARIABLES)
def test_processes_that_contradict_their_launcher_do_not_all_make_everything(
    values, names, monkeypatch, capsys
):
    for name, value in zip(names, values.split(), strict=True):
        monkeypatch.setenv(name, value)
    assert Synthesis.main(["--gt_path", "leaf.jpg"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{names[1]}={values.split()[1]}" in line and f"{names[0]} is from 0 to" in line


def test_every_rank_takes_its_own_jobs(narrow_net, monkeypatch, tmp_path, capsys):
    names = [f"{letter}.png" for letter in "abc"]
    for seed, name in enumerate(names):
        picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        save_picture(picture, tmp_path / name, {})
    arguments = ["--gt_path", *(str(tmp_path / name) for name in names), "--epoch", "2"]
    arguments += ["--device", "cpu", "--save_path", str(tmp_path / "new.png")]
    made = []
    for rank in range(2):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        assert Synthesis.main(arguments) == 0
        made.append(
            [Path(line.split("  ")[0]).name for line in capsys.readouterr().out.splitlines()]
        )
    assert made == [["new_a.png", "new_c.png"], ["new_b.png"]]


def test_the_launcher_hears_of_an_error_in_one_line(monkeypatch, tmp_path, capsys, caplog):
    """As it reads it itself: shown in its summary, and handed on to its own launcher unwarned."""
    file, started = tmp_path / "error.json", int(time.time())
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert Synthesis.main(["--gt_path", "missing.png"]) == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    said = failure.message["message"]
    assert "'missing.png'" in said and capsys.readouterr().err == f"Synthesis.py: {said}\n"
    assert started <= failure.timestamp <= time.time()
    assert f"traceback : {said}\n" in str(ChildFailedError("Synthesis.py", {0: failure}))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "parents.json"))
    ErrorHandler().dump_error_file(str(file), 2)
    assert not caplog.records


def test_torchrun_hands_on_every_flag():
    """Without the two dashes it takes --log for one of its own, and ends."""
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    commands = re.findall(r"torchrun (--.*?Synthesis\.py)", pages)
    assert len(commands) == 2
    flags = list(build_parser().flags())
    assert "--log" in flags
    for one in commands:
        found = get_args_parser().parse_args([*shlex.split(one), *flags])
        assert found.training_script == "Synthesis.py"
        assert found.training_script_args == flags


def test_split_needs_several_processes(capsys):
    assert Synthesis.main(["--split", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--split: one process alone" in line and "torchrun" in line


def test_split_makes_one_picture_at_a_time():
    with pytest.raises(UserError, match="--workers: not allowed with --split"):
        work_items(parse(["--split", "--workers", "2", "--count", "2"]))


@pytest.mark.parametrize("rank, told", [(0, 1), (1, 0)])
def test_of_a_team_the_first_alone_tells_of_pictures(rank, told, monkeypatch, tmp_path):
    """And writes sheets, animations and pages of them, which the others would write as well."""
    shown = []
    path = tmp_path / "new.png"
    made = Result(path, torch.zeros(1, 3, 16, 16), {}, 0.0, None)
    monkeypatch.setattr("command.run.process_rank", lambda: ProcessRank(rank, 2, rank))
    monkeypatch.setattr("command.run.process_group_of", lambda own, device: ProcessGroup(rank, 2))
    monkeypatch.setattr("command.make.make_in_tiles", lambda *others: made)
    monkeypatch.setattr(
        "command.run.write_summaries", lambda request, results, *_: shown.append(results)
    )
    flags = ["--split", "--device", "cpu", "--size", "32", "--save_path", str(path)]
    outcomes = list(run(parse(["--gt_path", "pebbles.png", *flags])))
    assert outcomes == [made] * told and shown == [[path] * told]


@pytest.mark.parametrize("rank, written", [(0, (2, True)), (1, (None, False))])
def test_of_a_team_the_first_alone_writes_snapshots_and_the_preview(rank, written, tmp_path):
    flags = "--gt_path pebbles.png --size 32 --save_every 2 --preview --save_path".split()
    request = parse([*flags, str(tmp_path / "new.png")])
    job, _ = planned(request, work_items(request)[0][0], 1e12, ProcessGroup(rank, 2))
    assert (job.save_every, job.preview) == written


def test_an_interrupted_picture_of_a_group_waits_for_no_other_process(tmp_path, narrow_weights):
    """Which may have ended: there is no group here that would answer."""
    flags = ["--gt_path", "pebbles.png", "--size", "32", "--model", "vgg16-caffe", "--save_path"]
    request = parse([*flags, str(tmp_path / "new.png")])
    job, _ = planned(request, work_items(request)[0][0], 1e12, ProcessGroup(0, 2))
    net, _ = net_of(request, torch.device("cpu"), "fp32", True)
    frame = Frame(3, 1, 1, 0.5, torch.rand(1, 3, 32, 32), job.spec.canvas, 0.5)
    course = RunStats({}, [], 0.0)
    result = saved_result(job, frame, record_of(job, net), net, course, finished=False)
    assert result.path.exists() and result.record["interrupted at step"] == 3


def test_every_process_of_a_group_returns_the_picture_that_is_saved(tmp_path, narrow_weights):
    """--exact_histogram changes it after the last frame."""
    flags = ["--gt_path", "pebbles.png", "--size", "32", "--model", "vgg16-caffe"]
    request = parse([*flags, "--exact_histogram", "--save_path", str(tmp_path / "new.png")])
    net, _ = net_of(request, torch.device("cpu"), "fp32", True)
    pixels, images = torch.rand(1, 3, 32, 32), []
    for rank in (0, 1):
        job, _ = planned(request, work_items(request)[0][0], 1e12, ProcessGroup(rank, 2))
        frame = Frame(3, 1, 1, 0.5, pixels, job.spec.canvas, 0.5)
        course, record = RunStats({}, [], 0.0), record_of(job, net)
        images.append(saved_result(job, frame, record, net, course, finished=False).image)
    assert torch.equal(*images) and not torch.equal(images[0], pixels)


def test_split_needs_a_gpu_for_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="process 2 of a machine with 1 GPUs"):
        process_group_of(ProcessRank(1, 2, 1), torch.device("cuda:0"))


def test_what_is_large_is_added_up_where_it_is_and_the_rest_in_one_message(monkeypatch):
    """Two processes with the same values: twice of all, in any layout."""
    sent = []

    def all_reduce(numbers, group):
        sent.append(numbers.data_ptr())
        numbers.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    shape = 1, 4, 8, COALESCED_BELOW // 32
    values = torch.arange(float(COALESCED_BELOW)).view(shape)
    plain, last = values.clone(), values.clone(memory_format=torch.channels_last)
    with_holes = torch.zeros(1, 4, 8, COALESCED_BELOW // 16)[..., ::2].copy_(values)
    small, single = torch.ones(3, 2).T, torch.tensor(5.0)
    ProcessGroup(0, 2).all_reduce([small, plain, last, with_holes, single])
    assert all(torch.equal(x, 2 * values) for x in (plain, last, with_holes))
    assert torch.equal(small, torch.full((2, 3), 2.0)) and single == 10
    assert len(sent) == 3 and {plain.data_ptr(), last.data_ptr()} < set(sent)


class Message(NamedTuple):
    """As `torch.distributed.P2POp`, of threads whose group is their rank and all queues."""

    way: Callable
    rows: torch.Tensor
    peer: int
    group: tuple
    tag: int


def delivered(messages):
    """In the order in which they are sent, as NCCL does, which knows no tags."""
    for one in messages:
        rank, queues = one.group
        if one.way is torch.distributed.isend:
            queues[rank, one.peer].put(one.rows)
    for one in messages:
        rank, queues = one.group
        if one.way is torch.distributed.irecv:
            one.rows.copy_(queues[one.peer, rank].get(timeout=5))
    return []


@pytest.mark.parametrize("count, ring", [(2, False), (2, True), (3, False), (3, True)])
def test_rows_go_to_who_looks_above_and_below(count, ring, monkeypatch):
    """Process n gives n upwards and 10 + n downwards."""
    monkeypatch.setattr(torch.distributed, "P2POp", Message)
    monkeypatch.setattr(torch.distributed, "batch_isend_irecv", delivered)
    queues = {pair: SimpleQueue() for pair in product(range(count), repeat=2)}

    def exchange(rank):
        up, down = (torch.full((1, 3, 2, 5), float(value)) for value in (rank, 10 + rank))
        return ProcessGroup(rank, count, (rank, queues)).exchange(up, down, ring)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(exchange, range(count)))
    for rank, (above, below) in enumerate(found):
        before, after = (rank - 1) % count, (rank + 1) % count
        assert torch.equal(above, torch.full((1, 3, 2 if ring or rank else 0, 5), 10.0 + before))
        assert torch.equal(below, torch.full((1, 3, 2 if ring or after else 0, 5), float(after)))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_comes_is_not_waited_for(rank, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setattr(command.ranks, "RENDEZVOUS_TIMEOUT", timedelta(seconds=1))
    started = time.monotonic()
    with pytest.raises(UserError, match="did not connect within 1 s") as raised:
        process_group_of(ProcessRank(rank, 2, rank), torch.device("cpu"))
    assert time.monotonic() - started < 4
    assert "\n" not in str(raised.value)


def ranks(count, *arguments):
    """Processes as torchrun starts them, of one thread each."""
    port = free_port()
    found = []
    for rank in range(count):
        variables = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
        variables |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1}
        found.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | {name: str(value) for name, value in variables.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return found


def finished(processes):
    told = [process.communicate(timeout=120) for process in processes]
    assert not any(process.returncode for process in processes), told
    return [out.splitlines() for out, _ in told]


OPTIMIZE = """
import sys, torch
from functools import partial
from pathlib import Path
from command.ranks import exit_process, process_group_of, process_rank
from engine.objective import Objective
from engine.optimizers import Settings, minimize
from engine.spec import Spec, exemplar_of
from engine.synthesis import criterion_at
from engine.tiling import TiledExtractor
from command.weights import load_weights
from models import Extractor, resolve_layers
from terms.base import Canvas
from terms.gram import FIRST_LAYERS
from terms.process_group import SINGLE_PROCESS
from command.pictures import read_picture
from command.files import TEXTURES
from utils import resize

method, tile, out = sys.argv[1:]
own, size = process_rank(), (128, 72)
layers = resolve_layers(FIRST_LAYERS[:3], "vgg16-caffe")
weights, name, *_ = load_weights("vgg16-caffe", None, layers)
exemplar = resize(read_picture(TEXTURES / "pebbles.png")[0], (64, 64)).double()
exemplars, canvas = (exemplar_of(exemplar),), Canvas(size, tile)
group = process_group_of(own, torch.device("cpu")) if own.world_size > 1 else SINGLE_PROCESS
layers_of_model = {"relu3_1": 1.0}
spec = Spec(exemplars, canvas, method, layers_of_model, {"moments": 1.0}, group=group)
trunk = Extractor(weights, name, layers).double()
criterion = criterion_at(spec, trunk, (64, 64), size)
extractor = TiledExtractor(trunk, criterion, group=group) if own.world_size > 1 else trunk
image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).double()
objective = Objective(partial(extractor, wrap=tile), criterion)
for step in minimize(image, objective, Settings(30)):
    image = step.image
torch.save(image, f"{out}_{own.rank}_of_{own.world_size}.pt")
exit_process(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method, tile", [("gram", ""), ("swd", "y"), ("cnnmrf", "x")])
def test_two_ranks_make_the_picture_of_one(method, tile, tmp_path):
    """In float64: Adam's first steps and what is matched turn on rounding, and of pictures in
    float32 93 to 99 % of the pixels are within a grey level."""
    for count in (1, 2):
        finished(ranks(count, "-c", OPTIMIZE, method, tile, str(tmp_path / "made")))
    one, *two = (
        torch.load(tmp_path / f"made_{name}.pt") for name in ("0_of_1", "0_of_2", "1_of_2")
    )
    assert torch.equal(*two)
    apart = (one * 255).round() - (two[0] * 255).round()
    assert (apart.abs() <= 1).float().mean() >= 0.999


QUICK = "Synthesis.py --gt_path pebbles.png --size 128 --scales 1 --device cpu --quiet"


@pytest.mark.slow
def test_one_of_two_ranks_saves_the_picture_and_tells_of_it(tmp_path):
    flags = f"{QUICK} --split --model vgg16-caffe --epoch 4 --save_every 2 --save_path".split()
    said = finished(ranks(2, *flags, str(tmp_path / "two.png")))
    assert [len(lines) for lines in said] == [1, 0]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"two.png", "two_000002.png", "two_000004.png"}


@pytest.mark.slow
def test_one_that_is_killed_ends_the_other_with_one_line(tmp_path):
    (tmp_path / "two.png").write_bytes(b"old")
    flags = f"{QUICK} --split --model vgg16-caffe --epoch 100000 --tolerance 0 --overwrite"
    both = ranks(2, *flags.split(), "--save_path", str(tmp_path / "two.png"))
    try:
        both[1].wait(15)
    except subprocess.TimeoutExpired:
        both[1].kill()
    _, told = both[0].communicate(timeout=30)
    both[1].communicate()
    assert both[0].returncode == 2
    assert told == "Synthesis.py: another process has ended, and with it this one\n"
    assert (tmp_path / "two.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
