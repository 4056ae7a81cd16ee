"""A newcomer's task: a decoder that is no SD3, on the latents of another codec: a class and one line of YAML.

Places touched: the file of the class, and `decoder:` of a YAML (`FAMILY` below). Loss, sampler, guidance, training,
hand-over between stages, validation and `uae_lightning.load` know it by `interfaces.FlowDecoder`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderDC, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

import uae_lightning
from uae_lightning.cli import main
from uae_lightning.interfaces import Codec, FlowDecoder
from uae_lightning.models.loading import load
from uae_lightning.ranges import Count
from uae_lightning.types import Conditioning

ROOT = Path(__file__).parents[2]


class UNetDecoder(FlowDecoder):
    """A small `UNet2DConditionModel` by flow matching, on the latents of any codec."""

    def __init__(self, codec: Codec, path: str | None = None, image_size: Count = 64, conditioning_size: Count = 24):
        super().__init__()
        self.codec, self.image_size, self.conditioning_size = codec, image_size, conditioning_size
        self.unet = load(UNet2DConditionModel, Path(path), torch.float32) if path else UNet2DConditionModel(
            in_channels=codec.channels, out_channels=codec.channels, block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1, attention_head_dim=4,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=conditioning_size,
        )  # fmt: skip

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None) -> Tensor:
        if conditioning is None:
            nothing = x.new_zeros(len(x), 1, self.conditioning_size)
            conditioning = Conditioning(nothing, nothing[..., 0] == 0)
        return self.unet(x, 1000 * sigma, conditioning.states, encoder_attention_mask=conditioning.mask).sample

    def schedule(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1)

    def save(self, folder: Path) -> None:
        self.unet.save_pretrained(folder)


FAMILY = """
model: {{init_args: {{autoencoder: {{decoder: {{class_path: {decoder}, init_args: {{path: null, image_size: {side}, codec: {{class_path: {codec}, init_args: {{path: {path}}}}}}}}}}}}}}}
"""  # noqa: E501  the one line; `path` is taken over from the class it stands in for where both have one


@pytest.fixture
def dc_ae(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    AutoencoderDC(
        latent_channels=8, attention_head_dim=8, scaling_factor=0.41407,
        encoder_block_out_channels=(8, 8, 16), encoder_layers_per_block=(1,) * 3, encoder_qkv_multiscales=((),) * 3,
        decoder_block_out_channels=(8, 8, 16), decoder_layers_per_block=(1,) * 3, decoder_qkv_multiscales=((),) * 3,
    ).save_pretrained(tmp_path / "dc-ae")  # fmt: skip
    return tmp_path / "dc-ae"


@pytest.fixture
def run_yaml(tmp_path: Path, parts_folder: Path, dc_ae: Path, images: Tensor) -> Path:
    """Stage 1 of the scenes on small parts, and the one line laid over it."""
    codec = "uae_lightning.models.codecs.DCCodec"
    text = FAMILY.format(decoder=f"{__name__}.UNetDecoder", codec=codec, path=dc_ae, side=images.shape[-1])
    (tmp_path / "family.yaml").write_text(text)
    judge = {"class_path": "uae_lightning.rewards.pixel_similarity.PixelSimilarity"}
    options = {
        "model.autoencoder.encoder.path": str(parts_folder / "encoder"),
        "model.autoencoder.projector.path": str(parts_folder / "projector"),
        "model.autoencoder.captioning.max_new_tokens": 8,
        "model.autoencoder.sampling.guidance": 2.0,
        "data.init_args.batch_size": 2,
        "data.init_args.validation_pictures": 2,
        "data.init_args.validation_batch_size": 2,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.callbacks": [
            {"class_path": "callbacks.RewardCallback", "init_args": {"reward": judge, "unrewarded": judge}},
            {"class_path": "callbacks.ComponentWeights"},
        ],
    }
    configs = [str(ROOT / "conf" / "scenes" / "decoder_pretrain.yaml"), "family.yaml"]
    run = {"name": "family", "stages": [{"name": "pretrain", "config": configs, "options": options}]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return tmp_path / "run.yaml"


def test_a_decoder_of_another_family_on_another_codec(run_yaml, tmp_path, monkeypatch, images):
    # red with a codec that is trained too, or anything of SD3 in a stage, a callback or `load`
    monkeypatch.chdir(tmp_path)
    assert main(["run", f"--config={run_yaml}"]) == 0
    saved = load_file(Path("runs/family/pretrain/weights/decoder/diffusion_pytorch_model.safetensors"))
    model = uae_lightning.load("runs/family")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.decoder.unet.state_dict().items())
    captions, pictures = model.reconstruct(images)
    assert len(captions.texts) == 4 and pictures.shape == images.shape
    assert model.decoder.latent_shape == (8, images.shape[-1] // 4, images.shape[-1] // 4)
    torch.testing.assert_close(  # deterministic, scaled, without a shift
        model.decoder.codec.encode(images), model.decoder.codec.model.encode(2 * images - 1).latent * 0.41407
    )
