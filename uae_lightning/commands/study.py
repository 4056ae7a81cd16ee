"""The command `uae study`."""

from __future__ import annotations

import os
from pathlib import Path

from uae_lightning.files import check_writable
from uae_lightning.ranges import Count, Seed
from uae_lightning.run.masking import masked_command
from uae_lightning.usage import Parser

DESCRIPTION = """\
Trains and evaluates the arms of a study with several seeds, then writes results.json, results.md and their figures.
It can be stopped at any moment: the same command goes on where it was. Everything lies in runs/NAME, logs in
runs/NAME/logs.

    uae study --config conf/reproduce.yaml
    uae study --config conf/ablations.yaml --only a_b --seeds 0 1
    uae study --config conf/ablations.yaml --dry-run                what would run, and about how long
"""


def main(args: list[str]) -> None:
    options = parse(args)
    from uae_lightning.study.run import run_study

    command = masked_command(["uae", "study", *(word for word in args if word != "--report")])
    if page := run_study(options, command):
        print(f"Results: {page}, {page.with_suffix('.json')}")


def parse(args: list[str]):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = Parser(prog="uae study", description=DESCRIPTION)
    parser.add_argument("--config", type=Path, metavar="YAML", help="the list of arms (needed)")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="these arms, and those they come after")
    parser.add_argument("--seeds", nargs="+", type=Seed, metavar="SEED", help="in place of the YAML's")
    parser.add_argument("--output", type=Path, default=Path("docs"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--jobs", type=Count, default=cores, help="processes at a time; default: cores, %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="redo jobs whose settings have changed since")
    parser.add_argument("--dry-run", action="store_true", help="list the jobs and what they would take")
    parser.add_argument("--report", action="store_true", help="run nothing; write the results of what is done")
    parser.set_defaults(cores=cores)
    options = parser.parse(args)
    if options.config is None:
        parser.error("name the YAML of a study with --config")
    if not options.dry_run:
        check_writable(options.output / "results.md", "--output")
    return options
