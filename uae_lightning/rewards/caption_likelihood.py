"""CaptionLikelihood: does the picture say what its caption says? log p(caption | picture) under a frozen encoder.

UAE's reward closes the cycle picture -> text -> picture. This is the other half, text -> picture -> text: a decoder
that draws what it was told is one whose pictures a reader would describe so. No original is needed; as a verifier it
picks the best of several drawings of one prompt.
"""

from __future__ import annotations

from typing import Literal

from uae_lightning.interfaces import Encoder
from uae_lightning.rewards.vision_features import FrozenReward
from uae_lightning.types import RewardInput, RewardOutput


class CaptionLikelihood(FrozenReward):
    """Mean log-probability of the tokens of a caption, end-of-text included, given the drawn picture.

    Most of it is grammar, which every picture of the caption shares: compare it within the drawings of one caption.

    Args:
        encoder: reads the pictures, and stays as it was loaded. That of before the run cannot be talked into anything
            by the captioner in training.
        scale: "nats" per token, at most 0, or their exponential, "probability": the geometric mean over the tokens, in
            [0, 1], which hardly tells bad pictures from worse ones.
    """

    needs_originals = False

    def __init__(self, encoder: Encoder, scale: Literal["nats", "probability"] = "nats") -> None:
        super().__init__()
        self.encoder, self.scale = encoder, scale
        self.freeze()

    def forward(self, inputs: RewardInput) -> RewardOutput:
        captions = self.encoder.tokenize(inputs.captions, ended=True)
        logp, _ = self.encoder.token_logprobs(self.encoder.see(inputs.reconstructions), captions, temperature=1.0)
        total = logp.masked_fill(~captions.mask, 0.0).sum(1) / captions.lengths
        total = total if self.scale == "nats" else total.exp()
        return RewardOutput(total, {"caption_likelihood": total})
