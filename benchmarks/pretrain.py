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

    B pictures   L text positions   D conditioning width   C h w latents
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from benchmarks.measure import Row, add_options, compare, finish, start  # before torch

# isort: split

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor, nn

from benchmarks.own_stage import build_stage, check_equal, counted_modules, disturb, gradients_kept, without_trainer
from benchmarks.plain_flow_grpo import lora_of_peft, padded
from uae_lightning.algorithms import flow
from uae_lightning.data.scenes_data import scene_batch
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.types import Batch, Conditioning
from uae_lightning.usage import Parser, UsageError

CONFIG = Path("conf/scenes/decoder_pretrain.yaml")
PLAIN, CROPPED, OURS = "diffusers' loop", "diffusers' loop, cropped", "DecoderPretrain"
WEIGHTING = "logit_normal"  # of noise levels; every level then counts the same


class DiffusersLoop:
    """See the head of this file.

    Args:
        stage: whose parts, optimiser and gradient clipping are used.
        text_length: of the conditions after padding; 0 is the longest of a batch.
    """

    def __init__(self, stage: DecoderPretrain, *, text_length: int = 0) -> None:
        self.encoder, self.projector, self.decoder = stage.encoder, stage.projector, stage.decoder
        self.vae, self.text_length, self.max_grad_norm = stage.decoder.vae, text_length, stage.max_grad_norm
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
        latents = self.vae.encode((2 * images - 1).to(self.vae.dtype)).latent_dist.sample()
        return ((latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor).float()

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


def differences(stage: DecoderPretrain, plain: DiffusersLoop, batch: Batch) -> dict[str, float]:
    """Relative differences of loss and gradients on the same noise and noise levels."""
    without_trainer(stage)
    latents = plain.encode_pictures(batch.images)
    timesteps, generator = plain.draw(latents), stage.generator(0)
    torch.rand(len(latents), generator=generator)  # the stage draws whom to train without a caption
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    with gradients_kept(stage) as theirs:
        expected = plain.loss(latents, plain.encode_captions(batch.captions), noise, timesteps)
        expected.backward()
    sigmas = plain.sigmas(timesteps, latents).flatten()
    with gradients_kept(stage) as ours, mock.patch.object(flow, "sample_sigma", lambda *_, **__: sigmas):
        loss = stage.training_step(batch, 0)
        loss.backward()
    scale = max(gradient.abs().max() for gradient in theirs)
    return {
        "loss": float(((loss - expected).abs() / expected.abs()).detach()),
        "gradients": float(max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) / scale),
    }


# ---------------------------------------------------------------------------------------------------------- timing


def contest(
    train: str, options: argparse.Namespace, device: torch.device
) -> tuple[dict[str, dict[str, float]], list[Row]]:
    """(equality, rows) of both loops where `train` of the decoder is trained."""
    dtype = [f"--model.init_args.{part}.init_args.dtype={options.dtype}" for part in ("encoder", "decoder")]
    stage = build_stage(options.config, f"--model.init_args.decoder.init_args.train={train}", *dtype).to(device)
    stage.condition_dropout = 0.0  # the scripts have none
    if train == "lora":
        disturb(stage, 0.01)
    batch = scene_batch("train", 0, list(range(options.pictures)), max_objects=3, prompt_share=options.prompt_share)
    batch.images, batch.weights = batch.images.to(device), None
    loops = {PLAIN: DiffusersLoop(stage, text_length=options.text_length), CROPPED: DiffusersLoop(stage)}
    equality = {name: differences(stage, loop, batch) for name, loop in loops.items()}
    for name, found in equality.items():
        check_equal(f"{name}, train: {train}", found, options.dtype)
    steps: dict[str, Callable] = {name: functools.partial(loop.step, batch) for name, loop in loops.items()}
    steps[OURS] = functools.partial(our_step, stage, stage.configure_optimizers(), batch)
    rows = compare(
        f"step, {'LoRA' if train == 'lora' else 'all weights'}",
        steps,
        baseline=PLAIN,
        modules={name: counted_modules(stage) for name in steps},
        options=options,
        device=device,
    )
    return equality, rows


def main(args: list[str]) -> None:
    options = parse(args)
    device, equality, rows = start(options), {}, []
    for train in options.train:
        equality[train], found = contest(train, options, device)
        rows += found
    finish(" ".join(["python -m benchmarks.pretrain", *args]), options, rows, equality=equality)


def parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.pretrain", description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML of the parts (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=32, help="per batch (default: %(default)s)")
    parser.add_argument("--prompt-share", type=float, default=0.4, help="of short prompts (default: %(default)s)")
    parser.add_argument("--train", nargs="+", default=["lora", "all"], choices=["lora", "all"], help="of the decoder")
    parser.add_argument(
        "--text-length", type=int, default=77, help="the diffusers loop pads text to it (default: %(default)s)"
    )
    add_options(parser)
    return parser.parse(args)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UsageError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
