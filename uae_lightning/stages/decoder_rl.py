"""Stage 3, Unified-GRPO B: pictures that follow the caption. Flow-GRPO (arXiv 2505.05470) on the decoder's adapters.

P captions (one per picture in the batch)   G pictures of each (a group), N = P * G   C h w latents
S steps of the sampler   W of them, the window, are stochastic and trained; the others follow the ODE
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.flow_sde import SDEStep, normalized_log_ratio, sde_kl, sde_step, sliding_window
from uae_lightning.algorithms.policy_loss import clipped_surrogate
from uae_lightning.parallel.collectives import own_rows, rank, ranks
from uae_lightning.ranges import Count, Natural, NonNegative, Positive, Several, checked
from uae_lightning.stages.common import PolicyStage, add_metrics
from uae_lightning.types import Batch, Captions, Conditioning, RewardInput


@dataclass(frozen=True)
class Trajectory:
    """What is kept of sampling: the states around each trained step."""

    before: Tensor  # [W, N, C, h, w] float32
    after: Tensor  # [W, N, C, h, w] float32
    mean: Tensor  # [W, N, C, h, w] float32, what `after` is drawn around
    logp: Tensor  # [N, W] mean log-probability of each trained step
    unguided: Tensor | None  # [W, N, C, h, w] velocities of the guidance branch at `before`; None without guidance


@dataclass(frozen=True)
class ImageRollout:
    captions: Captions  # P
    conditioning: Conditioning  # [N, L, D]
    unconditional: Conditioning | None  # [1, L, D] of the negative prompt; None is the decoder's own null input
    trajectory: Trajectory
    reward_input: RewardInput


@checked
class DecoderRL(PolicyStage):
    """Clipped policy gradient on the sampler's stochastic steps, with the reconstruction as reward.

    Args:
        group_size: pictures per caption, G (Flow-GRPO: 24; 6 and 12 were seen to collapse).
        micro_batch: pictures per forward and backward pass; must divide P * G.
        updates_per_batch: optimiser steps on one rollout; 1 is on policy.
        window: [first, last + 1] steps of the sampler that are stochastic and trained (Flow-GRPO: [0, S - 1]).
        slide_every: batches after which the window moves on by one step (MixGRPO: 25); 0: it stays.
        noise_level: a of Flow-GRPO (0.7), or the noise level of CPS (0.8).
        sde: "flow_sde", or "cps" (arXiv 2509.05952), which keeps the noise level of the ODE.
        log_prob: "normal" is the density; "squared_error" as published CPS code has it.
        clip: the ratio is clipped to [1 - clip, 1 + clip] (Flow-GRPO: 1e-4, because log-probabilities are means).
        ratio_norm: GRPO-Guard: ratios of the same spread at every step, whose losses are divided by |dt|.
        kl_beta: weight of the KL to the decoder with adapters off (Flow-GRPO: 0.04 or 0.01).
        kl_includes_dt: True is the KL of the paper, False that of its code.
        same_noise: start a group from one noise (False: Flow-GRPO's code); what its pictures share is computed once
            where micro-batches are whole groups.
        advantage_scale: "group_std" (Flow-GRPO's paper), "batch_std" (its code) or "none".
        advantage_clip: advantages are clipped to this size (Flow-GRPO's code: 5).
        **parts: of `Stage`.
    """

    trained = ("decoder",)

    def __init__(
        self,
        *args,
        group_size: Several = 24,
        micro_batch: Count = 24,
        updates_per_batch: Count = 1,
        window: tuple[Natural, Count] = (0, 9),
        slide_every: Natural = 0,
        noise_level: Positive = 0.7,
        sde: Literal["flow_sde", "cps"] = "flow_sde",
        log_prob: Literal["normal", "squared_error"] = "normal",
        clip: Positive = 1e-4,
        ratio_norm: bool = False,
        kl_beta: NonNegative = 0.04,
        kl_includes_dt: bool = True,
        same_noise: bool = False,
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
        self.window, self.first_window, self.slide_every = window, window, slide_every
        self.noise_level, self.sde, self.log_prob, self.ratio_norm = noise_level, sde, log_prob, ratio_norm
        self.clip, self.kl_beta, self.kl_includes_dt = clip, kl_beta, kl_includes_dt
        self.same_noise, self.advantage_clip = same_noise, advantage_clip

    @staticmethod
    def check_training(options: Any) -> None:
        (first, end), steps = options.window, options.sampling.steps
        if not 0 <= first < end <= steps:
            raise ValueError(f"window must lie within the {steps} sampling steps, got {[first, end]}")
        if options.ratio_norm and options.log_prob != "normal":
            raise ValueError("ratio_norm is defined for log_prob 'normal': squared errors are no densities")
        if options.sde == "cps" and options.noise_level > 1:
            raise ValueError(f"noise_level must not exceed 1 with sde 'cps', got {options.noise_level}")

    @torch.no_grad()
    def rollout(self, batch: Batch) -> ImageRollout:
        if self.slide_every:
            seen, steps = max(int(self.batches_seen) - 1, 0), self.sampling.steps
            self.window = sliding_window(self.first_window, seen, every=self.slide_every, steps=steps)
        captions = self.caption(batch.images, 1, self.step_seed(0, self.global_rank))
        conditioning, unconditional = self.condition(captions.texts).repeat(self.group_size), self.unconditional(1)
        images = batch.images.repeat_interleave(self.group_size, 0)
        generator = self.generator(1)
        copies = 1 if self.same_noise else self.group_size
        size = len(batch.images) * copies * ranks()
        noise = own_rows(torch.randn(size, *self.decoder.latent_shape, generator=generator))
        noise = noise.repeat_interleave(self.group_size // copies, 0).to(images.device)
        self.pass_over_noise(generator, rank() * len(noise))
        # in the micro-batches of the update: replay then repeats the very same arithmetic
        parts = [
            self.sample_trajectory(conditioning[rows], unconditional, noise[rows], generator)
            for rows in self.micro_batches(len(noise))
        ]
        trajectory = Trajectory(
            torch.cat([part.before for part, _ in parts], 1),
            torch.cat([part.after for part, _ in parts], 1),
            torch.cat([part.mean for part, _ in parts], 1),
            torch.cat([part.logp for part, _ in parts]),
            None if self.sampling.guidance == 1 else torch.cat([part.unguided for part, _ in parts], 1),
        )
        reconstructions = torch.cat([pictures for _, pictures in parts])
        texts = [text for text in captions.texts for _ in range(self.group_size)]
        inputs = RewardInput(images, reconstructions, texts)
        return ImageRollout(captions, conditioning, unconditional, trajectory, inputs)

    def pass_over_noise(self, generator: torch.Generator, pictures: int) -> None:
        """Draws the steps' noise of the pictures before this rank's, which other ranks use."""
        steps = self.window[1] - self.window[0]
        for _ in range(pictures // self.micro_batch * steps):
            torch.randn(self.micro_batch, *self.decoder.latent_shape, generator=generator)

    def sample_trajectory(
        self,
        conditioning: Conditioning,
        unconditional: Conditioning | None,
        noise: Tensor,
        generator: torch.Generator,
    ) -> tuple[Trajectory, Tensor]:
        """Sample n pictures [n, 3, H, W] from noise [n, C, h, w], keeping the steps in the window."""
        sigmas = self.decoder.schedule(self.sampling.steps)
        x, before, after, mean, logp, kept = noise, [], [], [], [], []
        for index, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            velocity, unguided = self.velocity_at(index, x, conditioning, unconditional)
            if self.window[0] <= index < self.window[1]:
                step = self.sde_step(x, velocity, index, generator=generator)
                before, after, mean, kept = [*before, x], [*after, step.prev], [*mean, step.mean], [*kept, unguided]
                x, logp = step.prev, [*logp, step.mean_log_prob]
            else:
                x = flow.euler_step(x, velocity, sigma, sigma_next)
        kept = None if self.sampling.guidance == 1 else torch.stack(kept)
        path = Trajectory(torch.stack(before), torch.stack(after), torch.stack(mean), torch.stack(logp, 1), kept)
        return path, self.decoder.decode_latents(x)

    def update(self, rollout: ImageRollout, advantages: Tensor) -> None:
        advantages = advantages.clamp(-self.advantage_clip, self.advantage_clip)
        size, steps = len(advantages), self.window[1] - self.window[0]
        for update in range(self.updates_per_batch):
            sums: dict[str, float] = {}
            for rows in self.micro_batches(size):
                for column in range(steps):
                    loss, metrics = self.step_loss(rollout, rows, column, advantages[rows], on_policy=update == 0)
                    self.backward_of_micro_batch(loss.sum() / (size * steps))
                    metrics["loss"] = loss.detach().sum() / (size * steps)
                    add_metrics(sums, metrics, len(rows) / (size * steps))
            if update == 0:
                self.health |= {"first_log_ratio": sums["log_ratio_abs_max"]}
            sums["grad_norm"] = self.optimizer_step_after_clipping()
        self.report(rollout, sums)

    def step_loss(
        self, rollout: ImageRollout, rows: Tensor, column: int, advantages: Tensor, *, on_policy: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """([n] loss of one trained step of n pictures, metrics); `on_policy` until the first optimiser step."""
        index, path = self.window[0] + column, rollout.trajectory
        step = self.replay(rollout, rows, column, path.unguided if on_policy else None)
        sigmas = self.decoder.schedule(self.sampling.steps)
        dt = (sigmas[index] - sigmas[index + 1]).item()
        logp, old_logp = step.mean_log_prob, path.logp[rows, column]
        if self.ratio_norm:
            logp = normalized_log_ratio(logp - old_logp, step.mean, path.mean[column, rows], step.std)
            old_logp = torch.zeros_like(logp)
        loss, metrics = clipped_surrogate(
            logp[:, None], old_logp[:, None], advantages, None, clip_low=self.clip, clip_high=self.clip
        )
        loss = loss[:, 0] / dt if self.ratio_norm else loss[:, 0]
        if self.kl_beta > 0:
            with torch.no_grad(), self.decoder.reference():
                reference = self.replay(rollout, rows, column, None)
            kl = sde_kl(step.mean, reference.mean, step.std, include_dt=self.kl_includes_dt, dt=dt)
            loss = loss + self.kl_beta * kl
            metrics["kl"] = kl.detach().mean()
        return loss, metrics

    def replay(self, rollout: ImageRollout, rows: Tensor, column: int, unguided: Tensor | None) -> SDEStep:
        """The trained step `column` again, under the policy as it is now; `unguided` [W, N, C, h, w] if still known."""
        index, path = self.window[0] + column, rollout.trajectory
        x, known = path.before[column, rows], None if unguided is None else unguided[column, rows]
        velocity, _ = self.velocity_at(index, x, rollout.conditioning[rows], rollout.unconditional, known)
        return self.sde_step(x, velocity, index, prev=path.after[column, rows])

    def velocity_at(
        self,
        index: int,
        x: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None,
        unguided: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """At that step of the sampler: velocity and that of its guidance branch (computed unless given), [n, C, h, w].

        Up to the first stochastic step the pictures of a group that starts from one noise are the same state, whose
        velocities are computed once; so it is in sampling and in replay.
        """
        together = self.same_noise and index <= self.window[0] and self.micro_batch % self.group_size == 0
        copies = self.group_size if together else 1
        sigma, states = self.decoder.schedule(self.sampling.steps)[index], x[::copies]
        if unguided is None:
            null = unconditional if unconditional is None else unconditional.repeat(len(states))
            unguided = self.unguided_velocity(states, sigma, null)
        else:
            unguided = unguided[::copies]
        velocity = self.guided_velocity(states, sigma, conditioning[::copies], unguided)
        if together:
            velocity = velocity.repeat_interleave(copies, 0)
            unguided = unguided if unguided is None else unguided.repeat_interleave(copies, 0)
        return velocity, unguided

    def sde_step(
        self, x: Tensor, velocity: Tensor, index: int, *, prev: Tensor | None = None, generator=None
    ) -> SDEStep:
        sigmas = self.decoder.schedule(self.sampling.steps)
        return sde_step(
            x,
            velocity,
            sigmas[index],
            sigmas[index + 1],
            self.noise_level,
            prev=prev,
            generator=generator,
            kind=self.sde,
            log_prob_form=self.log_prob,
        )

    def report(self, rollout: ImageRollout, sums: dict[str, float]) -> None:
        if "kl" in sums:
            sums["kl_reference"] = sums.pop("kl")
        texts = rollout.captions.texts
        self.health |= sums | {
            "caption_tokens": rollout.captions.lengths.float().mean().item(),
            "empty_captions": sum(not text for text in texts) / len(texts),
        }
        self.health = self.reduced(self.health)
        self.log("train/loss", self.health.pop("loss"), prog_bar=True)
        self.log("train/grad_norm", self.health.pop("grad_norm"))
