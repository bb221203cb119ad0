"""What is said where Python is too old or a package is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
START = "import sys; from command.start import explain_imports; explain_imports(); "


def test_without_packages_there_is_one_line():
    command = [sys.executable, "-S", "Synthesis.py"]  # without site-packages
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    line = "Synthesis.py: torch is missing: pip install -r requirements.txt\n"
    assert (found.returncode, found.stderr) == (2, line)


@pytest.mark.parametrize(
    "program, code, words",
    [
        ("sys.version_info = (3, 10, 13); import tomlib", 2, "Python 3.10, 3.11 or newer is"),
        ("import command.nothing", 2, "command.nothing is missing"),
        ("1 / 0", 1, "Traceback"),
    ],
)
def test_errors_of_imports_are_one_line_and_no_others(program, code, words):
    command = [sys.executable, "-c", START + program]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == code and words in found.stderr
    assert (len(found.stderr.splitlines()) == 1) == (code == 2)
