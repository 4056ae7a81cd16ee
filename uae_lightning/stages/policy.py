"""The stages that learn from a reward: roll out, score, give credit, update. THE update loop is here.

P pictures in the batch   N acts of a policy: captions, or drawings
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from uae_lightning.algorithms.advantages import AdvantageScale, group_advantages, win_rates, zero_variance_share
from uae_lightning.algorithms.balance import decoupled_advantages
from uae_lightning.parallel.collectives import gathered, own_rows
from uae_lightning.policies.policy import Policy
from uae_lightning.ranges import Count, checked
from uae_lightning.stages.common import Stage
from uae_lightning.types import TOTAL, Batch, Captions, RewardInput, RewardOutput


@dataclass(frozen=True)
class Rollout:
    batch: Batch
    captions: Captions  # all that were written
    acts: list[Any]  # of each policy of the stage, in their order
    reward_input: RewardInput


@checked
class PolicyStage(Stage):
    """Base of the stages that learn from a reward; a subclass gives itself `policies`, a `rollout`, and `credit` where
    there are several.

    Args:
        updates_per_batch: passes over one rollout; 1, with update_parts 1, is on policy.
        update_parts: disjoint parts of a rollout, drawn anew for each pass, with an optimiser step on each.
        reward_balance: of a reward that is a weighted sum (WeightedSum, LayeredSimilarity), "sum" compares the sums
            within groups; "decoupled" compares each part and adds the advantages (GDPO, arXiv 2601.05242): a weight is
            then of influence, whatever the part's scale, and a policy's advantage_scale is not asked. A penalty of a
            policy's own is one more part.
        reward_transform: "win_rate" compares how many of its siblings each act beats in place of by how much: against
            rewards whose differences are noise, or that have outliers. Of parts that are decoupled each is transformed.
        *args, **parts: of `Stage`.
    """

    learns_from_reward = True
    policies: dict[str, Policy]  # by name, which is the prefix of what is logged of each where there are several

    def __init__(
        self,
        *args,
        updates_per_batch: Count,
        update_parts: Count = 1,
        reward_balance: Literal["sum", "decoupled"] = "sum",
        reward_transform: Literal["none", "win_rate"] = "none",
        **parts,
    ) -> None:
        super().__init__(*args, **parts)
        self.automatic_optimization = False
        self.updates_per_batch, self.update_parts = updates_per_batch, update_parts
        self.reward_balance, self.reward_transform = reward_balance, reward_transform

    @property
    def policy(self) -> Any:
        """The only one."""
        (policy,) = self.policies.values()
        return policy

    def on_fit_start(self) -> None:
        for policy in self.policies.values():
            policy.check(policy)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.check_batch(len(batch.images))
        assert self.score is not None  # `on_train_batch_start` has asked
        self.health = {}
        with self.timed("rollout"):
            rollout = self.rollout(batch)
        with self.timed("score"):
            scores = self.score(rollout.reward_input)
            advantages = self.credit(rollout, scores)
        with self.timed("update"):
            self.update(rollout, *advantages)

    def check_batch(self, pictures: int) -> None:
        """Raises ValueError where the acts of a rollout cannot be cut into micro-batches and parts; the acts of each
        policy are the prompts of the next."""
        prompts = pictures
        for policy in self.policies.values():
            check_group(prompts, policy.group_size, policy.micro_batch, self.update_parts)
            prompts *= policy.group_size

    # ------------------------------------------------------------------------------------------------ four verbs

    def rollout(self, batch: Batch) -> Rollout:
        """What the policies do with a batch."""
        raise NotImplementedError

    def credit(self, rollout: Rollout, scores: RewardOutput) -> list[Tensor]:
        """For each policy the advantages of its acts, [N]."""
        ((name, policy),) = self.policies.items()
        return [self.compared(name, policy.rewards(rollout.acts[0], scores))]

    def update(self, rollout: Rollout, *advantages: Tensor) -> None:
        """Optimizer steps on a rollout, given the advantages [N] of each policy's acts."""
        sums: dict[str, float] = {}
        for number, dealt in enumerate(self.optimizer_steps([len(own) for own in advantages])):
            sums = {"loss": 0.0}
            for name, acts, own, batches in zip(self.policies, rollout.acts, advantages, dealt, strict=True):
                figures = self.accumulate(self.policies[name], acts, own, batches, first=number == 0)
                sums["loss"] += figures.pop("loss")
                if "first_log_ratio_max" in figures:
                    self.health[self.prefix(name) + "first_log_ratio"] = figures.pop("first_log_ratio_max")
                sums |= {self.prefix(name) + key: value for key, value in figures.items()}
            for loss in self.auxiliary_losses(rollout.batch, number):
                self.backward_of_micro_batch(loss)
            sums["grad_norm"] = self.optimizer_step_after_clipping()
        self.report(rollout, sums)

    def accumulate(
        self, policy: Policy, acts: Any, advantages: Tensor, batches: list[Tensor], *, first: bool
    ) -> dict[str, float]:
        """Adds the gradients of one optimiser step's micro-batches; returns the loss and what is said of it."""
        sums: dict[str, float] = {}
        weights, shares = (self.update_parts * of_all for of_all in policy.weights(acts))
        for rows in batches:
            for index in range(policy.passes(acts)):
                element, metrics = policy.loss(acts, rows, index, advantages[rows], first=first)
                loss = (element * weights[rows]).sum()
                self.backward_of_micro_batch(loss)
                add_metrics(sums, metrics | {"loss": loss.detach()}, shares[rows].sum().item())
        return sums

    # ------------------------------------------------------------------------------------------------ their details

    def compared(self, name: str, rewards: RewardOutput) -> Tensor:
        """Advantages [N] of a policy's acts by their rewards, clipped to its liking."""
        policy = self.policies[name]
        found = self.advantages(rewards, policy.group_size, policy.advantage_scale, self.prefix(name))
        return found.clamp(-policy.advantage_clip, policy.advantage_clip)

    def advantages(self, rewards: RewardOutput, group_size: int, scale: AdvantageScale, prefix: str = "") -> Tensor:
        """[N] of this rank's rewards; "batch_std", and what is decoupled, is of the global batch. Groups never span
        ranks.

        Advantages are 0 in a group with a reward that is NaN or infinite, which the other groups do not see.
        """
        decoupled = self.reward_balance == "decoupled"
        terms, weights = rewards.terms() if decoupled else ({TOTAL: rewards.total}, {})
        everyone = gathered(torch.stack(list(terms.values()), 1))  # [R * N, terms]
        sound = everyone.isfinite().all(1).view(-1, group_size).all(1).repeat_interleave(group_size)  # [R * N]
        advantages = torch.zeros(len(everyone), device=everyone.device)
        same = 1.0
        if sound.any():
            kept = dict(zip(terms, everyone[sound].unbind(1), strict=True))
            if self.reward_transform == "win_rate":
                kept = {term: win_rates(values, group_size) for term, values in kept.items()}
            if decoupled:
                advantages[sound] = decoupled_advantages(kept, weights, group_size)
            else:
                advantages[sound] = group_advantages(kept[TOTAL], group_size, scale=scale)
            same = zero_variance_share(advantages[sound], group_size).item()
        self.health[f"{prefix}zero_variance_share"] = same
        self.health[f"{prefix}skipped_groups"] = int((~sound).sum()) / group_size
        return own_rows(advantages)

    def optimizer_steps(self, sizes: list[int]) -> Iterator[tuple[list[Tensor], ...]]:
        """For each optimiser step on a rollout the micro-batches of each policy's acts, of which there are `sizes`."""
        for update in range(self.updates_per_batch):
            seed, policies = self.step_seed(3 + update), self.policies.values()
            dealt = [policy.dealt(size, self.update_parts, seed) for policy, size in zip(policies, sizes, strict=True)]
            yield from zip(*dealt, strict=True)

    def prefix(self, name: str) -> str:
        return f"{name}/" if len(self.policies) > 1 else ""

    def report(self, rollout: Rollout, sums: dict[str, float]) -> None:
        texts = rollout.captions.texts
        self.health |= sums | {
            "caption_tokens": rollout.captions.lengths.float().mean().item(),
            "empty_captions": sum(not text for text in texts) / len(texts),
        }
        for policy, acts in zip(self.policies.values(), rollout.acts, strict=True):
            self.health |= policy.figures(acts)
        self.health = self.reduced(self.health)
        self.log("train/loss", self.health.pop("loss"), prog_bar=True)
        self.log("train/grad_norm", self.health.pop("grad_norm"))
        if "encoder" in self.trained:
            self.log("caption_tokens", self.health["caption_tokens"], prog_bar=True, logger=False)


def check_group(prompts: int, group_size: int, micro_batch: int, parts: int) -> None:
    """Raises ValueError where a rollout cannot be cut into micro-batches and parts."""
    if (prompts * group_size) % micro_batch:
        raise ValueError(
            f"micro_batch ({micro_batch}) must divide pictures x group_size ({prompts} x {group_size}): "
            "change model.init_args.micro_batch, model.init_args.group_size or data.init_args.batch_size"
        )
    if (batches := prompts * group_size // micro_batch) % parts:
        raise ValueError(
            f"update_parts ({parts}) must divide the micro-batches of a rollout ({batches}): change "
            "model.init_args.update_parts, model.init_args.micro_batch or data.init_args.batch_size"
        )


def add_metrics(sums: dict[str, float], metrics: dict[str, Tensor], share: float) -> None:
    """Gather a micro-batch: the loss is a sum already, maxima stay maxima, the rest are means.

    `share` is that of its tokens (or pictures) in a rank's rollout, in an average one where ranks differ in tokens: the
    mean over ranks is then that of all tokens.
    """
    for name, metric in metrics.items():
        value = float(metric)
        if name == "loss":
            sums[name] = sums.get(name, 0.0) + value
        elif name.endswith("max"):
            sums[name] = float(np.maximum(sums.get(name, value), value))  # unlike max(), keeps a NaN
        else:
            sums[name] = sums.get(name, 0.0) + share * value
