"""`python -m benchmarks.decoder_objectives`: which objective of the decoder's RL stage learns most in the same time.

Every arm starts from the weights that the last stage of a run (`--run`) started from, and trains until it has been busy
for `--seconds`, validation not counted. Held-out reward is that of the stage's own validation, on the same pictures,
captions and noise for all. Seconds are those of cores at work for this process (of the clock on a GPU), so that
neighbours on the machine matter little.

Each finished training is a file in `--output`; what is there is not trained again, so that the command can be stopped
and given again, or be given to several processes with different --arms or --seeds.

    python -m benchmarks.decoder_objectives --run runs/demo
    python -m benchmarks.decoder_objectives --run runs/demo --arms nft awm --seeds 0 --seconds 60
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import start, timed  # before torch

# isort: split

import torch
from lightning import LightningDataModule
from torch import Tensor
from tqdm import tqdm

from benchmarks.own_stage import without_trainer
from callbacks.reward import evaluate
from uae_lightning import run_folder
from uae_lightning.evaluation.intervals import grouped_interval
from uae_lightning.interfaces import Reward
from uae_lightning.provenance import provenance
from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.stages.common import PolicyStage
from uae_lightning.usage import Parser, UsageError

CONFIGS = Path("conf/scenes")


@dataclass(frozen=True)
class Arm:
    """An objective: what it is, the stage's YAML, and options of the stage on top of it."""

    about: str
    config: str
    options: tuple[str, ...] = ()


TWO_STEPS = ("window=[0,2]", "clip=1.0e-3")
ARMS = {
    "cps": Arm("Flow-GRPO on two steps of CPS", "decoder_rl", TWO_STEPS),
    "flow_sde": Arm("of its own SDE", "decoder_rl", (*TWO_STEPS, "sde=flow_sde", "noise_level=0.7")),
    "guard": Arm("cps with GRPO-Guard's RatioNorm", "decoder_rl", (*TWO_STEPS, "ratio_norm=true")),
    "mix": Arm("MixGRPO: one step of CPS that slides", "decoder_rl", ("window=[0,1]", "slide_every=8")),
    "one_step": Arm("one step of CPS, the second", "decoder_rl", ("window=[1,2]",)),
    "nft": Arm("DiffusionNFT", "decoder_matching", ("objective=nft",)),
    "awm": Arm("Advantage Weighted Matching", "decoder_matching", ("objective=awm", "clip=1.0e-3")),
}
BASELINE = "cps"


# ------------------------------------------------------------------------------------------------------- one training


@dataclass(frozen=True)
class Row:
    """One validation."""

    seconds: float  # of training before it
    step: int
    reward: list[float]  # a value per held-out picture


@dataclass(frozen=True)
class Training:
    arm: str
    seed: int
    settings: dict  # what it depends on; another training of that name with other settings is not this one
    rows: list[Row]


def build(arm: Arm, seed: int, weights: dict[str, Path], pictures: int) -> tuple[PolicyStage, LightningDataModule]:
    """Stage and data of the arm, with the weights of a run."""
    from jsonargparse import Namespace

    from uae_lightning.stage_cli import parse_stage, quiet

    quiet()
    torch.manual_seed(seed)  # adapters start from random numbers
    options = [f"{part}.init_args.path={folder}" for part, folder in weights.items()] + list(arm.options)
    cli = parse_stage([
        "fit", f"--config={CONFIGS / arm.config}.yaml", f"--model.init_args.seed={seed}",
        f"--data.init_args.seed={seed}", f"--data.init_args.validation_pictures={pictures}",
        f"--data.init_args.validation_batch_size={pictures}", *(f"--model.init_args.{option}" for option in options),
    ])  # fmt: skip
    parts = cli._parser("fit").instantiate_classes(Namespace(model=cli.config.fit.model, data=cli.config.fit.data))
    return parts.model, parts.data


def learn(
    stage: PolicyStage, data: LightningDataModule, reward: Reward, *, seconds: float, points: int, device: torch.device
) -> Iterator[Row]:
    """Validations before training and after each of `points` equal parts of `seconds`; a step is not cut short."""
    stage.score, batches = (lambda inputs: evaluate(reward, inputs, 64)), iter(data.train_dataloader())
    without_trainer(stage)
    spent, step = 0.0, 0

    def train() -> None:
        batch = next(batches)
        batch.images = batch.images.to(device)
        stage.on_train_batch_start(batch, step)
        stage.training_step(batch, step)

    for point in range(points + 1):
        while spent < seconds * point / points:
            spent, step = spent + timed(train, device).busy, step + 1
        yield Row(spent, step, validate(stage, data, reward, device).tolist())


@torch.no_grad()
def validate(stage: PolicyStage, data: LightningDataModule, reward: Reward, device: torch.device) -> Tensor:
    """[M] reward of the held-out pictures."""
    rewards = []
    for index, batch in enumerate(data.val_dataloader()):
        batch.images = batch.images.to(device)
        rewards.append(evaluate(reward, stage.validation_step(batch, index).inputs, 64).total)
    return torch.cat(rewards)


def settings_of(arm: Arm, options: argparse.Namespace) -> dict:
    chosen = {name: getattr(options, name) for name in ("run", "seconds", "points", "pictures")}
    return {"config": arm.config, "options": list(arm.options)} | chosen | {"run": str(options.run)}


def train_arm(name: str, seed: int, weights: dict[str, Path], reward: Reward, options, device) -> Training:
    stage, data = build(ARMS[name], seed, weights, options.pictures)
    rows = []
    with tqdm(total=options.points + 1, desc=f"{name}, seed {seed}", unit="validation") as bar:
        for row in learn(
            stage.to(device), data, reward, seconds=options.seconds, points=options.points, device=device
        ):  # fmt: skip
            rows.append(row)
            bar.set_postfix_str(f"{mean(row.reward):.4f} after {row.step} steps, {row.seconds:.0f} s")
            bar.update()
    return Training(name, seed, settings_of(ARMS[name], options), rows)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------------------------ results


def read(file: Path, settings: dict) -> Training | None:
    """A finished training, None where there is none.

    Raises:
        UsageError: it was made with other settings.
    """
    if not file.exists():
        return None
    content = json.loads(file.read_text())
    if content["settings"] != settings:
        different = sorted(key for key in settings if content["settings"].get(key) != settings[key])
        raise UsageError(f"{file} has other settings ({', '.join(different)}): choose another --output, or delete it")
    return Training(**content | {"rows": [Row(**row) for row in content["rows"]]})


def gains(trainings: list[Training]) -> list[list[float]]:
    """[seeds][pictures]: reward at the end less reward at the start."""
    return [
        [after - before for before, after in zip(training.rows[0].reward, training.rows[-1].reward, strict=True)]
        for training in trainings
    ]


def compared(trainings: list[Training], others: list[Training]) -> dict[str, float | int] | None:
    """Difference of the gains over the seeds that both have, picture by picture; None where they share none."""
    seeds = {other.seed: other for other in others}
    shared = [training for training in trainings if training.seed in seeds]
    if not shared:
        return None
    pairs = zip(gains(shared), gains([seeds[training.seed] for training in shared]), strict=True)
    return grouped_interval([[[a - b for a, b in zip(own, other, strict=True)] for own, other in pairs]])


def table(found: dict[str, list[Training]]) -> str:
    """Per arm: cost of a step, mean gains on the way, the last one with its interval, difference to `BASELINE`."""
    lines = []
    for name, trainings in found.items():
        steps = mean([training.rows[-1].step for training in trainings])
        cost = mean([training.rows[-1].seconds / training.rows[-1].step for training in trainings])
        curve = [
            mean([mean(training.rows[point].reward) - mean(training.rows[0].reward) for training in trainings])
            for point in range(1, len(trainings[0].rows))
        ]
        seeds = " ".join(f"{mean(gain):+.4f}" for gain in gains(trainings))
        against = None if name == BASELINE else compared(trainings, found.get(BASELINE, []))
        lines.append([
            name, f"{steps:.0f}", f"{cost:.1f}", " ".join(f"{gain:+.4f}" for gain in curve),
            bracketed(grouped_interval([gains(trainings)])), seeds, bracketed(against) if against else "",
        ])  # fmt: skip
    head = ["arm", "steps", "s/step", "gain on the way", "gain at the end", "of each seed", f"less that of {BASELINE}"]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
    )


def bracketed(interval: dict[str, float | int]) -> str:
    return f"{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"


def chart(found: dict[str, list[Training]]) -> str:
    """SVG of held-out reward against busy seconds: seeds thin, their mean thick."""
    from uae_lightning.study.figures import curves

    tracks = {
        name: [([row.seconds for row in t.rows], [mean(row.reward) for row in t.rows]) for t in trainings]
        for name, trainings in found.items()
    }
    return curves(tracks, (), "Held-out reward against busy seconds of training")


# ------------------------------------------------------------------------------------------------------- command line


def main(args: list[str]) -> None:
    options = parse(args)
    began, device = time.monotonic(), start(options)
    weights = run_folder.latest_weights(run_folder.stages_of(options.run)[:-1])
    if "decoder" not in weights:
        raise UsageError(f"--run {options.run} has no decoder's weights from a stage before its last one")
    options.output.mkdir(parents=True, exist_ok=True)
    reward, found = PerceptualGrid().to(device), {name: [] for name in options.arms}
    for seed in options.seeds:  # all arms of a seed first: half of a benchmark is then still a comparison
        for name in options.arms:
            file = options.output / f"{name}-{seed}.json"
            training = read(file, settings_of(ARMS[name], options))
            if training is None:
                training = train_arm(name, seed, weights, reward, options, device)
                run_folder.write_json(file, asdict(training))
                gc.collect()
            found[name].append(training)
    print(table(found))
    (options.output / "curves.svg").write_text(chart(found))
    print(f"curves: {options.output / 'curves.svg'}; {time.monotonic() - began:.0f} s")
    if options.json:
        command = " ".join(["python -m benchmarks.decoder_objectives", *args])
        trainings = {name: [asdict(training) for training in trainings] for name, trainings in found.items()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(options.json, provenance(command) | {"table": table(found).split("\n")} | trainings)


def parse(args: list[str]) -> argparse.Namespace:
    arms = "\n".join(f"    {name:10s} {arm.about}: {' '.join(arm.options)}" for name, arm in ARMS.items())
    parser = Parser(prog="python -m benchmarks.decoder_objectives", description=f"{__doc__}\narms:\n{arms}")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/demo"), help="a run of all stages (default: %(default)s)"
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="default: all of them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--seconds", type=float, default=100, help="of training for each (default: %(default)s)")
    parser.add_argument("--points", type=int, default=4, help="validations on the way (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=128, help="held-out pictures (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/decoder_objectives"), metavar="FOLDER",
        help="one file for each training, and curves.svg (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it, settings and versions as well")
    options = parser.parse(args)
    if options.seconds <= 0 or options.points < 1 or options.pictures < 2:
        parser.error("--seconds must be above 0, --points at least 1 and --pictures at least 2")
    return options


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UsageError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
