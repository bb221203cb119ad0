#!/usr/bin/env python3
"""Measure the speed of this machine with one exemplar at several sizes; print a table or JSON.

    python docs/benchmark.py --gt_path leaf.jpg --device cuda:0

Every figure comes from a run of `Synthesis.py` in a new process: step times from the lines of
`--progress json`, memory and errors from `--log`.
"""

import argparse
import json
import math
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from command.costs import features_per_pixel  # noqa: E402  # this and the following imports need the line above
from command.pictures import find_picture, read_picture, save_picture  # noqa: E402
from command.processes import pick_device  # noqa: E402
from command.weights import BUNDLED_NET  # noqa: E402
from engine.precision import AUTO, PRECISIONS, ROUGH, pick_precision, usable  # noqa: E402
from losses import METHODS  # noqa: E402
from models import NETS, width  # noqa: E402
from utils import UserError, resize, size_of  # noqa: E402

SIDES = (256, 512, 1024)  # px
TIMED = 12  # number of steps of the run that gives the step time
ERRORS = (0.002, 0.001)  # of the saved file; the time to reach each of them is measured
STEPS = (75, 150, 300, 600)  # of L-BFGS; tried in this order until all ERRORS are reached
LONGEST_STEP = 0.7  # s; if steps are longer, the time to reach ERRORS is not measured
MATRIX = 2048  # rows and columns of the matrix product that gives the attainable rate
COLUMNS = ("side", "precision", "s/step", "of a product", *(f"s to {e}" for e in ERRORS), "GB")


def steps_of(flags: Iterable[str]) -> Generator[tuple[float, dict[str, Any]], None, None]:
    """Run `Synthesis.py`, and yield (seconds since launch, line of `--progress json`) at each step.

    Closing the generator kills the process.

    Raises:
        UserError: the command fails; the message is its last line on stderr.
    """
    command = [sys.executable, str(ROOT / "Synthesis.py"), *flags, "--progress", "json"]
    command += ["--overwrite"]
    started, last = time.perf_counter(), ""
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, text=True, stdout=null, stderr=pipe) as process:
        try:
            for line in process.stderr or ():
                if line.startswith("{"):
                    yield time.perf_counter() - started, json.loads(line)
                else:
                    last = line
            code = process.wait()
        finally:
            process.kill()
    if code:
        raise UserError(last.strip().removeprefix("Synthesis.py: "))


def seconds_to_first_step(flags: list[str]) -> float:
    """Return the seconds from the launch of a long run to the end of its first step."""
    steps = steps_of([*flags, "--epoch", "100000"])
    seconds, _ = next(steps)
    steps.close()
    return round(seconds, 2)


def seconds_to_errors(flags: list[str], log: Path) -> dict[float, float | None]:
    """Return, for each of ERRORS, the seconds of the shortest run of STEPS whose saved file has at
    most this error; None if no run has.

    Args:
        flags: of `Synthesis.py`.
        log: file that these flags give to `--log`.
    """
    reached: dict[float, float | None] = dict.fromkeys(ERRORS)
    for steps in STEPS:
        for _ in steps_of([*flags, "--optimizer", "LBFGS", "--epoch", str(steps)]):
            pass
        result = json.loads(log.read_text().splitlines()[-1])
        for error, before in reached.items():
            if before is None and result["record"]["error"] <= error:
                reached[error] = round(result["seconds"], 1)
        if None not in reached.values():
            break
    return reached


def trunk_flops(net: str, layers: list[str]) -> float:
    """Return the floating-point operations per pixel of a forward pass; a backward pass to the
    picture takes as many."""
    total, channels = 0.0, 3
    for layer, floats in features_per_pixel(net, layers).items():
        if not layer.startswith("pool"):
            total += 2 * 9 * channels * floats
            channels = width(layer)
    return total


def measure(exemplar: Path, net: str, precision: str, device: torch.device) -> dict[str, Any]:
    """Return one row of the table: column -> value, None for an error that is not reached.

    Args:
        exemplar: file of a square picture.
    """
    log = exemplar.with_suffix(".log")
    flags = ["--gt_path", str(exemplar), "--model", net, "--precision", precision]
    flags += ["--device", str(device), "--save_path", str(exemplar.with_suffix(".result.png"))]
    flags += ["--log", str(log)]
    # Steps of painting, which have no error, are not timed.
    progress = steps_of([*flags, "--epoch", str(TIMED), "--scales", "1"])
    moments = [at for at, step in progress if step["error"] is not None]
    seconds = median(b - a for a, b in zip(moments, moments[1:], strict=False))
    memory = json.loads(log.read_text().splitlines()[-1])["peak_bytes"]
    size = size_of(read_picture(exemplar).pixels)
    flops = 2 * trunk_flops(net, METHODS["gram"].layers) * math.prod(size)
    rate = product_rate(device, ROUGH.get(precision) or torch.float32)
    tried = seconds_to_errors(flags, log) if seconds < LONGEST_STEP else dict.fromkeys(ERRORS)
    return {
        "side": size[0],
        "precision": precision,
        "s/step": round(seconds, 4),
        "of a product": round(flops / seconds / rate, 2),
        **{f"s to {error}": found for error, found in tried.items()},
        "GB": round(memory / 1e9, 2),
    }


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a matrix product, the best of five."""
    one = torch.rand(MATRIX, MATRIX).to(device, dtype)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        (one @ one)[0, 0].item()  # CPU-GPU sync point
        seconds.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(seconds)


def processor(device: torch.device) -> str:
    """Return the model name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    linux = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", linux.read_text() if linux.exists() else "")
    return named[1] if named else platform.processor() or platform.machine()


def machine(net: str, precision: str, device: torch.device, folder: Path) -> dict[str, Any]:
    """Return the properties that all rows share: hardware, versions, and seconds to import PyTorch
    and to the end of a first step."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    imported = round(time.perf_counter() - started, 2)
    flags = ["--device", str(device), "--model", net, "--save_path", str(folder / "first.png")]
    return {
        "processor": processor(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "net": net,
        "precision": precision,
        "import torch": imported,
        "first step": seconds_to_first_step(flags),
    }


def rows(
    exemplar: Tensor, net: str, precisions: Sequence[str], device: torch.device, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield a row for each of SIDES and each precision. A precision that is slower than the first
    one is left out at larger sizes, where it would take hours."""
    for side in SIDES:
        path = folder / f"{side}.png"
        save_picture(resize(exemplar, (side, side)), path, {})
        found = []
        for precision in precisions:
            found.append(measure(path, net, precision, device))
            yield found[-1]
        exact = found[0]["s/step"]
        precisions = [row["precision"] for row in found if row["s/step"] <= exact]


def line_of(cells: Iterable[object]) -> str:
    """Return one line of the table, each cell right-aligned under the heading of its column."""
    pairs = zip(COLUMNS, cells, strict=True)
    shown = ((name, "-" if cell is None else cell) for name, cell in pairs)
    return "  ".join(f"{cell:>{max(9, len(name))}}" for name, cell in shown)


def benchmark(arguments: argparse.Namespace) -> None:
    """Print each row of the table when it is measured, or JSON at the end.

    Raises:
        UserError: the exemplar, device, precision or net is not available here.
    """
    device, _ = pick_device(arguments.device)
    exemplar = read_picture(find_picture(arguments.gt_path)).pixels
    best = pick_precision(arguments.precision, device)
    precisions = usable(device) if arguments.precision == AUTO else (best,)
    with tempfile.TemporaryDirectory() as name:
        known = machine(arguments.model, best, device, Path(name))
        found = rows(exemplar, arguments.model, precisions, device, Path(name))
        if arguments.json:
            print(json.dumps({"machine": known, "rows": list(found)}, indent=1))
            return
        print("\n".join(f"{key}: {value}" for key, value in known.items()))
        print(line_of(COLUMNS), flush=True)
        for row in found:
            print(line_of(row[column] for column in COLUMNS), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark.

    Returns:
        The exit code: 0, 2 for an error of the user.
    """
    parser = argparse.ArgumentParser("benchmark.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gt_path", default="leaf.jpg", metavar="PICTURE", help="exemplar")
    parser.add_argument("--device", help="device, as for Synthesis.py")
    parser.add_argument("--model", default=BUNDLED_NET, choices=tuple(NETS))
    parser.add_argument("--precision", default=AUTO, choices=(AUTO, *PRECISIONS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    try:
        benchmark(parser.parse_args(argv))
    except UserError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
