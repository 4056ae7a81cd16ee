"""SD3 with a second channel: visual features beside the text, by decoupled attention.

In each block the picture's queries also attend to keys and values of the features, and what they find is added to what
picture and text gave (IP-Adapter, arXiv 2308.06721; Forge-and-Quench, arXiv 2601.04706, has it in a FLUX). The
published IP-Adapter of SD3.5 attends to picture and features together and is modulated by the time step: another layer,
whose weights do not fit here but in `ip_adapter.py`.

N pictures   K places   E width of a feature   D width of the transformer
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from uae_lightning.models.attention import MaskedJointAttention
from uae_lightning.models.loading import load_saved
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.models.weight_files import seal
from uae_lightning.paths import weightless
from uae_lightning.ranges import Count, NonNegative, checked
from uae_lightning.types import Conditioning, Learning

FILE = "visual.safetensors"  # beside the folders of diffusers; whoever does not know it draws from the text alone


class VisualLayer(nn.Module):
    """Keys and values of features, without bias: features that are zero change nothing. Values begin at zero."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """[N, K, E] -> [N, K, D] each."""
        visual = visual.to(self.key.weight.dtype)
        return self.key(visual), self.value(visual)


class DecoupledJointAttention(MaskedJointAttention):
    """With a layer of its own for visual features.

    Args:
        layer: whose weights the decoder holds.
        scale: of what is added.
    """

    def __init__(self, layer: VisualLayer, scale: float, heads: int) -> None:
        self.layer, self.scale, self.heads = layer, scale, heads

    def beside(self, query: Tensor, own: tuple[Tensor, Tensor, Tensor], visual: Tensor) -> Tensor:
        key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2).to(query) for x in self.layer(visual))
        return self.scale * self.attend(query, F.rms_norm(key, key.shape[-1:]), value, None)


@checked
class VisualSD3Decoder(SD3Decoder):
    """`SD3Decoder` that reads `Conditioning.visual`.

    Args:
        visual_size: E, width of the features; of a Qwen2.5-VL its hidden size.
        visual_scale: of what they add; 0 draws the picture of the text alone, to the bit.
        keep_transformer: `learn: {decoder: all}` trains the layers for features alone, and what is drawn from text
            stays as it is; false trains all weights.
        **options: of `SD3Decoder`. A `path` without such layers is one that has not learnt them yet.

    Raises:
        ValueError: the layers in `path` are damaged or of another size; and what `SD3Decoder` raises.
    """

    reads_visual = True

    def __init__(
        self,
        path: str,
        visual_size: Count,
        visual_scale: NonNegative = 1.0,
        keep_transformer: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self.scale, self.keep_transformer = float(visual_scale), keep_transformer
        config = self.transformer.config
        heads, inner = config.num_attention_heads, config.num_attention_heads * config.attention_head_dim
        self.visual = nn.ModuleList(VisualLayer(visual_size, inner) for _ in self.blocks()).requires_grad_(False)
        self._read_visual()
        for block, layer in zip(self.blocks(), self.visual, strict=True):
            processor = DecoupledJointAttention(layer, self.scale, heads)
            processor._attention_backend = block.attn.processor._attention_backend
            block.attn.processor = processor
        self.given: Tensor | None = None  # features of the call of the transformer that is under way
        self.transformer.register_forward_pre_hook(self._hand_on, with_kwargs=True)

    def _read_visual(self) -> None:
        file = self.folder / FILE
        if not weightless() and file.exists():
            remedy = ", or set visual_size to what it was trained with"
            load_saved(self.visual, file, "layers of this decoder", remedy)

    def _hand_on(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The transformer passes the features to its blocks, which keep them where activations are checkpointed."""
        if self.given is None or self.scale == 0:
            return args, kwargs
        return args, kwargs | {"joint_attention_kwargs": kwargs["joint_attention_kwargs"] | {"visual": self.given}}

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None) -> Tensor:
        self.given = None if conditioning is None else conditioning.visual
        return super().velocity(x, sigma, conditioning)

    def adapt(self, learning: Learning) -> None:
        """With a LoRA on the transformer the layers for features are trained as a whole."""
        super().adapt(None if learning == "all" and self.keep_transformer else learning)
        self.visual.requires_grad_(learning is not None)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        super().save(folder, dtype)
        state = {n: t.detach().cpu().to(dtype or t.dtype) for n, t in self.visual.state_dict().items()}
        save_file(state, folder / FILE)
        seal(folder)
