"""The plain loop of `benchmarks.decoder_rl`, in the structure of the published Flow-GRPO.

It is ours, written from arXiv 2505.05470 and the order of work in its code, on the same encoder, projector and decoder.
As there:

  * every copy of a prompt is encoded, G times per caption, in the batches in which pictures are sampled;
  * guidance is one batch of 2n, unconditional and conditional, in sampling and in training, where the backward pass
    runs through both halves, also where the unconditional one is detached (as in its code until 2025-08-18);
  * all states of the sampler and all conditions are kept, one row per picture;
  * each trained step is a pass of its own with its backward pass, and one more with adapters off for the KL.

Kinder to it than its code: text is padded to the longest caption of a batch (`text_length` pads to a fixed length, as
published), its gradients go into one optimiser step without shuffling, and nothing is logged or sent anywhere.

    P captions, G pictures of each, N = P * G   S steps of the sampler, W of them trained   C h w latents
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uae_lightning.models.adapters import lora_layers
from uae_lightning.models.lora_product import OneProduct
from uae_lightning.stages.common import Stage
from uae_lightning.types import Conditioning, RewardInput


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
    guidance_gradient: str = "both"
    same_noise: bool = False
    advantage_scale: str = "batch_std"

    @property
    def trained(self) -> int:
        """W"""
        return self.window[1] - self.window[0]


PUBLISHED = Settings()
DEMO = Settings(3, 1.0, (0, 2), "cps", 0.5, 1e-3, 0.0, "both", True, "group_std")  # conf/scenes/decoder_rl.yaml


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


Generators = list[torch.Generator]


def normal(shape: Sequence[int], generators: Generators) -> Tensor:
    """[n, ...], a row from each: diffusers draws so, and flow_grpo from one generator."""
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


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

    def step(self, captions: list[str], originals: Tensor, reward: Callable, generators: Generators) -> float:
        """One rollout of P captions and one optimiser step, with a generator for each of the N pictures; the loss."""
        with lora_of_peft(self.decoder):
            return self._step(captions, originals, reward, generators)

    def _step(self, captions: list[str], originals: Tensor, reward: Callable, generators: Generators) -> float:
        samples = self.rollout(captions, generators)
        prompts = [caption for caption in captions for _ in range(self.group_size)]
        originals = originals.repeat_interleave(self.group_size, 0)
        rewards = reward(RewardInput(originals, samples.images, prompts)).total
        loss = self.accumulate(samples, self.advantages(rewards))
        self.optimizer_step()
        return loss

    # ------------------------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def rollout(self, captions: list[str], generators: Generators) -> Samples:
        prompts = [caption for caption in captions for _ in range(self.group_size)]
        start = normal(self.decoder.latent_shape, generators)
        if self.settings.same_noise:
            start = start[:: self.group_size].repeat_interleave(self.group_size, 0)
        parts = []
        for first in range(0, len(prompts), self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            parts.append(self.sample(prompts[rows], start[rows], generators[rows]))
        return Samples(joined([part.text for part in parts]), *(
            torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "log_probs", "images")
        ))  # fmt: skip

    def sample(self, prompts: list[str], noise: Tensor, generators: Generators) -> Samples:
        text = self.encode(prompts)
        x = noise.to(text.states.device)
        latents, log_probs = [x], []
        for index in range(self.settings.steps):
            velocity = self.velocity(x, index, text)
            if self.settings.window[0] <= index < self.settings.window[1]:
                step = transition(x, velocity, self.sigmas[index], self.sigmas[index + 1], self.settings)
                x = step.mean + step.std * normal(x.shape[1:], generators).to(x.device)
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
        if self.settings.guidance_gradient == "conditional":
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
