#!/usr/bin/env python3
"""Neural texture synthesis: generate texture of any size from a picture of a texture.

The command parses its flags, plans a job for each picture, optimises the picture from coarse to
fine, and saves it. `synthesize` does the same from Python.
"""

if __name__ == "__main__":  # before anything else opens a file or takes time
    from command.start import configure_libraries, explain_imports, open_streams, signals_exit

    open_streams()
    signals_exit()
    explain_imports()
    configure_libraries()

from pathlib import Path
from typing import Any

from torch import Tensor

from command.arguments import parse
from command.display import print_result, say
from command.interrupts import exit_code, signals_end, signals_raise
from command.library import images_of
from command.processes import keep_freed_memory
from command.ranks import leave, tell_launcher
from command.results import Failed, line_of
from command.run import Unwritten, instead, run
from command.start import LINE, NOTHING


def synthesize(
    gt_path: Any = None, *, save_path: str | Path | None = None, quiet: bool = True, **flags: Any
) -> Tensor | list[Tensor]:
    """Run one synthesis from Python; identical to the command's output.

    `synthesize("leaf.jpg", size=(256, 512), epoch=300, save_path="wide.png")` is
    `python Synthesis.py --gt_path leaf.jpg --size 512x256 --epoch 300 --save_path wide.png`.

    Args:
        gt_path: exemplar: a path, a folder, a pattern or a picture in memory, or a list of these. A
            picture in memory is a PIL picture, an array of shape (H, W, 3) or (H, W), or a tensor
            of shape (1, 3, H, W) or (3, H, W), of uint8, uint16 or floats in [0, 1]. Default: as at
            the command line.
        save_path: path of the result. Default: no file is written.
        quiet: whether to omit notes and progress on stderr. Default: True.
        flags: all other flags of the command by name, as Python values or text. Sizes are
            (height, width). style_image, init, mask, guide, mix and maps also take pictures in
            memory.

    Returns:
        (1, 3, height, width) in [0, 1], on the CPU, before rounding to the levels of a file. For a
        list, a folder, a pattern, or `count` of 2 or more: a list of these, in the order of
        exemplars and seeds. Existing results are not reused.

    Raises:
        UserError: an error that the command would print in one line; of several pictures, the first
            error.
        KeyboardInterrupt: after the unfinished picture is saved, if there is a save_path.
    """
    flags |= {"save_path": save_path, "quiet": quiet}
    return images_of(gt_path, flags)


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 if some of several pictures could not be made or a file beside one could
        not be written; 2 for the user's errors; 130, 143 or 129 for Ctrl-C, SIGTERM or SIGHUP.
    """
    failed = made = code = 0
    interrupted = NOTHING
    try:
        signals_raise()
        keep_freed_memory()
        request = parse(argv)
        if instead(request):
            return 0
        for result in run(request, spawn=__name__ == "__main__"):
            if isinstance(result, Failed):
                failed += 1
                say([f"Synthesis.py: {result.line}"])
            else:
                made += 1
                print_result(result.line)
                interrupted = LINE
            if isinstance(result, Failed) or result.missing:
                code = 1
        if failed:
            say([f"Synthesis.py: {failed} of {failed + made} pictures could not be made"])
    except KeyboardInterrupt as error:
        say([interrupted])
        return exit_code(error)
    except Exception as error:
        if (line := line_of(error)) is None:
            raise
        say([f"Synthesis.py: {line}"])
        tell_launcher(line)
        return 1 if isinstance(error, Unwritten) else 2
    return code


if __name__ == "__main__":
    code = main()
    signals_end()
    leave(code)
