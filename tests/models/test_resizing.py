import numpy as np
import pytest
import torch
from PIL import Image

from uae_lightning.models.resizing import resize

MODES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RNG = np.random.default_rng(0)
PICTURES = {
    "noise": RNG.integers(0, 256, (96, 128, 3)),
    "black and white": RNG.integers(0, 2, (96, 128, 1)).repeat(3, 2) * 255,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("height, width", [(40, 40), (96, 50), (60, 128), (200, 224)])
def test_agrees_with_pil_to_one_level(kind: str, mode: str, height: int, width: int):
    # red if values are cut only once, or columns are resized before rows
    picture = PICTURES[kind].astype(np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((width, height), MODES[mode]), float)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    values = resize(tensor, (height, width), mode)[0].permute(1, 2, 0).double().numpy() * 255
    assert np.abs(values.round() - expected).max() <= 1 and np.abs(values - expected).mean() < 0.4
