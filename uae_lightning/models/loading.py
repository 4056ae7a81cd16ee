"""From a folder to a model; or, for planning, a model of that architecture without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn
from transformers import AutoConfig


def weightless() -> bool:
    """True inside `with torch.device("meta"):`, where models have shapes and no weights."""
    return torch.get_default_device().type == "meta"


def load(kind: type, folder: Path, dtype: torch.dtype, subfolder: str = "", **options: Any) -> nn.Module:
    """A model of transformers or diffusers, in eval mode.

    Args:
        kind: class with `from_pretrained`, Auto classes of transformers too.
        folder: in the layout of its library; weightless, it needs the config alone.
        dtype: of the weights.
        subfolder: of `folder`.
        **options: of `from_pretrained`, or of a transformers model's config.

    Raises:
        FileNotFoundError: config or weights are missing.
    """
    name = "torch_dtype" if issubclass(kind, ModelMixin) else "dtype"
    try:
        if not weightless():
            model = kind.from_pretrained(folder, subfolder=subfolder, **{name: dtype}, **options)
        elif issubclass(kind, ModelMixin):
            model = kind.from_config(kind.load_config(folder, subfolder=subfolder))
            nn.Module.to(model, dtype)  # the library's own `to` warns of rounding, and there is nothing to round
        else:
            config = AutoConfig.from_pretrained(folder, subfolder=subfolder)
            from_config = kind._from_config if issubclass(kind, nn.Module) else kind.from_config  # an AutoModel
            model = from_config(config, dtype=dtype, **options)
    except OSError as error:  # what both libraries raise for a missing config or weight file
        raise FileNotFoundError(f"no {kind.__name__} in {folder / subfolder}: {error}") from error
    return model.eval()
