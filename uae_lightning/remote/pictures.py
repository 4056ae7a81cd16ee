"""Pictures as they are sent."""

from __future__ import annotations

import base64
import io

from torch import Tensor

from uae_lightning.data.images import as_picture


def as_png(image: Tensor) -> str:
    """[3, H, W] in [0, 1] -> PNG in base64."""
    file = io.BytesIO()
    as_picture(image).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
