"""Captions as acts: GRPO (arXiv 2402.03300) on their tokens.

P pictures, or prompts to rewrite   G captions of each (a group), N = P * G   T tokens   V vocabulary
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from uae_lightning.algorithms.policy_loss import kl_k3, token_weights
from uae_lightning.algorithms.sampler_mismatch import truncated_importance
from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import Encoder, Engine
from uae_lightning.parallel.collectives import mean_over_ranks
from uae_lightning.paths import weightless
from uae_lightning.policies.policy import Policy, Randomness
from uae_lightning.policies.token_objectives import PPOClip, TokenObjective
from uae_lightning.ranges import Count, FromOne, NonNegative, Positive, Several, checked
from uae_lightning.types import Captions, RewardOutput


@dataclass(frozen=True)
class CaptionActs:
    seen: Any  # P pictures as the encoder sees them, or prompts as it is asked about them
    captions: Captions  # N

    @functools.cached_property
    def old(self) -> Tensor:
        """[N, T] log-probabilities under the policy that acted, which the first update finds and writes here."""
        return torch.full(self.captions.mask.shape, torch.nan, device=self.captions.mask.device)


@checked
class CaptionGRPO(Policy[CaptionActs]):
    """The encoder's captions, or its rewrites of prompts. Options: see `stages.encoder_rl.EncoderRL`."""

    def __init__(
        self,
        autoencoder: AutoEncoder,
        group_size: Several = 4,
        micro_batch: Count = 4,
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
    ) -> None:
        super().__init__(autoencoder, group_size, micro_batch, advantage_scale)
        self.clip_low, self.clip_high, self.objective = clip_low, clip_high, objective
        self.entropy_bonus, self.kl_beta, self.normalization = entropy_bonus, kl_beta, normalization
        self.mask_cut_captions, self.cut_penalty = mask_cut_captions, cut_penalty
        self.reinforced_tokens = reinforced_tokens
        if engine is not None:
            self.encoder.by_serving()
        # a plan asks nobody: it counts the captions as the encoder's own
        self.engine, self.sampler_limit = None if weightless() else engine, sampler_limit

    @property
    def encoder(self) -> Encoder:
        return self.autoencoder.reader

    @staticmethod
    def check(options: Any) -> None:
        if options.captioning.temperature == 0:
            raise ValueError("captioning.temperature must be above 0: greedy captions of a group are all the same")
        if options.objective is not None and PPOClip(options.clip_low, options.clip_high) != PPOClip():
            raise ValueError(
                "clip_low and clip_high are of PPO's objective, and objective names another, which has numbers of its "
                "own: set those in objective.init_args, and leave clip_low and clip_high out"
            )

    def act(self, context: Tensor | list[str], randomness: Randomness) -> CaptionActs:
        """G captions of each picture [P, 3, H, W], or G rewrites of each of P prompts."""
        seed = randomness.step_seed(0, randomness.global_rank)
        if isinstance(context, list):
            rewrites = self.autoencoder.rewrite(context, self.group_size, seed)
            return CaptionActs(self.encoder.ask(context), rewrites)
        if self.engine is None:
            seen = self.encoder.see(context)  # once: the vision tower is frozen
            return CaptionActs(seen, self.autoencoder.write(seen, self.group_size, seed))
        encoder = self.encoder.by_serving()
        shown = self.engine.shown(encoder, context)
        said = self.engine.write(encoder, shown, samples=self.group_size, seed=seed, **vars(self.captioning))
        return CaptionActs(encoder.see(shown), said)

    def rewards(self, acts: CaptionActs, scores: RewardOutput) -> RewardOutput:
        return scores.plus("cut_captions", self.cut(acts.captions).float(), -self.cut_penalty)

    def cut(self, captions: Captions) -> Tensor:
        """[N] bool, the captions that end at the limit on tokens."""
        at_limit = captions.lengths >= self.captioning.max_new_tokens
        return at_limit if captions.cut is None else captions.cut

    def figures(self, acts: CaptionActs) -> dict[str, float]:
        return {"cut_captions": self.cut(acts.captions).float().mean().item()}

    def weights(self, acts: CaptionActs) -> tuple[Tensor, Tensor]:
        mask = acts.captions.mask
        return self.token_weights(acts.captions), mask.sum(1).double() / mean_over_ranks(mask.sum().float())

    def token_weights(self, captions: Captions) -> Tensor:
        """[N, T] that sum to 1 (or less) over all captions."""
        mask = captions.mask
        if self.mask_cut_captions:
            mask = mask & ~self.cut(captions)[:, None]
        limit, tokens = self.captioning.max_new_tokens, mean_over_ranks(mask.sum().float()).item()
        return token_weights(mask, self.normalization, max_length=limit, total_tokens=tokens)

    def loss(
        self, acts: CaptionActs, rows: Tensor, index: int, advantages: Tensor, *, first: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        captions, seen = take(acts.captions, rows), self.pictures(acts.seen, rows)
        logp, entropy = self.logprobs(seen, captions)
        if first:
            acts.old[rows] = logp.detach()
        if self.reinforced_tokens is not None:
            advantages = advantages.masked_fill((captions.lengths > self.reinforced_tokens) & (advantages > 0), 0.0)
        objective = self.objective or PPOClip(self.clip_low, self.clip_high)
        element, metrics = objective.loss(logp, acts.old[rows], advantages, captions.mask)
        if self.engine is not None and captions.logp is not None:  # another policy sampled
            old, limit = acts.old[rows], self.sampler_limit
            weights, mismatch = truncated_importance(old, captions.logp, captions.mask, limit=limit)
            element, metrics = element * weights, metrics | mismatch
        elif first and captions.logp is not None:  # of sampling against replay; on policy the update's own ratio is 1
            drift = (logp.detach() - captions.logp).abs()[captions.mask]
            metrics |= {"first_log_ratio_max": drift.max(), "first_log_ratio_mean": drift.mean()}
        if self.kl_beta > 0:
            with torch.no_grad(), self.encoder.reference():
                reference, _ = self.logprobs(seen, captions)
            kl = kl_k3(logp, reference, captions.mask)
            element = element + self.kl_beta * kl
            metrics["kl_reference"] = kl.detach()[captions.mask].mean()
        if self.entropy_bonus > 0:
            element = element - self.entropy_bonus * entropy.masked_fill(~captions.mask, 0.0)
        return element, metrics | {"entropy": entropy.detach()[captions.mask].mean()}

    def logprobs(self, seen: Any, captions: Captions) -> tuple[Tensor, Tensor]:
        """Of the sampled tokens, and entropy of the policy in nats where they stand: [n, T] each."""
        return self.encoder.token_logprobs(seen, captions, temperature=self.captioning.temperature)

    def pictures(self, seen: Any, rows: Tensor) -> Any:
        """The pictures (or prompts) of these rows, once each where all have equally many of the captions."""
        groups = rows // self.group_size
        if self.group_size % len(rows) == 0 or len(rows) % self.group_size == 0:
            groups = groups[:: min(self.group_size, len(rows))]
        return seen[groups]


def take(captions: Captions, rows: Tensor) -> Captions:
    logp = None if captions.logp is None else captions.logp[rows]
    return Captions([captions.texts[row] for row in rows.tolist()], captions.tokens[rows], captions.mask[rows], logp)
