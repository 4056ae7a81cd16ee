"""Every benchmark can be started: none names what has moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        assert error.name in {"selenium", "trl"}, name  # of extras
"""


def test_benchmarks_are_imported():
    # red with an import from where nothing is any more
    names = sorted(file.stem for file in BENCHMARKS.glob("[a-z]*.py"))
    done = subprocess.run([sys.executable, "-c", IMPORT, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
