"""SIGINT and SIGTERM end a command at once, say how it goes on, and give the shell's exit codes, 130 and 143.

At once, not at the end of a step as Lightning does, which may be minutes away and ends an unfinished fit with code 0.
Nothing is lost by that: what is on disk is whole at any moment.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ON_ITS_OWN = ("study", "bootstrap", "caption", "caption-data", "cache")  # the same command goes on where it was


class Stopped(BaseException):
    """Somebody wants this process to end. No Exception, and no KeyboardInterrupt, which Lightning ends with code 1."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first of the signals raises `Stopped` in the main thread; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, before = os.getpid(), {number: signal.getsignal(number) for number in SIGNALS}

    def stop(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a forked worker: its parent speaks
            os._exit(128 + number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:  # by nohup, or `&` in a script
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_how_to_go_on(stopped: Stopped, args: list[str]) -> None:
    """One line on standard error, on rank 0 alone."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    words = [f"uae: {stopped}"]
    if args[0] in ("run", "fit"):
        words.append(f"go on with: {shlex.join(['uae', *resumed(args)])}")
    elif args[0] in ON_ITS_OWN:
        words.append("the same command goes on where it was")
    print("; ".join(words), file=sys.stderr, flush=True)


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
