"""The bridge: an MLP from encoder states to what the decoder's text stream takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from uae_lightning.interfaces import Projector
from uae_lightning.models.loading import load_saved, read_object
from uae_lightning.models.weight_files import seal
from uae_lightning.paths import resolve
from uae_lightning.ranges import Count, checked


@checked
class MLPProjector(Projector):
    """Linear, GELU, Linear (released UAE: 2048 -> 8192 -> 4096).

    Args:
        path: folder that `save` wrote; None starts from random weights of the sizes below.
        input_size: hidden size of the encoder.
        hidden_size: width between the two layers.
        output_size: text width of the decoder (`joint_attention_dim`).
        normalize: LayerNorm in front; small encoders need it, the release has none.

    Raises:
        FileNotFoundError: `path` holds no projector.
        ValueError: what it holds is damaged, incomplete, or of another model.
    """

    def __init__(
        self,
        path: str | None = None,
        input_size: Count = 2048,
        hidden_size: Count = 8192,
        output_size: Count = 4096,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        folder = resolve(path) if path is not None else None
        self.config = read_config(folder) if folder else {**sizes, "normalize": normalize}
        self.input_size, self.output_size = self.config["input_size"], self.config["output_size"]
        self.layers = nn.Sequential(
            nn.LayerNorm(self.config["input_size"]) if self.config["normalize"] else nn.Identity(),
            nn.Linear(self.config["input_size"], self.config["hidden_size"]),
            nn.GELU(),
            nn.Linear(self.config["hidden_size"], self.config["output_size"]),
        )
        if folder:
            load_saved(self, folder / "model.safetensors", "projector")

    def forward(self, states: Tensor) -> Tensor:
        return self.layers(states.to(self.layers[1].weight.dtype))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=1))
        state = {name: tensor.detach().cpu().to(dtype or tensor.dtype) for name, tensor in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        seal(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Sizes and `normalize` of a saved projector.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is that of another model.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no projector in {folder}: {file} is missing, name the folder that a stage saved")
    try:
        config = read_object(file)
        sizes = {key: Count(config[key]) for key in ("input_size", "hidden_size", "output_size")}
        return {**sizes, "normalize": bool(config["normalize"])}
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file} is no config of a projector: name the folder that a stage saved ({error})") from error
