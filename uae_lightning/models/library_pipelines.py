"""Pipelines of diffusers, imported without a word about torchvision.

Their modules ask transformers for two image processors of adapters that nothing here uses. Without torchvision
transformers gives out their PIL form under that name, and warns of it. Here the name means that form before anybody
asks.
"""

from __future__ import annotations

import sys

import diffusers
import transformers
from diffusers import ModelMixin  # noqa: F401  it puts a new module in the place of transformers
from transformers.utils import is_torchvision_available

NAMES = ("CLIPImageProcessor", "SiglipImageProcessor")


def library_pipeline(name: str) -> type:
    """A pipeline class of diffusers by its name; the first call takes seconds."""
    if not is_torchvision_available():
        forms = {processor: getattr(transformers, f"{processor}Pil") for processor in NAMES}
        for processor, form in forms.items():
            setattr(sys.modules["transformers"], processor, form)
    return getattr(diffusers, name)
