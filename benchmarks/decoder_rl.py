"""`python -m benchmarks.decoder_rl`: DecoderRL against a plain loop in the structure of the published Flow-GRPO.

The plain loop is ours, written from arXiv 2505.05470 and the order of work in its code, on the same encoder, projector
and decoder. As there:

  * every copy of a prompt is encoded, G times per caption, in the batches in which pictures are sampled;
  * guidance is one batch of 2n, unconditional and conditional, in sampling and in training, where the backward pass
    runs through both halves although the unconditional one is detached;
  * all states of the sampler and all conditions are kept, one row per picture;
  * each trained step is a pass of its own with its backward pass, and one more with adapters off for the KL.

Kinder to it than its code: text is padded to the longest caption of a batch (`--text-length` pads to a fixed length, as
published), its gradients go into one optimiser step without shuffling, and nothing is logged or sent anywhere.

    P captions, G pictures of each, N = P * G   S steps of the sampler, W of them trained   C h w latents
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.measure import Lap, Row, add_options, compare, finish, start, table, timed  # before torch

# isort: split

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uae_lightning.data.scenes_data import scene_batch
from uae_lightning.models.adapters import lora_layers
from uae_lightning.models.lora_product import OneProduct
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.stages.common import Sampling, Stage
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.types import Batch, Conditioning, RewardInput
from uae_lightning.usage import Parser, UsageError

CONFIG = Path("conf/scenes/decoder_rl.yaml")
PLAIN, OURS = "plain loop", "DecoderRL"
PARTS = ["demo", "published", "ladder"]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}  # of relative differences


@dataclass(frozen=True)
class Settings:
    """Of sampler and objective, by the names of `DecoderRL`."""

    steps: int = 10
    guidance: float = 4.5
    window: tuple[int, int] = (0, 9)
    sde: str = "flow_sde"
    noise_level: float = 0.7
    clip: float = 1e-4
    kl_beta: float = 0.04
    same_noise: bool = False
    advantage_scale: str = "batch_std"

    @property
    def trained(self) -> int:
        """W"""
        return self.window[1] - self.window[0]


PUBLISHED = Settings()
DEMO = Settings(3, 1.0, (0, 2), "cps", 0.5, 1e-3, 0.0, True, "group_std")  # conf/scenes/decoder_rl.yaml
LADDER = {  # each is the one above it with one thing less
    "no KL": replace(PUBLISHED, kl_beta=0.0),
    "no guidance": replace(PUBLISHED, kl_beta=0.0, guidance=1.0),
    "window of 3": replace(PUBLISHED, kl_beta=0.0, guidance=1.0, window=(0, 3)),
    "window of 2": replace(PUBLISHED, kl_beta=0.0, guidance=1.0, window=(0, 2)),
    "demo, 3 steps": DEMO,
}


# ---------------------------------------------------------------------------------------------------- the plain loop


@dataclass(frozen=True)
class Samples:
    """What the plain loop keeps of sampling."""

    text: Conditioning  # [N, L, D]
    latents: Tensor  # [N, S + 1, C, h, w]
    log_probs: Tensor  # [N, W]
    images: Tensor  # [N, 3, H, W]


@dataclass(frozen=True)
class Transition:
    """Of one step of the policy."""

    mean: Tensor  # [n, C, h, w]
    std: Tensor  # []

    def log_prob(self, after: Tensor) -> Tensor:
        """[n] mean over C, h, w."""
        log_density = (
            -((after - self.mean) ** 2) / (2 * self.std**2) - self.std.log() - math.log(math.sqrt(2 * math.pi))
        )
        return log_density.mean((1, 2, 3))


def transition(x: Tensor, velocity: Tensor, sigma: Tensor, after: Tensor, settings: Settings) -> Transition:
    """From noise level `sigma` to `after`, both [], as the papers write it (see `algorithms.flow_sde`)."""
    level = settings.noise_level
    if settings.sde == "cps":
        std = after * math.sin(level * math.pi / 2)
        clean, noise = x - sigma * velocity, x + (1 - sigma) * velocity
        return Transition((1 - after) * clean + (after**2 - std**2).sqrt() * noise, std)
    dt = after - sigma
    sigma_t = level * (sigma / (1 - (after if sigma == 1 else sigma))).sqrt()
    drift = velocity + sigma_t**2 / (2 * sigma) * (x + (1 - sigma) * velocity)
    return Transition(x + drift * dt, sigma_t * (-dt).sqrt())


class PlainFlowGRPO:
    """See the head of this file.

    Args:
        stage: whose parts, optimiser and gradient clipping are used.
        settings: of sampler and objective.
        group_size, micro_batch: G, and pictures per forward pass.
        text_length: of the conditions after padding; 0 is the longest of a batch.
    """

    advantage_clip = 5.0

    def __init__(
        self, stage: Stage, settings: Settings, *, group_size: int, micro_batch: int, text_length: int = 0
    ) -> None:
        self.encoder, self.projector, self.decoder = stage.encoder, stage.projector, stage.decoder
        self.settings, self.group_size, self.micro_batch = settings, group_size, micro_batch
        self.text_length, self.max_grad_norm = text_length, stage.max_grad_norm
        self.parameters = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        self.optimizer = stage.optimizer(self.parameters)
        self.sigmas = self.decoder.schedule(settings.steps)

    def step(self, captions: list[str], originals: Tensor, reward: Callable, generator: torch.Generator) -> float:
        """One rollout of P captions and one optimiser step; the loss."""
        with lora_of_peft(self.decoder):
            return self._step(captions, originals, reward, generator)

    def _step(self, captions: list[str], originals: Tensor, reward: Callable, generator: torch.Generator) -> float:
        samples = self.rollout(captions, generator)
        prompts = [caption for caption in captions for _ in range(self.group_size)]
        originals = originals.repeat_interleave(self.group_size, 0)
        rewards = reward(RewardInput(originals, samples.images, prompts)).total
        loss = self.accumulate(samples, self.advantages(rewards))
        self.optimizer_step()
        return loss

    # ------------------------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def rollout(self, captions: list[str], generator: torch.Generator) -> Samples:
        prompts = [caption for caption in captions for _ in range(self.group_size)]
        start = self.starting_noise(len(captions), generator)
        parts = []
        for first in range(0, len(prompts), self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            parts.append(self.sample(prompts[rows], start[rows], generator))
        return Samples(joined([part.text for part in parts]), *(
            torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "log_probs", "images")
        ))  # fmt: skip

    def starting_noise(self, captions: int, generator: torch.Generator) -> Tensor:
        """[N, C, h, w]"""
        copies = 1 if self.settings.same_noise else self.group_size
        noise = torch.randn(captions * copies, *self.decoder.latent_shape, generator=generator)
        return noise.repeat_interleave(self.group_size // copies, 0)

    def sample(self, prompts: list[str], noise: Tensor, generator: torch.Generator) -> Samples:
        text = self.encode(prompts)
        x = noise.to(text.states.device)
        latents, log_probs = [x], []
        for index in range(self.settings.steps):
            velocity = self.velocity(x, index, text)
            if self.settings.window[0] <= index < self.settings.window[1]:
                step = transition(x, velocity, self.sigmas[index], self.sigmas[index + 1], self.settings)
                x = step.mean + step.std * torch.randn(x.shape, generator=generator).to(x.device)
                log_probs.append(step.log_prob(x))
            else:
                x = x + velocity * (self.sigmas[index + 1] - self.sigmas[index])
            latents.append(x)
        return Samples(text, torch.stack(latents, 1), torch.stack(log_probs, 1), self.decoder.decode_latents(x))

    def encode(self, prompts: list[str]) -> Conditioning:
        """[n, L, D], each prompt by itself whether or not it was seen before."""
        states, mask = self.encoder.embed(prompts)
        text = Conditioning(self.projector(states), mask)
        return padded(text, max(self.text_length, mask.shape[1]))

    def velocity(self, x: Tensor, index: int, text: Conditioning) -> Tensor:
        """[n, C, h, w]; with guidance both branches in one batch."""
        guidance, sigma = self.settings.guidance, self.sigmas[index].to(x.device)
        if guidance == 1:
            return self.decoder.velocity(x, sigma.expand(len(x)), text)
        null = text.drop(torch.ones(len(x), dtype=torch.bool, device=x.device))
        both = self.decoder.velocity(torch.cat([x, x]), sigma.expand(2 * len(x)), joined([null, text]))
        unconditional, conditional = both.chunk(2)
        unconditional = unconditional.detach()
        return unconditional + guidance * (conditional - unconditional)

    # ------------------------------------------------------------------------------------------------- training

    def advantages(self, rewards: Tensor) -> Tensor:
        """[N]: rewards less the mean of their group, over a standard deviation."""
        groups = rewards.view(-1, self.group_size)
        if self.settings.advantage_scale == "batch_std":
            std = rewards.std(correction=0)
        else:
            std = groups.std(1, keepdim=True)
        advantages = (groups - groups.mean(1, keepdim=True)) / (std + 1e-4)
        return advantages.flatten().clamp(-self.advantage_clip, self.advantage_clip)

    def accumulate(self, samples: Samples, advantages: Tensor) -> float:
        """Gradients of all pictures and trained steps; the loss."""
        total, passes = 0.0, len(advantages) // self.micro_batch * self.settings.trained
        for first in range(0, len(advantages), self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            for column in range(self.settings.trained):
                loss = self.loss(samples, rows, column, advantages[rows]) / passes
                loss.backward()
                total += loss.item()
        return total

    def loss(self, samples: Samples, rows: slice, column: int, advantages: Tensor) -> Tensor:
        """[] of one trained step of n pictures."""
        step = self.replay(samples, rows, column)
        after = samples.latents[rows, self.settings.window[0] + column + 1]
        ratio = (step.log_prob(after) - samples.log_probs[rows, column]).exp()
        clipped = ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)
        loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
        if self.settings.kl_beta == 0:
            return loss
        with torch.no_grad(), self.decoder.reference():
            reference = self.replay(samples, rows, column)
        kl = ((step.mean - reference.mean) ** 2).mean((1, 2, 3)) / (2 * step.std**2)
        return loss + self.settings.kl_beta * kl.mean()

    def replay(self, samples: Samples, rows: slice, column: int) -> Transition:
        index = self.settings.window[0] + column
        x = samples.latents[rows, index]
        velocity = self.velocity(x, index, samples.text[rows])
        return transition(x, velocity, self.sigmas[index], self.sigmas[index + 1], self.settings)

    def optimizer_step(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


@contextmanager
def lora_of_peft(model: nn.Module) -> Iterator[None]:
    """Inside it adapters compute as peft has it, in three products: the baselines know nothing of ours."""
    layers = [layer for layer in lora_layers(model) if isinstance(layer.forward, OneProduct)]
    ours = [layer.forward for layer in layers]
    for layer in layers:
        layer.forward = layer.forward.three_products
    try:
        yield
    finally:
        for layer, forward in zip(layers, ours, strict=True):
            layer.forward = forward


def padded(text: Conditioning, length: int) -> Conditioning:
    more = length - text.mask.shape[1]
    return Conditioning(F.pad(text.states, (0, 0, 0, more)), F.pad(text.mask, (0, more)))


def joined(parts: list[Conditioning]) -> Conditioning:
    length = max(part.mask.shape[1] for part in parts)
    parts = [padded(part, length) for part in parts]
    return Conditioning(torch.cat([part.states for part in parts]), torch.cat([part.mask for part in parts]))


# ------------------------------------------------------------------------------------------------------- our stage


def build_stage(config: Path, *overrides: str) -> Stage:
    """The stage of a YAML with options of the command line, without data, trainer or reward."""
    from jsonargparse import Namespace

    from uae_lightning.stage_cli import parse_stage, quiet

    quiet()
    cli = parse_stage(["fit", f"--config={config}", *overrides])
    return cli._parser("fit").instantiate_classes(Namespace(model=cli.config.fit.model)).model


def without_trainer(stage: Stage) -> dict[str, float]:
    """Lets the stage's own steps run without a Trainer; what it logs appears in the returned dictionary."""
    optimizer, logged = stage.configure_optimizers(), {}
    stage.optimizers = lambda: optimizer
    stage.backward_of_micro_batch = lambda loss: loss.backward()
    stage.log = lambda name, value, **_: logged.update({name: float(torch.as_tensor(value).detach())})
    return logged


def configure(stage: DecoderRL, settings: Settings, *, group_size: int, micro_batch: int) -> None:
    values = asdict(settings)
    stage.sampling = Sampling(values.pop("steps"), values.pop("guidance"))
    for name, value in (values | {"group_size": group_size, "micro_batch": micro_batch}).items():
        setattr(stage, name, value)


def with_captions(stage: DecoderRL, batch: Batch) -> list[str]:
    """Hands the stage the captions of the batch at every step: the work of sampling them is not compared."""
    captions = stage.encoder.tokenize(batch.captions)
    stage.caption = lambda *_: captions
    return captions.texts


def disturb(stage: Stage, size: float) -> None:
    """Adds noise to what is trained: a LoRA that starts at zero has neither a KL nor gradients of its first factor."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in stage.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)


# -------------------------------------------------------------------------------------------------------- equality


def differences(stage: DecoderRL, plain: PlainFlowGRPO, batch: Batch, captions: list[str]) -> dict[str, float]:
    """Largest differences between the two on the same noise, relative to the largest value (loss: to its terms).

    The policy moves between rollout and update, so that ratios, clipping and the KL have something to do.
    """
    logged = without_trainer(stage)
    rollout, samples = stage.rollout(batch), plain.rollout(captions, stage.generator(1))
    before = rollout.trajectory.before.transpose(0, 1)
    same = {
        "latents": difference(before, samples.latents[:, plain.settings.window[0] : plain.settings.window[1]]),
        "log-probabilities": difference(rollout.trajectory.logp, samples.log_probs),
        "pictures": difference(rollout.reward_input.reconstructions, samples.images),
    }
    rewards = PixelSimilarity()(rollout.reward_input).total
    advantages = stage.advantages(rewards, stage.group_size, stage.advantage_scale)
    advantages = advantages.clamp(-stage.advantage_clip, stage.advantage_clip)
    same["advantages"] = difference(advantages, plain.advantages(rewards))
    disturb(stage, 0.01)
    with gradients_kept(stage) as ours:
        stage.optimizer_step_after_clipping = lambda: 0.0
        stage.update(rollout, advantages)
        del stage.optimizer_step_after_clipping
    with gradients_kept(stage) as theirs:
        loss = plain.accumulate(samples, advantages)
    same["loss"] = abs(logged["train/loss"] - loss) / float(advantages.abs().mean())  # its terms cancel each other
    scale = max(gradient.abs().max() for gradient in theirs)
    same["gradients"] = float(max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) / scale)
    return same


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def check_equal(settings: str, found: dict[str, float], dtype: str) -> None:
    """Print what was found.

    Raises:
        ValueError: a difference is above its tolerance.
    """
    tolerance = TOLERANCE[dtype]
    print(f"relative differences, {settings} (tolerance {tolerance:.0e}):")
    print("  " + ", ".join(f"{what} {value:.1e}" for what, value in found.items()), flush=True)
    if wrong := [what for what, value in found.items() if not value <= tolerance]:
        raise ValueError(f"the two loops differ in {' and '.join(wrong)}, {settings}: timings would mean nothing")


@contextmanager
def gradients_kept(stage: Stage) -> Iterator[list[Tensor]]:
    """Collects the gradients of what happens inside."""
    stage.zero_grad()
    gradients: list[Tensor] = []
    yield gradients
    gradients += [p.grad.clone() for p in stage.parameters() if p.requires_grad]
    stage.zero_grad()


# ---------------------------------------------------------------------------------------------------------- timing


class Contest:
    """Both loops on one batch; each of its functions does a whole part of a step."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        dtype = [f"--model.init_args.{part}.init_args.dtype={options.dtype}" for part in ("encoder", "decoder")]
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
        return lambda: plain.step(self.captions, self.batch.images, self.reward, self.stage.generator(1))

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
        rollout, samples = self.stage.rollout(self.batch), plain.rollout(self.captions, self.stage.generator(1))

        def plain_rollout() -> None:
            with lora_of_peft(self.stage.decoder):
                plain.rollout(self.captions, self.stage.generator(1))

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


def counted_modules(stage: Stage) -> dict[str, nn.Module]:
    return {"decoder": stage.decoder.transformer, "encoder": stage.encoder.model.model.language_model}


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
    try:
        main(sys.argv[1:])
    except (UsageError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
