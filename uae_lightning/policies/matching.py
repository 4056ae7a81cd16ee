"""Pictures as acts: flow matching on the decoder's own pictures, weighted by advantages. DiffusionNFT and AWM.

P captions   G pictures of each (a group), N = P * G   C h w latents
K draws of (sigma, noise) for each picture, on which the policy that sampled and the one in training are compared
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.matching import matching_logp, nft_loss, optimality, policy_decay
from uae_lightning.algorithms.policy_loss import clipped_surrogate
from uae_lightning.algorithms.velocity_drift import norm_ratio, velocity_distance
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import Decoder
from uae_lightning.parallel.collectives import own_rows, ranks
from uae_lightning.policies.lagging_policy import LaggingPolicy
from uae_lightning.policies.policy import Policy, Randomness, evenly
from uae_lightning.ranges import Count, Natural, NonNegative, Positive, Several, Share, checked
from uae_lightning.types import Conditioning


@dataclass(frozen=True)
class LatentActs:
    conditioning: Conditioning  # [N, L, D]
    latents: Tensor  # [N, C, h, w] clean
    sigmas: Tensor  # [N, K] where the policy is trained
    noises: Tensor  # [N, K, C, h, w]
    old: Tensor | None  # [N, K, C, h, w] velocities of the policy that sampled; None: it is the one in training
    pictures: Tensor  # [N, 3, H, W] in [0, 1]


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
class Matching(Policy[LatentActs]):
    """The decoder's pictures. Its options are explained in `stages.decoder_matching.DecoderMatching`.

    Args:
        trained: whose parameters a lagging policy follows.
        levels: of `flow.sample_sigma`.
        moves: the policy in training moves between the optimiser steps on a rollout.
    """

    def __init__(
        self,
        autoencoder: AutoEncoder,
        trained: nn.Module,
        levels: flow.SigmaLevels,
        *,
        group_size: Several,
        micro_batch: Count,
        objective: Literal["nft", "awm"],
        policy_lag: PolicyLag | None,
        moves: bool,
        draws: Count,
        strength: Positive,
        clip: Positive,
        kl_beta: NonNegative,
        advantage_scale: Literal["group_std", "batch_std", "none"],
        advantage_clip: Positive,
    ) -> None:
        super().__init__(autoencoder, group_size, micro_batch, advantage_scale, advantage_clip)
        self.levels, self.objective, self.draws, self.moves = levels, objective, draws, moves
        self.strength, self.clip, self.kl_beta = strength, clip, kl_beta
        self.policy_lag, self.lagging = policy_lag, LaggingPolicy(trained)

    @staticmethod
    def decoder_forwards(options: Any) -> int:
        """For one picture, counted as in `types.Work`: of sampling, and of each draw with, under a KL, the reference
        and, off policy, the policy that sampled."""
        off_policy = options.updates_per_batch * options.update_parts > 1 or options.policy_lag is not None
        of_draw = options.updates_per_batch * (4 if options.kl_beta > 0 else 3) + off_policy
        return options.sampling.forwards + options.draws * of_draw

    @property
    def decoder(self) -> Decoder:
        return self.autoencoder.decoder

    def act(self, context: Conditioning, randomness: Randomness) -> LatentActs:
        """G pictures of each of P captions, by any solver."""
        conditioning, shape = context.repeat(self.group_size), self.decoder.latent_shape
        size, device = len(conditioning.mask) * ranks(), conditioning.mask.device  # of the global batch
        generator = randomness.generator(1)
        noise = own_rows(torch.randn(size, *shape, generator=generator)).to(device)
        noises = own_rows(torch.randn(size, self.draws, *shape, generator=generator)).to(device)
        sigmas = flow.sample_sigma(size * self.draws, **self.levels, generator=generator)
        sigmas = own_rows(sigmas.view(size, self.draws)).to(device)
        draw, batches = self.autoencoder.draw_latents, self.micro_batches(len(noise))
        with self.sampling_policy():
            latents = torch.cat([draw(conditioning[rows], noise[rows]) for rows in batches])
            off_policy = self.moves or self.policy_lag is not None
            old = self.velocities(latents, noises, sigmas, conditioning) if off_policy else None
        return LatentActs(conditioning, latents, sigmas, noises, old, self.decoder.decode_latents(latents))

    def sampling_policy(self) -> AbstractContextManager:
        return nullcontext() if self.policy_lag is None else self.lagging.acting()

    def follow(self, step: int) -> None:
        """The policy that samples comes closer to the one in training, after optimiser step `step`."""
        if self.policy_lag is not None:
            self.lagging.follow(policy_decay(step, **vars(self.policy_lag)))

    def velocities(self, latents: Tensor, noises: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """[N, K, C, h, w] at every draw."""
        found = torch.empty_like(noises)
        for rows in self.micro_batches(len(latents)):
            for draw in range(self.draws):
                draws = noises[rows, draw], sigmas[rows, draw]
                found[rows, draw] = self.decoder.regression(latents[rows], conditioning[rows], *draws)[0].to(found)
        return found

    def passes(self, acts: LatentActs) -> int:
        return self.draws

    def weights(self, acts: LatentActs) -> tuple[Tensor, Tensor]:
        return evenly(len(acts.pictures), self.draws, acts.pictures.device)

    def loss(
        self, acts: LatentActs, rows: Tensor, index: int, advantages: Tensor, *, first: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """([n] loss, metrics) of n pictures at the draw `index`."""
        sigma = acts.sigmas[rows, index]
        draw = acts.latents[rows], acts.conditioning[rows], acts.noises[rows, index], sigma
        velocity, target = self.decoder.regression(*draw)
        old = velocity.detach() if acts.old is None else acts.old[rows, index]
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
                reference, _ = self.decoder.regression(*draw)
            distance = velocity_distance(velocity, reference)
            loss, metrics["distance_to_reference"] = loss + self.kl_beta * distance, distance.detach().mean()
            metrics["velocity_norm_ratio"] = norm_ratio(velocity, reference).mean()
        return loss, metrics
