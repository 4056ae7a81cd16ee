"""uae-lightning: training code for "Unified Multimodal Model as Auto-Encoder" (arXiv 2509.09666).

import uae_lightning

model = uae_lightning.load("runs/demo")
captions, pictures = model.reconstruct(uae_lightning.open_pictures(["photo.png"], model.image_size))
drawn = model.generate(["a large red ball in the center"])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uae_lightning.models import no_hub_kernels

if TYPE_CHECKING:
    from torch import Tensor

    from uae_lightning.autoencoder import AutoEncoder

__version__ = "0.2.0"
__all__ = ["load", "open_pictures"]

no_hub_kernels.install()


def load(run: str | Path, config: str | Path | None = None) -> AutoEncoder:
    """The auto-encoder as a run left it, on the CPU; `.to("cuda")` moves it.

    Args:
        run: folder that `uae run` wrote.
        config: the YAML of a stage that says what the parts are; None is that of the run's last stage.

    Raises:
        FileNotFoundError: there is no such run, or it has no stage yet.
    """
    from uae_lightning.run.loading import load_autoencoder

    return load_autoencoder(Path(config) if config else None, Path(run))


def open_pictures(paths: list[str | Path], side: int) -> Tensor:
    """The central squares of picture files, upright and in sRGB, scaled: [N, 3, side, side] in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        data.images.BadFile: a ValueError that says why a file cannot be read as a picture.
    """
    import torch

    from uae_lightning.data.images import as_tensor, read_picture

    return torch.stack([as_tensor(read_picture(Path(path)).image, side) for path in paths])
