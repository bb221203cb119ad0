"""The command line: its parser, its help, and the `Request` made from it."""

import argparse
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import torch

from command.flags import EXAMPLES, FLAG_OF, FLAGS, MODEL, TERM, Flag, Request, spelled, weight
from command.settings import of_file, of_picture
from command.streams import write_stdout
from command.weights import BUNDLED_NET
from losses import LONG_RANGE_WEIGHT, METHODS, PRESETS, TERMS
from models import NETS
from utils import UserError

# Fields that are not recorded in pictures: paths of outputs, flags that do not change the picture,
# sources of other flags, and `terms`, whose weights are recorded by name.
NOT_RECORDED = {
    *("save_path", "save_every", "quiet", "max_memory", "split", "workers"),
    *("score", "report", "page_alone", "json"),
    *("count", "tile_set", "overwrite", "config", "from_picture", "progress", "log", "resume"),
    *("sheet", "animate", "preview", "asked", "typed", "pictures", "terms"),
}
VERSION = "0.10.0"
BESIDE_SCORE = {"score", "json", "gt_path", "quiet", "config"}  # flags that --score allows
MOVED = {"--benchmark": "run python docs/benchmark.py"}  # removed flags -> replacements

FIRST = """Synthesise new texture of any size from a picture of a texture.

  python Synthesis.py --gt_path leaf.jpg --epoch 1000
  python Synthesis.py --gt_path pebbles.png --preset best --size 512x384 --save_path out/new.png
  python Synthesis.py --gt_path photos/ --tile xy --count 3 --save_path out/

  --gt_path PICTURE ...   exemplars: files (also in textures/), folders or patterns
  --save_path FILE        result; by default result.jpg; out/ and out/{stem}_{seed}.png are allowed
  --size WIDTHxHEIGHT     size of the output; by default that of the exemplar
  --preset best           paint with the exemplar's pixels; optimise some larger outputs
  --tile xy               make the output seamless in both directions

--help all shows every flag, --help FLAG (--help tile) one flag with an example.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # No flag begins with a digit: `-4GB` is a value, which the parser of its flag refuses.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        action = self.flags().get(message.partition(":")[0])
        if action and isinstance(action.metavar, tuple) and "expected" in message:
            message += f", {' '.join(action.metavar)}"
        raise UserError(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        write_stdout(message)  # that of --help and --version

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and suggest the nearest flag in place of an unknown one."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown and unknown[0].startswith("-"):
            word = unknown[0].partition("=")[0]
            self.error(f"{word}: no such flag{self.hint(word)}")
        if unknown:
            self.error(f"{unknown[0]}: a value without a flag; exemplars are given by --gt_path")
        return found

    def hint(self, word: str) -> str:
        """Return ", " and what to type instead of an unknown flag; "" if nothing is similar."""
        near = difflib.get_close_matches(word, self.flags(), 1)
        return f", {MOVED[word]}" if word in MOVED else f", did you mean {near[0]}?" if near else ""

    def flags(self) -> dict[str, argparse.Action]:
        """Return every flag, as typed -> its action."""
        return {name: action for action in self._actions for name in action.option_strings}


class _Help(argparse.Action):
    """Show the first screen (`--help`), every flag (`--help all`) or one flag (`--help tile`)."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if values is None:
            write_stdout(FIRST)
        elif values == "all":
            parser.print_help()
        else:
            flags = parser.flags()
            name = "--" + values.lstrip("-")
            if name not in flags:
                parser.error(f"--help {values}: no such flag{parser.hint(name)}")
            formatter = parser.formatter_class(prog=parser.prog)
            formatter.add_argument(flags[name])
            write_stdout(formatter.format_help())
            if example := EXAMPLES.get(flags[name].dest):
                write_stdout(f"\n  python Synthesis.py {example}\n")
        parser.exit()


def build_parser() -> Parser:
    """Return the parser of `Synthesis.py`; its namespace holds only the flags that are given."""
    parser = Parser(
        prog="Synthesis.py",
        usage="python Synthesis.py --gt_path leaf.jpg --epoch 1000\n"
        "       python Synthesis.py --gt_path pebbles.png --size 512x384 --optimizer LBFGS "
        "--save_path out/pebbles.png",
        description="Synthesise new texture of any size from a picture of a texture.",
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        *("-h", "--help"),
        nargs="?",
        action=_Help,
        metavar="all|FLAG",
        help="show the most used flags; all: every flag; FLAG: that flag with an example",
    )
    version = f"{VERSION}, PyTorch {torch.__version__}"
    parser.add_argument("--version", action="version", version=version)
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, one in flags.items():
            _add_flag(group, name, one)
        if title == MODEL:
            group.add_argument(
                "--no-rescale", dest="rescale", action="store_false", help=argparse.SUPPRESS
            )
        if title == TERM:
            group.description = "weights relative to that of the model; 0 leaves a term out"
            _add_terms(group)
    return parser


def _add_flag(group: argparse._ArgumentGroup, name: str, one: Flag) -> None:
    options, help = dict(one.options), one.help
    if name == "method":  # METHODS may have grown since FLAGS was made
        options["choices"] = tuple(METHODS)
        help = "; ".join(f"{name}: {method.help}" for name, method in METHODS.items())
    elif "choices" in options:
        help = "; ".join(filter(None, (help, "one of " + ", ".join(options["choices"]))))
    help = f"{help}; default {one.default or _shown(getattr(Request, name))}".removeprefix("; ")
    names = one.names or (spelled(name),)
    group.add_argument(*names, dest=name, help=help.replace("%", "%%"), **options)


def _shown(default: Any) -> str:
    """Return the default of a field as --help shows it."""
    if default is False:
        return "off"
    if isinstance(default, tuple):
        return " ".join(default) or "none"
    return "none" if default in (None, "") else str(default)


def _add_terms(group: argparse._ArgumentGroup) -> None:
    for name, term in TERMS.items():
        defaults = {m: method.weights.get(name, 0) for m, method in METHODS.items()}
        default = ", ".join(f"{m} {value:g}" for m, value in defaults.items() if value) or "0"
        if name == "spectrum":
            default += f", {LONG_RANGE_WEIGHT:g} for exemplars with long-range order"
        _add_flag(group, name, weight(term.help, default))


def parse(argv: list[str] | None = None) -> Request:
    """Return the request of a command line.

    The value of a flag is the first of:

    1. the one given now, on the command line or else in the file of --config
    2. the one given for the picture of --from, as recorded in it
    3. that of the preset given now or, without one, of the recorded preset
    4. the default

    The net and the precision of the picture of --from always count as given for it, because their
    defaults depend on the machine. Values derived from other flags (the step size of an optimiser,
    the layers of a method, the size of an exemplar) are derived again.

    Raises:
        UserError: A flag is unknown or does not allow its value.
    """
    given = _namespace(argv)
    if "config" in given:
        given = _checked(of_file(given["config"]), f"--config {given['config']}") | given
    if "score" in given:
        for name in sorted(given.keys() - BESIDE_SCORE):
            raise UserError(f"{spelled(name)}: no effect with --score, which makes no picture")
        if (count := len(given.get("gt_path", ()))) > 1:
            raise UserError(f"--score: takes one exemplar, --gt_path names {count}")
    if "report" in given:
        given["page_alone"] = given.keys() <= {"report", "quiet", "config"}
    typed = frozenset(given)
    if "from_picture" in given:
        path = given["from_picture"]
        asked = of_picture(path, recorded_flags(), typed)
        if asked.get("model") not in {None, *NETS}:
            raise UserError(
                f"--from {path}: its net, {asked['model']}, is no longer supported; --model "
                f"{BUNDLED_NET} makes a different picture with the same settings"
            )
        given = _checked(asked, f"--from {path}") | given
    if "tile_set" in given:
        given = {"tile": "xy"} | given
    preset = _checked(PRESETS.get(given.get("preset", ""), {}), "--preset")
    values = preset | given
    terms = {name: values.pop(name) for name in TERMS if name in values}
    return Request(**values, terms=terms, asked=given, typed=typed)


def recorded_flags() -> set[str]:
    """Return the names of the flags that --from takes from a record."""
    return {one.name for one in fields(Request)} - NOT_RECORDED - {"device"} | TERMS.keys()


def _namespace(argv: list[str] | None) -> dict[str, Any]:
    """Return the flags of a command line by name, without defaults.

    Raises:
        UserError: As `parse`; also for an empty value, to which a shell expands an unset variable.
    """
    flag = ""
    for word in sys.argv[1:] if argv is None else argv:
        flag = word.partition("=")[0] if word.startswith("--") else flag
        if word in ("", f"{flag}="):
            raise UserError(f"{flag or 'an argument'}: an empty value")
    return vars(build_parser().parse_args(argv))


def _checked(flags: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return flags by name, checked as the command line checks them.

    Args:
        where: Source of the flags, with which error messages begin.
    """
    try:
        return _namespace(argv_of(flags))
    except (UserError, TypeError, ValueError, LookupError) as error:
        raise UserError(f"{where}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where}: a value is nested too deep") from error


def request_of(**flags: Any) -> Request:
    """Return the request of flags by name, checked as the command line checks them.

    Args:
        flags: Sizes are (height, width), or text as on the command line; guide is a list of pairs.

    Raises:
        UserError: As `parse`.
    """
    return parse(argv_of(flags))


def argv_of(flags: Mapping[str, Any]) -> list[str]:
    """Return the command line equivalent to flags given as Python values.

    Raises:
        UserError: A value would be read as a flag, or a switch is neither true nor false.
    """
    argv: list[str] = []
    for name, value in flags.items():
        flag = spelled(name)
        switch = name in FLAG_OF and FLAG_OF[name].options.get("action") == "store_true"
        if value is None or value in ("", [], ()) or (switch and not value):
            continue
        if isinstance(value, list | tuple):
            _refuse_flags(value)
        if switch and value not in (True, False):  # such as "no", which is truthy
            raise UserError(f"{flag}: {value!r}, allowed are true and false")
        if switch:
            argv.append(flag)
        elif name == "guide":
            argv += [text for pair in value for text in (flag, *map(str, pair))]
        elif name in ("mix", "layers"):
            argv += [flag, *(one if isinstance(one, str) else paired(*one) for one in value)]
        elif name in ("size", "expand") and not isinstance(value, str | int):
            argv.append(f"{flag}={value[1]}x{value[0]}")
        elif isinstance(value, list | tuple):
            argv += [flag, *map(str, value)]
        else:
            argv.append(f"{flag}={value}")
    return argv


def _refuse_flags(values: Sequence[Any]) -> None:
    """Raise UserError if one of several values would be read as a flag."""
    for value in values:
        if isinstance(value, list | tuple):
            _refuse_flags(value)
        elif isinstance(value, str) and value.startswith("-"):
            raise UserError(f"{value!r}: looks like a flag; a file of that name is ./{value}")


def paired(name: str, number: float | None) -> str:
    """Return a name with its share or weight, as typed: conv1_1:0.5."""
    return name if number is None else f"{name}:{number!r}"
