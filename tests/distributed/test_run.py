"""`uae run` on two devices of one machine: Lightning starts the second process of each stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from stand_ins import write_confs

ROOT = Path(__file__).parents[2]


def test_a_run_on_two_devices_is_that_on_one(tmp_path: Path):
    # red without own_ranks in run_stage (the second stage finds variables of the first), without `elif is_main()` in
    # before_fit, or with [records] for everyone in RewardCallback's _gathered
    config = write_confs(tmp_path)
    both = {devices: run(config, tmp_path / str(devices), devices) for devices in (1, 2)}
    for (name, out), devices in zip(both.values(), both, strict=True):
        assert out.count("[1/2] draw") == out.count("Report:") == 1, devices
        assert sorted(path.name for path in name.iterdir()) == sorted(path.name for path in both[1][0].iterdir())
    one, two = (json.loads((folder / "summary.json").read_text())["run"] for folder, _ in both.values())
    assert one["gain"] == two["gain"] and one["gain"]["n"] == 8  # both ranks see the same pictures here


def run(config: Path, folder: Path, devices: int) -> tuple[Path, str]:
    strategy = ["--trainer.strategy", "ddp"] if devices > 1 else []
    command = [sys.executable, "-m", "uae_lightning", "run", f"--config={config}", f"--output={folder}", *strategy]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, f"--trainer.devices={devices}"], cwd=folder.parent, env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout
