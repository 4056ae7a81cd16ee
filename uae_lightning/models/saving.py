"""Weights in the layout of transformers and of diffusers, merged as they are written: one tensor in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers import ModelMixin
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from uae_lightning.models.adapters import MergedState
from uae_lightning.models.tensor_files import write_shards


def save_transformers(model: PreTrainedModel, state: Mapping[str, Tensor], folder: Path) -> dict[Path, str]:
    """As `model.save_pretrained` does, from tensors that are not there yet.

    Args:
        model: on the meta device, in the dtypes that are to be written.
        state: the tensors under the names of `model`.

    Returns:
        The SHA-256 of each file of weights.
    """
    own = remove_tied_weights_from_state_dict(model.state_dict(), model)
    names = {id(tensor): name for name, tensor in own.items()}
    shapes = revert_weight_conversion(model, own)  # names of the hub, which differ from those in memory
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    return write_shards(folder, "model", shapes, lambda name: state[names[id(shapes[name])]])


def save_diffusers(model: ModelMixin, state: MergedState, folder: Path) -> dict[Path, str]:
    """The same for a model of diffusers: its config, and `state` in place of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)
    return write_shards(folder, "diffusion_pytorch_model", state.shapes(), state.__getitem__)
