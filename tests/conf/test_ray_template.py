"""conf/launch/ray_train.py: what each worker is told, and two real workers of Ray where it is installed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from stand_ins import write_confs

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "conf" / "launch" / "ray_train.py"


def test_lightning_takes_a_worker_for_one_of_torchrun(monkeypatch: pytest.MonkeyPatch):
    # red with a variable misspelt, or with local_rank in place of node_rank
    told = runpy.run_path(str(TEMPLATE))["as_torchrun"](5, 1, 2, 6, "10.0.0.1", 29500)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert TorchElasticEnvironment.detect()
    rank = TorchElasticEnvironment()
    assert (rank.global_rank(), rank.local_rank(), rank.node_rank(), rank.world_size()) == (5, 1, 2, 6)
    assert (rank.main_address, rank.main_port) == ("10.0.0.1", 29500)


def test_two_workers_of_ray_train_one_run(tmp_path: Path):
    # red with ports of each worker's own in place of rank 0's: the ranks would never meet
    pytest.importorskip("ray")
    config = write_confs(tmp_path)
    given = {"WORKERS": "2", "CARDS": "2", "ON_CPUS": "1", "RETRIES": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, TEMPLATE, f"--config={config}", f"--output={tmp_path / 'run'}", "--trainer.strategy=ddp"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | path | given, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["run"]["gain"]["n"] == 8
