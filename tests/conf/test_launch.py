"""The templates of conf/launch, run with stand-ins for what a cluster has."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from uae_lightning.commands.run import parse

LAUNCH = Path(__file__).parents[2] / "conf" / "launch"
GIVEN = ["--config=conf/real/run.yaml", "--with", "sd35_large", "8x80gb"]


@pytest.fixture
def called(tmp_path: Path):
    """Commands that write down how they were called; `srun` runs until it is ended."""
    for name, then in (("torchrun", ""), ("scontrol", ""), ("srun", "; exec sleep ${SECONDS_OF_SRUN:-0}")):
        file = tmp_path / name
        file.write_text(f'#!/bin/sh\necho "$(basename $0) $*" >> {tmp_path}/calls{then}\n')
        file.chmod(0o755)
    return tmp_path / "calls"


def environment(place: Path, **more: str) -> dict[str, str]:
    return os.environ | {"PATH": f"{place}:{os.environ['PATH']}"} | more


def options_of(call: str) -> list[str]:
    """What follows `uae run`, as that command understands it."""
    words = shlex.split(call)
    options, rest = parse(words[words.index("uae") + 2 :])
    assert options.overlays == ["sd35_large", "8x80gb"]
    return rest


def test_torchrun_gets_the_machines_and_uae_the_rest(called):
    # red if an option of either is misspelt
    command = ["bash", LAUNCH / "torchrun.sh", *GIVEN]
    given = environment(called.parent, NODES="2", NODE="1", HEAD="10.0.0.1")
    subprocess.run(command, env=given, check=True)
    call = called.read_text()
    assert call.startswith(
        "torchrun --nnodes=2 --node-rank=1 --nproc-per-node=8 --master-addr=10.0.0.1 --master-port=29500"
    )
    assert options_of(call) == ["--trainer.num_nodes=2", "--trainer.devices=8"]
    lacking = subprocess.run(command, env=environment(called.parent, NODES="2"), capture_output=True, text=True)
    assert lacking.returncode != 0 and "NODE: which one this is, from 0" in lacking.stderr


def test_slurm_puts_the_job_back_into_the_queue_when_its_time_ends(called):
    # red without the trap, without `&` behind srun (bash would wait for it first), or without --resume
    slurm = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "7", "SECONDS_OF_SRUN": "60"}
    script = subprocess.Popen(["bash", LAUNCH / "slurm.sh", *GIVEN], env=environment(called.parent, **slurm))
    until = time.monotonic() + 20
    while not called.exists() and time.monotonic() < until:
        time.sleep(0.02)
    script.send_signal(signal.SIGUSR1)
    assert script.wait(20) == 0
    srun, requeue = called.read_text().splitlines()
    assert requeue == "scontrol requeue 7" and " --resume " in srun
    assert options_of(srun) == ["--trainer.num_nodes=2", "--trainer.devices=8"]


def test_slurm_ends_as_the_run_ends(called):
    # red if the script goes on after a run that failed, or puts a finished one back
    slurm = {"SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "7"}
    command = ["bash", LAUNCH / "slurm.sh", *GIVEN]
    assert subprocess.run(command, env=environment(called.parent, **slurm)).returncode == 0
    assert subprocess.run(command, env=environment(called.parent, **slurm, SECONDS_OF_SRUN="no")).returncode != 0
    assert "scontrol" not in called.read_text()


def test_skypilot_starts_torchrun_on_each_machine(called):
    # red with a variable of SkyPilot misspelt, without --resume, or with an option that `uae run` does not know
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    (called.parent / "conda").write_text("#!/bin/sh\n")
    (called.parent / "conda").chmod(0o755)
    sky = {"NUM_NODES": "2", "NODE_RANK": "1", "NUM_GPUS_PER_NODE": "8", "NODE_IPS": "10.0.0.1\n10.0.0.2"}
    given = environment(called.parent, **{f"SKYPILOT_{name}": value for name, value in sky.items()}, **task["envs"])
    subprocess.run(["bash", "-euc", task["run"]], env=given, check=True, cwd=LAUNCH.parents[1])
    call = called.read_text()
    assert "--nnodes=2 --node-rank=1 --nproc-per-node=8 --master-addr=10.0.0.1 " in call
    assert " --output /uae/run --resume " in call
    assert options_of(call) == ["--trainer.num_nodes=2", "--trainer.devices=8"]


def test_skypilot_sets_up_what_the_files_say():
    # red with another name of the environment, a target that make does not have, or a folder that is no bucket's
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    root = LAUNCH.parents[1]
    name = yaml.safe_load((root / "environment.yml").read_text())["name"]
    assert f"conda activate {name}\n" in task["setup"] and f"conda activate {name}\n" in task["run"]
    assert "\npackages:" in (root / "Makefile").read_text() and "make packages BIN=" in task["setup"]
    assert task["file_mounts"]["/uae"]["name"] == "${BUCKET}" and task["envs"]["BUCKET"]
    assert task["secrets"] == {"HF_TOKEN": None}  # which SkyPilot asks for
