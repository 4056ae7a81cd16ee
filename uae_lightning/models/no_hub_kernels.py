"""bitsandbytes is imported without asking the hub for a kernel.

Where the CPU has AVX512-BF16, bitsandbytes 0.50 downloads a binary and runs it, if the package `kernels` is installed,
and prints a warning if not. It is for 4-bit layers in a layout that is not used here (`models.quantization`).
"""

from __future__ import annotations

import logging
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODULE = "bitsandbytes.backends.cpu.ops"


def install() -> None:
    """Acts whichever library imports bitsandbytes (diffusers does); costs nothing where none does."""
    logging.getLogger(MODULE).setLevel(logging.ERROR)
    sys.meta_path.insert(0, _Finder())


class _Finder:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != MODULE or (spec := PathFinder.find_spec(name, path)) is None:
            return None
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: _without_kernels(execute, module)
        return spec


def _without_kernels(execute: Any, module: ModuleType) -> None:
    before = {"kernels": sys.modules["kernels"]} if "kernels" in sys.modules else {}
    sys.modules["kernels"] = None  # importing it fails
    try:
        execute(module)
    finally:
        del sys.modules["kernels"]
        sys.modules.update(before)
