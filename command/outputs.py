"""The files that a run writes: their names, and checks that none replaces an input or output."""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from command.files import check_writable, open_regular
from command.flags import Request
from command.kinds import kind_and_name
from command.pictures import FLOAT_SUFFIXES, find_picture
from utils import UserError, prefixed, reason_of

PAGE = "report.html"  # name of the page in a folder of results
LOG_LINE = b'{"time": '  # beginning of each line of a log
PAGE_TITLE = b"<title>Textures</title>"  # in the head of each page
HEAD = 4096  # bytes read to recognise a file


def tiled_path(result: Path) -> Path:
    """Return the path of the repeat of a seamless picture."""
    return result.with_stem(f"{result.stem}_tiled")


def tile_path(result: Path, number: int) -> Path:
    """Return the path of a tile of a set, numbered from 1."""
    return result.with_stem(f"{result.stem}_{number}")


def floor_path(result: Path) -> Path:
    """Return the path of the floor of a set of tiles."""
    return result.with_stem(f"{result.stem}_floor")


def checkpoint_path(result: Path) -> Path:
    """Return the path of the checkpoint from which a stopped run continues."""
    return result.with_name(f"{result.name}.checkpoint")


def preview_path(result: Path) -> Path:
    """Return the path of the preview of an unfinished picture."""
    return result.with_name(f"{result.stem}.preview.png")


def map_path(result: Path, path: Path, floats: bool) -> Path:
    """Return the path of a map of the result.

    Args:
        path: of the map of the exemplar from which it is transferred.
        floats: whether that map holds floats. If so, the suffix is that of `path` if its format
            holds floats, otherwise .tif; without floats it is .png.
    """
    suffix = ".png"
    if floats:
        suffix = path.suffix if path.suffix.lower() in FLOAT_SUFFIXES else ".tif"
    return result.with_name(f"{result.stem}_{path.stem}{suffix}")


def map_paths(result: Path, request: Request) -> Iterator[Path]:
    """Yield the paths that the maps of a result may have: two for each map, one for integers and
    one for floats, as which of them it holds is known only when it is read."""
    for name in request.maps:
        source = Path(kind_and_name(name)[1])
        yield from (map_path(result, source, floats) for floats in (False, True))


def snapshot_path(result: Path, step: int) -> Path:
    """Return the path of the snapshot after a step."""
    return result.with_stem(f"{result.stem}_{step:06d}")


def snapshot_of(path: Path, request: Request) -> Path | None:
    """Return the result of which the run would save a snapshot at that path, or None."""
    result = path.with_stem(path.stem.rpartition("_")[0] or path.stem)
    step = step_of(path, result)
    if step is None or request.save_every is None:
        return None
    return result if 0 < step <= request.epoch and step % request.save_every == 0 else None


def step_of(path: Path, result: Path) -> int | None:
    """Return the step in the path of a snapshot of a result; None if it is no such path."""
    found = re.fullmatch(r".+_(\d{6,18})", path.stem, re.ASCII)
    step = int(found[1]) if found else None
    return None if step is None or snapshot_path(result, step) != path else step


def check_outputs(
    request: Request,
    exemplars: Iterable[Path],
    results: Collection[Path],
    floors: Iterable[Path] = (),
) -> None:
    """Check that no output overwrites an input or another output.

    Raises:
        UserError: an output is the same file as an input or another output, or the folder of
            an output has the path of another output.
    """
    read = {_identity(path): (flag, path) for flag, path in _read(request, exemplars)}
    written: dict[object, tuple[str, Path]] = {}
    folders: set[Path] = set()
    laid = (("--tile_set", path) for path in floors)
    for flag, path in (*_written(request, results), *laid):
        key = _identity(path)
        if other := read.get(key) or written.get(key):
            raise UserError(f"{flag} {path}: the same file as {_told(other)}, give another name")
        written[key] = flag, path
        folders.add(path.parent)
    for above in {one for folder in folders for one in (folder, *folder.parents)}:
        if other := written.get(_identity(above)):
            raise UserError(f"{_told(other)}: other files are to be saved in a folder of that name")
    pictures = {_identity(path) for path in results} if request.save_every else ()
    for other in (*read.values(), *written.values()) if pictures else ():
        result = snapshot_of(other[1], request)
        if result is not None and _identity(result) in pictures:
            raise UserError(f"--save_every: a snapshot would replace {_told(other)}")


def _told(file: tuple[str, Path]) -> str:
    return f"{file[0]} {file[1]}"


def check_log(path: Path) -> None:
    """Raise UserError if a log cannot be written or would replace another file."""
    with prefixed("--log "):
        check_writable(path)
    if (head := _head(path)) and not head.startswith(LOG_LINE):
        raise UserError(f"--log {path}: another file is there, give another name")


def check_page(path: Path) -> None:
    """Raise UserError if a page cannot be saved or would replace another file."""
    check_writable(path)
    if (head := _head(path)) and PAGE_TITLE not in head:
        raise UserError(f"{path}: another file is there, rename it")


def _head(path: Path) -> bytes:
    """Return the first HEAD bytes of a file; none if it is missing or empty."""
    try:
        if not path.exists() or path.stat().st_size == 0:
            return b""
        with open_regular(path) as file:
            return file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error


def _read(request: Request, exemplars: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yield each file that a run reads, with the flag that names it, except the picture of --from,
    which the run may replace."""
    yield from (("--gt_path", path) for path in exemplars)
    single = ("style_image", "init", "mask", "orientation", "edges_of", "weights", "config")
    named = [
        *((f"--{flag}", getattr(request, flag)) for flag in single),
        *(("--guide", name) for pair in request.guide for name in pair),
        *(("--mix", name) for name, _ in request.mix),
        *(("--maps", kind_and_name(name)[1]) for name in request.maps),
    ]
    for flag, name in named:
        with suppress(UserError):  # not a file, such as `noise`, or missing: reading it raises
            if name is not None and name not in request.pictures:
                yield flag, find_picture(name)


def _written(request: Request, results: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yield each file that a run writes, except snapshots, with the flag that requests it."""
    for result in results:
        yield "--save_path", result
        if request.tile and not request.tile_set:
            yield "--tile", tiled_path(result)
        if request.preview:
            yield "--preview", preview_path(result)
        if request.resume:
            yield "--resume", checkpoint_path(result)
        yield from (("--maps", path) for path in map_paths(result, request))
    page = request.report and request.report / PAGE
    flags = ("--sheet", request.sheet), ("--animate", request.animate), ("--log", request.log)
    for flag, path in (*flags, ("--report", page)):
        if path is not None:
            yield flag, path


def _identity(path: Path) -> object:
    """Return a value that is the same for all paths of a file, which may be missing."""
    with suppress(OSError, ValueError):  # missing, or not a valid name
        known = os.stat(path)
        return known.st_dev, known.st_ino
    with suppress(ValueError):
        return os.path.realpath(path)
    return path
