"""What is maximised for each token of a caption: PPO's clipped ratio, and what can be named in its place.

On policy all have the same gradient. They differ from the second optimiser step on a rollout on: with
`updates_per_batch` or `update_parts` above 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from uae_lightning.algorithms.policy_loss import cispo, clipped_surrogate, soft_gate
from uae_lightning.ranges import Positive, checked

Loss = tuple[Tensor, dict[str, Tensor]]  # by token, and metrics


class TokenObjective(ABC):
    """Base of what `objective` of EncoderRL and of CaptionGRPO takes; each has numbers of its own."""

    @abstractmethod
    def loss(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Loss:
        """The loss of n captions, by token, not reduced: [n, T], exactly 0 where the mask is False, and metrics [].

        Args:
            logp: [n, T] of the policy in training, with gradient.
            old_logp: [n, T] of the policy that sampled.
            advantages: [n].
            mask: [n, T] bool, True at the tokens of a caption.
        """


@checked
@dataclass
class PPOClip(TokenObjective):
    """GRPO's: the smaller of r A and of A times the ratio clipped to [1 - clip_low, 1 + clip_high] (PPO)."""

    clip_low: Positive = 0.2
    clip_high: Positive = 0.2

    def loss(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Loss:
        return clipped_surrogate(logp, old_logp, advantages, mask, clip_low=self.clip_low, clip_high=self.clip_high)


@checked
@dataclass
class GSPO(TokenObjective):
    """The same with one ratio for the whole caption, the geometric mean of its tokens' (arXiv 2507.18071).

    With normalization "grpo" it is the paper's; "dr_grpo" weighs captions by their length, as LUSPO does (arXiv
    2602.05261).

    Args:
        clip_low, clip_high: the paper's; a mean over tokens moves less than each of them.
    """

    clip_low: Positive = 3e-4
    clip_high: Positive = 4e-4

    def loss(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Loss:
        return clipped_surrogate(
            logp, old_logp, advantages, mask, clip_low=self.clip_low, clip_high=self.clip_high, importance="sequence"
        )


@checked
@dataclass
class CISPO(TokenObjective):
    """Importance weights that are clipped, where PPO clips the loss: every token keeps a gradient (arXiv 2506.13585).

    The paper's normalization is "dapo".

    Args:
        limit: of the weights, at least 1; the paper tells no number, 5 is TRL's and of arXiv 2510.13786.
    """

    limit: Positive = 5.0

    def loss(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Loss:
        return cispo(logp, old_logp, advantages, mask, limit=self.limit)


@checked
@dataclass
class SAPO(TokenObjective):
    """A gate that closes softly as the ratio leaves 1, in place of a clip (arXiv 2511.20347).

    The paper's normalization is "grpo".

    Args:
        positive, negative: temperatures of the gate by the sign of the advantage; higher closes earlier (the paper's).
    """

    positive: Positive = 1.0
    negative: Positive = 1.05

    def loss(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Loss:
        return soft_gate(logp, old_logp, advantages, mask, positive=self.positive, negative=self.negative)
