"""`uae watch`: how a run stands, in a terminal, while it trains or afterwards."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from uae_lightning.ranges import Positive
from uae_lightning.usage import Parser

DESCRIPTION = """\
Shows the stages of a run with steps, reward, time left and the last caption, and ends when the run has ended.

    uae watch runs/demo                  until the run ends; Ctrl-C ends the watching alone
    uae watch runs/demo --once           as it is now
    uae watch runs/fit --every 30        what `uae fit` trains there

Before the first step it says what is being set up, and for how long. A folder that is not there is waited for, 30
seconds at most: a run checks all of its stages before it makes one.

It reads what lies in the folder: on another machine too, and without touching the run.
"""
LINES = 10.0  # seconds between two looks where the output is not a terminal, and something has changed
PATIENCE = 30.0  # seconds until a run that has been started has its folder


def main(args: list[str]) -> None:
    options = parse(args)
    from uae_lightning.report.live import lines_of, look_at

    if options.once:
        print("\n".join(lines_of(look_at(options.run))))
        return
    await_folder(options.run, options.every)
    terminal, shown, spoke = sys.stdout.isatty(), list[str](), -LINES
    while True:
        run = look_at(options.run)
        width = shutil.get_terminal_size().columns if terminal else 200
        lines = lines_of(run, width)
        due = terminal or run.state != "running" or time.monotonic() - spoke >= LINES
        if lines != shown and due:
            if terminal and shown:
                print(f"\x1b[{len(shown)}F\x1b[J", end="")  # up to where the last look began, and clear from there
            print("\n".join(lines), flush=True)
            shown, spoke = lines, time.monotonic()
        if run.state != "running":
            return
        time.sleep(options.every)


def await_folder(run: Path, every: float) -> None:
    """Where there is none after all, `look_at` says so."""
    began = time.monotonic()
    if not run.exists():
        print(f"{run} is not there yet: waiting for a run that checks its stages, {PATIENCE:.0f} s at most", flush=True)
    while not run.exists() and time.monotonic() - began < PATIENCE:
        time.sleep(min(every, 1.0))


def parse(args: list[str]):
    parser = Parser(prog="uae watch", description=DESCRIPTION)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or of a stage")
    parser.add_argument("--once", action="store_true", help="print it once and end")
    parser.add_argument("--every", type=Positive, default=2.0, metavar="SECONDS", help="default: %(default)s")
    return parser.parse(args)
