"""From pictures to features, as Qwen's vision towers take and give them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_window_index

from uae_lightning.interfaces import ServedEncoder
from uae_lightning.models.resizing import normalized, resize


@dataclass(frozen=True)
class Seen:
    """What the vision tower makes of B pictures of one size."""

    features: Tensor  # [B, K, hidden_size]: one for each merged patch, hence for each image token of the prompt
    grid: tuple[int, int]  # patches in a column and in a row
    deep: tuple[Tensor, ...] = ()  # as features, for each of the first layers of the text decoder (DeepStack)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows) -> Seen:
        return Seen(self.features[rows], self.grid, tuple(deep[rows] for deep in self.deep))


class SeeingEncoder(ServedEncoder):
    """What `QwenVLEncoder` makes of pictures; another family's encoder says what its tower does in another way."""

    model: nn.Module  # of transformers, with a vision tower
    preprocessor: Any  # of transformers, or what `stand_in_preprocessor` gives
    tokenizer: Any
    prompt: str  # that asks for a caption, with one placeholder of a picture
    dtype: torch.dtype
    max_pixels: int

    def _check_preprocessor(self, folder: Path) -> None:
        """Raises ValueError where it cuts pictures otherwise than the vision tower takes them."""
        sides = self.preprocessor.patch_size, self.preprocessor.merge_size
        vision = self.model.config.vision_config
        if sides != (vision.patch_size, vision.spatial_merge_size):
            raise ValueError(
                f"preprocessor_config.json in {folder} has patch_size {sides[0]}, merge_size {sides[1]}, config.json "
                f"{vision.patch_size} and {vision.spatial_merge_size}: copy both again"
            )

    def vision_blocks(self) -> list[nn.Module]:
        return list(self.model.model.visual.blocks)

    def block_width(self, layer: int) -> int:
        """Of what a block of the vision tower gives at each place; a ValueError where there is no such block."""
        if layer >= (count := len(self.vision_blocks())):
            raise ValueError(f"layer is {layer}, and the vision tower has {count} blocks: set it to 0 to {count - 1}")
        return self.model.config.vision_config.hidden_size * self.merged_patches()

    def merged_patches(self) -> int:
        """Of the vision tower, in a feature."""
        return self.model.config.vision_config.spatial_merge_size**2

    def by_place(self, output: Tensor, seen: Seen) -> Tensor:
        """Output of a block for B pictures, patches [B * gh * gw, E] in the order of the tower's windows -> those of a
        feature beside each other, [B, K, block_width], in the order of `see`."""
        config = self.model.config.vision_config
        grid = torch.tensor([[1, *seen.grid]]).repeat(len(seen), 1)
        order, _ = get_vision_window_index(
            grid, config.spatial_merge_size, window_size=config.window_size, patch_size=config.patch_size
        )
        merged = output.view(len(order), -1)
        return merged[order.argsort().to(merged.device)].view(*seen.features.shape[:2], -1)

    def stand_in_preprocessor(self) -> SimpleNamespace:
        """What is asked of the preprocessor, by config.json alone: of a plan, for which no other file is read."""
        vision, half = self.model.config.vision_config, [0.5] * 3
        return SimpleNamespace(
            patch_size=vision.patch_size, merge_size=vision.spatial_merge_size, image_mean=half, image_std=half
        )

    def exported_preprocessor(self) -> Any:
        """The image processor of its library, which then scales pictures as they are scaled here."""
        images = self.preprocessor
        images.size = {"shortest_edge": (images.patch_size * images.merge_size) ** 2, "longest_edge": self.max_pixels}
        return images

    def picture_text(self, pad: str, grid: tuple[int, int]) -> str:
        """What stands in a prompt in place of `pad`, for a picture of that many patches."""
        return pad * (grid[0] * grid[1] // self.preprocessor.merge_size**2)

    def see(self, images: Tensor) -> Seen:
        patches, grid = self.patchify(images)
        output = self.model.model.get_image_features(patches, grid, return_dict=True)
        return Seen(torch.stack(list(output.pooler_output)), tuple(grid[0, 1:].tolist()), self.deep_features(output))

    def see_block(self, images: Tensor, layer: int) -> tuple[Seen, Tensor]:
        """What `see` gives, and the output of a block of the vision tower at its places: [B, K, block_width]."""
        given: list[Tensor] = []
        hook = self.vision_blocks()[layer].register_forward_hook(lambda block, args, output: given.append(output))
        try:
            seen = self.see(images)
        finally:
            hook.remove()
        return seen, self.by_place(given[0], seen)

    @torch.no_grad()
    def visual_features(self, images: Tensor) -> Tensor:
        features = self.see(images).features.float()
        return F.layer_norm(features, features.shape[-1:])

    def deep_features(self, output: Any) -> tuple[Tensor, ...]:
        """What the first layers of the text decoder add at the picture, [B, K, D] each, of the tower's output."""
        return ()

    def deep_inputs(self, seen: Seen, kinds: Tensor) -> dict[str, Any]:
        """The same as arguments of the text decoder; `kinds` [1, L] is 1 where the picture is."""
        return {}

    def prompt_of(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The caption prompt for a picture of that many patches: (token ids [1, L], where the picture is [1, L], [1, 3]
        as Qwen writes the grid)."""
        pad = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        text = self.prompt.replace(pad, self.picture_text(pad, grid))
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"].to(device)
        return ids, (ids == self.model.config.image_token_id).long(), torch.tensor([[1, *grid]], device=device)

    def prompt_inputs(self, images: Tensor) -> dict[str, Tensor]:
        """The caption prompt with each picture as inputs of the whole model, for who calls that of transformers."""
        patches, grid = self.patchify(images)
        ids, kinds, _ = self.prompt_of(tuple(grid[0, 1:].tolist()), images.device)
        input_ids = ids.expand(len(images), -1)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "mm_token_type_ids": kinds.expand(len(images), -1),
            "pixel_values": patches,
            "image_grid_thw": grid,
        }

    def patchify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> (patches [B * gh * gw, dim], grid [B, 3]), as Qwen2VLImageProcessor does it.

        Where the vision tower takes five channels, two with the pixel's place are added: Qwen's has relative positions
        only, which a small model cannot turn into "top left".
        """
        config, images = self.model.config.vision_config, self.shown(images)
        side, merge = self.preprocessor.patch_size, self.preprocessor.merge_size
        (height, width), pixels = images.shape[-2:], normalized(images, self.preprocessor)
        if config.in_channels == 5:
            axes = [torch.linspace(-1, 1, n, device=images.device, dtype=images.dtype) for n in (height, width)]
            places = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(images), -1, -1, -1)
            pixels = torch.cat([pixels, places], 1)
        rows, cols = height // side, width // side
        blocks = pixels.reshape(len(images), -1, rows // merge, merge, side, cols // merge, merge, side)
        blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # B, Y, X, y, x, C, 1, p, p
        patches = blocks.repeat_interleave(config.temporal_patch_size, 6).reshape(len(images) * rows * cols, -1)
        grid = torch.tensor([[1, rows, cols]], device=images.device).repeat(len(images), 1)
        return patches.to(self.dtype), grid

    def shown(self, images: Tensor) -> Tensor:
        size = self.reading_size(*images.shape[-2:])
        return images if size == tuple(images.shape[-2:]) else resize(images, size)

    def reading_size(self, height: int, width: int) -> tuple[int, int]:
        """What a picture of that size is scaled to."""
        side = self.preprocessor.patch_size * self.preprocessor.merge_size
        return smart_resize(height, width, factor=side, **self.processor_options())

    def processor_options(self) -> dict[str, Any]:
        smallest = self.preprocessor.patch_size * self.preprocessor.merge_size
        return {"min_pixels": smallest**2, "max_pixels": self.max_pixels}

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches in a column and in a row of images that are `shown`."""
        height, width = images.shape[-2:]
        return height // self.preprocessor.patch_size, width // self.preprocessor.patch_size
