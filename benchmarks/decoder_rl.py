"""`python -m benchmarks.decoder_rl`: DecoderRL against a plain loop in the structure of the published Flow-GRPO.

The plain loop is `benchmarks.plain_flow_grpo`, on the same encoder, projector and decoder. Before anything is timed,
both are shown to compute the same log-probabilities, advantages, loss and gradients.

    P captions, G pictures of each, N = P * G   S steps of the sampler, W of them trained   C h w latents
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.measure import Lap, Row, add_options, compare, finish, run_main, start, table, timed  # before torch

# isort: split

import torch
from torch import Tensor, nn

from benchmarks.own_stage import (
    build_stage,
    check_equal,
    counted_modules,
    difference,
    disturb,
    gradients_kept,
    without_trainer,
)
from benchmarks.plain_flow_grpo import DEMO, PUBLISHED, PlainFlowGRPO, Samples, Settings, lora_of_peft
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.scenes.data import scene_batch
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.policy import Rollout
from uae_lightning.types import Batch, RewardInput, Sampling
from uae_lightning.usage import Parser

CONFIG = Path("conf/scenes/decoder_rl.yaml")
PLAIN, OURS = "plain loop", "DecoderRL"
PARTS = ["demo", "published", "ladder"]
ONE_BRANCH = replace(PUBLISHED, guidance_gradient="conditional")
LADDER = {  # each is the one above it with one thing less
    "one branch": ONE_BRANCH,
    "no KL": replace(ONE_BRANCH, kl_beta=0.0),
    "no guidance": replace(PUBLISHED, kl_beta=0.0, guidance=1.0),
    "window of 3": replace(PUBLISHED, kl_beta=0.0, guidance=1.0, window=(0, 3)),
    "window of 2": replace(PUBLISHED, kl_beta=0.0, guidance=1.0, window=(0, 2)),
    "demo, 3 steps": DEMO,
}


# ------------------------------------------------------------------------------------------------------- our stage


def configure(stage: DecoderRL, settings: Settings, *, group_size: int, micro_batch: int) -> None:
    values = asdict(settings)
    stage.autoencoder.sampling = Sampling(values.pop("steps"), values.pop("guidance"))
    for name, value in (values | {"group_size": group_size, "micro_batch": micro_batch}).items():
        setattr(stage.policy, name, value)


def with_captions(stage: DecoderRL, batch: Batch) -> list[str]:
    """Hands the stage the captions of the batch at every step: the work of sampling them is not compared."""
    captions = stage.encoder.tokenize(batch.captions)
    stage.autoencoder.write = lambda *_: captions
    return captions.texts


# -------------------------------------------------------------------------------------------------------- equality


def generators(stage: DecoderRL, captions: list[str]) -> list[torch.Generator]:
    """Those of the stage's own rollout, one for each picture."""
    return stage.generators(1, len(captions) * stage.policy.group_size)


def differences(stage: DecoderRL, plain: PlainFlowGRPO, batch: Batch, captions: list[str]) -> dict[str, float]:
    """Largest differences between the two on the same noise, relative to the largest value (loss: to its terms).

    Gradients first on policy, as training has them; then the policy moves, so that ratios and clipping have something
    to do.
    """
    rollout, samples = stage.rollout(batch), plain.rollout(captions, generators(stage, captions))
    path = rollout.acts[0].trajectory
    before = path.before.transpose(0, 1)
    same = {
        "latents": difference(before, samples.latents[:, plain.settings.window[0] : plain.settings.window[1]]),
        "log-probabilities": difference(path.logp, samples.log_probs),
        "pictures": difference(rollout.reward_input.reconstructions, samples.images),
    }
    rewards = PixelSimilarity()(rollout.reward_input)
    (advantages,) = stage.credit(rollout, rewards)
    same["advantages"] = difference(advantages, plain.advantages(rewards.total))
    same["gradients on policy"], _ = apart(stage, plain, rollout, samples, advantages)
    disturb(stage, 0.01)
    acts = replace(rollout.acts[0], trajectory=replace(path, unguided=None))  # of another policy by now
    rollout = replace(rollout, acts=[acts])
    same["gradients"], losses = apart(stage, plain, rollout, samples, advantages)
    same["loss"] = abs(losses[0] - losses[1]) / float(advantages.abs().mean())  # its terms cancel each other
    return same


def apart(
    stage: DecoderRL, plain: PlainFlowGRPO, rollout: Rollout, samples: Samples, advantages: Tensor
) -> tuple[float, tuple[float, float]]:
    """(Largest difference of the gradients of one update, its loss in both)."""
    logged = without_trainer(stage)
    with gradients_kept(stage) as ours:
        stage.optimizer_step_after_clipping = lambda: 0.0
        stage.update(rollout, advantages)
        del stage.optimizer_step_after_clipping
    with gradients_kept(stage) as theirs:
        loss = plain.accumulate(samples, advantages)
    scale = max(gradient.abs().max() for gradient in theirs)
    found = max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) / scale
    return float(found), (logged["train/loss"], loss)


# ---------------------------------------------------------------------------------------------------------- timing


class Contest:
    """Both loops on one batch; each of its functions does a whole part of a step."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        dtype = [f"--model.autoencoder.{part}.dtype={options.dtype}" for part in ("encoder", "decoder")]
        self.stage, self.options, self.device = build_stage(options.config, *dtype).to(device), options, device
        disturb(self.stage, 0.01)
        self.reward, self.stage.score = PixelSimilarity(), PixelSimilarity()
        self.batch = scene_batch("train", 0, list(range(options.pictures)), max_objects=3)
        self.batch.images = self.batch.images.to(device)
        self.captions = with_captions(self.stage, self.batch)
        without_trainer(self.stage)
        self.sizes = {"group_size": options.group, "micro_batch": options.micro_batch}

    def plain(self, settings: Settings) -> PlainFlowGRPO:
        return PlainFlowGRPO(self.stage, settings, text_length=self.options.text_length, **self.sizes)

    def check(self, settings: Settings) -> dict[str, float]:
        configure(self.stage, settings, **self.sizes)
        return differences(self.stage, self.plain(settings), self.batch, self.captions)

    def our_step(self, settings: Settings) -> Callable[[], None]:
        def run() -> None:
            configure(self.stage, settings, **self.sizes)
            self.stage.training_step(self.batch, 0)

        return run

    def plain_step(self, settings: Settings) -> Callable[[], float]:
        plain = self.plain(settings)
        return lambda: plain.step(self.captions, self.batch.images, self.reward, generators(self.stage, self.captions))

    def compare(self, part: str, alternatives: dict[str, Callable]) -> list[Row]:
        pictures = self.options.pictures * self.options.group
        with rows_counted(alternatives, counted_modules(self.stage)) as (counting, rows_per_call):
            rows = compare(
                part, counting, baseline=PLAIN, modules=dict.fromkeys(counting, {}), options=self.options,
                device=self.device,
            )  # fmt: skip
        rows = [replace(row, forwards=per_picture(rows_per_call(row.name), pictures)) for row in rows]
        print(table(rows) + "\n", file=sys.stderr, flush=True)  # all of them take a while
        return rows

    def halves(self, name: str, settings: Settings) -> list[Row]:
        """Rollout and update at equal settings."""
        configure(self.stage, settings, **self.sizes)
        plain, advantages = self.plain(settings), torch.linspace(-1, 1, self.options.pictures * self.options.group)
        advantages = advantages.to(self.device)
        rollout = self.stage.rollout(self.batch)
        samples = plain.rollout(self.captions, generators(self.stage, self.captions))

        def plain_rollout() -> None:
            with lora_of_peft(self.stage.decoder):
                plain.rollout(self.captions, generators(self.stage, self.captions))

        def plain_update() -> None:
            with lora_of_peft(self.stage.decoder):
                plain.accumulate(samples, advantages)
            plain.optimizer_step()

        rollouts = {
            PLAIN: plain_rollout,
            OURS: lambda: self.stage.rollout(self.batch),
        }
        updates = {PLAIN: plain_update, OURS: lambda: self.stage.update(rollout, advantages)}
        return [*self.compare(f"{name}: rollout", rollouts), *self.compare(f"{name}: update", updates)]

    def demo(self) -> list[Row]:
        return [
            *self.halves("demo", DEMO),
            *self.compare("demo: step", {PLAIN: self.plain_step(DEMO), OURS: self.our_step(DEMO)}),
        ]

    def published(self) -> list[Row]:
        """The whole step is the first of the ladder."""
        return self.halves("published", PUBLISHED)

    def ladder(self) -> list[Row]:
        """Steps of DecoderRL at the published settings and at cheaper and cheaper ones, against the plain loop."""
        steps = {PLAIN: self.plain_step(PUBLISHED), OURS: self.our_step(PUBLISHED)}
        steps |= {f"{OURS}, {name}": self.our_step(settings) for name, settings in LADDER.items()}
        return self.compare("published: step", steps)

    def reward_seconds(self) -> Lap:
        """Of one reward, which is part of every step."""
        pictures = self.batch.images.repeat_interleave(self.options.group, 0)
        inputs = RewardInput(pictures, pictures, [""] * len(pictures))
        return timed(lambda: self.reward(inputs), self.device)


@contextmanager
def rows_counted(alternatives: dict[str, Callable], modules: dict[str, nn.Module]) -> Iterator[tuple]:
    """(the alternatives, name -> rows that passed through each module per call): a batch of 2n counts twice."""
    calls = dict.fromkeys(alternatives, 0)
    rows = {name: dict.fromkeys(modules, 0) for name in alternatives}
    running: list[str] = []

    def counting(name: str, run: Callable) -> Callable:
        def counted() -> None:
            running[:] = [name]
            calls[name] += 1
            run()

        return counted

    def counter(module_name: str) -> Callable:
        def count(module: nn.Module, args: tuple, inputs: dict) -> None:
            rows[running[0]][module_name] += len(next(x for x in (*args, *inputs.values()) if isinstance(x, Tensor)))

        return count

    handles = [
        module.register_forward_pre_hook(counter(name), with_kwargs=True) for name, module in modules.items()
    ]  # fmt: skip
    try:
        yield (
            {name: counting(name, run) for name, run in alternatives.items()},
            lambda name: {module: count / calls[name] for module, count in rows[name].items()},
        )
    finally:
        for handle in handles:
            handle.remove()


def per_picture(rows: dict[str, float], pictures: int) -> dict[str, float]:
    return {f"{name}/picture": round(count / pictures, 2) for name, count in rows.items()}


def cost_per_picture(rows: list[Row], pictures: int) -> str:
    lines = [f"{'':34s}{'busy ms a picture':>20s}{'share of the plain loop':>26s}"]
    for row in rows:
        share = 1 / row.busy_speedup.median
        lines.append(f"{row.name:34s}{1e3 * row.busy.median / pictures:20.1f}{share:26.1%}")
    return "\n".join(lines)


def main(args: list[str]) -> None:
    options = parse(args)
    contest, equality = Contest(options, start(options)), {}
    for name, settings in (("published", PUBLISHED), ("demo", DEMO)):
        equality[name] = contest.check(settings)
        check_equal(f"settings: {name}", equality[name], options.dtype)
    measured = {part: getattr(contest, part)() for part in options.parts}
    if "ladder" in measured:
        print(cost_per_picture(measured["ladder"], options.pictures * options.group))
    reward = contest.reward_seconds()
    print(f"of each step, {reward.busy:.4f} busy seconds are the reward\n")
    rows = [row for rows in measured.values() for row in rows]
    command = " ".join(["python -m benchmarks.decoder_rl", *args])
    finish(command, options, rows, equality=equality, reward=asdict(reward))


def parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.decoder_rl", description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML of the parts (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=2, help="captions per step, P (default: %(default)s)")
    parser.add_argument("--group", type=int, default=16, help="pictures of each, G (default: %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=16, help="pictures per pass (default: %(default)s)")
    parser.add_argument(
        "--text-length", type=int, default=0, help="the plain loop pads text to it; 0 is the longest of a batch"
    )
    parser.add_argument(
        "--parts", nargs="+", default=PARTS, choices=PARTS, help="equal settings, or the ladder (default: all)"
    )
    add_options(parser)
    options = parser.parse(args)
    if options.group < 2 or options.pictures * options.group % options.micro_batch:
        parser.error(f"--micro-batch {options.micro_batch} must divide --pictures x --group, and --group be 2 or more")
    return options


if __name__ == "__main__":
    run_main(main)
