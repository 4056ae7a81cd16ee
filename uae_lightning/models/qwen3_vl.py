"""Qwen3-VL as the encoder: as Qwen2.5-VL, and the vision tower also speaks to the first layers of the text decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.seeing import Seen


class Qwen3VLEncoder(QwenVLEncoder):
    """`Qwen3VLForConditionalGeneration` (2B to 8B, Instruct); arguments as of `QwenVLEncoder`.

    Its chat template drops turns of roles that it does not know, such as UAE's "generate": captions are read as a
    user's. Patches of 16 pixels are merged 2 x 2; features of three layers of the tower are added to the states of the
    first three of the decoder (DeepStack, arXiv 2406.04334).
    """

    kind, title, reading_role = Qwen3VLForConditionalGeneration, "Qwen3-VL", "user"

    def by_place(self, output: Tensor, seen: Seen) -> Tensor:
        return output.view(*seen.features.shape[:2], -1)  # there are no windows

    def deep_features(self, output: Any) -> tuple[Tensor, ...]:
        return tuple(torch.stack(list(layer)) for layer in output.deepstack_features)

    def deep_inputs(self, seen: Seen, kinds: Tensor) -> dict[str, Any]:
        return {
            "visual_pos_masks": kinds.bool().expand(len(seen), -1),
            "deepstack_visual_embeds": [layer.flatten(0, 1) for layer in seen.deep],
        }
