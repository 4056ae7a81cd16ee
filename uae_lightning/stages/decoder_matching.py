"""Stage 3 by flow matching on the decoder's own pictures: DiffusionNFT and Advantage Weighted Matching.

P captions (one per picture in the batch)   G pictures of each (a group), N = P * G
K draws of (sigma, noise) for each picture, on which the policy that sampled and the one in training are compared
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.policies.matching import Matching, PolicyLag
from uae_lightning.ranges import Count, Finite, ModeScale, NonNegative, Positive, Several, Share, checked
from uae_lightning.stages.decoder_rl import PictureStage
from uae_lightning.stages.policy import Rollout
from uae_lightning.types import Work


@checked
class DecoderMatching(PictureStage):
    """Clean pictures from any solver, then flow matching weighted by their advantages. It takes the place of DecoderRL.

    Args:
        objective: "nft" (DiffusionNFT, arXiv 2509.16117) or "awm" (Advantage Weighted Matching, arXiv 2509.25050).
        own_captions: share of a batch's pictures whose caption is that of the data, where the others' is the encoder's.
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
        kl_beta: weight of the squared distance to the velocity with adapters off (DiffusionNFT: 1e-4). Above 0 the
            policy's `velocity_norm_ratio` is logged, as in DecoderRL.
        advantage_scale: "group_std", "batch_std" or "none".
        advantage_clip: advantages are clipped to this size.
        **parts: of `Stage`.
    """

    def __init__(
        self,
        *args,
        objective: Literal["nft", "awm"] = "nft",
        own_captions: Share = 0.0,
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
            *args, own_captions=own_captions, updates_per_batch=updates_per_batch, update_parts=update_parts, **parts
        )
        levels = flow.sigma_levels(sigma_distribution, sigma_shift, sigma_mean, sigma_std, sigma_mode_scale)
        pictures = Matching(
            self.autoencoder, self, levels, group_size=group_size, micro_batch=micro_batch, objective=objective,
            policy_lag=policy_lag, moves=updates_per_batch * update_parts > 1, draws=draws, strength=strength,
            clip=clip, kl_beta=kl_beta, advantage_scale=advantage_scale, advantage_clip=advantage_clip,
        )  # fmt: skip
        self.policies = {"pictures": pictures}

    @staticmethod
    def work(options: Any) -> Work:
        return Work(options.group_size * Matching.decoder_forwards(options), captions_written=1)

    def update(self, rollout: Rollout, *advantages: Tensor) -> None:
        super().update(rollout, *advantages)
        self.policy.follow(self.global_step)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["sampling_policy"] = self.policy.lagging.weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.policy.lagging.weights = checkpoint.get("sampling_policy", {})
