"""`uae run` by torchrun on two node ranks that meet on the loopback is one run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_ins import write_confs

from uae_lightning.run import folder as run_folder

ROOT = Path(__file__).parents[2]
LIMIT = 600  # seconds, on a busy machine


def launch(config: Path, folder: Path, *more: str) -> list[subprocess.Popen]:
    """An agent of torchrun for each machine, with one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = []
    for node in range(2):
        torchrun = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *torchrun,
            f"--master-port={port}",
            "-m",
            "uae_lightning",
        ]
        trainer = ["--trainer.strategy=ddp", "--trainer.num_nodes=2", "--trainer.devices=1"]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        with (folder.parent / f"node-{node}.txt").open("w") as log:
            agents.append(
                subprocess.Popen(
                    [*command, "run", f"--config={config}", f"--output={folder}", *trainer, *more],
                    cwd=folder.parent,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            )
    return agents


def ended(agents: list[subprocess.Popen]) -> list[int]:
    until = time.monotonic() + LIMIT
    try:
        return [agent.wait(max(0.1, until - time.monotonic())) for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)


def said(folder: Path) -> str:
    return "\n".join(file.read_text()[-2000:] for file in sorted(folder.glob("node-*.txt")))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machines")


def test_two_machines_train_one_run(place: Path):
    # red if `is_main` looks at LOCAL_RANK alone (both machines would be rank 0), or a follower decides for itself
    config = write_confs(place)
    assert ended(launch(config, place / "both")) == [0, 0], said(place)
    assert (place / "node-0.txt").read_text().count("[1/2] draw") == 1
    assert "[1/2] draw" not in (place / "node-1.txt").read_text()
    summary = json.loads((place / "both" / "summary.json").read_text())["run"]
    assert summary["gain"]["n"] == 8 and all(run_folder.is_done(place / "both" / name) for name in ("draw", "see"))
