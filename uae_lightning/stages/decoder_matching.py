"""Stage 3 by flow matching on the decoder's own pictures: DiffusionNFT and Advantage Weighted Matching.

P captions (one per picture in the batch)   G pictures of each (a group), N = P * G   C h w latents
K draws of (sigma, noise) for each picture, on which the policy that sampled and the one in training are compared
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.matching import matching_logp, nft_loss, optimality, policy_decay
from uae_lightning.algorithms.policy_loss import clipped_surrogate
from uae_lightning.interfaces import FlowDecoder
from uae_lightning.parallel.collectives import own_rows, ranks
from uae_lightning.ranges import Count, Finite, ModeScale, Natural, NonNegative, Positive, Several, Share, checked
from uae_lightning.stages.common import PolicyStage, add_metrics
from uae_lightning.stages.lagging_policy import LaggingPolicy
from uae_lightning.types import Batch, Captions, Conditioning, RewardInput


@dataclass(frozen=True)
class LatentRollout:
    captions: Captions  # P
    conditioning: Conditioning  # [N, L, D]
    latents: Tensor  # [N, C, h, w] clean
    sigmas: Tensor  # [N, K] where the policy is trained
    noises: Tensor  # [N, K, C, h, w]
    old: Tensor | None  # [N, K, C, h, w] velocities of the policy that sampled; None: it is the one in training
    reward_input: RewardInput


@checked
@dataclass
class PolicyLag:
    """How the policy that samples follows the one in training (DiffusionNFT).

    After each batch it keeps a share d of itself and takes 1 - d of the other: d = min(rate (step - flat), limit) at
    optimiser step `step`, 0 before `flat`. DiffusionNFT's code has (0, 0.001, 0.5), and (75, 0.0075, 0.999) for OCR.
    """

    flat: Natural = 0
    rate: NonNegative = 0.001
    limit: Share = 0.5


@checked
class DecoderMatching(PolicyStage):
    """Clean pictures from any solver, then flow matching weighted by their advantages. It takes the place of DecoderRL.

    Args:
        objective: "nft" (DiffusionNFT, arXiv 2509.16117) or "awm" (Advantage Weighted Matching, arXiv 2509.25050).
        group_size: pictures per caption, G; they differ in the noise they start from.
        micro_batch: pictures per forward and backward pass; must divide P * G.
        updates_per_batch: passes over one rollout; 1, with update_parts 1 and no policy_lag, is on policy.
        update_parts: disjoint parts of a rollout, drawn anew for each pass, with an optimiser step on each
            (DiffusionNFT: 1, and 2 for OCR).
        policy_lag: pictures are drawn by an average of the policies so far, with which the one in training is compared
            (DiffusionNFT); None: by the policy in training.
        draws: of (sigma, noise) per picture, K.
        sigma_distribution, sigma_shift, sigma_mean, sigma_std, sigma_mode_scale: of the draws, as in DecoderPretrain.
        strength: of "nft", how far the compared policies lie on either side of the one that sampled; on policy it has
            no effect (DiffusionNFT: 1, and 0.1 for OCR).
        clip: of "awm", the ratio is clipped to [1 - clip, 1 + clip].
        kl_beta: weight of the squared distance to the velocity with adapters off (DiffusionNFT: 1e-4).
        advantage_scale: "group_std", "batch_std" or "none".
        advantage_clip: advantages are clipped to this size.
        **parts: of `Stage`.
    """

    trained = ("decoder",)

    def __init__(
        self,
        *args,
        objective: Literal["nft", "awm"] = "nft",
        group_size: Several = 24,
        micro_batch: Count = 24,
        updates_per_batch: Count = 1,
        update_parts: Count = 1,
        policy_lag: PolicyLag | None = None,
        draws: Count = 2,
        sigma_distribution: flow.SigmaDistribution = "uniform",
        sigma_shift: Positive = 3.0,
        sigma_mean: Finite = 0.0,
        sigma_std: Positive = 1.0,
        sigma_mode_scale: ModeScale = 1.29,
        strength: Positive = 1.0,
        clip: Positive = 1e-4,
        kl_beta: NonNegative = 0.0,
        advantage_scale: Literal["group_std", "batch_std", "none"] = "batch_std",
        advantage_clip: Positive = 5.0,
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
        self.objective, self.draws, self.strength, self.clip, self.kl_beta = objective, draws, strength, clip, kl_beta
        self.update_parts, self.policy_lag, self.lagging = update_parts, policy_lag, LaggingPolicy(self)
        self.levels = flow.sigma_levels(sigma_distribution, sigma_shift, sigma_mean, sigma_std, sigma_mode_scale)
        self.advantage_clip = advantage_clip

    @property
    def decoder(self) -> FlowDecoder:
        return self.autoencoder.flow_decoder

    @torch.no_grad()
    def rollout(self, batch: Batch) -> LatentRollout:
        captions = self.autoencoder.write(batch.images, 1, self.step_seed(0, self.global_rank))
        conditioning = self.autoencoder.read(captions.texts).repeat(self.group_size)
        images = batch.images.repeat_interleave(self.group_size, 0)
        generator, size, device = self.generator(1), len(images) * ranks(), images.device  # of the global batch
        shape = self.decoder.latent_shape
        noise = own_rows(torch.randn(size, *shape, generator=generator)).to(device)
        noises = own_rows(torch.randn(size, self.draws, *shape, generator=generator)).to(device)
        sigmas = flow.sample_sigma(size * self.draws, **self.levels, generator=generator)
        sigmas = own_rows(sigmas.view(size, self.draws)).to(device)
        draw = self.autoencoder.draw_latents
        with self.sampling_policy():
            latents = torch.cat([draw(conditioning[rows], noise[rows]) for rows in self.micro_batches(len(noise))])
            old = self.velocities(latents, noises, sigmas, conditioning) if self.is_off_policy else None
        texts = [text for text in captions.texts for _ in range(self.group_size)]
        reward_input = RewardInput(images, self.decoder.decode_latents(latents), texts)
        return LatentRollout(captions, conditioning, latents, sigmas, noises, old, reward_input)

    def sampling_policy(self) -> AbstractContextManager:
        return nullcontext() if self.policy_lag is None else self.lagging.acting()

    @property
    def is_off_policy(self) -> bool:
        return self.policy_lag is not None or self.updates_per_batch * self.update_parts > 1

    def velocities(self, latents: Tensor, noises: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """[N, K, C, h, w] at every draw."""
        found = torch.empty_like(noises)
        for rows in self.micro_batches(len(latents)):
            for draw in range(self.draws):
                sigma = sigmas[rows, draw]
                x, _ = flow.interpolate(latents[rows], noises[rows, draw], sigma)
                found[rows, draw] = self.decoder.velocity(x, sigma, conditioning[rows]).to(found)
        return found

    def update(self, rollout: LatentRollout, advantages: Tensor) -> None:
        advantages = advantages.clamp(-self.advantage_clip, self.advantage_clip)
        size = len(advantages) // self.update_parts
        for batches in self.optimizer_steps(len(advantages)):
            sums: dict[str, float] = {}
            for rows in batches:
                for draw in range(self.draws):
                    loss, metrics = self.draw_loss(rollout, rows, draw, advantages[rows])
                    self.backward_of_micro_batch(loss.sum() / (size * self.draws))
                    metrics["loss"] = loss.detach().sum() / (size * self.draws)
                    add_metrics(sums, metrics, len(rows) / (size * self.draws))
            sums["grad_norm"] = self.optimizer_step_after_clipping()
        if self.policy_lag is not None:
            self.lagging.follow(policy_decay(self.global_step, **vars(self.policy_lag)))
        self.report(rollout, sums)

    def draw_loss(
        self, rollout: LatentRollout, rows: Tensor, draw: int, advantages: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """([n] loss, metrics) of n pictures at one draw."""
        sigma, conditioning = rollout.sigmas[rows, draw], rollout.conditioning[rows]
        x, target = flow.interpolate(rollout.latents[rows], rollout.noises[rows, draw], sigma)
        velocity = self.decoder.velocity(x, sigma, conditioning)
        old = velocity.detach() if rollout.old is None else rollout.old[rows, draw]
        metrics = {"matching_error": (velocity.detach() - target).square().mean()}
        if self.objective == "nft":
            good = optimality(advantages, self.advantage_clip)
            loss = nft_loss(
                velocity, old, target, sigma, good, strength=self.strength, limit=self.advantage_clip
            )  # fmt: skip
        else:
            logp, old_logp = (matching_logp(v, target)[:, None] for v in (velocity, old))
            loss, ratios = clipped_surrogate(
                logp, old_logp, advantages, None, clip_low=self.clip, clip_high=self.clip
            )  # fmt: skip
            loss, metrics = loss[:, 0], metrics | ratios
        if self.kl_beta > 0:
            with torch.no_grad(), self.decoder.reference():
                reference = self.decoder.velocity(x, sigma, conditioning)
            distance = (velocity - reference).square().mean((1, 2, 3))
            loss, metrics["distance_to_reference"] = loss + self.kl_beta * distance, distance.detach().mean()
        return loss, metrics

    def report(self, rollout: LatentRollout, sums: dict[str, float]) -> None:
        texts = rollout.captions.texts
        self.health |= sums | {
            "caption_tokens": rollout.captions.lengths.float().mean().item(),
            "empty_captions": sum(not text for text in texts) / len(texts),
        }
        self.health = self.reduced(self.health)
        self.log("train/loss", self.health.pop("loss"), prog_bar=True)
        self.log("train/grad_norm", self.health.pop("grad_norm"))

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["sampling_policy"] = self.lagging.weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.lagging.weights = checkpoint.get("sampling_policy", {})
