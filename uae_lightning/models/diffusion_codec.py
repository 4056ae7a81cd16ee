"""DiffusionCodec: pixels by a few denoising steps on top of another codec (Epsilon-VAE, arXiv 2410.04081).

The paper's decoder draws the whole picture. Here the base codec's picture stays, and what it lacks, the residual, is
drawn on it: a network that has learnt nothing changes nothing.

N pictures   f pixels that the network takes as one, in each direction   sigma in (0, 1], 1 = noise
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.interfaces import Codec, LearningCodec
from uae_lightning.models.loading import load, read_object
from uae_lightning.paths import resolve
from uae_lightning.ranges import Count, Natural, Positive, checked

Objective = Literal["flow", "regression"]
TILE = 32  # side of the noise that decoding starts from, which is repeated over the picture
FOLD = 4  # f


@checked
class DiffusionCodec(LearningCodec):
    """The latents are the base codec's. Decoding is a function: it starts from one noise.

    The network predicts the clean residual; its last layer begins at zero.

    Args:
        base: codec whose latents and picture it starts from; it stays as it is.
        path: folder that `save` wrote, whose network and objective count; None starts from random weights.
        subfolder: of `path`.
        objective: "flow" denoises the residual; "regression" predicts its mean in one step, by a network of the same
            size: the control.
        steps: of decoding, each a pass of the network (the paper: 1 to 3, more are worse); 0 is the base codec.
            A regression has one.
        scale: standard deviation of a residual, of pictures in [0, 1]; about that of the base codec's error.
        width: channels of the network at its finest level, a multiple of 8; each further level has twice as many.
        levels: of the network.
        layers: of each level.

    Raises:
        FileNotFoundError: `path` names no network.
        ValueError: it holds another kind of model, damaged weights, or one for other latents.
    """

    def __init__(
        self,
        base: Codec,
        path: str | None = None,
        subfolder: str = "",
        objective: Objective = "flow",
        steps: Natural = 1,
        scale: Positive = 0.05,
        width: Count = 32,
        levels: Count = 2,
        layers: Count = 1,
    ) -> None:
        super().__init__()
        if width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        self.base, self.steps = base, int(steps)
        self.channels, self.downsampling = base.channels, base.downsampling
        self.objective, self.scale = objective, float(scale)
        given = 2 * 3 * FOLD**2 + base.channels  # noisy residual, the base codec's picture, latents
        if path is None:
            self.unet = UNet2DModel(
                in_channels=given, out_channels=3 * FOLD**2, layers_per_block=int(layers), norm_num_groups=8,
                block_out_channels=tuple(int(width) * 2**level for level in range(levels)),
                down_block_types=("DownBlock2D",) * levels, up_block_types=("UpBlock2D",) * levels, add_attention=False,
            ).eval()  # fmt: skip
            torch.nn.init.zeros_(self.unet.conv_out.weight)
            torch.nn.init.zeros_(self.unet.conv_out.bias)
        else:
            place = resolve(path) / subfolder
            self.unet = load(UNet2DModel, resolve(path), torch.float32, str(Path(subfolder) / "unet"))
            config = read_object(place / "config.json")
            self.objective, self.scale = config["objective"], float(config["scale"])
            if (found := self.unet.config.in_channels) != given:
                raise ValueError(
                    f"{place} has a network for {found} channels, and with the latents of {type(base).__name__} there "
                    f"are {given}: give `base` the codec that it was trained on"
                )
        self.requires_grad_(False)
        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.randn(3 * FOLD**2, TILE, TILE, generator=generator, device="cpu")
        self.register_buffer("noise", noise, persistent=False)

    def adapt(self, learning: Literal["all"] | None) -> None:  # type: ignore[override]  # there are no adapters
        super().adapt(learning)
        self.base.requires_grad_(False)

    # ----------------------------------------------------------------------------------------------------- residuals

    def residual(self, noisy: Tensor, sigma: Tensor, picture: Tensor, latents: Tensor) -> Tensor:
        """Clean residual by a noisy one at sigma [N], both [N, 3 f f, H / f, W / f], the base codec's picture
        [N, 3, H, W] and its latents [N, C, h, w]."""
        latents = F.interpolate(latents.float(), size=noisy.shape[2:], mode="nearest")
        given = torch.cat([noisy, F.pixel_unshuffle(2 * picture - 1, FOLD), latents], 1)
        return self.unet(given.to(self.unet.dtype), 1000 * sigma).sample.float()

    def restore(self, images: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            latents = self.base.encode(images)
            picture = self.base.decode(latents)
        clean = F.pixel_unshuffle(images - picture, FOLD) / self.scale
        if self.objective == "regression":
            noisy, sigma = torch.zeros_like(clean), torch.ones_like(sigma)
        else:
            noisy, _ = flow.interpolate(clean, F.pixel_unshuffle(noise, FOLD), sigma)
        found = self.residual(noisy, sigma, picture, latents)
        error = F.pixel_shuffle((found - clean).square(), FOLD).mean(1, keepdim=True)
        return error, picture + self.scale * F.pixel_shuffle(found, FOLD)

    # ----------------------------------------------------------------------------------------------------- a codec

    def encode(self, images: Tensor) -> Tensor:
        return self.base.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        picture = self.base.decode(latents)
        if self.steps == 0:
            return picture
        height, width = picture.shape[2] // FOLD, picture.shape[3] // FOLD
        x = self.noise.repeat(1, -(-height // TILE), -(-width // TILE))[:, :height, :width]
        x = x.expand(len(picture), -1, -1, -1)
        steps = self.steps
        if self.objective == "regression":
            x, steps = torch.zeros_like(x), 1
        for step in range(steps):  # Euler; the last step ends at what is predicted
            found = self.residual(x, x.new_full((len(x),), 1 - step / steps), picture, latents)
            x = x + (found - x) / (steps - step)
        return (picture + self.scale * F.pixel_shuffle(x, FOLD)).clamp(0, 1)

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        """Latents are the base codec's."""
        return self.base.fingerprint(adapters)

    def save(self, folder: Path) -> None:
        """`unet/`, `base/`, and a config.json by which `codec_folders.codec_of` knows it."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "_class_name": "DiffusionCodec",
            "objective": self.objective,
            "scale": self.scale,
            "steps": self.steps,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        self.unet.save_pretrained(folder / "unet")
        self.base.save(folder / "base")
