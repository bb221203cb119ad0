#!/usr/bin/env python3
"""Make the pictures and tables of README.md and docs/, all or some by name.

An experiment is a list of commands of `Synthesis.py`, each of which makes a picture, and a function
that measures these pictures. Commands that a page shows are read from that page. All commands run
with the bundled net on the CPU, as for all figures of the pages.
"""

import itertools
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
sys.path.insert(0, str(ROOT))

import agreement  # noqa: E402  # this and the following imports need the line above

from command.arguments import Parser, parse  # noqa: E402
from command.pictures import find_picture, read_picture, save_picture  # noqa: E402
from command.processes import keep_freed_memory, peak_bytes  # noqa: E402
from command.results import Result  # noqa: E402
from command.run import run  # noqa: E402
from command.scores import SCORES, colour, patches, score, seam  # noqa: E402
from engine.orientation import COHERENT, axes  # noqa: E402
from losses import METHODS, PRESETS  # noqa: E402
from utils import UserError, resize  # noqa: E402

FIXED = "--model vgg16-caffe --device cpu --quiet"
LBFGS = "--optimizer LBFGS --epoch 150"
FIRST = [
    Path(name)
    for name in ("leaf.jpg", "pebbles.png", "gravel.png", "lichen.png", "grass.png", "brick.png")
]
WIDE = [Path(name) for name in ("pebbles.png", "tiles.png", "leaf.jpg", "hubble.jpg", "brick.png")]
SORTS = [Path(name) for name in ("leaf.jpg", "cloth.png", "pebbles.png", "wood.png")]
SCORED = [*SORTS, *(Path(name) for name in ("brick.png", "weave.png", "tiles.png", "dots.png"))]
DRAWN = "drawn/"  # placeholder in commands for the folder of `draw`
CROP, HOLE = 128, 56  # px, sides of a cropped exemplar and of the hole in its centre
HOLED, MATCHED = ("brick", "weave", "cloth"), ("pebbles", "brick", "wood")
SEEDS, EVERY, WEIGHTS, WIDTHS = (0, 1), (2, 5, 10, 20, 40), (0.02, 0.05, 0.15), (256, 512, 1024)
EDGE_WINDOW = 5  # px over which brightness is averaged before edges are found, against grain

Commands = dict[str, str]  # name of a picture -> flags of the command that makes it


class Made(NamedTuple):
    """A picture saved by a command."""

    path: Path
    seconds: float  # without the time to load the net
    gigabytes: float  # peak memory of the process; NaN if the system does not report it
    record: dict[str, Any]

    @property
    def image(self) -> Tensor:
        """The saved file as (1, 3, H, W) in [0, 1]."""
        return read_picture(self.path)[0]

    @property
    def scores(self) -> dict[str, tuple[float, float]]:
        """The scores of `--score`: name -> (value, value of one half of the exemplar compared with
        the other)."""
        return score(self.image, exemplar(self.record["exemplar"]))


class Experiment(NamedTuple):
    """Commands that make pictures, and a function that measures the pictures."""

    minutes: int  # duration on two cores
    makes: str  # pictures and tables of the pages that it makes, for the list of experiments
    commands: Commands
    measure: Callable[[dict[str, Made]], list[str]] = lambda made: []


def exemplar(name: str) -> Tensor:
    """Return an exemplar, (1, 3, H, W) in [0, 1]."""
    return read_picture(find_picture(name))[0]


# ---------------------------------------------------------------------------------- the commands


def code_of_pages() -> str:
    """Return the blocks of shell code in the pages, concatenated."""
    blocks = [re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES]
    return "".join(itertools.chain(*blocks))


def commands_of_pages() -> Commands:
    """Return the flags of every command of the pages that ends with `--save_path PATH`, by the stem
    of PATH."""
    found = re.findall(
        r"^python Synthesis\.py (.*) --save_path (\S+)$", code_of_pages(), re.MULTILINE
    )
    return {Path(path).stem: flags for flags, path in found}


def pictures_of_pages() -> set[str]:
    """Return the names of the files in docs/ that the pages show."""
    shown = {
        (page.parent / name).resolve()
        for page in PAGES
        for name in re.findall(r"!\[\]\(([^)]+)\)", page.read_text())
    }
    return {path.name for path in shown if path.parent == DOCS}


def shown(*names: str) -> Commands:
    """Return the commands of the pages that make the pictures of these names."""
    return {name: SHOWN[name] for name in names}


def product(name: str, flags: str, *axes: Iterable[object]) -> Commands:
    """Format name and flags by `str.format`, with every combination of values of the axes."""
    return {name.format(*v): flags.format(*v) for v in itertools.product(*axes)}


def by_model(files: list[Path]) -> Commands:
    """Return the commands of every method by L-BFGS and of `--preset best`, for each exemplar."""
    name, flags = "{1}_{0.stem}", f"--gt_path {{0}} --method {{1}} --spectrum 0 {LBFGS}"
    best = product(name, "--gt_path {0} --preset {1}", files, ["best"])
    return product(name, flags, files, METHODS) | best


def draw(folder: Path) -> None:
    """Save the exemplars and the mask that are not files of the repository: DRAWN in commands."""
    for name in {*HOLED, *MATCHED}:
        save_picture(exemplar(f"{name}.png")[..., :CROP, :CROP], folder / f"{name}.png", {})
    hole = F.pad(torch.ones(1, 3, HOLE, HOLE), [(CROP - HOLE) // 2] * 4)
    save_picture(hole, folder / "hole.png", {})
    rows = 0.5 + 0.4 * (2 * math.pi * torch.arange(256.0) / 8).sin()
    save_picture(rows[:, None].expand(1, 3, 256, 256), folder / "stripes.png", {})
    save_picture(resize(exemplar("pebbles.png"), (1024, 1024)), folder / "large.png", {})


def make(argv: list[str]) -> Made:
    """Run one command. Call in a new process, as peak memory is that of the process."""
    keep_freed_memory()
    *_, result = run(parse([*argv, "--overwrite"]))  # of a set of tiles, the last one
    assert isinstance(result, Result)  # the error of a single picture or set is raised
    gigabytes = peak_bytes(torch.device("cpu")) / 1e9
    return Made(result.path, result.seconds, gigabytes, result.record)


# ---------------------------------------------------------------------------------- the measures


def table(*rows: Iterable[object]) -> list[str]:
    """Return the lines of a Markdown table: header, then rows. Numbers get two decimals."""
    lines = []
    for row in rows:
        cells = [x if isinstance(x, str) else f"{x:.2f}" for x in row]
        lines.append("|" + "|".join(f" {x} " if x else " " for x in cells) + "|")
    return [lines[0], "|" + "---|" * len(cells), *lines[1:]]


def correlation(a: Tensor, b: Tensor) -> float:
    """Return Pearson's correlation of the elements of two tensors of equal size."""
    return torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].item()


def both_optimisers(made: dict[str, Made]) -> list[str]:
    """Return the table of the first command: errors and colours of Adam and L-BFGS."""
    rows: list[list[object]] = [["exemplar", "Adam: error", "colours", "L-BFGS: error", "colours"]]
    for file in FIRST:
        pair = made[file.stem], made[f"{file.stem}_lbfgs"]
        source = exemplar(str(file))
        cells = [(f"{one.record['error']:.5f}", colour(one.image, source)) for one in pair]
        rows.append([file.stem, *cells[0], *cells[1]])
    seconds = [f"{one.seconds:.0f}" for one in made.values()]
    return [*table(*rows), "", f"seconds: {', '.join(seconds)}"]


def medians(made: dict[str, Made]) -> list[str]:
    """Return the table of scores: medians over the exemplars for each model or preset, and for one
    half of an exemplar compared with the other."""
    runs: dict[str, list[Made]] = {}
    for name, one in made.items():
        runs.setdefault(name.split("_")[0], []).append(one)
    scores = {model: [one.scores for one in of_model] for model, of_model in runs.items()}
    halves = next(iter(scores.values()))  # the same exemplars for every model
    columns = []
    for name in SCORES:
        values = [[found[name][0] for found in of_model] for of_model in scores.values()]
        values.append([found[name][1] for found in halves])
        known = [[x for x in column if not math.isnan(x)] or [math.nan] for column in values]
        middle = [median(column) for column in known]
        columns.append([f"{x:.{2 if max(middle) >= 0.3 else 3}f}" for x in middle])
    rows: list[list[str]] = [["", "steps", *SCORES]]
    for i, (model, of_model) in enumerate(runs.items()):
        told = f"`--preset {model}`" if model in PRESETS else f"`{model}`"
        steps = str(of_model[0].record["epoch"])
        rows.append([told, steps, *(column[i] for column in columns)])
    rows.append(["two halves of an exemplar", "", *(column[-1] for column in columns)])
    return table(*rows)


def costs(made: dict[str, Made]) -> list[str]:
    """Return the table of steps, seconds and memory of every command."""
    rows = [
        [f"`{name}`", str(one.record["epoch"]), f"{one.seconds:.0f}", f"{one.gigabytes:.1f}"]
        for name, one in made.items()
    ]
    return table(["", "steps", "seconds", "GB"], *rows)


def steps_across(made: dict[str, Made]) -> list[str]:
    """Return the table of differences of neighbouring pixels across the border of a tiled output,
    relative to their mean inside."""
    rows = [[name, seam(one.image, one.image)] for name, one in made.items()]
    return table(["tile", "step across"], *rows)


def edges(image: Tensor) -> Tensor:
    """Return the gradient norm of the averaged brightness of a picture resized to 256x171:
    (1, 3, H, W) -> (1, 1, h, w)."""
    grey = F.avg_pool2d(resize(image, (171, 256)).mean(1, keepdim=True), EDGE_WINDOW, 1)
    down, across = grey.diff(dim=2)[..., :-1], grey.diff(dim=3)[..., :-1, :]
    return (down.square() + across.square()).sqrt()


def kept_edges(made: dict[str, Made]) -> list[str]:
    """Return the table of correlations between the edges of photo and output, by content weight and
    width."""
    photo = edges(exemplar("docs/cat.jpg"))
    rows = [
        [str(x), *(correlation(photo, edges(made[f"edges_{x}_{w}"].image)) for w in WIDTHS)]
        for x in WEIGHTS
    ]
    return table(["`--content_weight`", *(f"{width} px wide" for width in WIDTHS)], *rows)


def off_axis(made: dict[str, Made]) -> list[str]:
    """Return the table of median errors, in degrees, of the local orientation of pictures with
    `--orientation 45`, over the positions that have an orientation."""
    rows: list[list[object]] = [["at 45 degrees", "degrees off"]]
    for name, one in made.items():
        if one.record["orientation"] == "45":
            found = axes(one.image)
            # `axes` returns cosine and sine of twice the clockwise angle.
            angles = -torch.rad2deg(torch.atan2(found[:, 1], found[:, 0])) / 2
            errors = ((angles - 45 + 90) % 180 - 90).abs()
            rows.append([name, errors[found.norm(dim=1) > COHERENT].median().item()])
    return table(*rows)


def hole_filled(made: dict[str, Made]) -> list[str]:
    """Return the table of correlations between filled and original pixels, with and without the
    spectrum term."""
    inside = slice((CROP - HOLE) // 2, (CROP + HOLE) // 2)
    rows = []
    for name in HOLED:
        there = exemplar(f"{name}.png").mean(1)[..., inside, inside]
        found = [made[f"hole_{name}_{w}"].image.mean(1)[..., inside, inside] for w in (0.1, 0)]
        rows.append([name, *(correlation(x, there) for x in found)])
    return table(["hole in", "`--spectrum 0.1`", "`--spectrum 0`"], *rows)


def carried_maps(made: dict[str, Made]) -> list[str]:
    """Return the table of correlations between the shading of the normals, lit from the upper left,
    and the brightness of the picture."""

    def lit(colours: Tensor, normals: Tensor) -> float:
        light = torch.tensor([-1.0, 1.0, 1.0])  # to the left, up and out of the page
        return correlation(torch.einsum("c,bchw->bhw", light, 2 * normals - 1), colours.mean(1))

    given = exemplar("docs/pebbles_normal.png")
    rows = [["exemplar", lit(exemplar("pebbles.png"), given), ""]]
    for name in ("stone", "stone_gram"):
        one = made[name]
        carried = read_picture(one.path.with_name(f"{name}_pebbles_normal.png"))[0]
        rows.append([f"`{one.record['method']}`", lit(one.image, carried), patches(carried, given)])
    return table(["", "light and brightness", "patches of the normals"], *rows)


def curve(made: dict[str, Made]) -> list[str]:
    """Return the table of patch scores by `--match_every`, means over the seeds."""
    rows = []
    for stem in MATCHED:
        source = exemplar(f"{stem}.png")[..., :CROP, :CROP]
        found = [[made[f"every_{stem}_{n}_{seed}"] for seed in SEEDS] for n in EVERY]
        rows.append([stem, *(fmean(patches(one.image, source) for one in x) for x in found)])
    return table(["`--match_every`", *map(str, EVERY)], *rows)


def judged(_: dict[str, Made]) -> list[str]:
    """Return the tables of people's preferences and of the agreement of scores with them."""
    return [*agreement.preferences(), "", *agreement.agreement()]


# ------------------------------------------------------------------------------- the experiments

SHOWN = commands_of_pages()
PEBBLES = "--gt_path pebbles.png"
AT_45 = f"--gt_path {{0}} --method {{1}} --orientation 45 {LBFGS}"
# The stripes are drawn, as no exemplar is that regular.
LINED = [Path(name) for name in (f"{DRAWN}stripes.png", "wood.png", "grass.png")]
TILE, TILES = f"--gt_path {{0}} --method {{1}} --tile xy {LBFGS}", "tile_{1}_{0.stem}"
PHOTO = (
    f"--image_path docs/cat.jpg --style_image leaf.jpg --content_weight {{}} --size {{}} {LBFGS}"
)
FILL = f"--gt_path {DRAWN}{{0}}.png --init {DRAWN}{{0}}.png --mask {DRAWN}hole.png"
MATCH = f"--gt_path {DRAWN}{{}}.png --method cnnmrf --patches 0 --spectrum 0 {LBFGS}"

EXPERIMENTS = {
    "wide": Experiment(
        1,
        "the pictures at the top",
        product("wide_{0.stem}", "--gt_path {0} --preset best --size 512x256", WIDE),
    ),
    "first": Experiment(
        15,
        "the pictures of the first command and the table of both optimisers",
        product("{0.stem}", "--gt_path {0}", FIRST)
        | product("{0.stem}_lbfgs", f"--gt_path {{0}} {LBFGS}", FIRST),
        both_optimisers,
    ),
    "methods": Experiment(
        17, "the pictures by method and the table of their scores", by_model(SORTS), medians
    ),
    "painting": Experiment(
        3,
        "the figures of the preset that always paints",
        product("draft_{0.stem}_0", "--gt_path {0} --preset draft", SCORED),
        medians,
    ),
    "tile": Experiment(1, "the wall that tiles, and the floor", shown("tile", "floor")),
    "seams": Experiment(
        11,
        "the differences across the borders of tiles",
        product(TILES, TILE, [*SORTS, Path("brick.png")], ["gram"])
        | product(TILES, TILE, SORTS[:2], ["guided"])
        | product(TILES, TILE, SORTS[2:], ["cnnmrf"])
        | {"tile_best_brick": "--gt_path brick.png --preset best --tile xy --size 160x128"}
        | {"tile_adam_pebbles": f"{PEBBLES} --tile xy"}
        | {"tile_wave_wood": f"--gt_path wood.png --tile xy --orientation wave {LBFGS}"},
        steps_across,
    ),
    "style": Experiment(
        20,
        "style transfer, and how a photo's edges are kept",
        shown("style", "style_color")
        | {
            f"edges_{weight}_{width}": PHOTO.format(weight, f"{width}x{round(width * 2 / 3)}")
            for weight, width in itertools.product(WEIGHTS, WIDTHS)
        },
        kept_edges,
    ),
    "orientation": Experiment(
        10,
        "wood in circles, and the errors of orientations",
        shown("circular") | product("at_45_{1}_{0.stem}", AT_45, LINED, ["cnnmrf", "guided"]),
        off_axis,
    ),
    "guides": Experiment(1, "the progression of lichen", shown("progression")),
    "mix": Experiment(2, "both pictures of several exemplars", shown("mix", "disc_result")),
    "fill": Experiment(
        3,
        "pictures that are filled and extended, and holes in regular exemplars",
        shown("filled", "grown")
        | product(
            "hole_{}_{}", FILL + " --spectrum {1} --optimizer LBFGS --epoch 120", HOLED, (0.1, 0)
        ),
        hole_filled,
    ),
    "maps": Experiment(
        2,
        "the maps that are carried along, and how well they fit",
        shown("stone") | {"stone_gram": f"{PEBBLES} --maps docs/pebbles_normal.png {LBFGS}"},
        carried_maps,
    ),
    "failures": Experiment(
        2, "the failures", shown("failed_brick", "failed_grass", "failed_best"), off_axis
    ),
    "match_every": Experiment(
        8,
        "the curve of --match_every",
        product("every_{}_{}_{}", MATCH + " --match_every {} --seed {}", MATCHED, EVERY, SEEDS),
        curve,
    ),
    "times": Experiment(
        14,
        "steps, seconds and memory at the defaults",
        product("{}", PEBBLES + " --method {}", METHODS)
        | {"draft": PEBBLES + " --preset draft"}
        # Memory peaks at the first step at full size, here the only one.
        | {"guided_1024": f"--gt_path {DRAWN}large.png --method guided --epoch 31"},
        costs,
    ),
    "agreement": Experiment(1, "agreement of the scores with people", {}, judged),
}


def run_experiment(experiment: Experiment, folder: Path, drawn: str, kept: set[str]) -> list[str]:
    """Make the pictures of an experiment, and return the lines that its measurement prints.

    Args:
        experiment: to run.
        folder: where all pictures are saved.
        drawn: where `draw` has saved its files.
        kept: names of files that are copied to docs/ as soon as they are saved.
    """
    made = {}
    for name, flags in experiment.commands.items():
        path = folder / f"{name}.png"
        words = [word.replace(DRAWN, f"{drawn}/") for word in shlex.split(f"{flags} {FIXED}")]
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            made[name] = one = pool.submit(make, [*words, "--save_path", str(path)]).result()
        print(f"{path.name}  {one.seconds:.0f} s", file=sys.stderr, flush=True)
        for saved in folder.glob(f"{name}*"):
            if saved.name in kept:
                shutil.copyfile(saved, DOCS / saved.name)
    return experiment.measure(made)


def main(argv: list[str] | None = None) -> int:
    """List or run experiments. Tables are printed to stdout, everything else to stderr.

    Returns:
        The exit code: 0, 2 for an error of the user, 130 for Ctrl-C.
    """
    parser = Parser(
        "experiments.py", description="Make the pictures and tables of the pages again."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of experiments, or all")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="save all pictures in DIR, none in docs/"
    )
    try:
        arguments = parser.parse_args(argv)
        for name in arguments.names:
            if name not in EXPERIMENTS and name != "all":
                raise UserError(f"{name!r}: give all, or some of {', '.join(EXPERIMENTS)}")
        if not arguments.names:
            for name, one in EXPERIMENTS.items():
                print(f"{name:12} {one.minutes:3} min  {one.makes}")
            return 0
        names = EXPERIMENTS if "all" in arguments.names else dict.fromkeys(arguments.names)
        minutes = sum(EXPERIMENTS[name].minutes for name in names)
        print(f"about {minutes} minutes on two cores", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as drawn:
            folder = arguments.out.resolve() if arguments.out else Path(scratch)
            os.chdir(ROOT)  # paths in the commands of the pages are relative to it
            draw(Path(drawn))
            kept = set() if arguments.out else pictures_of_pages()
            for name in names:
                if lines := run_experiment(EXPERIMENTS[name], folder, drawn, kept):
                    print("\n".join(lines), end="\n\n", flush=True)
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(f"experiments.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
