"""One step of `EncoderRL` without a Trainer and without pictures drawn, and the same step as a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.interfaces import Component
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Batch, Captions, Learn, LoRA, RewardInput, RewardOutput


def reward(tokens: list[int]) -> float:
    """A number in [0, 1) that depends on every token."""
    return sum(place * token for place, token in enumerate(tokens, 1)) % 97 / 97


class NoPart(Component):
    """In place of projector and decoder, of which the step needs the sizes alone."""

    output_size, conditioning_size, latent_shape = 1, 1, (1, 1, 1)

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size

    def save(self, folder: Path) -> None:
        raise NotImplementedError


class OwnStep(EncoderRL):
    """`EncoderRL` without a Trainer and without pictures drawn."""

    def __init__(self, encoder: QwenVLEncoder, images: Tensor, options) -> None:
        part = NoPart(encoder.hidden_size)
        super().__init__(
            AutoEncoder(encoder, part, part, Captioning(1.0, options.tokens)),
            learn=Learn(encoder=LoRA(options.lora_rank, 2 * options.lora_rank)), group_size=options.group,
            micro_batch=options.micro_batch, kl_beta=options.kl_beta, normalization=options.normalization,
            optimizer=lambda parameters: torch.optim.AdamW(
                parameters, lr=options.lr, weight_decay=0.0, fused=True
            ),
        )  # fmt: skip
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:  # not at zero, so that the reference differs
                nn.init.normal_(parameter, std=0.02)
        self.to(images.device)
        self.write, self.autoencoder.write = self.autoencoder.write, self.captions
        self.batch = Batch(images, [""] * len(images), [str(number) for number in range(len(images))])
        self.score = self.rewards
        self.own_optimizer = self.configure_optimizers()
        self.given: Captions | None = None  # captions to take instead of new ones
        self.logged: dict[str, Tensor] = {}

    def generation(self) -> Captions:
        return self.write(self.batch.images, self.policy.group_size, self.step_seed(0))

    def step(self) -> None:
        self.training_step(self.batch, 0)

    def captions(self, images: Tensor, samples: int, seed: int) -> Captions:
        self.sampled = self.write(images, samples, seed) if self.given is None else self.given
        return self.sampled

    def draw(self, texts: list[str], noise: Tensor) -> Tensor:
        return noise.new_zeros(len(texts), 3, 1, 1)

    def rewards(self, inputs: RewardInput) -> RewardOutput:
        total = torch.tensor([reward(tokens) for tokens in self.sampled.tokens.tolist()])
        return RewardOutput(total, {"benchmark": total})

    def optimizers(self) -> torch.optim.Optimizer:
        return self.own_optimizer

    def backward_of_micro_batch(self, loss: Tensor) -> None:
        loss.backward()

    def log(self, name: str, value, **_) -> None:
        self.logged[name] = value

    def modules_to_count(self) -> dict[str, nn.Module]:
        return {"text": self.encoder.model.model.language_model, "vision": self.encoder.model.model.visual}


@dataclass(frozen=True)
class Result:
    """What a step computes from given captions."""

    logp: Tensor  # [N, T]
    loss: float
    gradients: dict[str, Tensor]


@contextmanager
def all_tokens_allowed(encoder: QwenVLEncoder) -> Iterator[None]:
    """The softmax is over the whole vocabulary, as TRL's."""
    never, encoder.never_sampled = encoder.never_sampled, np.empty(0, int)
    try:
        yield
    finally:
        encoder.never_sampled = never


def own_result(own: OwnStep, captions: Captions) -> Result:
    own.given, own.optimizer_step_after_clipping = captions, lambda: 0.0
    own.step()
    with torch.no_grad():
        logp, _ = own.encoder.token_logprobs(own.batch.images, captions, temperature=1.0)
    del own.optimizer_step_after_clipping
    own.given = None
    return Result(logp, float(own.logged["train/loss"]), taken(own.encoder.model))


def plain_result(own: OwnStep, captions: Captions, options) -> Result:
    """Every copy with its own picture and prompt, logits [N, T, V] at once, the loss as it is in the papers."""
    encoder, tokens = own.encoder, captions.tokens
    inputs = encoder.prompt_inputs(own.batch.images.repeat_interleave(options.group, 0))
    for name, more in [("input_ids", tokens), ("attention_mask", 1), ("mm_token_type_ids", 0)]:
        inputs[name] = torch.cat([inputs[name], torch.zeros_like(tokens) + more], 1)

    def logprobs() -> Tensor:
        encoder.model.model.rope_deltas = None
        logits = encoder.model(**inputs, use_cache=False).logits[:, -tokens.shape[1] - 1 : -1]
        return logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    logp = logprobs()
    with torch.no_grad(), encoder.reference():
        reference = logprobs()
    rewards = torch.tensor([reward(row) for row in tokens.tolist()], device=logp.device).view(-1, options.group)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    ratio = (logp - logp.detach()).exp()
    kl = (reference - logp).exp() - (reference - logp) - 1
    loss = (-ratio * advantages.view(-1, 1) + options.kl_beta * kl).mean()  # one length: all normalisations agree
    loss.backward()
    return Result(logp.detach(), loss.item(), taken(encoder.model))


def taken(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of the adapters, which are gone from the model then."""
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients
