"""Pictures as they are sent."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor


def as_png(image: Tensor) -> str:
    """[3, H, W] in [0, 1] -> PNG in base64."""
    levels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
