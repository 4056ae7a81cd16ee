"""`python -m benchmarks.decoder_objectives`: which objective of the decoder's RL stage learns most in the same time.

Every arm starts from the weights that the last stage of a run (`--run`) started from, and trains until it has been busy
for `--seconds`, validation not counted. Seconds are those of cores at work for this process (of the clock on a GPU), so
that neighbours on the machine matter little. Two judges, the same for all arms, on the same pictures, captions, prompts
and noise:

    reward     of held-out pictures in the stage's own validation: what is trained for
    GenEval    tasks fulfilled, as `uae evaluate` draws and counts them: what no arm is trained for

The arm `published` is no candidate but the measure of speed: the plain loop of `benchmarks.plain_flow_grpo` with the
published settings. It trains four times as long and is validated after each `--seconds`. The claim under test:
DecoderRL as the scenes' YAML has it reaches the same held-out reward at least four times as fast. The sampler of the
validation is not the one that `published` trains, so its reward under its own (10 steps, guidance 4.5) is measured too.

The rule for the default, set before the trainings: the arm with the highest gain in reward whose paired difference to
`cps` has an interval above 0 over three seeds, and whose change of GenEval does not have an interval wholly below 0. If
there is none, `cps` stays.

Each finished training is a file in `--output`; what is there is not trained again, so that the command can be stopped
and given again, or be given to several processes with different --arms or --seeds.

    python -m benchmarks.decoder_objectives --run runs/demo
    python -m benchmarks.decoder_objectives --run runs/demo --arms nft awm --seeds 0 --seconds 60
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import run_main, start, timed  # before torch

# isort: split

import torch
from lightning import LightningDataModule
from tqdm import tqdm

from benchmarks.objectives_table import BASELINE, REFERENCE, Found, Row, Training, chart, conclusions, mean, table
from benchmarks.own_stage import without_trainer
from benchmarks.plain_flow_grpo import PUBLISHED, PlainFlowGRPO, Settings
from callbacks.reward import evaluate
from uae_lightning.evaluation.statistics import Items
from uae_lightning.evaluation.suite import Evaluation, Subject, sampled_as
from uae_lightning.files import write_json
from uae_lightning.interfaces import Reward
from uae_lightning.rewards.perceptual_grid import PerceptualGrid
from uae_lightning.run import folder as run_folder
from uae_lightning.run.compiled import build_evaluation, parse_evaluation
from uae_lightning.run.provenance import provenance
from uae_lightning.run.spec import EvaluationSpec
from uae_lightning.stages.policy import PolicyStage
from uae_lightning.types import Batch, Sampling
from uae_lightning.usage import Parser, UsageError

CONFIGS = Path("conf/scenes")

Step = Callable[[Batch, int], object]  # a batch and its number -> one optimiser step


@dataclass(frozen=True)
class Arm:
    """An objective: what it is, the stage's YAML, and options of the stage on top of it."""

    about: str
    config: str
    options: tuple[str, ...] = ()
    plain: Settings | None = None  # of the plain loop; None trains by the stage itself
    times: int = 1  # as long as the others


TWO_STEPS = ("window=[0,2]", "clip=1.0e-3")
ARMS = {
    BASELINE: Arm("Flow-GRPO on two steps of CPS", "decoder_rl", TWO_STEPS),
    "flow_sde": Arm("of its own SDE", "decoder_rl", (*TWO_STEPS, "sde=flow_sde", "noise_level=0.7")),
    "guard": Arm("cps with GRPO-Guard's RatioNorm", "decoder_rl", (*TWO_STEPS, "ratio_norm=true")),
    "mix": Arm("MixGRPO: one step of CPS that slides", "decoder_rl", ("window=[0,1]", "slide_every=8")),
    "one_step": Arm("one step of CPS, the second", "decoder_rl", ("window=[1,2]",)),
    "one_step_kl": Arm("one_step held to the reference", "decoder_rl", ("window=[1,2]", "kl_beta=0.1")),
    "nft": Arm("DiffusionNFT", "decoder_matching", ("objective=nft",)),
    "awm": Arm("Advantage Weighted Matching", "decoder_matching", ("objective=awm", "clip=1.0e-3")),
    REFERENCE: Arm("the plain loop with Flow-GRPO's settings, 4 times as long", "decoder_rl", (), PUBLISHED, times=4),
}


@dataclass(frozen=True)
class Judges:
    reward: Reward
    evaluation: Evaluation  # with the prompts of GenEval's tasks and their detector

    def geneval(self, stage: PolicyStage) -> Items:
        """Task -> 1 where the picture drawn for a prompt fulfils it, else 0; seed 0 for all arms and trainings."""
        of = self.evaluation
        return of.suites["geneval_unguided"].measure(Subject(stage.autoencoder, of.data, 0, of.drawings, of.batch_size))


def judges_on(device: torch.device) -> Judges:
    evaluation = build_evaluation(parse_evaluation(EvaluationSpec(CONFIGS / "evaluation.yaml", {})))
    evaluation.suites["geneval_unguided"].to(device)
    return Judges(PerceptualGrid().to(device), evaluation)


# ------------------------------------------------------------------------------------------------------- one training


def build(arm: Arm, seed: int, weights: dict[str, Path], pictures: int) -> tuple[PolicyStage, LightningDataModule]:
    """Stage and data of the arm, with the weights of a run."""
    from jsonargparse import Namespace

    from uae_lightning.run.stage_cli import parse_stage, quiet

    quiet()
    torch.manual_seed(seed)  # adapters start from random numbers
    cli = parse_stage([
        "fit", f"--config={CONFIGS / arm.config}.yaml", f"--seed_everything={seed}",
        f"--data.init_args.validation_pictures={pictures}",
        f"--data.init_args.validation_batch_size={pictures}",
        *(f"--model.autoencoder.{part}.path={folder}" for part, folder in weights.items()),
        *(f"--model.init_args.{option}" for option in arm.options),
    ])  # fmt: skip
    parts = cli._parser("fit").instantiate(Namespace(model=cli.config.fit.model, data=cli.config.fit.data))
    return parts.model, parts.data


def step_of(arm: Arm, stage: PolicyStage) -> Step:
    """The stage's own step, or that of the plain loop on the stage's parts, with captions sampled by the stage."""
    if arm.plain is None:
        without_trainer(stage)
        return stage.training_step
    plain = PlainFlowGRPO(stage, arm.plain, group_size=stage.policy.group_size, micro_batch=stage.policy.micro_batch)

    def step(batch: Batch, number: int) -> float:
        captions = stage.autoencoder.write(batch.images, 1, stage.step_seed(0))
        generators = stage.generators(1, len(captions.texts) * plain.group_size)
        return plain.step(captions.texts, batch.images, stage.score, generators)

    return step


def learn(
    stage: PolicyStage, data: LightningDataModule, reward: Reward, step_on: Step, *, seconds: float, points: int, device
) -> Iterator[Row]:
    """Validations before training and after each of `points` equal parts of `seconds`; a step is not cut short."""
    stage.score, batches = (lambda inputs: evaluate(reward, inputs, 64)), iter(data.train_dataloader())
    spent, step = 0.0, 0

    def train() -> None:
        batch = next(batches)
        batch.images = batch.images.to(device)
        stage.on_train_batch_start(batch, step)
        step_on(batch, step)

    for point in range(points + 1):
        while spent < seconds * point / points:
            spent, step = spent + timed(train, device).busy, step + 1
        yield Row(spent, step, validate(stage, data, reward, device))


@torch.no_grad()
def validate(stage: PolicyStage, data: LightningDataModule, reward: Reward, device, sampling=None) -> list[float]:
    """Reward of each of the held-out pictures; `sampling` (of `Sampling`) None is the stage's own."""
    rewards = []
    with sampled_as(stage.autoencoder, sampling):
        for index, batch in enumerate(data.val_dataloader()):
            batch.images = batch.images.to(device)
            rewards += evaluate(reward, stage.validation_step(batch, index).inputs, 64).total.tolist()
    return rewards


def settings_of(arm: Arm, options: argparse.Namespace) -> dict:
    chosen = {name: getattr(options, name) for name in ("seconds", "points", "pictures")}
    return chosen | {
        "run": str(options.run), "config": arm.config, "options": list(arm.options), "plain": str(arm.plain),
        "times": arm.times,
    }  # fmt: skip


def train_arm(name: str, seed: int, weights: dict[str, Path], judges: Judges, options, device) -> Training:
    arm, rows = ARMS[name], []
    stage, data = build(arm, seed, weights, options.pictures)
    stage.to(device)
    own = Sampling(arm.plain.steps, arm.plain.guidance) if arm.plain else None

    def judged() -> tuple[Items, list[float]]:
        return judges.geneval(stage), validate(stage, data, judges.reward, device, own) if own else []

    before, points = judged(), options.points if arm.times == 1 else arm.times
    with tqdm(total=points + 1, desc=f"{name}, seed {seed}", unit="validation") as bar:
        for row in learn(
            stage, data, judges.reward, step_of(arm, stage), seconds=options.seconds * arm.times, points=points,
            device=device,
        ):  # fmt: skip
            rows.append(row)
            bar.set_postfix_str(f"{mean(row.reward):.4f} after {row.step} steps, {row.seconds:.0f} s")
            bar.update()
    geneval, own_sampler = ([*moments] for moments in zip(before, judged(), strict=True))
    return Training(name, seed, settings_of(arm, options), rows, geneval, own_sampler)


# -------------------------------------------------------------------------------------------------- what is finished


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


# ------------------------------------------------------------------------------------------------------- command line


def main(args: list[str]) -> None:
    options = parse(args)
    began, device = time.monotonic(), start(options)
    weights = run_folder.latest_weights(run_folder.stages_of(options.run)[:-1])
    if "decoder" not in weights:
        raise UsageError(f"--run {options.run} has no decoder's weights from a stage before its last one")
    options.output.mkdir(parents=True, exist_ok=True)
    judges = judges_on(device)
    found: Found = {name: [] for name in options.arms}
    for seed in options.seeds:  # all arms of a seed first: half of a benchmark is then still a comparison
        for name in options.arms:
            file = options.output / f"{name}-{seed}.json"
            training = read(file, settings_of(ARMS[name], options))
            if training is None:
                training = train_arm(name, seed, weights, judges, options, device)
                write_json(file, asdict(training))
                gc.collect()
            found[name].append(training)
    text = "\n".join([table(found), *conclusions(found)])
    print(text)
    (options.output / "curves.svg").write_text(chart(found))
    print(f"curves: {options.output / 'curves.svg'}; {time.monotonic() - began:.0f} s")
    if options.json:
        command = " ".join(["python -m benchmarks.decoder_objectives", *args])
        trainings = {name: [asdict(training) for training in trainings] for name, trainings in found.items()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, provenance(command) | {"table": text.split("\n")} | trainings)


def parse(args: list[str]) -> argparse.Namespace:
    arms = "\n".join(f"    {name:12s} {arm.about} {' '.join(arm.options)}".rstrip() for name, arm in ARMS.items())
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
    run_main(main)
