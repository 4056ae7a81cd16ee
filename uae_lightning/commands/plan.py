"""The command `uae plan`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from uae_lightning.commands.run import pair_up
from uae_lightning.files import check_writable
from uae_lightning.planning.report import as_json, table
from uae_lightning.planning.stage_plan import GB, plan_stage
from uae_lightning.ranges import Count, Positive
from uae_lightning.run import spec as run_spec
from uae_lightning.run.compiled import StageRun
from uae_lightning.run.stage_checks import check_training
from uae_lightning.run.stage_cli import quiet
from uae_lightning.usage import Parser

DESCRIPTION = """\
Prints what each stage of a YAML needs, before anything is loaded: parameters, memory per device, the peak and in which
phase it is, whether it fits a card, FLOPs and time of a step. It runs the stage's own code on tensors without data.

    uae plan --config conf/demo.yaml                             all stages of a run
    uae plan --config conf/scenes/encoder_rl.yaml                one stage
    uae plan --config conf/real/encoder_rl.yaml --config conf/real/sd35_large.yaml --config conf/real/80gb.yaml
    uae plan --config conf/real/run.yaml --with sd35_large --card 24 --tflops 60
    uae plan --config conf/real/run.yaml --with sd35_large 80gb --trainer.strategy fsdp --trainer.devices 8 --card 80
    uae plan --config conf/real/run.yaml --with sd35_large 8x80gb --nodes 8 --link 50      64 cards: what they exchange

Captions are taken as long as captioning.max_new_tokens allows. Any dotted option is passed to every stage.
"""
MEASURED = "measured on this machine by one matrix product; --tflops takes another rate"
MATRIX = {"cuda": (8192, torch.bfloat16), "cpu": (1024, torch.float32)}  # side and type of the product that is timed


def main(args: list[str]) -> None:
    options, overrides = parse(args)
    rate, source = (options.tflops * 1e12, "given") if options.tflops else (measured_rate(), MEASURED)
    first, *over = options.config
    specs = run_spec.read_run_or_stage(first, options.overlays, over).stages
    link = options.link * GB if options.link else None
    plans = [planned(StageRun(spec, overrides), options.card, rate, link) for spec in specs]
    print(f"Times are those of {rate / 1e12:.3g} TFLOP/s, {source}")
    if options.json:
        options.json.write_text(json.dumps({"rate": source, "stages": plans}, indent=1))


def parse(args: list[str]):
    parser = Parser(prog="uae plan", description=DESCRIPTION)
    parser.add_argument(
        "--config", "-c", type=Path, metavar="YAML", action="append",
        help="of a run or of a stage (needed); again: laid over the stage's, as for `uae fit`",
    )  # fmt: skip
    run_spec.add_overlays(parser)
    parser.add_argument(
        "--card", "--card-gb", type=Positive, default=own_card(), metavar="GB",
        help="memory of the card; default: that of this machine's, if it has one",
    )  # fmt: skip
    parser.add_argument("--tflops", type=Positive, metavar="N", help="TFLOP/s the card reaches; default: measured here")
    parser.add_argument("--nodes", type=Count, metavar="N", help="machines; the same as --trainer.num_nodes")
    parser.add_argument(
        "--link", type=Positive, metavar="GB", help="GB that a device receives in a second, for the time of exchanges"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same numbers for programs")
    options, rest = parser.parse_known_args(args)
    nodes = ["--trainer.num_nodes", str(options.nodes)] if options.nodes else []
    overrides = pair_up(parser, [*rest, *nodes])
    if options.config is None:
        parser.error("name the YAML of a run or of a stage with --config")
    if options.json:
        check_writable(options.json, "--json")
    return options, overrides


def own_card() -> float | None:
    """GB of this machine's GPU."""
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None


def planned(stage: StageRun, card: float | None, rate: float, link: float | None) -> dict[str, Any]:
    """Plans one stage and prints it as soon as it is known."""
    quiet()
    check_training(stage.config)
    plan = plan_stage(stage.name, stage.parsed)
    plan.card, plan.rate, plan.link = card, rate, link
    print(table(plan), end="\n\n", flush=True)
    return as_json(plan)


def measured_rate(seconds: float = 0.5) -> float:
    """FLOP/s of a matrix product, the best of those that fit in `seconds`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side, dtype = MATRIX[device]
    a = torch.ones(side, side, dtype=dtype, device=device)
    times, end = [], time.perf_counter() + seconds
    (a @ a).sum().item()  # kernels are loaded
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the GPU
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)
