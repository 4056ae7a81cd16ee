"""All stages of conf/real with random weights of the published architectures, and their peak memory against `uae plan`.

    make full-size                                                  all that fits this machine; 13 GB of disk and more
    python -m benchmarks.full_size --folder FOLDER --layers 1       a slice: one block of each model
    python -m benchmarks.full_size --folder FOLDER --only fast      of RUNS those that are named

For each run: a step and two validations of every stage; the first of them is killed in its second stage, resumed, and
exported. Each stage is a process of its own. What takes more than --memory by `uae plan` is skipped, and said to be.
Weights and runs lie in FOLDER, outside of the repository; weights are written once.

Settings are those of conf/real but for what makes a step short: batch, group, resolution, tokens and sampling steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import peak_memory, random_weights
from uae_lightning.models.adapters import to_dtype
from uae_lightning.run.spec import read_run

ENCODERS, DECODERS = random_weights.ENCODERS, random_weights.DECODERS
ROOT = Path(__file__).parents[1]
RUN = ROOT / "conf" / "real" / "run.yaml"
RUNS: dict[str, list[str]] = {  # name -> overlays
    "sd35_medium": [],
    "sd35_large": ["sd35_large"],
    "qwen7b": ["qwen7b"],
    "fast": ["fast"],
    "replay": ["replay"],
    "levels": ["levels"],
    "80gb": ["80gb"],
    "sd35_large_80gb": ["sd35_large", "80gb"],
}
KILLED = "encoder_rl"  # in the first run, once it has validated its start
GB = 1e9


@dataclass(frozen=True)
class Row:
    run: str
    stage: str
    phase: str
    plan: int | None  # bytes; None: it plans no such phase
    measured: int


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    chosen = {name: RUNS[name] for name in options.only or RUNS}
    random_weights.write_pictures(options.folder, options.resolution)
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    for name, overlays in chosen.items():
        models = [next((o for o in overlays if o in kind), next(iter(kind))) for kind in (ENCODERS, DECODERS)]
        random_weights.write_models(options.folder, models, options.layers, to_dtype(options.dtype))
        plans = planned(options, write_run(options, name, overlays))
        most = max(plan["peak"] for plan in plans.values())
        if most > options.memory * GB:
            skipped[name] = f"{most / GB:.1f} GB by uae plan, {options.memory:.1f} are to be used"
            print(f"{name}: skipped ({skipped[name]})", flush=True)
            continue
        rows += trained(options, name, plans, killed=name == next(iter(chosen)))
    print("\n".join(table(rows)))
    if options.json:
        content = {"command": sys.argv, "skipped": skipped, "rows": [vars(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for weights and runs, outside of the repository")
    parser.add_argument("--layers", type=int, help="blocks of each model; default: as published")
    parser.add_argument("--only", nargs="+", choices=RUNS, help="default: all of them")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="bf16 is slow on AVX2")
    parser.add_argument("--resolution", type=int, default=256, help="pixels")
    parser.add_argument("--tokens", type=int, default=16, help="of a caption")
    parser.add_argument("--memory", type=float, default=own_memory(), help="GB that may be used; default: nearly all")
    parser.add_argument("--json", type=Path, help="the same figures for programs")
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    if ROOT in (options.folder, *options.folder.parents):
        parser.error(f"--folder {options.folder} lies in the repository: name one outside of it")
    return options


def own_memory() -> float:
    """GB of the GPU, or those of the machine but for two."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / GB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB - 2


# ------------------------------------------------------------------------------------------------ a run's YAML


def write_run(options: argparse.Namespace, name: str, overlays: list[str]) -> Path:
    """conf/real/run.yaml with these overlays and the smallest step, as a YAML of its own."""
    spec = read_run(RUN, overlays)
    stages = [
        {
            "name": stage.name,
            "config": [str(stage.config), *map(str, stage.overlays)],
            "options": stage.options | smallest(stage.name, options),
        }
        for stage in spec.stages
    ]
    file = options.folder / "confs" / f"{name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump({"name": name, "stages": stages}))
    return file


def smallest(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """Options of a step as short as it can be, measured."""
    found: dict[str, Any] = {
        "trainer.max_steps": 1,
        "trainer.val_check_interval": 1,
        "trainer.accumulate_grad_batches": 1,
        "trainer.accelerator": "gpu" if torch.cuda.is_available() else "cpu",
        "trainer.devices": 1,
        "trainer.callbacks+": "benchmarks.peak_memory.PeakMemory",
        "data.init_args.batch_size": 1,
        "data.init_args.resolution": options.resolution,
        "data.init_args.validation_pictures": 2,
        "data.init_args.validation_batch_size": 1,
        "model.autoencoder.decoder.resolution": options.resolution,
        "model.autoencoder.captioning": {"temperature": 1.0, "max_new_tokens": options.tokens},
        "model.autoencoder.sampling": {"steps": 2, "guidance": 5.0},
    }
    if stage != "decoder_pretrain":
        found |= {"model.init_args.group_size": 2, "model.init_args.micro_batch": 1}
    if stage == "decoder_rl":
        found |= {"model.init_args.window": [0, 1], "model.init_args.window_within": None}
    if options.dtype == "float32":
        found |= {f"model.autoencoder.{part}.dtype": "float32" for part in ("encoder", "decoder")}
        found |= {"trainer.precision": "32-true"}
    return found


# ------------------------------------------------------------------------------------------------ commands


def uae(options: argparse.Namespace, *args: object) -> subprocess.Popen:
    """A command, begun in the folder whose sub-folders are named as the hub's models are."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with log(options).open("a") as opened:
        return subprocess.Popen(
            [sys.executable, "-m", "uae_lightning", *map(str, args)],
            cwd=options.folder, env=environment, stdout=opened, stderr=subprocess.STDOUT,
        )  # fmt: skip


def log(options: argparse.Namespace) -> Path:
    return options.folder / "log.txt"


def finished(options: argparse.Namespace, process: subprocess.Popen, wanted: int = 0) -> int:
    """Waits; the most bytes that the process had in memory.

    Raises:
        SystemExit: it ended otherwise than wanted.
    """
    _, state, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(state)
    if process.returncode != wanted:
        said = log(options).read_text()[-3000:]
        raise SystemExit(f"{' '.join(map(str, process.args))} ended with {process.returncode}:\n{said}")
    return usage.ru_maxrss * 1024


def planned(options: argparse.Namespace, config: Path) -> dict[str, dict[str, Any]]:
    """By stage what `uae plan --json` says."""
    file = config.with_suffix(".json")
    finished(options, uae(options, "plan", "--config", config, "--json", file, "--tflops", 1))
    return {stage["name"]: stage for stage in json.loads(file.read_text())["stages"]}


def trained(options: argparse.Namespace, name: str, plans: dict[str, dict[str, Any]], *, killed: bool) -> list[Row]:
    """Every stage of a run, one process after the other."""
    config, run, rows = options.folder / "confs" / f"{name}.yaml", options.folder / "runs" / name, []
    shutil.rmtree(run, ignore_errors=True)
    for stage, plan in plans.items():
        began = time.monotonic()
        command = ("run", "--config", config, "--output", run, "--only", stage)
        if killed and stage == KILLED:
            kill(options, uae(options, *command), run / stage / "validation.jsonl")
            command = (*command, "--resume")
        finished(options, uae(options, *command))
        print(f"{name} {stage}: {time.monotonic() - began:.0f} s", flush=True)
        rows += compared(name, stage, plan, peak_memory.read(run / stage))
    if killed:
        target = options.folder / "exported" / name
        shutil.rmtree(target, ignore_errors=True)
        most = finished(options, uae(options, "export", "--weights", run, "--to", target, "--merged"))
        rows.append(Row(name, "export", "all", None, most))
    return rows


def kill(options: argparse.Namespace, process: subprocess.Popen, until: Path) -> None:
    """SIGKILL, as of a machine out of memory, as soon as that file is there."""
    while not until.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    finished(options, process, wanted=-signal.SIGKILL)


def compared(run: str, stage: str, plan: dict[str, Any], measured: dict[str, int]) -> list[Row]:
    phases = plan["phases"]
    rows = [Row(run, stage, name, phases[name]["peak"], measured[name]) for name in phases if name in measured]
    rows += [Row(run, stage, name, None, measured[name]) for name in ("loading", "saving")]
    return [*rows, Row(run, stage, "all", plan["peak"], max(measured.values()))]


def table(rows: list[Row]) -> list[str]:
    lines = ["| run | stage | phase | planned GB | measured GB | error |", "|---|---|---|---|---|---|"]
    for row in rows:
        plan, error = ("", "") if row.plan is None else (f"{row.plan / GB:.2f}", f"{row.plan / row.measured - 1:+.0%}")
        lines.append(f"| {row.run} | {row.stage} | {row.phase} | {plan} | {row.measured / GB:.2f} | {error} |")
    return lines


if __name__ == "__main__":
    main()
