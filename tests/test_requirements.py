"""What is said where Python or a package is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from command.requirements import PACKAGES, check_requirements

ROOT = Path(__file__).resolve().parent.parent


def test_without_packages_there_is_one_line():
    command = [sys.executable, "-S", "Synthesis.py"]  # without site-packages
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("Synthesis.py: torch, ") and "pip install" in line


def test_an_old_python_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit) as left:
        check_requirements()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "3.10" in line and "3.11 or newer" in line


def test_every_package_that_is_imported_is_asked_for():
    """torchvision is only for its weights, which are fetched without it."""
    names = {line.partition(">")[0] for line in (ROOT / "requirements.txt").read_text().split()}
    assert {{"pillow": "PIL"}.get(name, name) for name in names} == {*PACKAGES, "torchvision"}
