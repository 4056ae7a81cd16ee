"""Ways to end a run of `uae` at a moment that a test has drawn."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import lightning as L

SERVER = multiprocessing.get_context("forkserver")  # imports once what every process needs
SERVER.set_forkserver_preload(
    [
        "tests.kill",
        *(
            f"uae_lightning.{name}"
            for name in ("run.stage_cli", "evaluation.unified_bench", "models.sd3", "models.qwen_vl")
        ),
    ]
)


class KillAt(L.Callback):
    """The process is gone, without a word, at the start of a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


class Touches:
    """Counts what a process does to files below a folder, and sends a signal at one of these moments.

    Between two of them the disk does not change: a kill there leaves what a kill at the second one leaves. What torch
    and safetensors write from C++ is counted when it is flushed or renamed.
    """

    def __init__(self, folder: Path, at: int, number: int, pid_file: Path) -> None:
        self.folder, self.at, self.number, self.pid_file = str(folder), at, number, pid_file
        self.count = 0

    def __call__(self, event: str, args: tuple) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            if any(isinstance(arg, (str, os.PathLike)) and os.fspath(arg).startswith(self.folder) for arg in args):
                self.count += 1
                if self.count == self.at:
                    os.kill(int(self.pid_file.read_text()), self.number)


def start(args: list[str], folder: Path, logs: Path, *, ranks: int = 1, at: int = 0, number: int = 0, target: int = 0):
    """`uae ARGS` on each rank; rank 0 sends the signal `number` to rank `target` at its `at`-th touch of `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
    logs.mkdir(exist_ok=True)
    processes = []
    for rank in range(ranks):
        own = shared | ({"LOCAL_RANK": str(rank)} if ranks > 1 else {})
        touches = Touches(folder, at if rank == 0 else 0, number, logs / f"pid-{target}")
        processes.append(SERVER.Process(target=child, args=(args, own, touches, logs, rank)))
        processes[-1].start()
    return processes


def wait(processes: list[BaseProcess], limit: float = 300) -> list[int | None]:
    """Exit codes, minus the signal for what was killed."""
    for process in processes:
        process.join(limit)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def child(args: list[str], environment: dict[str, str], touches: Touches, logs: Path, rank: int) -> None:
    os.environ.update(environment)
    (logs / f"pid-{rank}").write_text(str(os.getpid()))
    with (logs / f"rank-{rank}").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    import torch

    from uae_lightning.cli import main

    torch.set_num_threads(1)
    sys.addaudithook(touches)
    code = main(args)
    (logs / "touches").write_text(str(touches.count)) if rank == 0 else None
    sys.exit(code)
