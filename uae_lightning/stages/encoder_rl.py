"""Stage 2, Unified-GRPO A: captions that reconstruct better. Only the encoder's adapters learn.

P pictures in the batch   G captions of each (a group), N = P * G
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from uae_lightning.interfaces import Engine
from uae_lightning.parallel.collectives import own_rows, ranks
from uae_lightning.policies.captions import CaptionGRPO
from uae_lightning.policies.entropy_target import EntropyTarget
from uae_lightning.policies.token_objectives import TokenObjective
from uae_lightning.ranges import Count, FromOne, NonNegative, Positive, Several, checked
from uae_lightning.stages.policy import PolicyStage, Rollout
from uae_lightning.types import Batch, RewardInput, Work


@checked
class EncoderRL(PolicyStage):
    """GRPO (arXiv 2402.03300) on the tokens of captions, with the reconstruction as reward.

    Args:
        group_size: captions per picture, G (paper: 4).
        micro_batch: captions per forward and backward pass; must divide P * G.
        updates_per_batch: optimiser steps on one rollout; 1 is on policy.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high], by token (PPO's objective).
        objective: another one in its place, with numbers of its own: GSPO, CISPO or SAPO of
            `policies.token_objectives`. On policy they are all the same.
        entropy_bonus: weight of the policy's entropy in nats, which is raised; by token, as the loss is weighted.
        kl_beta: weight of the KL to the policy with adapters off (paper: 1e-6).
        normalization: "grpo" mean over each caption, "dr_grpo" over a constant length, "dapo" over all tokens (TRL's
            "bnpo" is this over the tokens of each micro-batch, on which nothing depends here).
        advantage_scale: "group_std", "batch_std" or "none".
        mask_cut_captions: captions that the limit on tokens cut do not train; in the comparison of their group they
            count (DAPO's overlong filtering, arXiv 2503.14476 section 3.4; TRL: mask_truncated_completions).
        cut_penalty: taken off the reward of a caption that was cut, before groups are compared; the logged reward is
            the one before. At 0 (and without the mask) cut captions are paid like whole ones.
        reinforced_tokens: captions of more tokens are never reinforced: in the comparison of their group they count,
            and they train where they lost it. Length then cannot be what wins (ours); null: there is no such length.
        engine: writes the captions of rollouts in the encoder's place (`engines.vllm.VllmEngine`); null: transformers
            does. Captions of validations are the encoder's own in any case.
        sampler_limit: an engine is another policy than the one that is trained: the loss of each token is weighed by
            the ratio of the two, cut off here (`algorithms.sampler_mismatch`). 2 is what TRL began with and ms-swift
            takes, TRL's is 3 now; inf corrects without a limit.
        entropy_target: the entropy bonus is no constant but follows the policy's entropy; `entropy_bonus` is then its
            start.
        **parts: of `Stage`.
    """

    trained = ("encoder",)

    entropy_bonus: Tensor  # with an entropy_target alone

    def __init__(
        self,
        *args,
        group_size: Several = 4,
        micro_batch: Count = 4,
        updates_per_batch: Count = 1,
        clip_low: Positive = 0.2,
        clip_high: Positive = 0.2,
        objective: TokenObjective | None = None,
        entropy_bonus: NonNegative = 0.0,
        kl_beta: NonNegative = 1e-6,
        normalization: Literal["grpo", "dr_grpo", "dapo"] = "grpo",
        advantage_scale: Literal["group_std", "batch_std", "none"] = "group_std",
        mask_cut_captions: bool = False,
        cut_penalty: NonNegative = 0.0,
        reinforced_tokens: Count | None = None,
        engine: Engine | None = None,
        sampler_limit: FromOne = 2.0,
        entropy_target: EntropyTarget | None = None,
        **parts,
    ) -> None:
        super().__init__(*args, updates_per_batch=updates_per_batch, **parts)
        captions = CaptionGRPO(
            self.autoencoder, group_size=group_size, micro_batch=micro_batch, clip_low=clip_low, clip_high=clip_high,
            objective=objective, entropy_bonus=entropy_bonus, kl_beta=kl_beta, normalization=normalization,
            advantage_scale=advantage_scale, mask_cut_captions=mask_cut_captions, cut_penalty=cut_penalty,
            reinforced_tokens=reinforced_tokens, engine=engine, sampler_limit=sampler_limit,
        )  # fmt: skip
        self.policies = {"captions": captions}
        self.entropy_target = entropy_target
        if entropy_target is not None:  # kept in checkpoints
            self.register_buffer("entropy_bonus", torch.tensor(float(entropy_bonus), dtype=torch.float64))

    @staticmethod
    def check_training(options: Any) -> None:
        CaptionGRPO.check(options)

    @staticmethod
    def work(options: Any) -> Work:
        captions = options.group_size
        return Work(captions * options.sampling.forwards, captions, options.updates_per_batch * captions)

    @torch.no_grad()
    def rollout(self, batch: Batch) -> Rollout:
        acts = self.policy.act(batch.images, self)
        texts = acts.captions.texts
        pictures = self.draw(texts, self.noise_of_groups(batch))
        images = batch.images.repeat_interleave(self.policy.group_size, 0)
        metadata = batch.metadata_of_each(self.policy.group_size)
        return Rollout(batch, acts.captions, [acts], RewardInput(images, pictures, texts, metadata=metadata))

    def noise_of_groups(self, batch: Batch) -> Tensor:
        """[P, C, h, w], one for the whole group: its rewards then differ by the captions alone."""
        size = len(batch.images) * ranks()
        noise = torch.randn(size, *self.decoder.latent_shape, generator=self.generator(1))
        return own_rows(noise).to(batch.images.device)

    def update(self, rollout: Rollout, *advantages: Tensor) -> None:
        if self.entropy_target is None:
            return super().update(rollout, *advantages)
        self.policy.entropy_bonus = self.entropy_bonus.item()
        super().update(rollout, *advantages)
        self.health["entropy_bonus"] = self.policy.entropy_bonus
        self.entropy_bonus.fill_(self.entropy_target.after(self.policy.entropy_bonus, self.health["entropy"]))

    def draw(self, texts: list[str], noise: Tensor) -> Tensor:
        """N captions -> pictures [N, 3, H, W]; noise [P, C, h, w]. What a group says twice is drawn once."""
        rows: dict[tuple[int, str], int] = {}
        size = self.policy.group_size
        index = [rows.setdefault((n // size, text), len(rows)) for n, text in enumerate(texts)]
        groups = torch.tensor([group for group, _ in rows], device=noise.device)
        pictures = self.autoencoder.draw(self.autoencoder.read([text for _, text in rows]), noise[groups])
        return pictures[torch.tensor(index, device=noise.device)]
