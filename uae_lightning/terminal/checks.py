"""What a machine has, what will be slow on it, and what is missing: the findings of `uae doctor`."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from uae_lightning.paths import resolve
from uae_lightning.usage import UsageError

NAME = "uae-lightning"
GB = 1e9
DEMO_MEMORY, DEMO_DISK = 3 * GB, 1 * GB  # that `uae run --config conf/demo.yaml` needs
PARTS = ("encoder", "projector", "decoder", "clip", "detector", "verifier")  # of the shipped weights
PINNED = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: "ok"; "slow", it works and takes long; "note", good to know; "missing", something will fail.
        what: in words, with figures.
        remedy: where there is one.
    """

    level: Literal["ok", "slow", "note", "missing"]
    what: str
    remedy: str = ""


def findings() -> list[Finding]:
    """All of them, from the interpreter up to the GPU."""
    software = [python(), *packages(), torchvision()]
    return [*software, cores(), memory(), disk(Path.cwd()), *cpu(), *gpu(), *weights(), yamls()]


# ------------------------------------------------------------------------------------------------ software


def python() -> Finding:
    return Finding("ok", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")


def packages() -> list[Finding]:
    """What the package needs against what is installed, and that against the versions that were tested."""
    try:
        wanted = [Requirement(text) for text in metadata.requires(NAME) or []]
    except metadata.PackageNotFoundError:
        return [Finding("note", f"{NAME} is not installed, only imported", "pip install -e . --no-deps")]
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    found = [finding for one in needed if (finding := fault(one))]
    tested = {normal(name): version for name, version in PINNED.findall(constraints())}
    others = [
        f"{one.name} {installed(one.name)} (tested: {tested[normal(one.name)]})"
        for one in needed
        if normal(one.name) in tested and installed(one.name) not in (None, tested[normal(one.name)])
    ]
    if others:
        remedy = "pip install --require-hashes --no-deps -r constraints.txt gives the tested ones"
        found.append(Finding("note", f"other versions than those of constraints.txt: {', '.join(others)}", remedy))
    return found or [Finding("ok", f"{len(needed)} packages as {'tested' if tested else 'needed'}")]


def fault(wanted: Requirement) -> Finding | None:
    version, remedy = installed(wanted.name), f'pip install "{wanted.name}{wanted.specifier}"'
    if version is None:
        return Finding("missing", f"package {wanted.name}", remedy)
    if not wanted.specifier.contains(Version(version), prereleases=True):
        return Finding("missing", f"{wanted.name} {version} where {wanted.specifier} is needed", remedy)
    return None


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> str:
    """The file of a checkout; nothing where the package came as a wheel."""
    file = Path(__file__).parents[2] / "constraints.txt"
    return file.read_text("utf-8") if file.is_file() else ""


def torchvision() -> Finding:
    version = installed("torchvision")
    if version is None:
        return Finding("ok", "no torchvision, which is not needed")
    remedy = "pip uninstall torchvision: nothing needs it, and one that does not match torch breaks image processors"
    return Finding("note", f"torchvision {version}", remedy)


# ------------------------------------------------------------------------------------------------ the machine


def cores() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    text = f"{count} CPU core{'s' * (count > 1)}, load {load:.1f}"
    if load > 1.5 * count:
        return Finding("slow", text, "other processes use the cores: times of README are of a machine of one's own")
    if count == 1:
        return Finding("slow", text, "times of README are of 2 cores")
    return Finding("ok", text)


def memory() -> Finding:
    free = available_memory()
    if free is None:
        return Finding("note", "memory: this system does not say how much is free", "the demo needs 3 GB")
    text = f"{free / GB:.1f} GB of memory free"
    return Finding("ok", text) if free >= DEMO_MEMORY else Finding("missing", text, "the demo needs 3 GB")


def available_memory(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Bytes, of this container where it has a limit; None where nobody says."""
    if not proc.is_file():
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", proc.read_text())
    free = 1024.0 * int(found[1]) if found else None
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no such limit: "max"
        return free
    return min(free, limit - used) if free is not None else float(limit - used)


def disk(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    text = f"{free / GB:.1f} GB of disk free here"
    if not os.access(place, os.W_OK):
        return Finding("missing", f"{place} cannot be written", "runs go to runs/ in the folder you are in: choose one")
    return Finding("ok", text) if free >= DEMO_DISK else Finding("missing", text, "a run of the demo needs 1 GB")


def cpu(info: Path = Path("/proc/cpuinfo")) -> list[Finding]:
    """Instructions that decide what is slow; nothing where the system does not list them."""
    flags = set(re.findall(r"\w+", next(iter(re.findall(r"^flags.*$", read(info), re.MULTILINE)), "")))
    if not flags:
        return []
    if not {"avx512_bf16", "amx_bf16"} & flags:
        text = "no bfloat16 instructions (AVX512-BF16): products in bfloat16 take about 50 times as long as in float32"
        return [Finding("slow", text, "keep dtype: float32 and precision 32-true on this CPU")]
    return [Finding("ok", "bfloat16 instructions: dtype: bfloat16 is faster than float32 on this CPU")]


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def gpu() -> list[Finding]:
    if installed("torch") is None:
        return []
    import torch  # takes seconds

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            remedy = "this torch is a build for CPUs, or does not fit the driver: install one for your CUDA version"
            return [Finding("note", f"an NVIDIA driver, but torch {torch.__version__} sees no GPU", remedy)]
        remedy = "the embedded default needs none; models of conf/real do: `uae plan --config conf/real/run.yaml`"
        return [Finding("note", "no GPU", remedy)]
    found = []
    for number in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(number)
        text = f"GPU {number}: {one.name}, {one.total_memory / GB:.0f} GB"
        weak = one.major < 8
        remedy = "no bfloat16 before compute capability 8.0: dtype: float16 and precision 16-mixed" if weak else ""
        found.append(Finding("slow" if weak else "ok", text, remedy))
    return found


# ------------------------------------------------------------------------------------------------ the project


def weights() -> list[Finding]:
    missing = []
    for part in PARTS:
        try:
            resolve(f"shipped:scenes/{part}")
        except (FileNotFoundError, UsageError):
            missing.append(part)
    if missing:
        remedy = "install the package with its weights, or train them: uae bootstrap"
        return [Finding("missing", f"shipped weights of {', '.join(missing)}", remedy)]
    return [Finding("ok", "the shipped weights are here")]


def yamls() -> Finding:
    if Path("conf/demo.yaml").is_file():
        return Finding("ok", "conf/ is here")
    return Finding("note", "conf/ is not in this folder", "uae init . copies it here")
