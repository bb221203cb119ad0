"""How fast this machine is, by one exemplar in several sizes: a table, or JSON."""

import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from command.arguments import Request, parse
from command.costs import trunk_flops
from command.files import ROOT
from command.pictures import find_picture, read_picture, save_picture
from command.plan import plan
from command.processes import keep_freed_memory, peak_bytes, pick_device
from command.results import Result
from command.streams import put
from command.weights import BUNDLED_NET, load_weights
from engine.precision import AUTO, ROUGH, pick_precision, usable
from engine.synthesis import Progress, new_texture
from models import Extractor
from utils import resize

SIDES = (256, 512, 1024)  # px
TIMED = 12  # steps at one size, of which the last third are timed: those after painting
ERRORS = (0.002, 0.0005)  # of saved files
STEPS = (75, 150, 300, 600)  # of L-BFGS: the first that bring a picture to an error are told
PATIENCE = 0.7  # seconds a step, above which no picture is brought to an error
MATRIX = 2048  # rows and columns of a plain matrix product
COMMAND = ROOT / "Synthesis.py"
CPU_INFO = Path("/proc/cpuinfo")  # of Linux

Run = Callable[[Request], Result]
Found = dict[str, Any]


def print_benchmark(request: Request, run: Run) -> None:
    """Measure this machine, and print what was found: row by row, or all at once as JSON.

    Args:
        request: its exemplar, device, precision and net, by default the bundled one.
        run: makes the picture of a request.

    Raises:
        UserError: an exemplar, a device, a precision or a net that is not here.
    """
    device, _ = pick_device(request.device)
    exemplar = read_picture(find_picture(request.gt_path[0])).pixels
    fastest = pick_precision(request.precision, device)
    precisions = usable(device) if request.precision == AUTO else (fastest,)
    net = request.model or BUNDLED_NET
    load_weights(net, None, ["relu4_1"], progress=not request.quiet)  # or say what is missing
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["--device", str(device), "--model", net]
        machine = {
            "processor": processor(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "net": net,
            "precision": fastest,
            "import torch": _seconds_until("", [sys.executable, "-c", "import torch"]),
            "first step": _seconds_until("from step 1", _first_step(folder, fixed)),
        }
        if not request.json:
            lines = [f"{name}: {value}" for name, value in machine.items()]
            put("\n".join([*lines, _line(_COLUMNS)]) + "\n")
        rows = []
        for side in SIDES:
            path = Path(folder) / f"{side}.png"
            save_picture(resize(exemplar, (side, side)), path, {})
            for precision in precisions:
                argv = ["--gt_path", str(path), "--precision", precision, *fixed, "--quiet"]
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    found = pool.submit(measured, run, argv, Path(folder)).result()
                rows.append({"side": side, "precision": precision} | found)
                exact = next(row["s/step"] for row in rows if row["side"] == side)
                if found["s/step"] > exact:  # larger pictures would take hours to say the same
                    precisions = tuple(name for name in precisions if name != precision)
                if not request.json:
                    put(_line(rows[-1][name] for name in _COLUMNS) + "\n")
    if request.json:
        put(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


_COLUMNS = ("side", "precision", "s/step", "of a product", *(f"s to {e}" for e in ERRORS), "GB")


def _line(cells: Iterable[object]) -> str:
    """One of every column, under its name."""
    pairs = zip(_COLUMNS, cells, strict=True)
    told = ((name, "-" if cell is None else cell) for name, cell in pairs)
    return "  ".join(f"{cell:>{max(9, len(name))}}" for name, cell in told)


def measured(run: Run, argv: list[str], folder: Path) -> Found:
    """What a picture of the flags in `argv` costs here; in a process of its own, so that the peak
    of the memory is its own."""
    keep_freed_memory()
    timed = ["--epoch", str(TIMED), "--scales", "1", "--save_path", str(folder / "result.png")]
    request = parse([*argv, *timed])
    device, _ = pick_device(request.device)
    (job,), _ = plan(request)
    assert request.model is not None
    weights = load_weights(request.model, None, job.trunk_layers).weights
    trunk = Extractor(weights, request.model, job.trunk_layers, job.pool).to(device)
    moments: list[float] = []

    def tell(progress: Progress) -> None:
        if progress.scale == progress.scales:
            moments.append(time.perf_counter())

    spec = replace(job.spec.to(device), precision=request.precision)
    new_texture(spec, trunk, tell)
    seconds = median(b - a for a, b in zip(moments, moments[1:], strict=False))
    height, width = spec.canvas.size
    flops = 2 * trunk_flops(request.model, job.trunk_layers) * height * width
    rate = product_rate(device, ROUGH.get(request.precision) or torch.float32)
    found: Found = {"s/step": round(seconds, 4), "of a product": round(flops / seconds / rate, 2)}
    reached: dict[float, float | None] = dict.fromkeys(ERRORS)
    for steps in STEPS if seconds < PATIENCE else ():
        command = ["--optimizer", "LBFGS", "--epoch", str(steps), "--overwrite"]
        result = run(parse([*argv, *command, "--save_path", str(folder / "result.png")]))
        for error, before in reached.items():
            if before is None and result.record["error"] <= error:
                reached[error] = round(result.seconds, 1)
        if None not in reached.values():
            break
    found |= {f"s to {error}": best for error, best in reached.items()}
    return found | {"GB": round(peak_bytes(device) / 1e9, 2)}


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Arithmetic a second of a plain matrix product, the best of five."""
    one = torch.rand(MATRIX, MATRIX).to(device, dtype)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        (one @ one)[0, 0].item()  # CPU-GPU sync point
        seconds.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(seconds)


def processor(device: torch.device) -> str:
    """The name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    named = re.search(r"model name\s*:\s*(.+)", known)
    return named[1] if named else platform.processor() or platform.machine()


def _first_step(folder: str, fixed: list[str]) -> list[str]:
    command = [sys.executable, str(COMMAND), *fixed, "--save_path", f"{folder}/first.png"]
    return [*command, "--epoch", "100000"]


def _seconds_until(told: str, command: list[str]) -> float:
    """From the launch of a command to the line of stderr that has what is `told`, or its end."""
    started = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if told and told in line:
                break
        seconds = time.perf_counter() - started
        process.kill()
    return round(seconds, 2)
