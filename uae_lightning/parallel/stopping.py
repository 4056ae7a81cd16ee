"""SIGINT and SIGTERM end a command at once, say how it goes on, and give the shell's exit codes, 130 and 143.

In a job of SLURM so does SIGUSR1, which `#SBATCH --signal=USR1@SECONDS` sends before its time is over, and the job goes
back into the queue. Lightning's own answer (2.6.6) writes a checkpoint that no `--resume` knows, and trains on.

At once, not at the end of a step as Lightning does, which may be minutes away and ends an unfinished fit with code 0.
Nothing is lost by that: what is on disk is whole at any moment.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ON_ITS_OWN = ("study", "bootstrap", "caption", "caption-data", "cache")  # the same command goes on where it was


class Stopped(BaseException):
    """Somebody wants this process to end. No Exception, and no KeyboardInterrupt, which Lightning ends with code 1."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.code = number, 128 + number


def signals() -> tuple[signal.Signals, ...]:
    return (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR1,) if "SLURM_JOB_ID" in os.environ else ()))


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first of the signals raises `Stopped` in the main thread; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, before = os.getpid(), {number: signal.getsignal(number) for number in signals()}

    def stop(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a forked worker: its parent speaks
            os._exit(128 + number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    for number in before:
        if before[number] is not signal.SIG_IGN:  # by nohup, or `&` in a script
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_how_to_go_on(stopped: Stopped, args: list[str]) -> None:
    """One line on standard error, on rank 0 alone."""
    if any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "SLURM_PROCID")):
        return
    words = [f"uae: {stopped}"]
    if stopped.number == signal.SIGUSR1:
        words.append(requeued())
    if args[0] in ("run", "fit"):
        words.append(f"go on with: {shlex.join(['uae', *resumed(args)])}")
    elif args[0] in ON_ITS_OWN:
        words.append("the same command goes on where it was")
    print("; ".join(words), file=sys.stderr, flush=True)


def requeued() -> str:
    """Puts the job of SLURM back into the queue; says whether it is there."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except OSError as error:
        return f"job {job} could not be put back into the queue ({error})"
    except subprocess.CalledProcessError as error:
        return f"job {job} could not be put back into the queue ({error.stderr.strip()})"
    return f"job {job} is back in the queue, and goes on where its script says --resume"


def resumed(args: list[str]) -> list[str]:
    """`run` or `fit` with --resume. Of a run, --from goes: it has cleared what is to be redone."""
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if args[0] == "run" and word.split("=")[0] == "--from":
            next(words) if word == "--from" else None
        elif word not in ("--overwrite", "--resume"):
            kept.append(word)
    return [*kept, "--resume"]
