"""Stage 3, Unified-GRPO B: pictures that follow the caption. Flow-GRPO (arXiv 2505.05470) on the decoder's adapters.

P captions (one per picture in the batch)   G pictures of each (a group), N = P * G   C h w latents
S steps of the sampler   W of them, the window, are stochastic and trained; the others follow the ODE by default
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.flow_sde import (
    SDEStep,
    draw_noise,
    drawn_window,
    normalized_log_ratio,
    sde_kl,
    sde_step,
    sliding_window,
)
from uae_lightning.algorithms.policy_loss import clipped_surrogate
from uae_lightning.interfaces import FlowDecoder
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
    unguided: Tensor | None  # [W, N, C, h, w] velocities of the guidance branch at `before`, where they can be reused


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
        updates_per_batch: passes over one rollout; 1, with update_parts 1, is on policy.
        update_parts: disjoint parts of a rollout, drawn anew for each pass, with an optimiser step on each (Flow-GRPO:
            2, MixGRPO: 4).
        window: [first, last + 1] steps of the sampler that are stochastic and trained (Flow-GRPO: [0, S - 1]).
        window_within: [first, last + 1] steps among which a window of as many steps is drawn anew for every batch
            (Flow-GRPO-Fast without guidance: 3 within [0, S / 2]).
        slide_every: batches after which the window moves on by one step (MixGRPO: 25); 0: it stays.
        roll_back: a window that slid to the end begins again (MixGRPO's script); else it stays there.
        untrained_steps: "ode", or "sde": stochastic as well (Flow-GRPO, whose last step is; Flow-GRPO-Fast: "ode").
        noise_level: a of Flow-GRPO (0.7), or the noise level of CPS (0.8).
        sde: "flow_sde", or "cps" (arXiv 2509.05952), which keeps the noise level of the ODE.
        log_prob: "normal" is the density; "squared_error" as published CPS code has it.
        clip: the ratio is clipped to [1 - clip, 1 + clip] (Flow-GRPO: 1e-4, because log-probabilities are means).
        ratio_norm: GRPO-Guard: ratios of the same spread at every step, whose losses are divided by |dt|.
        guidance_gradient: "both" is the gradient of the policy that samples: through the conditional and the unguided
            velocity (Flow-GRPO since a482878 of 2025-08-19). "conditional" takes the unguided one as a constant (its
            code until then): another direction, but a trained step takes 3 passes of the decoder in place of 6 (back is
            2; with a KL 5 in place of 8) and half of the activations, as sampling has computed it on policy.
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
        update_parts: Count = 1,
        window: tuple[Natural, Count] = (0, 9),
        window_within: tuple[Natural, Count] | None = None,
        slide_every: Natural = 0,
        roll_back: bool = False,
        untrained_steps: Literal["ode", "sde"] = "ode",
        noise_level: Positive = 0.7,
        sde: Literal["flow_sde", "cps"] = "flow_sde",
        log_prob: Literal["normal", "squared_error"] = "normal",
        clip: Positive = 1e-4,
        ratio_norm: bool = False,
        guidance_gradient: Literal["both", "conditional"] = "both",
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
        self.update_parts, self.untrained_steps = update_parts, untrained_steps
        self.window, self.first_window, self.window_within = window, window, window_within
        self.slide_every, self.roll_back = slide_every, roll_back
        self.noise_level, self.sde, self.log_prob, self.ratio_norm = noise_level, sde, log_prob, ratio_norm
        self.clip, self.kl_beta, self.kl_includes_dt = clip, kl_beta, kl_includes_dt
        self.guidance_gradient = guidance_gradient
        self.same_noise, self.advantage_clip = same_noise, advantage_clip

    @property
    def decoder(self) -> FlowDecoder:
        return self.autoencoder.flow_decoder

    @staticmethod
    def check_training(options: Any) -> None:
        check_windows(options)
        if options.ratio_norm and options.log_prob != "normal":
            raise ValueError("ratio_norm is defined for log_prob 'normal': squared errors are no densities")
        if options.sde == "cps" and options.noise_level > 1:
            raise ValueError(f"noise_level must not exceed 1 with sde 'cps', got {options.noise_level}")

    @torch.no_grad()
    def rollout(self, batch: Batch) -> ImageRollout:
        self.window = self.next_window()
        captions = self.autoencoder.write(batch.images, 1, self.step_seed(0, self.global_rank))
        conditioning = self.autoencoder.read(captions.texts).repeat(self.group_size)
        unconditional = self.autoencoder.unconditional(1)
        images = batch.images.repeat_interleave(self.group_size, 0)
        generators = self.generators(1, len(images))
        noise = draw_noise((len(images), *self.decoder.latent_shape), generators, images.device)
        if self.same_noise:
            noise = noise[:: self.group_size].repeat_interleave(self.group_size, 0)
        # in the micro-batches of the update: replay then repeats the very same arithmetic
        parts = [
            self.sample_trajectory(conditioning[rows], unconditional, noise[rows], [generators[row] for row in rows])
            for rows in self.micro_batches(len(noise))
        ]
        kept = [part.unguided for part, _ in parts if part.unguided is not None]
        trajectory = Trajectory(
            torch.cat([part.before for part, _ in parts], 1),
            torch.cat([part.after for part, _ in parts], 1),
            torch.cat([part.mean for part, _ in parts], 1),
            torch.cat([part.logp for part, _ in parts]),
            torch.cat(kept, 1) if kept else None,
        )
        reconstructions = torch.cat([pictures for _, pictures in parts])
        texts = [text for text in captions.texts for _ in range(self.group_size)]
        inputs = RewardInput(images, reconstructions, texts)
        return ImageRollout(captions, conditioning, unconditional, trajectory, inputs)

    def next_window(self) -> tuple[int, int]:
        """That of this batch, which its number in the run and the seed determine."""
        if self.window_within is not None:
            return drawn_window(self.window_within, self.window[1] - self.window[0], self.step_seed(2))
        if not self.slide_every:
            return self.window
        seen, steps = max(int(self.batches_seen) - 1, 0), self.sampling.steps
        return sliding_window(self.first_window, seen, every=self.slide_every, steps=steps, roll_back=self.roll_back)

    def trains(self, index: int) -> bool:
        return self.window[0] <= index < self.window[1]

    def is_stochastic(self, index: int) -> bool:
        return self.untrained_steps == "sde" or self.trains(index)

    def sample_trajectory(
        self,
        conditioning: Conditioning,
        unconditional: Conditioning | None,
        noise: Tensor,
        generator: list[torch.Generator],
    ) -> tuple[Trajectory, Tensor]:
        """Sample n pictures [n, 3, H, W] from noise [n, C, h, w], keeping the steps in the window.

        Each picture has a generator of its own: what is drawn does not depend on micro-batches.
        """
        sigmas = self.decoder.schedule(self.sampling.steps)
        x = noise
        before, after, mean, logp, kept = (list[Tensor]() for _ in range(5))
        for index, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            velocity, unguided = self.velocity_at(index, x, conditioning, unconditional)
            if not self.is_stochastic(index):
                x = flow.euler_step(x, velocity, sigma, sigma_next)
                continue
            step = self.sde_step(x, velocity, index, generator=generator)
            if self.trains(index):
                before, after, mean = [*before, x], [*after, step.prev], [*mean, step.mean]
                logp = [*logp, step.mean_log_prob]
                if unguided is not None and self.unguided_is_constant:
                    kept = [*kept, unguided]
            x = step.prev
        constant = torch.stack(kept) if kept else None
        path = Trajectory(torch.stack(before), torch.stack(after), torch.stack(mean), torch.stack(logp, 1), constant)
        return path, self.decoder.decode_latents(x)

    @property
    def unguided_is_constant(self) -> bool:
        """On policy, replay then takes the guidance branch from sampling."""
        return self.sampling.guidance != 1 and self.guidance_gradient == "conditional"

    def update(self, rollout: ImageRollout, advantages: Tensor) -> None:
        advantages = advantages.clamp(-self.advantage_clip, self.advantage_clip)
        size, steps = len(advantages) // self.update_parts, self.window[1] - self.window[0]
        for number, batches in enumerate(self.optimizer_steps(len(advantages))):
            sums: dict[str, float] = {}
            for rows in batches:
                for column in range(steps):
                    loss, metrics = self.step_loss(rollout, rows, column, advantages[rows], on_policy=number == 0)
                    self.backward_of_micro_batch(loss.sum() / (size * steps))
                    metrics["loss"] = loss.detach().sum() / (size * steps)
                    add_metrics(sums, metrics, len(rows) / (size * steps))
            if number == 0:
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
            metrics["kl_reference"] = kl.detach().mean()
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
        same_states = self.same_noise and not any(map(self.is_stochastic, range(index)))
        together = same_states and self.micro_batch % self.group_size == 0
        copies = self.group_size if together else 1
        sigma, states = self.decoder.schedule(self.sampling.steps)[index], x[::copies]
        if unguided is None:
            null = unconditional if unconditional is None else unconditional.repeat(len(states))
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.guidance_gradient == "both"):
                unguided = self.decoder.unguided_velocity(states, sigma, null, self.sampling.guidance)
        else:
            unguided = unguided[::copies]
        velocity = self.decoder.guided_velocity(states, sigma, conditioning[::copies], unguided, self.sampling.guidance)
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
        texts = rollout.captions.texts
        self.health |= sums | {
            "caption_tokens": rollout.captions.lengths.float().mean().item(),
            "empty_captions": sum(not text for text in texts) / len(texts),
        }
        self.health = self.reduced(self.health)
        self.log("train/loss", self.health.pop("loss"), prog_bar=True)
        self.log("train/grad_norm", self.health.pop("grad_norm"))


def check_windows(options: Any) -> None:
    """Raises ValueError where windows do not fit the sampler, or two options want to move them."""
    (first, end), within, steps = options.window, options.window_within, options.sampling.steps
    if not 0 <= first < end <= steps:
        raise ValueError(f"window must lie within the {steps} sampling steps, got {[first, end]}")
    if within is not None and not (0 <= within[0] <= within[1] - (end - first) and within[1] <= steps):
        raise ValueError(
            f"window_within must lie within the {steps} sampling steps and have room for a window of {end - first}, "
            f"got {list(within)}"
        )
    if within is not None and options.slide_every:
        raise ValueError("window_within draws the window and slide_every moves it: leave one of them out")
    if options.roll_back and not options.slide_every:
        raise ValueError("roll_back is of windows that slide: set slide_every, or leave it out")
