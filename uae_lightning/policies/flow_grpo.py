"""Pictures as acts: Flow-GRPO (arXiv 2505.05470), the stochastic steps of the sampler.

P captions   G pictures of each (a group), N = P * G   C h w latents
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
from uae_lightning.algorithms.velocity_drift import norm_ratio, velocity_distance
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import FlowDecoder
from uae_lightning.policies.policy import Policy, Randomness, evenly
from uae_lightning.ranges import Count, Natural, NonNegative, Positive, Several, checked
from uae_lightning.types import Conditioning


@dataclass(frozen=True)
class Trajectory:
    """What is kept of sampling: the states around each trained step."""

    before: Tensor  # [W, N, C, h, w] float32
    after: Tensor  # [W, N, C, h, w] float32
    mean: Tensor  # [W, N, C, h, w] float32, what `after` is drawn around
    logp: Tensor  # [N, W] mean log-probability of each trained step
    unguided: Tensor | None  # [W, N, C, h, w] velocities of the guidance branch at `before`, where they can be reused


@dataclass(frozen=True)
class PictureActs:
    conditioning: Conditioning  # [N, L, D]
    unconditional: Conditioning | None  # [1, L, D] of the negative prompt; None is the decoder's own null input
    trajectory: Trajectory
    pictures: Tensor  # [N, 3, H, W] in [0, 1]


@checked
class FlowGRPO(Policy[PictureActs]):
    """The decoder's steps. Its options are explained in `stages.decoder_rl.DecoderRL`."""

    def __init__(
        self,
        autoencoder: AutoEncoder,
        group_size: Several = 24,
        micro_batch: Count = 24,
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
    ) -> None:
        super().__init__(autoencoder, group_size, micro_batch, advantage_scale, advantage_clip)
        self.window, self.first_window, self.window_within = window, window, window_within
        self.slide_every, self.roll_back, self.untrained_steps = slide_every, roll_back, untrained_steps
        self.noise_level, self.sde, self.log_prob, self.ratio_norm = noise_level, sde, log_prob, ratio_norm
        self.clip, self.kl_beta, self.kl_form = clip, kl_beta, kl_form
        self.guidance_gradient, self.same_noise = guidance_gradient, same_noise

    @property
    def decoder(self) -> FlowDecoder:
        return self.autoencoder.flow_decoder

    @staticmethod
    def check(options: Any) -> None:
        check_windows(options)
        if options.ratio_norm and options.log_prob != "normal":
            raise ValueError("ratio_norm is defined for log_prob 'normal': squared errors are no densities")
        if options.sde == "cps" and options.noise_level > 1:
            raise ValueError(f"noise_level must not exceed 1 with sde 'cps', got {options.noise_level}")

    @staticmethod
    def decoder_forwards(options: Any) -> int:
        """For one picture, counted as in `types.Work`: of sampling, and of each trained step with its guidance branch
        and, under a KL, the reference. What the pictures of a group share is counted for each."""
        (first, end), sampling = options.window, options.sampling
        with_gradient = sampling.branches if options.guidance_gradient == "both" else 1
        of_step = sampling.branches * (2 if options.kl_beta > 0 else 1) + 2 * with_gradient
        return sampling.forwards + options.updates_per_batch * (end - first) * of_step

    def act(self, context: Conditioning, randomness: Randomness) -> PictureActs:
        """G pictures of each of P captions."""
        self.window = self.next_window(randomness)
        conditioning, unconditional = context.repeat(self.group_size), self.autoencoder.unconditional(1)
        size, device = len(conditioning.mask), conditioning.mask.device
        generators = randomness.generators(1, size)
        noise = draw_noise((size, *self.decoder.latent_shape), generators, device)
        if self.same_noise:
            noise = noise[:: self.group_size].repeat_interleave(self.group_size, 0)
        # in the micro-batches of the update: replay then repeats the very same arithmetic
        parts = [
            self.sample_trajectory(conditioning[rows], unconditional, noise[rows], [generators[row] for row in rows])
            for rows in self.micro_batches(size)
        ]
        kept = [part.unguided for part, _ in parts if part.unguided is not None]
        trajectory = Trajectory(
            torch.cat([part.before for part, _ in parts], 1),
            torch.cat([part.after for part, _ in parts], 1),
            torch.cat([part.mean for part, _ in parts], 1),
            torch.cat([part.logp for part, _ in parts]),
            torch.cat(kept, 1) if kept else None,
        )
        return PictureActs(conditioning, unconditional, trajectory, torch.cat([pictures for _, pictures in parts]))

    def next_window(self, randomness: Randomness) -> tuple[int, int]:
        """That of this batch, which its number in the run and the seed determine."""
        if self.window_within is not None:
            return drawn_window(self.window_within, self.window[1] - self.window[0], randomness.step_seed(2))
        if not self.slide_every:
            return self.window
        seen, steps = max(int(randomness.batches_seen) - 1, 0), self.sampling.steps
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

    def passes(self, acts: PictureActs) -> int:
        return self.window[1] - self.window[0]

    def weights(self, acts: PictureActs) -> tuple[Tensor, Tensor]:
        return evenly(len(acts.pictures), self.passes(acts), acts.pictures.device)

    def loss(
        self, acts: PictureActs, rows: Tensor, index: int, advantages: Tensor, *, first: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """([n] loss of the trained step `index` of n pictures, metrics)."""
        path, place = acts.trajectory, self.window[0] + index
        step = self.replay(acts, rows, index, path.unguided if first else None)
        sigmas = self.decoder.schedule(self.sampling.steps)
        dt = (sigmas[place] - sigmas[place + 1]).item()
        logp, old_logp = step.mean_log_prob, path.logp[rows, index]
        if self.ratio_norm:
            logp = normalized_log_ratio(logp - old_logp, step.mean, path.mean[index, rows], step.std)
            old_logp = torch.zeros_like(logp)
        loss, metrics = clipped_surrogate(
            logp[:, None], old_logp[:, None], advantages, None, clip_low=self.clip, clip_high=self.clip
        )
        if first:
            metrics["first_log_ratio_max"] = metrics["log_ratio_abs_max"]
        loss = loss[:, 0] / dt if self.ratio_norm else loss[:, 0]
        if self.kl_beta > 0:
            with torch.no_grad(), self.decoder.reference():
                reference = self.replay(acts, rows, index, None)
            kl = self.kl(step, reference, dt)
            loss = loss + self.kl_beta * kl
            metrics["kl_reference"] = kl.detach().mean()
            metrics["velocity_norm_ratio"] = norm_ratio(step.velocity, reference.velocity).mean()
        return loss, metrics

    def kl(self, step: SDEStep, reference: SDEStep, dt: float) -> Tensor:
        """[n] how far a step of length dt has gone from the reference's."""
        if self.kl_form == "velocity":
            return velocity_distance(step.velocity, reference.velocity)
        return sde_kl(step.mean, reference.mean, step.std, include_dt=self.kl_form == "gaussian", dt=dt)

    def replay(self, acts: PictureActs, rows: Tensor, column: int, unguided: Tensor | None) -> SDEStep:
        """The trained step `column` again, under the policy as it is now; `unguided` [W, N, C, h, w] if still known."""
        index, path = self.window[0] + column, acts.trajectory
        x, known = path.before[column, rows], None if unguided is None else unguided[column, rows]
        velocity, _ = self.velocity_at(index, x, acts.conditioning[rows], acts.unconditional, known)
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
        together = same_states and len(x) % self.group_size == 0
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
