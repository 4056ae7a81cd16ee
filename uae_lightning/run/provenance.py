"""What a result file must name for somebody to get the same result again."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("uae-lightning", "torch", "lightning", "transformers", "diffusers", "peft")
CHECKOUT = Path(__file__).parents[2]
CODE = ("uae_lightning", "callbacks", "conf")  # what a result depends on; results themselves may be in the checkout too


def provenance(command: str) -> dict[str, Any]:
    """Command, date, versions, git revision and machine; whoever calls it adds seed, settings and minutes."""
    return {
        "command": command,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "versions": versions(),
        "git": git_revision(CHECKOUT),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found


def git_revision(folder: Path) -> dict[str, Any] | None:
    """{"revision", "dirty": whether code or settings differ from it}; None where there is no checkout or no git."""
    if not (folder / ".git").exists():  # an installed package may lie in somebody else's repository
        return None
    ask = ["git", "--no-optional-locks", "-C", str(folder)]
    try:
        revision = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [*ask, "status", "--porcelain", "--", *CODE], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": revision.stdout.strip(), "dirty": bool(changes.stdout.strip())}


def machine() -> dict[str, Any]:
    import torch  # here, so that `uae --help` need not wait for it

    return {
        "system": platform.platform(terse=True),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def cpu_model() -> str:
    """As Linux names it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
