"""InternVL3 as the encoder: another vision tower, one square of a fixed size, positions of one dimension."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.resizing import normalized
from uae_lightning.models.seeing import Seen


class InternVLEncoder(QwenVLEncoder):
    """`InternVLForConditionalGeneration` (the "-hf" models of InternVL3); arguments as of `QwenVLEncoder`.

    Every picture becomes one square of the tower's size, without the further tiles that its processor can cut
    (`crop_to_patches`); `max_pixels` has no meaning here.
    """

    kind, title, reading_role = InternVLForConditionalGeneration, "InternVL", "user"
    preprocessor_kind, placeholders = GotOcr2ImageProcessorPil, ("image_token_id",)
    squares_pictures = True

    def _check_preprocessor(self, folder: Path) -> None:
        size, side = self.preprocessor.size, self.side
        if (size["height"], size["width"]) != (side, side):
            raise ValueError(
                f"preprocessor_config.json in {folder} has size {size['height']} x {size['width']}, config.json "
                f"{side}: copy both again"
            )

    @property
    def side(self) -> int:
        """Of the squares, in pixels."""
        return self.model.config.vision_config.image_size[0]

    def vision_blocks(self) -> list[nn.Module]:
        return list(self.model.model.vision_tower.encoder.layer)

    def merged_patches(self) -> int:
        return round(1 / self.model.config.downsample_ratio) ** 2

    def by_place(self, output: Tensor, seen: Seen) -> Tensor:
        patches = output[:, 1:]  # the first one is of the whole picture
        side = round(patches.shape[1] ** 0.5)
        square = patches.unflatten(1, (side, side))
        return self.model.model.pixel_shuffle(square, scale_factor=self.model.config.downsample_ratio).flatten(1, 2)

    def places(self, positions: Tensor) -> Tensor:
        return positions

    def prompt_places(self, input_ids: Tensor, kinds: Tensor, grid: Tensor) -> Tensor:
        return torch.arange(input_ids.shape[1], device=input_ids.device)[None]

    def stand_in_preprocessor(self) -> SimpleNamespace:
        return SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def exported_preprocessor(self) -> GotOcr2ImageProcessorPil:
        self.preprocessor.crop_to_patches = False
        return self.preprocessor

    def picture_text(self, pad: str, grid: tuple[int, int]) -> str:
        return f"<img>{pad * self.model.config.image_seq_length}</img>"

    def reading_size(self, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side

    def processor_options(self) -> dict[str, Any]:
        return {}  # one square is never cut into tiles

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        return 1, 1

    def see(self, images: Tensor) -> Seen:
        features = self.model.model.get_image_features(self.squares(images), return_dict=True).pooler_output
        return Seen(features, (1, features.shape[1]))

    def squares(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, 3, S, S], as GotOcr2ImageProcessor does it."""
        return normalized(self.shown(images), self.preprocessor).to(self.dtype)

    def prompt_inputs(self, images: Tensor) -> dict[str, Any]:
        input_ids = self.prompt_of((1, 1), images.device)[0].expand(len(images), -1)
        return {
            "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": self.squares(images)
        }  # fmt: skip
