"""Results in one file: an overview (--sheet), or snapshots as an animation (--animate)."""

import glob
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from command.files import check_writable, save_bytes
from command.outputs import step_of
from command.pictures import check_save_path, read_levels, record_at, record_options, save_picture
from command.settings import exemplar_of
from utils import LEVELS, UserError, in_one_line

SIDE, GAP, CAPTION = 256, 12, 22  # px
BACKGROUND, INK = (25, 27, 30), (230, 230, 230)
ANIMATED = (".gif", ".webp")
SHEET, ANIMATION = "sheet", "animation"  # keys in their records, which identify them
FRAME, LAST = 100, 1500  # ms, durations of a frame and of the last one
REPEAT = "2x2 repeat"  # title
MOST_SHOWN = 1000  # pictures in a sheet or an animation, to bound memory


def write_sheet(results: list[Path], path: Path) -> None:
    """Save an overview: of one result, its exemplar, itself, its 2x2 repeat and its snapshots; of
    several results, each exemplar followed by its results.

    Raises:
        UserError: A picture cannot be read, or the sheet cannot be written.
    """
    shown: list[tuple[str, Path]] = []
    seen: set[Path] = set()
    for result in results:
        exemplar = exemplar_of(result, record_at(result))
        if exemplar is not None and exemplar not in seen:
            seen.add(exemplar)
            shown.append((f"exemplar {exemplar.name}", exemplar))
        shown.append((result.name, result))
    if len(results) == 1:
        shown.append((REPEAT, results[0]))
        shown += [(f"step {step}", one) for step, one in snapshots_of(results[0])]
    columns = min(len(shown), max(4, math.ceil(math.sqrt(len(shown)))))
    rows = math.ceil(len(shown) / columns)
    size = GAP + columns * (SIDE + GAP), GAP + rows * (SIDE + CAPTION + GAP)
    sheet, font = Image.new("RGB", size, BACKGROUND), ImageFont.load_default()
    draw = ImageDraw.Draw(sheet)
    for i, (title, file) in enumerate(shown):  # one in memory at a time
        picture = read_levels(file)
        if title == REPEAT:
            picture = Image.fromarray(np.tile(np.asarray(picture), (2, 2, 1)))
        x, y = GAP + i % columns * (SIDE + GAP), GAP + i // columns * (SIDE + CAPTION + GAP)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (x, y + CAPTION))
        title = in_one_line(title)  # a file name may hold undecodable bytes
        while font.getlength(title) > SIDE:
            title = title[:-4] + "..."
        draw.text((x, y + 4), title, INK, font)
    levels = torch.from_numpy(np.array(sheet)).movedim(2, 0)[None]
    save_picture(levels / LEVELS, path, {SHEET: [result.name for result in results]})


def write_animation(result: Path, path: Path) -> None:
    """Save the snapshots of a result as an animation; raise as `write_sheet`."""
    last = read_levels(result)
    frames = [read_levels(one).resize(last.size) for _, one in snapshots_of(result)]
    durations = [FRAME] * len(frames) + [LAST]
    file = BytesIO()
    first, *others = [*frames, last]
    kind = path.suffix.upper().removeprefix(".")
    more = record_options(kind, {ANIMATION: result.name})
    first.save(file, kind, save_all=True, append_images=others, duration=durations, loop=0, **more)
    save_bytes(file.getbuffer(), path)


def snapshots_of(result: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the snapshots of a result, in order. Snapshots of other runs, which
    have other records, are left out."""
    beside = result.parent.glob(f"{glob.escape(result.stem)}_*{glob.escape(result.suffix)}")
    found = [(step, one) for one in beside if (step := step_of(one, result)) is not None]
    made = record_at(result)
    return sorted((step, one) for step, one in found if _is_of(record_at(one), made))


def _is_of(snapshot: dict[str, Any], made: dict[str, Any]) -> bool:
    """Return whether every value in the record of a snapshot is also in that of the result."""
    asked = {name: value for name, value in snapshot.items() if name != "step"}
    return "step" in snapshot and all(made.get(name) == value for name, value in asked.items())


def check_sheet(path: Path, pictures: int, snapshots: int) -> None:
    """Raise UserError if the file cannot be saved as a sheet, or for too many pictures."""
    check_save_path(path)
    if pictures + snapshots > MOST_SHOWN:
        more = f" and {snapshots} snapshots" if snapshots else ""
        raise UserError(
            f"--sheet {path}: {pictures} pictures{more}, at most {MOST_SHOWN} are shown"
        )


def check_animation(path: Path, several: bool, snapshots: int) -> None:
    """Raise UserError if the file cannot be saved as an animation, or the run has no snapshots."""
    if path.suffix.lower() not in ANIMATED:
        raise UserError(f"--animate {path}: unknown suffix, use one of {' '.join(ANIMATED)}")
    if several:
        raise UserError(f"--animate {path}: shows one picture, but this run makes several")
    if not snapshots:
        raise UserError(f"--animate {path}: requires --save_every N, whose snapshots it shows")
    if snapshots > MOST_SHOWN:
        raise UserError(
            f"--animate {path}: {snapshots} snapshots, at most {MOST_SHOWN} are shown, give a "
            "larger --save_every"
        )
    check_writable(path)
