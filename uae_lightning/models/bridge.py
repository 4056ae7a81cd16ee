"""VisualBridge: a projector that predicts visual features from the states of a text.

The idea is Forge-and-Quench's (arXiv 2601.04706), which generates SigLIP's features by flow matching.

N texts   L their positions   K places   E width of a feature   W width of the bridge
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from uae_lightning.interfaces import Bridge
from uae_lightning.models.loading import load_saved, read_object
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.weight_files import seal
from uae_lightning.paths import resolve
from uae_lightning.ranges import Count, checked
from uae_lightning.types import Learning

HEAD = 64  # numbers of an attention head
CONFIG, WEIGHTS = "bridge.json", "bridge.safetensors"


class FeatureTransformer(nn.Module):
    """Queries, one a place, that look at each other and at the states of a text."""

    def __init__(self, input_size: int, width: int, visual_size: int, places: int, layers: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(places, width))
        self.text = nn.Sequential(nn.LayerNorm(input_size), nn.Linear(input_size, width))
        self.noisy, self.level = nn.Linear(visual_size, width), nn.Linear(2, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, max(1, width // HEAD), 4 * width, 0.0, F.gelu, 1e-5, True, True)
            for _ in range(layers)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, visual_size))

    def forward(self, states: Tensor, mask: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """States [N, L, input], mask [N, L], features [N, K, E] at levels sigma [N] -> [N, K, E]."""
        level = torch.stack([sigma, (torch.pi * sigma).cos()], -1)
        x = self.queries + self.noisy(noisy) + self.level(level)[:, None]
        text = self.text(states.to(x.dtype))
        for layer in self.layers:
            x = layer(x, text, memory_key_padding_mask=~mask)
        return self.out(x)


@checked
class VisualBridge(MLPProjector, Bridge):
    """`MLPProjector` with a bridge to visual features beside it.

    Args:
        path: folder that `save` wrote, or that of an MLPProjector, whose bridge has learnt nothing yet.
        input_size, hidden_size, output_size, normalize: of `MLPProjector`.
        visual_size: E, width of the features; of a Qwen2.5-VL its hidden size.
        places: K, features of a picture.
        width: of the bridge.
        layers: blocks of the bridge.
        objective: "regression" predicts the mean of the features that fit a text; "flow" generates some that do, from
            the same noise for all texts.
        steps: of the generation.
        keep_text: `learn: {projector: all}` trains the bridge alone, and texts are read as before.

    FSDP cannot shard it, as it is not only entered by its call; DDP can.

    Raises:
        FileNotFoundError: `path` holds no projector.
        ValueError: what it holds is damaged, incomplete, or of another model.
    """

    entered_by_call = False

    def __init__(
        self,
        path: str | None = None,
        input_size: Count = 2048,
        hidden_size: Count = 8192,
        output_size: Count = 4096,
        normalize: bool = False,
        visual_size: Count = 2048,
        places: Count = 81,
        width: Count = 1024,
        layers: Count = 4,
        objective: Literal["regression", "flow"] = "flow",
        steps: Count = 4,
        keep_text: bool = True,
    ) -> None:
        super().__init__(path, input_size, hidden_size, output_size, normalize)
        self.shape = {
            "visual_size": int(visual_size), "places": int(places), "width": int(width), "layers": int(layers),
            "objective": objective,
        }  # fmt: skip
        self.objective, self.steps, self.keep_text = objective, int(steps), keep_text
        self.bridge = FeatureTransformer(self.input_size, int(width), int(visual_size), int(places), int(layers))
        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.randn(int(places), int(visual_size), generator=generator, device="cpu")
        self.register_buffer("noise", noise, persistent=False)
        if path is not None and (resolve(path) / CONFIG).exists():
            self._read_bridge(resolve(path))

    def _read_bridge(self, folder: Path) -> None:
        if (found := read_object(folder / CONFIG)) != self.shape:
            raise ValueError(f"{folder / CONFIG} is of another bridge, {found}: the YAML describes {self.shape}")
        load_saved(self.bridge, folder / WEIGHTS, "bridge")

    def adapt(self, learning: Learning) -> None:
        super().adapt(learning)
        if self.keep_text:
            self.layers.requires_grad_(False)

    @torch.no_grad()
    def predict(self, states: Tensor, mask: Tensor) -> Tensor:
        x = self.noise.expand(len(states), -1, -1)
        if self.objective == "regression":
            return self.bridge(states, mask, torch.zeros_like(x), x.new_ones(len(x))).float()
        for step in range(self.steps):  # Euler, from noise to features
            sigma = x.new_full((len(x),), 1 - step / self.steps)
            x = x - self.bridge(states, mask, x, sigma).float() / self.steps
        return x

    def bridge_loss(self, states: Tensor, mask: Tensor, visual: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        if self.objective == "regression":
            predicted = self.bridge(states, mask, torch.zeros_like(visual), torch.ones_like(sigma))
            return (predicted - visual).square().mean((1, 2))
        level = sigma[:, None, None]
        predicted = self.bridge(states, mask, (1 - level) * visual + level * noise, sigma)
        return (predicted - (noise - visual)).square().mean((1, 2))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """The folder of an MLPProjector, and the bridge in files of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=1))
        (folder / CONFIG).write_text(json.dumps(self.shape, indent=1))
        for module, name, file in ((self.layers, "layers.", "model.safetensors"), (self.bridge, "", WEIGHTS)):
            state: dict[str, Any] = module.state_dict()
            state = {name + key: tensor.detach().cpu().to(dtype or tensor.dtype) for key, tensor in state.items()}
            save_file(state, folder / file)
        seal(folder)
