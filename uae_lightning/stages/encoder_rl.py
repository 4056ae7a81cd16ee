"""Stage 2, Unified-GRPO A: captions that reconstruct better. Only the encoder's adapters learn.

P pictures in the batch   G captions of each (a group), N = P * G   T tokens   V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from uae_lightning.algorithms.policy_loss import clipped_surrogate, kl_k3, token_weights
from uae_lightning.parallel.collectives import mean_over_ranks, own_rows, ranks
from uae_lightning.ranges import Count, NonNegative, Positive, Several, checked
from uae_lightning.stages.common import PolicyStage, add_metrics
from uae_lightning.types import Batch, Captions, RewardInput


@dataclass(frozen=True)
class CaptionRollout:
    seen: Any  # P pictures as the encoder sees them
    captions: Captions  # N
    reward_input: RewardInput


@checked
class EncoderRL(PolicyStage):
    """Token-level clipped GRPO (arXiv 2402.03300) with the reconstruction as reward.

    Args:
        group_size: captions per picture, G (paper: 4).
        micro_batch: captions per forward and backward pass; must divide P * G.
        updates_per_batch: optimiser steps on one rollout; 1 is on policy.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        kl_beta: weight of the KL to the policy with adapters off (paper: 1e-6).
        normalization: "grpo" mean over each caption, "dr_grpo" over a constant length, "dapo" over all tokens.
        advantage_scale: "group_std", "batch_std" or "none".
        mask_cut_captions: captions that the limit on tokens cut do not train; in the comparison of their group they
            count (DAPO's overlong filtering, arXiv 2503.14476 section 3.4; TRL: mask_truncated_completions).
        cut_penalty: taken off the reward of a caption that was cut, before groups are compared; the logged reward is
            the one before. At 0 (and without the mask) cut captions are paid like whole ones.
        **parts: of `Stage`.
    """

    trained = ("encoder",)

    def __init__(
        self,
        *args,
        group_size: Several = 4,
        micro_batch: Count = 4,
        updates_per_batch: Count = 1,
        clip_low: Positive = 0.2,
        clip_high: Positive = 0.2,
        kl_beta: NonNegative = 1e-6,
        normalization: Literal["grpo", "dr_grpo", "dapo"] = "grpo",
        advantage_scale: Literal["group_std", "batch_std", "none"] = "group_std",
        mask_cut_captions: bool = False,
        cut_penalty: NonNegative = 0.0,
        **parts,
    ) -> None:
        super().__init__(
            *args,
            group_size=group_size,
            micro_batch=micro_batch,
            updates_per_batch=updates_per_batch,
            advantage_scale=advantage_scale,
            **parts,
        )
        self.clip_low, self.clip_high, self.kl_beta = clip_low, clip_high, kl_beta
        self.normalization = normalization
        self.mask_cut_captions, self.cut_penalty = mask_cut_captions, cut_penalty

    @staticmethod
    def check_training(options: Any) -> None:
        if options.captioning.temperature == 0:
            raise ValueError("captioning.temperature must be above 0: greedy captions of a group are all the same")

    @torch.no_grad()
    def rollout(self, batch: Batch) -> CaptionRollout:
        seen = self.encoder.see(batch.images)  # once: the vision tower is frozen
        captions = self.autoencoder.write(seen, self.group_size, self.step_seed(0, self.global_rank))
        # one noise for the whole group: rewards of a group then differ by the captions alone
        size = len(batch.images) * ranks()
        noise = own_rows(torch.randn(size, *self.decoder.latent_shape, generator=self.generator(1)))
        pictures = self.draw(captions.texts, noise.to(batch.images.device))
        images = batch.images.repeat_interleave(self.group_size, 0)
        return CaptionRollout(seen, captions, RewardInput(images, pictures, captions.texts))

    def draw(self, texts: list[str], noise: Tensor) -> Tensor:
        """N captions -> pictures [N, 3, H, W]; noise [P, C, h, w]. What a group says twice is drawn once."""
        rows: dict[tuple[int, str], int] = {}
        index = [rows.setdefault((n // self.group_size, text), len(rows)) for n, text in enumerate(texts)]
        groups = torch.tensor([group for group, _ in rows], device=noise.device)
        pictures = self.autoencoder.draw(self.autoencoder.read([text for _, text in rows]), noise[groups])
        return pictures[torch.tensor(index, device=noise.device)]

    def cut(self, captions: Captions) -> Tensor:
        """[N] bool, the captions that end at the limit on tokens."""
        at_limit = captions.lengths >= self.captioning.max_new_tokens
        return at_limit if captions.cut is None else captions.cut

    def shape_rewards(self, rollout: CaptionRollout, scores: Tensor) -> Tensor:
        return scores - self.cut_penalty * self.cut(rollout.captions)

    def token_weights(self, captions: Captions) -> Tensor:
        """[N, T] that sum to 1 (or less) over the whole rollout: micro-batches add up to one big batch."""
        mask = captions.mask
        if self.mask_cut_captions:
            mask = mask & ~self.cut(captions)[:, None]
        limit, tokens = self.captioning.max_new_tokens, mean_over_ranks(mask.sum().float()).item()
        return token_weights(mask, self.normalization, max_length=limit, total_tokens=tokens)

    def update(self, rollout: CaptionRollout, advantages: Tensor) -> None:
        mask, weights = rollout.captions.mask, self.token_weights(rollout.captions)
        tokens = mean_over_ranks(mask.sum().float()).item()
        old: list[Tensor] = []  # log-probabilities [n, T] under the policy that sampled: those of the first update
        for update in range(self.updates_per_batch):
            sums: dict[str, float] = {}
            for number, rows in enumerate(self.micro_batches(len(mask))):
                captions, seen = take(rollout.captions, rows), self.pictures(rollout.seen, rows)
                logp, entropy = self.logprobs(seen, captions)
                if update == 0:
                    old.append(logp.detach())
                element, metrics = clipped_surrogate(
                    logp,
                    old[number],
                    advantages[rows],
                    captions.mask,
                    clip_low=self.clip_low,
                    clip_high=self.clip_high,
                )
                if update == 0 and captions.logp is not None:
                    drift = (logp.detach() - captions.logp).abs()[captions.mask]
                    metrics |= {"first_log_ratio_max": drift.max(), "first_log_ratio_mean": drift.mean()}
                if self.kl_beta > 0:
                    with torch.no_grad(), self.encoder.reference():
                        reference, _ = self.logprobs(seen, captions)
                    kl = kl_k3(logp, reference, captions.mask)
                    element = element + self.kl_beta * kl
                    metrics["kl_reference"] = kl.detach()[captions.mask].mean()
                metrics["entropy"] = entropy
                loss = (element * weights[rows]).sum()
                self.backward_of_micro_batch(loss)
                add_metrics(sums, metrics | {"loss": loss.detach()}, captions.mask.sum().item() / tokens)
            if "first_log_ratio_max" in sums:  # of sampling against replay; on policy the update's own ratio is 1
                self.health["first_log_ratio"] = sums.pop("first_log_ratio_max")
            sums["grad_norm"] = self.optimizer_step_after_clipping()
        self.report(rollout, sums)

    def logprobs(self, seen: Any, captions: Captions) -> tuple[Tensor, Tensor]:
        """([n, T] log-probabilities of the sampled tokens, [] mean entropy of the policy in nats)."""
        logp, entropy = self.encoder.token_logprobs(seen, captions, temperature=self.captioning.temperature)
        return logp, entropy[captions.mask].mean()

    def pictures(self, seen: Any, rows: Tensor) -> Any:
        """The pictures of these rows, once each where all have equally many of the captions."""
        groups = rows // self.group_size
        if self.group_size % len(rows) == 0 or len(rows) % self.group_size == 0:
            groups = groups[:: min(self.group_size, len(rows))]
        return seen[groups]

    def report(self, rollout: CaptionRollout, sums: dict[str, float]) -> None:
        captions = rollout.captions
        self.health |= sums | {
            "caption_tokens": captions.lengths.float().mean().item(),
            "empty_captions": sum(not text for text in captions.texts) / len(captions.texts),
            "cut_captions": self.cut(captions).float().mean().item(),
        }
        self.health = self.reduced(self.health)
        self.log("train/loss", self.health.pop("loss"), prog_bar=True)
        self.log("train/grad_norm", self.health.pop("grad_norm"))
        self.log("caption_tokens", self.health["caption_tokens"], prog_bar=True, logger=False)


def take(captions: Captions, rows: Tensor) -> Captions:
    logp = None if captions.logp is None else captions.logp[rows]
    return Captions([captions.texts[row] for row in rows.tolist()], captions.tokens[rows], captions.mask[rows], logp)
