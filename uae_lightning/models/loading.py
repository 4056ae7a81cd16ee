"""From a folder to a model; or, for planning, a model of that architecture without weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import ModelMixin, SD3Transformer2DModel
from diffusers.models import embeddings
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from uae_lightning.models.weight_files import verify
from uae_lightning.paths import weightless


def load(
    kind: type, folder: Path, dtype: torch.dtype, subfolder: str = "", unread: str = r"(?!)", **options: Any
) -> nn.Module:
    """A model of transformers or diffusers, in eval mode.

    Args:
        kind: class with `from_pretrained`, Auto classes of transformers too.
        folder: in the layout of its library; weightless, it needs the config alone.
        dtype: of the weights.
        subfolder: of `folder`.
        unread: a regular expression on the names of tensors that nobody reads: files may lack them.
        **options: of `from_pretrained`, or of a transformers model's config.

    Raises:
        FileNotFoundError: config or weights are missing.
        ValueError: they are of another kind of model, lack tensors, or are damaged.
    """
    check_texts(folder / subfolder)
    check_kind(kind, folder / subfolder)
    name = "torch_dtype" if issubclass(kind, ModelMixin) else "dtype"
    try:
        if not weightless():
            verify(folder, subfolder)
            if not issubclass(kind, ModelMixin):  # transformers prints which ones, and does not say so in its error
                options["ignore_mismatched_sizes"] = True
            with table_of_the_file(kind):
                model, found = kind.from_pretrained(
                    folder, subfolder=subfolder, output_loading_info=True, **{name: dtype}, **options
                )
            check_tensors(found, folder / subfolder, unread)
        elif issubclass(kind, ModelMixin):
            model = kind.from_config(kind.load_config(folder, subfolder=subfolder))
            nn.Module.to(model, dtype)  # the library's own `to` warns of rounding, and there is nothing to round
        else:
            config = AutoConfig.from_pretrained(folder, subfolder=subfolder)
            from_config = kind._from_config if issubclass(kind, nn.Module) else kind.from_config  # an AutoModel
            model = from_config(config, dtype=dtype, **options)
    except OSError as error:  # what both libraries raise for a missing config or weight file
        raise FileNotFoundError(f"no {kind.__name__} in {folder / subfolder}: {error}") from error
    except SafetensorError as error:
        raise ValueError(f"the weights in {folder / subfolder} are damaged: copy them again ({error})") from error
    except ValueError as error:
        if not str(error).startswith("Cannot load "):  # what diffusers says of a tensor of another shape
            raise
        reason = str(error).partition("because ")[2].partition(". If you")[0]
        raise ValueError(f"the weights in {folder / subfolder} do not fit its config.json: {reason}") from error
    return model.eval()


@contextmanager
def table_of_the_file(kind: type) -> Iterator[None]:
    """Inside, an SD3 transformer does not compute the table of positions that its file has.

    diffusers (0.42.1) computes it all the same, in float64: 5.5 GB for the 384 x 384 places of SD3.5-medium, measured.
    """
    if not issubclass(kind, SD3Transformer2DModel):
        yield
        return
    table = lambda width, places, **_: torch.zeros(1, 1, dtype=torch.float32).expand(places**2, width)  # noqa: E731
    with patch.object(embeddings, "get_2d_sincos_pos_embed", table):
        yield


def load_saved(module: nn.Module, file: Path, what: str, remedy: str = "", *, strict: bool = True) -> None:
    """Reads into a module the weights that its `save` wrote.

    Args:
        what: they are, in words.
        remedy: what may be done besides copying them again.
        strict: as of `load_state_dict`.

    Raises:
        ValueError: the file is damaged, or tensors are missing, unknown, or of another shape.
    """
    verify(file.parent, file.name)
    try:
        module.load_state_dict(load_file(file), strict=strict)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} holds no whole {what}: copy the folder again{remedy} ({reason})") from error


def check_texts(folder: Path) -> None:
    """Raises ValueError where a settings file is damaged: transformers goes on without some of them, and names none."""
    for file in sorted(folder.glob("*.json")):
        if file.name.endswith(("config.json", "tokenizer.json", "index.json")):
            read_object(file)


def read_object(file: Path) -> dict[str, Any]:
    """What a JSON file says; raises ValueError where it is not the JSON of an object."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: copy it again ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: copy it again (it is no object)")
    return content


@contextmanager
def reading(what: str, folder: Path) -> Iterator[None]:
    """Names the folder where a library stumbles, in any way, over `what` its text files say.

    Raises:
        ValueError: in place of all but errors of the disk.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the {what} in {folder} cannot be used: copy the folder again ({reason})") from error


def check_kind(kind: type, folder: Path) -> None:
    """Raises ValueError where config.json is of another model: both libraries fill what it lacks with defaults."""
    config = folder / "config.json"
    if issubclass(kind, ModelMixin):
        key, wanted = "_class_name", kind.__name__
    elif issubclass(kind, PreTrainedModel):
        key, wanted = "model_type", kind.config_class.model_type
    else:  # an Auto class, which goes by it
        return
    if not config.is_file():  # said when it is read
        return
    try:
        found = read_object(config)[key]
    except KeyError as error:
        raise ValueError(f"{config} is no config of a {kind.__name__}: it has no {key} that can be read") from error
    if found != wanted:
        raise ValueError(
            f"{folder} is no {kind.__name__}: its config.json has {key} {found!r} where {wanted!r} is needed; name the "
            "folder of such a model"
        )


def check_tensors(found: dict[str, Any], folder: Path, unread: str) -> None:
    """Raises ValueError where weights did not come from the files, which the libraries then draw at random."""
    other_shapes = {name if isinstance(name, str) else name[0] for name in found["mismatched_keys"]}
    random = {name for name in {*found["missing_keys"]} | other_shapes if not re.search(unread, name)}
    if random:
        raise ValueError(
            f"the weights in {folder} lack {len(random)} tensors, or have them in other shapes than config.json says, "
            f"such as {min(random)}: they would be random; copy the folder again"
        )
