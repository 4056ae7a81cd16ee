"""ByCaption: pictures of captions that the encoder wrote are compared with their original; those of captions that the
data gave (`own_captions` of the decoder's stages) may be judged in another way."""

from __future__ import annotations

import torch

from uae_lightning.interfaces import Reward
from uae_lightning.types import RewardInput, RewardOutput


class ByCaption(Reward):
    """`written` of pictures whose caption is the encoder's, `given` of those whose caption is the data's own.

    A prompt leaves open what a comparison with its picture asks for. Groups hold one caption each, so that advantages
    never compare the two. Held-out pictures have the encoder's captions: `written` alone judges them.

    Parts, of all pictures: written, given.

    Args:
        written: of the round trip.
        given: of text and picture.
    """

    def __init__(self, written: Reward, given: Reward) -> None:
        super().__init__()
        self.written, self.given = written, given
        self.needs_originals = written.needs_originals or given.needs_originals
        self.skips_failures = written.skips_failures or given.skips_failures

    def forward(self, inputs: RewardInput) -> RewardOutput:
        written, given = self.written(inputs).total, self.given(inputs).total
        total = written if inputs.given is None else torch.where(inputs.given, given, written)
        return RewardOutput(total, {"written": written, "given": given})

    def held_out(self) -> Reward:
        return self.written

    def failure(self) -> str:
        return "; ".join(filter(None, (self.written.failure(), self.given.failure())))

    def title(self) -> str:
        return f"{self.written.title()}, {self.given.title()} of given captions"
