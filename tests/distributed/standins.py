"""For runs that must not depend on the number of ranks: captions drawn per picture, and a reward that counts words."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from uae_lightning.interfaces import Reward
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.seeing import Seen
from uae_lightning.types import Captions, RewardInput, RewardOutput


class PicturewiseEncoder(QwenVLEncoder):
    """Generates for one picture at a time, from a seed that is the picture's own."""

    def generate(
        self, images: Tensor | Seen, *, samples: int, temperature: float, max_new_tokens: int, seed: int
    ) -> Captions:
        seen = self.see(images) if isinstance(images, Tensor) else images
        each = [
            super(PicturewiseEncoder, self).generate(
                seen[row : row + 1],
                samples=samples,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                seed=int(seen.features[row].argmax()),
            )
            for row in range(len(seen))
        ]
        tokens = torch.full((len(images) * samples, max_new_tokens), self.pad)
        mask, logp = torch.zeros(tokens.shape, dtype=torch.bool), torch.zeros(tokens.shape)
        for row, captions in enumerate(each):
            here = slice(row * samples, (row + 1) * samples), slice(captions.tokens.shape[1])
            tokens[here], mask[here], logp[here] = captions.tokens, captions.mask, captions.logp
        return Captions([text for captions in each for text in captions.texts], tokens, mask, logp)


class Words(Reward):
    """Closeness of pixels and a little for every word; NaN on one rank, in the second batch, where asked for."""

    def __init__(self, fails_on_rank: int = -1) -> None:
        super().__init__()
        self.fails_on_rank, self.calls = fails_on_rank, 0

    def forward(self, inputs: RewardInput) -> RewardOutput:
        total = 1 - (inputs.originals - inputs.reconstructions).abs().mean((1, 2, 3))
        total = total + 0.01 * torch.tensor([len(text.split()) for text in inputs.captions])
        self.calls += 1
        if self.calls == 2 and self.fails_on_rank >= 0 and dist.get_rank() == self.fails_on_rank:
            total = total * torch.nan
        return RewardOutput(total, {"words": total})
