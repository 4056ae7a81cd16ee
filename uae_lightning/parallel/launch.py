"""Which process this is, and what Lightning leaves behind in it when it has started the others.

Several devices of one machine: Lightning starts a process for each but the first, with the same command line. Several
machines (`--trainer.num_nodes`): the user starts the command on each, by torchrun, SLURM, or by hand with NODE_RANK.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment

LEFT_BY_LIGHTNING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")  # by its launcher
STARTED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # how many torchrun or srun has started
FAREWELL_SECONDS = 30.0  # rank 0 is the store: it stays until the others have heard that the run is over
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def is_main() -> bool:
    """Whether this process is rank 0, or will be; known before the ranks have met."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def started_by_others() -> bool:
    """Whether somebody else has started the ranks of this node, or Lightning has started this one."""
    return any(name in os.environ for name in ("LOCAL_RANK", "SLURM_PROCID"))


class Followers:
    """The other processes that were started with the same `uae run`: they train along, and rank 0 does the rest.

    Which stages are done, what to resume and which weights go on is decided once, by rank 0, from the run's folder; the
    others get the commands of the stages through a store beside that of the process group, which lives in a stage only.
    """

    def __init__(self) -> None:
        self.number, self.store = 0, None
        if "MASTER_ADDR" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            port = int(os.environ.get("MASTER_PORT", 12910)) + 1
            self.store = dist.TCPStore(
                main_address(), port, is_master=is_main(), timeout=timedelta(days=30), wait_for_workers=False
            )
            self.others = max(int(os.environ.get(name, 1)) - 1 for name in STARTED)

    def tell(self, command: list[str] | None) -> None:
        """Rank 0: the command of the next stage, None after the last one."""
        if self.store is not None:
            self.store.set(f"stage {self.number}", json.dumps(command))
            self.number += 1
            if command is None:
                self._stay()

    def hear(self) -> list[str] | None:
        """The others: wait for it; fails where rank 0 is gone."""
        self.number += 1
        command = json.loads(self.store.get(f"stage {self.number - 1}"))
        if command is None:
            self.store.add("heard", 1)
        return command

    def _stay(self) -> None:
        """Some may still be starting: without the store they would end with an error, after a run without one."""
        until = time.monotonic() + FAREWELL_SECONDS
        while self.store.add("heard", 0) < self.others and time.monotonic() < until:
            time.sleep(0.05)


def main_address() -> str:
    if "MASTER_ADDR" not in os.environ and "SLURM_PROCID" in os.environ:
        return SLURMEnvironment().main_address
    return os.environ.get("MASTER_ADDR", "127.0.0.1")


@contextmanager
def own_ranks() -> Iterator[None]:
    """A stage with ranks of its own: afterwards the process can start another stage, with other ranks.

    Lightning keeps the process group, and variables that make its next Trainer believe that the ranks run already.
    """
    if started_by_others():  # all ranks go on to the next stage together
        yield
        return
    before = {name: os.environ.get(name) for name in LEFT_BY_LIGHTNING}
    try:
        yield
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
