"""A run on the machines of a Ray cluster, one worker for each card, by Ray Train.

    RAY_ADDRESS=auto WORKERS=16 CARDS=8 python conf/launch/ray_train.py --config conf/real/run.yaml --with sd35_large

Options are those of `uae run`; WORKERS are all cards, CARDS (8) those of a machine; ON_CPUS=1 asks Ray for no cards.
The folder this is called in, the run's folder, its data and weights lie where all machines see them. After a failure
Ray starts all workers again, RETRIES times (3), and `--resume` goes on. Needs `pip install "ray[train]"`.

Each worker runs `uae run` as torchrun would, in a process of its own: Ray calls the function below in a thread, where
Python allows no handler of signals.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def as_torchrun(rank: int, local_rank: int, node_rank: int, world: int, address: str, port: int) -> dict[str, str]:
    """The variables by which torchrun tells a process which rank it is."""
    ranks = {"RANK": rank, "LOCAL_RANK": local_rank, "GROUP_RANK": node_rank, "NODE_RANK": node_rank}
    meeting = {"WORLD_SIZE": world, "MASTER_ADDR": address, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "ray"}
    return {name: str(value) for name, value in (ranks | meeting).items()}


def free_ports() -> int:
    """A port that is free, as is the one above it: of the process group, and of the run."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("", port + 1))
                return port
            except (OSError, OverflowError):
                continue


def work(options: dict) -> None:
    """What each of Ray's workers does."""
    import ray
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    here = ray.train.get_context()
    address, port = broadcast_from_rank_zero((ray.util.get_node_ip_address(), free_ports()))
    which = here.get_world_rank(), here.get_local_rank(), here.get_node_rank(), here.get_world_size()
    command = [sys.executable, "-m", "uae_lightning", "run", *options["args"], "--resume"]
    environment = os.environ | as_torchrun(*which, address, port)
    subprocess.run(command, check=True, cwd=options["folder"], env=environment)


def main(args: list[str]) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    workers, cards = int(os.environ["WORKERS"]), int(os.environ.get("CARDS", "8"))
    trainer = [f"--trainer.num_nodes={workers // cards}", f"--trainer.devices={cards}"]
    scaling = ScalingConfig(num_workers=workers, use_gpu=os.environ.get("ON_CPUS") != "1")
    retries = FailureConfig(max_failures=int(os.environ.get("RETRIES", "3")))
    options = {"args": [*args, *trainer], "folder": os.getcwd()}
    run = RunConfig(failure_config=retries, storage_path=os.path.abspath("runs/ray"))
    TorchTrainer(work, train_loop_config=options, scaling_config=scaling, run_config=run).fit()


if __name__ == "__main__":
    main(sys.argv[1:])
