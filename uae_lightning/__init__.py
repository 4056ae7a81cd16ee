"""uae-lightning: training code for "Unified Multimodal Model as Auto-Encoder" (arXiv 2509.09666).

import uae_lightning

model = uae_lightning.load("runs/demo")
captions, pictures = model.reconstruct(uae_lightning.open_pictures(["photo.png"], model.image_size))
drawn = model.generate(["a large red ball in the center"])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from uae_lightning.models import no_hub_kernels

if TYPE_CHECKING:
    from uae_lightning.data.images import open_pictures
    from uae_lightning.run.loading import load

__version__ = "0.2.0"
__all__ = ["load", "open_pictures"]

no_hub_kernels.install()


def __getattr__(name: str) -> Any:
    """Imports what is asked for: `uae --help` need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'run.loading' if name == 'load' else 'data.images'}"), name)
