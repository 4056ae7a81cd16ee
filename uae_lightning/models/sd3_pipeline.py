"""diffusers' pipeline of SD3, imported without a word about torchvision.

Its module asks transformers for two image processors of adapters that nothing here uses. Without torchvision
transformers gives out their PIL form under that name, and warns of it. Here the name means that form before anybody
asks.
"""

from __future__ import annotations

import sys

import transformers
from diffusers import SD3Transformer2DModel  # noqa: F401  it puts a new module in the place of transformers
from transformers.utils import is_torchvision_available

NAMES = ("CLIPImageProcessor", "SiglipImageProcessor")


def sd3_pipeline() -> type:
    """StableDiffusion3Pipeline; the first call takes seconds."""
    if not is_torchvision_available():
        forms = {name: getattr(transformers, f"{name}Pil") for name in NAMES}
        for name, form in forms.items():
            setattr(sys.modules["transformers"], name, form)
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline
