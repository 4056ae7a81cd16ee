"""Stage 2, Unified-GRPO A: captions that reconstruct better. Only the encoder's adapters learn.

P pictures in the batch   G captions of each (a group), N = P * G   T tokens   V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uae_lightning.algorithms import token_logprobs
from uae_lightning.algorithms.advantages import group_advantages, zero_variance_share
from uae_lightning.algorithms.policy_loss import clipped_surrogate, kl_k3, token_weights
from uae_lightning.stages.common import Stage, add_metrics, check_group
from uae_lightning.types import Batch, Captions, RewardInput


@dataclass(frozen=True)
class CaptionRollout:
    images: Tensor  # [N, 3, H, W], each picture G times
    captions: Captions
    old_logp: Tensor  # [N, T] under the policy that sampled
    reward_input: RewardInput


class EncoderRL(Stage):
    """Token-level clipped GRPO (arXiv 2402.03300) with the reconstruction as reward.

    Args:
        group_size: captions per picture, G (paper: 4).
        micro_batch: captions per forward and backward pass; must divide P * G.
        updates_per_batch: optimiser steps on one rollout; 1 is on policy.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        kl_beta: weight of the KL to the policy with adapters off (paper: 1e-6).
        normalization: "grpo" mean over each caption, "dr_grpo" over a constant length, "dapo" over all tokens.
        advantage_scale: "group_std", "batch_std" or "none".
        **parts: of `Stage`.
    """

    trained = ("encoder",)

    def __init__(
        self,
        *args,
        group_size: int = 4,
        micro_batch: int = 4,
        updates_per_batch: int = 1,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_beta: float = 1e-6,
        normalization: Literal["grpo", "dr_grpo", "dapo"] = "grpo",
        advantage_scale: Literal["group_std", "batch_std", "none"] = "group_std",
        **parts,
    ) -> None:
        super().__init__(*args, **parts)
        check_group(micro_batch, group_size, micro_batch)
        self.automatic_optimization = False
        self.group_size, self.micro_batch, self.updates_per_batch = group_size, micro_batch, updates_per_batch
        self.clip_low, self.clip_high, self.kl_beta = clip_low, clip_high, kl_beta
        self.normalization, self.advantage_scale = normalization, advantage_scale
        self.projector.requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        check_group(len(batch.images), self.group_size, self.micro_batch)
        with self.timed("rollout"):
            rollout = self.rollout(batch)
        with self.timed("score"):
            scores = self.score(rollout.reward_input)
        advantages = group_advantages(scores.total, self.group_size, scale=self.advantage_scale)
        self.health = {"zero_variance_share": zero_variance_share(scores.total, self.group_size).item()}
        with self.timed("update"):
            self.update(rollout, advantages)

    @torch.no_grad()
    def rollout(self, batch: Batch) -> CaptionRollout:
        captions = self.encoder.generate(
            batch.images, samples=self.group_size, seed=self.step_seed(0), **vars(self.captioning)
        )
        images = batch.images.repeat_interleave(self.group_size, 0)
        # one noise for the whole group: rewards of a group then differ by the captions alone
        noise = torch.randn(len(batch.images), *self.decoder.latent_shape, generator=self.generator(1))
        noise = noise.to(images.device).repeat_interleave(self.group_size, 0)
        reconstructions = self.sample_images(self.condition(captions.texts), noise)
        old_logp = torch.cat(
            [self.logprobs(images[rows], take(captions, rows))[0] for rows in self.micro_batches(images)]
        )
        return CaptionRollout(images, captions, old_logp, RewardInput(images, reconstructions, captions.texts))

    def update(self, rollout: CaptionRollout, advantages: Tensor) -> None:
        weights = token_weights(
            rollout.captions.mask, self.normalization, max_length=self.captioning.max_new_tokens
        )  # [N, T], sums to 1 (or less) over the whole rollout: micro-batches add up to one big batch
        for update in range(self.updates_per_batch):
            sums: dict[str, float] = {}
            for rows in self.micro_batches(rollout.images):
                captions = take(rollout.captions, rows)
                logp, entropy = self.logprobs(rollout.images[rows], captions)
                element, metrics = clipped_surrogate(
                    logp,
                    rollout.old_logp[rows],
                    advantages[rows],
                    captions.mask,
                    clip_low=self.clip_low,
                    clip_high=self.clip_high,
                )
                if self.kl_beta > 0:
                    with torch.no_grad(), self.encoder.reference():
                        reference, _ = self.logprobs(rollout.images[rows], captions)
                    kl = kl_k3(logp, reference, captions.mask)
                    element = element + self.kl_beta * kl
                    metrics["kl_reference"] = (kl.detach() * weights[rows]).sum()
                metrics["entropy"] = entropy
                loss = (element * weights[rows]).sum()
                self.manual_backward(loss)
                add_metrics(sums, metrics | {"loss": loss.detach()}, len(rows) / len(rollout.images))
            if update == 0:
                self.health |= {"first_log_ratio": sums["log_ratio_abs_max"]}
            sums["grad_norm"] = self.optimizer_step_after_clipping()
        self.report(rollout, sums)

    def logprobs(self, images: Tensor, captions: Captions) -> tuple[Tensor, Tensor]:
        """([n, T] log-probabilities of the sampled tokens, [] mean entropy of the policy in nats)."""
        logits = self.encoder.token_logits(images, captions)
        temperature = self.captioning.temperature or 1.0
        logp = token_logprobs.gather_logprobs(logits, captions.tokens, temperature=temperature)
        with torch.no_grad():
            entropy = token_logprobs.entropy(logits, temperature=temperature)[captions.mask].mean()
        return logp, entropy

    def micro_batches(self, images: Tensor) -> list[Tensor]:
        return list(torch.arange(len(images), device=images.device).split(self.micro_batch))

    def report(self, rollout: CaptionRollout, sums: dict[str, float]) -> None:
        captions = rollout.captions
        self.log("train/loss", sums.pop("loss"), prog_bar=True)
        self.log("train/grad_norm", sums.pop("grad_norm"))
        self.health |= sums | {
            "caption_tokens": captions.lengths.float().mean().item(),
            "empty_captions": sum(not text for text in captions.texts) / len(captions.texts),
            "cut_captions": (captions.lengths == captions.tokens.shape[1]).float().mean().item(),
        }
        self.log("caption_tokens", self.health["caption_tokens"], prog_bar=True, logger=False)


def take(captions: Captions, rows: Tensor) -> Captions:
    return Captions([captions.texts[row] for row in rows.tolist()], captions.tokens[rows], captions.mask[rows])
