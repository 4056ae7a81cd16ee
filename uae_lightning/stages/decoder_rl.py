"""Stage 3, Unified-GRPO B: pictures that follow the caption. Flow-GRPO (arXiv 2505.05470) on the decoder's adapters.

P captions (one per picture in the batch)   G pictures of each (a group), N = P * G   S steps of the sampler
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from uae_lightning.policies.flow_grpo import FlowGRPO
from uae_lightning.ranges import Count, Natural, NonNegative, Positive, Several, Share, checked
from uae_lightning.stages.own_captions import captions_to_draw, drawn_from_their_own
from uae_lightning.stages.policy import PolicyStage, Rollout
from uae_lightning.types import Batch, RewardInput, Work


class PictureStage(PolicyStage):
    """Base of the stages whose one policy draws: a caption of each picture, and G pictures of each caption. Prompts
    without pictures (`data.prompts.PromptData`) are drawn as they are.

    Args:
        own_captions: share of a batch's pictures whose caption is that of the data, where the others' is the encoder's:
            the decoder then follows what people write as well.
        *args, **parts: of `PolicyStage`.
    """

    trained = ("decoder",)
    trains_from_prompts = True

    def __init__(self, *args, own_captions: Share, **parts) -> None:
        super().__init__(*args, **parts)
        self.own_captions = own_captions

    @torch.no_grad()
    def rollout(self, batch: Batch) -> Rollout:
        own, group = drawn_from_their_own(batch, self.own_captions, self.global_rank), self.policy.group_size
        captions = captions_to_draw(self, batch, own)
        acts = self.policy.act(self.autoencoder.read(captions.texts), self)
        images = batch.images.repeat_interleave(group, 0)
        texts = [text for text in captions.texts for _ in range(group)]
        given = torch.tensor(own, device=images.device).repeat_interleave(group)
        metadata = batch.metadata_of_each(group)
        return Rollout(batch, captions, [acts], RewardInput(images, acts.pictures, texts, given, metadata))


@checked
class DecoderRL(PictureStage):
    """Clipped policy gradient on the sampler's stochastic steps, with the reconstruction as reward.

    Args:
        own_captions: share of a batch's pictures whose caption is that of the data (Flow-GRPO, which draws prompts: 1),
            where the others' is the encoder's.
        group_size: pictures per caption, G (Flow-GRPO: 24; 6 and 12 were seen to collapse).
        micro_batch: pictures per forward and backward pass; must divide P * G.
        updates_per_batch: passes over one rollout; 1, with update_parts 1, is on policy.
        update_parts: disjoint parts of a rollout, drawn anew for each pass, with an optimiser step on each (Flow-GRPO:
            2, MixGRPO: 4).
        window: [first, last + 1] steps of the sampler that are stochastic and trained (Flow-GRPO: [0, S - 1]).
        window_within: [first, last + 1] steps among which a window of as many steps is drawn anew for every batch
            (Flow-GRPO-Fast without guidance: 3 within [0, S / 2]).
        slide_every: batches after which the window moves on by one step (MixGRPO: 25); 0: it stays.
        roll_back: a window that slid to the end begins again (MixGRPO's script); else it stays there.
        untrained_steps: "ode", or "sde": stochastic as well (Flow-GRPO, whose last step is; Flow-GRPO-Fast: "ode").
        noise_level: a of Flow-GRPO (0.7), eta of DanceGRPO (0.3), or the noise level of CPS (0.8).
        sde: "flow_sde"; "dance_sde" (DanceGRPO, arXiv 2505.07818), where all noise levels get as much noise, and the
            last step is the ODE's; or "cps" (arXiv 2509.05952), which keeps the noise level of the ODE.
        log_prob: "normal" is the density; "squared_error" as published CPS code has it.
        clip: the ratio is clipped to [1 - clip, 1 + clip] (Flow-GRPO: 1e-4, because log-probabilities are means).
        ratio_norm: GRPO-Guard: ratios of the same spread at every step, whose losses are divided by |dt|.
        guidance_gradient: "both" is the gradient of the policy that samples: through the conditional and the unguided
            velocity (Flow-GRPO since a482878 of 2025-08-19). "conditional" takes the unguided one as a constant (its
            code until then): another direction, but a trained step takes 3 passes of the decoder in place of 6 (back is
            2; with a KL 5 in place of 8) and half of the activations, as sampling has computed it on policy.
        kl_beta: weight of the KL to the decoder with adapters off (Flow-GRPO: 0.04 or 0.01). Above 0 the policy's
            `velocity_norm_ratio` is logged, which RL inflates unseen (arXiv 2606.27771).
        kl_form: "gaussian", of the two steps (Flow-GRPO's paper); "without_dt" (its code); or "velocity", the squared
            distance of the velocities, which weighs all noise levels the same (UniGRPO, arXiv 2603.23500).
        same_noise: start a group from one noise (False: Flow-GRPO's code); what its pictures share is computed once
            where micro-batches are whole groups.
        advantage_scale: "group_std" (Flow-GRPO's paper), "batch_std" (its code) or "none".
        advantage_clip: advantages are clipped to this size (Flow-GRPO's code: 5).
        **parts: of `Stage`.
    """

    def __init__(
        self,
        *args,
        own_captions: Share = 0.0,
        group_size: Several = 24,
        micro_batch: Count = 24,
        updates_per_batch: Count = 1,
        update_parts: Count = 1,
        window: tuple[Natural, Count] = (0, 9),
        window_within: tuple[Natural, Count] | None = None,
        slide_every: Natural = 0,
        roll_back: bool = False,
        untrained_steps: Literal["ode", "sde"] = "ode",
        noise_level: Positive = 0.7,
        sde: Literal["flow_sde", "dance_sde", "cps"] = "flow_sde",
        log_prob: Literal["normal", "squared_error"] = "normal",
        clip: Positive = 1e-4,
        ratio_norm: bool = False,
        guidance_gradient: Literal["both", "conditional"] = "both",
        kl_beta: NonNegative = 0.04,
        kl_form: Literal["gaussian", "without_dt", "velocity"] = "gaussian",
        same_noise: bool = False,
        advantage_scale: Literal["group_std", "batch_std", "none"] = "batch_std",
        advantage_clip: Positive = 5.0,
        **parts,
    ) -> None:
        super().__init__(
            *args, own_captions=own_captions, updates_per_batch=updates_per_batch, update_parts=update_parts, **parts
        )
        pictures = FlowGRPO(
            self.autoencoder, group_size=group_size, micro_batch=micro_batch, window=window,
            window_within=window_within, slide_every=slide_every, roll_back=roll_back, untrained_steps=untrained_steps,
            noise_level=noise_level, sde=sde, log_prob=log_prob, clip=clip, ratio_norm=ratio_norm,
            guidance_gradient=guidance_gradient, kl_beta=kl_beta, kl_form=kl_form, same_noise=same_noise,
            advantage_scale=advantage_scale, advantage_clip=advantage_clip,
        )  # fmt: skip
        self.policies = {"pictures": pictures}

    @staticmethod
    def check_training(options: Any) -> None:
        FlowGRPO.check(options)

    @staticmethod
    def work(options: Any) -> Work:
        return Work(options.group_size * FlowGRPO.decoder_forwards(options), captions_written=1)
