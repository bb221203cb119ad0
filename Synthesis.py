#!/usr/bin/env python3
"""Neural texture synthesis: generate texture of any size from a picture of a texture.

The command parses its flags, plans a job for each picture, optimises the picture from coarse to
fine, and saves it. `synthesize` does the same from Python.
"""

if __name__ == "__main__":  # before slow imports, and before a file is opened
    from command.start import configure_libraries, exit_on_signals, explain_imports, open_streams

    open_streams()
    exit_on_signals()
    explain_imports()
    configure_libraries()
else:
    from command.start import configure_libraries

    configure_libraries()

from pathlib import Path
from typing import Any

from torch import Tensor

from command.arguments import parse
from command.display import print_result, print_stderr
from command.interrupts import exit_code, raise_on_signals, terminate_on_signals
from command.library import images_of
from command.processes import keep_freed_memory
from command.ranks import exit_process, report_to_launcher
from command.results import Failed, error_line
from command.run import WriteError, print_scores_or_report, run
from command.start import LINE, NOTHING


def synthesize(
    gt_path: Any = None, *, save_path: str | Path | None = None, quiet: bool = True, **flags: Any
) -> Tensor | list[Tensor]:
    """Synthesize one or several textures, as the command does with the same flags.

    `synthesize("leaf.jpg", size=(256, 512), epoch=300, save_path="wide.png")` is
    `python Synthesis.py --gt_path leaf.jpg --size 512x256 --epoch 300 --save_path wide.png`.

    Args:
        gt_path: exemplar: a path, a folder, a glob pattern or a picture in memory, or a list of
            these. A picture in memory is a PIL picture, an array of shape (H, W, 3) or (H, W), or a
            tensor of shape (1, 3, H, W) or (3, H, W), of uint8, uint16 or floats in [0, 1].
            Default: the exemplar that the command uses without --gt_path.
        save_path: path of the result. Default: no file is written.
        quiet: whether to omit notes and progress on stderr. Default: True.
        flags: other flags of the command by name, as Python values or text. Sizes are
            (height, width). style_image, init, mask, edges_of, guide, mix and maps also take
            pictures in memory.

    Returns:
        The picture, (1, 3, height, width) in [0, 1], on the CPU, not rounded to the levels of a
        file. For a list, a folder, a pattern, `tile_set`, or `count` of 2 or more: a list of
        pictures, in the order of exemplars, then of seeds, then of tiles. Pictures that an earlier
        run has saved are made again.

    Raises:
        UserError: an error that the command would print in one line. The first error ends the call.
        KeyboardInterrupt: after the unfinished picture is saved, if save_path is given.
    """
    flags |= {"save_path": save_path, "quiet": quiet}
    return images_of(gt_path, flags)


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 on success; 1 if any of several pictures could not be made, or a further
        file (repeat, map, sheet, animation, report) could not be written; 2 for an error that the
        user can correct; 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
    """
    failed = made = code = 0
    interrupted = NOTHING
    try:
        raise_on_signals()
        keep_freed_memory()
        request = parse(argv)
        if print_scores_or_report(request):
            return 0
        for result in run(request, spawn=__name__ == "__main__"):
            if isinstance(result, Failed):
                failed += 1
                print_stderr([f"Synthesis.py: {result.line}"])
            else:
                made += 1
                print_result(result.line)
                interrupted = LINE
            if isinstance(result, Failed) or result.write_errors:
                code = 1
        if failed:
            print_stderr([f"Synthesis.py: {failed} of {failed + made} pictures could not be made"])
    except KeyboardInterrupt as error:
        print_stderr([interrupted])
        return exit_code(error)
    except Exception as error:
        if (line := error_line(error)) is None:
            raise
        print_stderr([f"Synthesis.py: {line}"])
        report_to_launcher(line)
        return 1 if isinstance(error, WriteError) else 2
    return code


if __name__ == "__main__":
    code = main()
    terminate_on_signals()
    exit_process(code)
