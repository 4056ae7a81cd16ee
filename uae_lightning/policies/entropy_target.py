"""An entropy bonus that keeps a policy's entropy near a target: a constant one is too little for one run and far too
much for the next."""

from __future__ import annotations

from dataclasses import dataclass

from uae_lightning.ranges import Positive, checked


@checked
@dataclass
class EntropyTarget:
    """After each batch the weight of the entropy grows by a step where the policy was less undecided than the target,
    and falls by one, to 0 at least, where it was more so (after Skywork-OR1, arXiv 2505.22312, which also leaves the
    bonus out while the entropy is above).

    Args:
        nats: mean entropy of the policy's next token, at the temperature captions are sampled with.
        step: of the weight (the paper's).
        highest: the weight goes no further (ours): an entropy that does not answer must not drown the reward.
    """

    nats: Positive
    step: Positive = 0.005
    highest: Positive = 0.1

    def after(self, weight: float, entropy: float) -> float:
        """The weight of the next batch, after one of this weight and entropy."""
        return min(max(weight + (self.step if entropy < self.nats else -self.step), 0.0), self.highest)
