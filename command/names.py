"""Names of results: --save_path as a path, a folder or a pattern, and distinct names of
exemplars."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from string import Formatter

from command.flags import Request
from utils import UserError

FORMAT = re.compile(r"[0.]?[0-9]{0,2}[ds]?")  # allowed format specifications in --save_path


def result_names(request: Request, several: bool) -> Callable[[str, int], Path]:
    """Return a function (name of an exemplar, seed) -> path of the result.

    The function formats a pattern: the part of --save_path after its last existing folder, with
    the fields {stem} and {seed}. If --save_path is a folder, or a name without suffix for several
    results, the pattern is "{stem}.png" in that folder. For several exemplars, "_{stem}" is
    appended to a pattern without fields; for several seeds, "_{seed}" to one without {seed}.

    Args:
        several: whether there are several exemplars.
    """
    given = request.save_path
    # os.path.isdir returns False for an invalid name as well.
    is_folder = os.path.isdir(given) or (
        (several or request.count > 1) and not given.suffix and "{" not in given.name
    )
    if is_folder:
        folder, pattern = given, "{stem}.png"
    else:
        folder = next((one for one in given.parents if os.path.isdir(one)), Path(given.anchor))
        pattern = str(given.relative_to(folder))
    if "{" not in pattern:
        pattern = pattern.replace("}", "}}")
        pattern = str(Path(pattern).with_stem(Path(pattern).stem + "_{stem}" * several))
    _check_fields(given, pattern)
    counted = request.count > 1 and "{seed" not in pattern

    def name_of(stem: str, seed: int) -> Path:
        found = folder / pattern.format(stem=stem, seed=seed)
        return found.with_stem(f"{found.stem}_{seed}") if counted else found

    return name_of


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for every exemplar: its stem, extended by its suffix and by the names of its
    folders until all names differ: `wall`, `wall_png`, `old_wall`, `old_wall_png`."""
    names = [path.stem for path in paths]
    longer = [_longer_names(path) for path in paths]
    while True:
        counts = Counter(names)
        found = [
            next(more, name) if counts[name] > 1 else name
            for name, more in zip(names, longer, strict=True)
        ]
        if found == names:  # all differ, or a path is given twice
            return names
        names = found


def _longer_names(path: Path) -> Iterator[str]:
    stem, suffix = path.stem, path.suffix.removeprefix(".")
    yield f"{stem}_{suffix}"
    for folder in path.absolute().parents:
        stem = f"{folder.name}_{stem}"
        yield stem
        yield f"{stem}_{suffix}"


def _check_fields(path: Path, pattern: str) -> None:
    """Raise UserError for fields other than stem and seed, and for field widths of more than two
    digits: a wider name could take gigabytes of memory."""
    try:
        for _, name, spec, conversion in Formatter().parse(pattern):
            if name is not None and (
                name not in ("stem", "seed") or conversion or not FORMAT.fullmatch(spec or "")
            ):
                raise ValueError(f"the field {name}")
        pattern.format(stem="", seed=0)
    except ValueError as error:  # also for a single brace, or a number format for the stem
        raise UserError(
            f"--save_path {path}: allowed in braces are stem and seed, as in "
            "{stem}_{seed:03d}.png"
        ) from error
