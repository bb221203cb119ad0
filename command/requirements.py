"""Check Python's version and the packages that are needed, before anything else is imported.

Old versions of Python must be able to parse this file.
"""

import sys
from importlib.util import find_spec

PYTHON = (3, 11)
PACKAGES = ("torch", "numpy", "PIL", "OpenImageIO", "tqdm")


def check_requirements() -> None:
    """Exit with one line and code 2 where Python is too old or a package is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if sys.version_info < PYTHON:
        here, needed = (".".join(map(str, version)) for version in (sys.version_info[:2], PYTHON))
        line = f"this is Python {here}, {needed} or newer is needed"
    elif missing:
        line = f"{', '.join(missing)} missing: pip install -r requirements.txt"
    else:
        return
    sys.stderr.write(f"Synthesis.py: {line}\n")
    sys.exit(2)
