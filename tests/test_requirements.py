"""What is said where Python is too old or a package is missing; environment variables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command.start import configure_libraries

ROOT = Path(__file__).resolve().parent.parent
START = "import sys; from command.start import explain_imports; explain_imports(); "
SPINS = "GOMP_SPINCOUNT"


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


@pytest.mark.parametrize(
    "given, spins", [({}, "3000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({SPINS: "7"}, "7")]
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(given, spins, monkeypatch):
    for name in ("OMP_WAIT_POLICY", SPINS):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")
    configure_libraries()
    assert os.environ.get(SPINS) == spins and os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "0"


@pytest.mark.slow
def test_importing_synthesis_sets_the_environment():
    program = f"import Synthesis, os; print(os.environ['{SPINS}'])"
    unset = {k: v for k, v in os.environ.items() if k not in (SPINS, "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, env=unset, capture_output=True, text=True, check=True)
    assert found.stdout == "3000\n"
