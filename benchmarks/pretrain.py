"""`python -m benchmarks.pretrain`: DecoderPretrain against the training loop of diffusers' SD3 LoRA scripts.

The plain loop is ours, in the structure of `train_dreambooth_lora_sd3.py` with a caption per picture, in plain PyTorch
on the same encoder, projector and decoder. As there:

  * the captions of every batch are encoded anew, and its pictures go through the VAE;
  * noise levels are looked up one by one in the scheduler's tables, by an index that is logit-normal;
  * the loss is weighted per element and averaged per picture, then over the batch;
  * AdamW of torch with its defaults, a learning-rate schedule, clipping, and the loss fetched at every step;
  * text is padded to a fixed length, 77 tokens (theirs has that twice, of CLIP and of T5).

Kinder to it than the scripts: one text encoder in place of three, padding masked, no dataset of PIL images, no
accelerate and no logging. The target is the velocity (`--precondition_outputs 0` of the scripts). A second form of it,
"cropped", pads to the longest caption of the batch alone: all that is left to be gained over it is in the code.

DecoderPretrain reads pictures and captions as well, or takes what `uae cache` has read of them once and for all. With
`--compile` both are measured a third time with the decoder's blocks compiled (`compile: true`), which takes minutes.

    B pictures   L text positions   D conditioning width   C h w latents
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from benchmarks.measure import Row, add_options, compare, finish, run_main, start, timed  # before torch

# isort: split

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor, nn

from benchmarks.own_stage import (
    LEARNS,
    build_stage,
    check_equal,
    counted_modules,
    disturb,
    gradients_kept,
    without_trainer,
)
from benchmarks.plain_flow_grpo import lora_of_peft, padded
from uae_lightning.algorithms import flow
from uae_lightning.data.cache_shards import Header, write_shard
from uae_lightning.data.cached import CachedSample, cached_batch
from uae_lightning.data.skipped import Tally
from uae_lightning.prepare.cache_pass import entries
from uae_lightning.prepare.cache_writing import Prepared
from uae_lightning.scenes.data import scene_batch
from uae_lightning.stages.decoder_pretrain import DecoderPretrain, noise_by_row
from uae_lightning.types import Batch, Conditioning
from uae_lightning.usage import Parser

CONFIG = Path("conf/scenes/decoder_pretrain.yaml")
PLAIN, CROPPED, OURS = "diffusers' loop", "diffusers' loop, cropped", "DecoderPretrain"
CACHED, COMPILED = f"{OURS}, from a cache", f"{OURS}, compiled"
BOTH = f"{CACHED}, compiled"
WEIGHTING = "logit_normal"  # of noise levels; every level then counts the same


class DiffusersLoop:
    """See the head of this file.

    Args:
        stage: whose parts, optimiser and gradient clipping are used.
        text_length: of the conditions after padding; 0 is the longest of a batch.
    """

    def __init__(self, stage: DecoderPretrain, *, text_length: int = 0) -> None:
        self.stage = stage
        self.encoder, self.projector, self.decoder = stage.encoder, stage.projector, stage.decoder
        self.text_length, self.max_grad_norm = text_length, stage.max_grad_norm
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(stage.decoder.scheduler.config)  # tables of 1000
        self.parameters = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        self.optimizer = stage.optimizer(self.parameters)
        self.learning_rate = get_scheduler("constant", optimizer=self.optimizer)

    def step(self, batch: Batch) -> float:
        """One optimiser step; the loss."""
        latents = self.encode_pictures(batch.images)
        text = self.encode_captions(batch.captions)
        with lora_of_peft(self.decoder):
            loss = self.loss(latents, text, torch.randn_like(latents), self.draw(latents))
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.learning_rate.step()
        self.optimizer.zero_grad()
        return loss.item()

    def encode_captions(self, captions: list[str]) -> Conditioning:
        """[B, L, D]"""
        with torch.no_grad():
            states, mask = self.encoder.embed(captions)
        return padded(Conditioning(self.projector(states), mask), max(self.text_length, mask.shape[1]))

    @torch.no_grad()
    def encode_pictures(self, images: Tensor) -> Tensor:
        """[B, C, h, w]"""
        return self.decoder.encode_images(images)

    def draw(self, latents: Tensor) -> Tensor:
        """[B] timesteps of the scheduler's table."""
        u = compute_density_for_timestep_sampling(WEIGHTING, len(latents), logit_mean=0.0, logit_std=1.0)
        indices = (u * self.scheduler.config.num_train_timesteps).long()
        return self.scheduler.timesteps[indices].to(latents.device)

    def sigmas(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """[B, 1, 1, 1] noise levels, each searched in the table."""
        table = self.scheduler.timesteps.to(like.device)
        places = [(table == timestep).nonzero().item() for timestep in timesteps]
        return self.scheduler.sigmas.to(like)[places].view(-1, 1, 1, 1)

    def loss(self, latents: Tensor, text: Conditioning, noise: Tensor, timesteps: Tensor) -> Tensor:
        """[]"""
        sigmas = self.sigmas(timesteps, latents)
        noisy = (1.0 - sigmas) * latents + sigmas * noise
        levels = timesteps / self.scheduler.config.num_train_timesteps
        prediction = self.decoder.velocity(noisy, levels, text)
        weighting = compute_loss_weighting_for_sd3(WEIGHTING, sigmas)
        squares = weighting.float() * (prediction.float() - (noise - latents).float()) ** 2
        return squares.reshape(len(squares), -1).mean(1).mean()


# ------------------------------------------------------------------------------------------------------- our stage


def our_step(stage: DecoderPretrain, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """What Lightning's automatic optimisation does with the stage."""
    optimizer.zero_grad()
    stage.training_step(batch, 0).backward()
    nn.utils.clip_grad_norm_([p for p in stage.parameters() if p.requires_grad], stage.max_grad_norm)
    optimizer.step()


def from_cache(stage: DecoderPretrain, batch: Batch) -> Batch:
    """The same pictures and captions as `CachedData` reads them from a shard that `uae cache` would write."""
    pixels = (255 * batch.images).round().byte().cpu()
    read = zip(batch.keys, batch.captions, pixels, strict=True)
    pictures = [Prepared(Tally(), key.encode().ljust(32), key, caption, one) for key, caption, one in read]
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "cache.safetensors"
        write_shard(
            shard, entries(stage.autoencoder, pictures, lambda images: images, batch.images.device), Header({}, "")
        )
        cached = cached_batch([CachedSample(shard, row) for row in range(len(pictures))])
    cached.images, cached.latents = cached.images.to(batch.images.device), cached.latents.to(batch.images.device)
    cached.embedded = tuple(one.to(batch.images.device) for one in cached.embedded)
    return cached


def differences(stage: DecoderPretrain, plain: DiffusersLoop, batch: Batch, taken: Batch) -> dict[str, float]:
    """Relative differences of loss and gradients on the same noise and noise levels.

    Args:
        stage: of the same weights as the plain loop's.
        batch: what the plain loop reads.
        taken: what the stage takes instead; the same pictures and captions.
    """
    without_trainer(stage)
    latents = plain.encode_pictures(batch.images)
    timesteps, generator = plain.draw(latents), stage.generator(0)
    torch.rand(len(latents), generator=generator)  # the stage draws whom to train without a caption
    noise = noise_by_row(latents, generator).to(latents)
    with gradients_kept(plain.stage) as theirs:
        expected = plain.loss(latents, plain.encode_captions(batch.captions), noise, timesteps)
        expected.backward()
    sigmas = plain.sigmas(timesteps, latents).flatten()
    with gradients_kept(stage) as ours, mock.patch.object(flow, "sample_sigma", lambda *_, **__: sigmas):
        loss = stage.training_step(taken, 0)
        loss.backward()
    scale = max(gradient.abs().max() for gradient in theirs)
    return {
        "loss": float(((loss - expected).abs() / expected.abs()).detach()),
        "gradients": float(max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) / scale),
    }


# ---------------------------------------------------------------------------------------------------------- timing


class Contest:
    """All loops on one batch where `train` of the decoder is trained."""

    def __init__(self, train: str, options: argparse.Namespace, device: torch.device) -> None:
        self.train, self.options, self.device = train, options, device
        self.stage = self.build()
        share = options.prompt_share
        self.batch = scene_batch("train", 0, list(range(options.pictures)), max_objects=3, prompt_share=share)
        self.batch.images, self.batch.weights = self.batch.images.to(device), None
        plain = DiffusersLoop(self.stage, text_length=options.text_length)
        self.loops = {PLAIN: plain, CROPPED: DiffusersLoop(self.stage)}
        self.ours = {OURS: (self.stage, self.batch), CACHED: (self.stage, from_cache(self.stage, self.batch))}
        self.equality: dict[str, dict[str, float]] = {}

    def build(self, *overrides: str) -> DecoderPretrain:
        dtypes = [f"--model.autoencoder.{part}.dtype={self.options.dtype}" for part in ("encoder", "decoder")]
        stage = build_stage(self.options.config, LEARNS[self.train], *dtypes, *overrides).to(self.device)
        stage.condition_dropout = 0.0  # the scripts have none
        if self.train == "lora":
            disturb(stage, 0.01)
        without_trainer(stage)
        return stage

    def check(self) -> None:
        """Raises ValueError where two loops learn different things."""
        pairs = {name: (loop, self.stage, self.batch) for name, loop in self.loops.items()}
        pairs |= {name: (self.loops[PLAIN], *ours) for name, ours in self.ours.items() if name != OURS}
        for name, (loop, stage, taken) in pairs.items():
            other = OURS if name in self.loops else PLAIN
            self.equality[name] = differences(stage, loop, self.batch, taken)
            check_equal(f"{name} and {other}, train: {self.train}", self.equality[name], self.options.dtype)

    def add_compiled(self) -> float:
        """Compile and take the alternatives up; busy seconds of the first step."""
        torch.compiler.reset()  # else what was compiled before counts, and after eight graphs torch compiles no more
        stage = self.build("--model.autoencoder.decoder.compile=true")
        stage.load_state_dict(self.stage.state_dict())  # adapters start at random
        self.ours |= {COMPILED: (stage, self.batch), BOTH: (stage, self.ours[CACHED][1])}
        with tempfile.TemporaryDirectory() as folder:  # torch keeps what it compiles: the first run of all is measured
            with mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
                first = timed(lambda: stage.training_step(self.batch, 0).backward(), self.device).busy
        stage.zero_grad()
        return first

    def rows(self) -> list[Row]:
        steps: dict[str, Callable] = {
            name: functools.partial(loop.step, self.batch) for name, loop in self.loops.items()
        }
        optimizers = {id(stage): stage.configure_optimizers() for stage, _ in self.ours.values()}
        for name, (stage, taken) in self.ours.items():
            steps[name] = functools.partial(our_step, stage, optimizers[id(stage)], taken)
        stages = {name: self.ours.get(name, (self.stage,))[0] for name in steps}
        return compare(
            f"step, {'LoRA' if self.train == 'lora' else 'all weights'}",
            steps,
            baseline=PLAIN,
            modules={name: counted_modules(stage) for name, stage in stages.items()},
            options=self.options,
            device=self.device,
        )


def pays_back(first: float, rows: list[Row]) -> str:
    """After how many steps the time of compiling has come back."""
    busy = {row.name: row.busy.median for row in rows}
    lines = [f"{rows[0].part}: the first compiled step took {first:.1f} busy seconds"]
    for name, compiled in ((OURS, COMPILED), (CACHED, BOTH)):
        gain = busy[name] - busy[compiled]
        steps = f"after {(first - busy[name]) / gain:,.0f} steps" if gain > 0 else "never"
        lines.append(f"  {compiled}: {1e3 * gain:.0f} ms less a step, which pays it back {steps}")
    return "\n".join(lines)


def main(args: list[str]) -> None:
    options = parse(args)
    device, rows, results = start(options), [], {"equality": {}, "first compiled step": {}}
    for train in options.train:
        contest = Contest(train, options, device)
        first = contest.add_compiled() if options.compile else None
        contest.check()
        rows += (found := contest.rows())
        results["equality"][train] = contest.equality
        if first is not None:
            results["first compiled step"][train] = first
            print(pays_back(first, found), flush=True)
    finish(" ".join(["python -m benchmarks.pretrain", *args]), options, rows, **results)


def parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.pretrain", description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML of the parts (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=32, help="per batch (default: %(default)s)")
    parser.add_argument("--prompt-share", type=float, default=0.4, help="of short prompts (default: %(default)s)")
    parser.add_argument("--train", nargs="+", default=["lora", "all"], choices=["lora", "all"], help="of the decoder")
    parser.add_argument(
        "--text-length", type=int, default=77, help="the diffusers loop pads text to it (default: %(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the decoder too, which takes minutes")
    add_options(parser)
    return parser.parse(args)


if __name__ == "__main__":
    run_main(main)
