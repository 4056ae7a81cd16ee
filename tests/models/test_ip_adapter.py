"""SD3 with a published IP-Adapter: the latents of diffusers' own pipeline, from files in both layouts."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

sys.path.append(str(Path(__file__).parents[1] / "conf"))
from small_models import SIGLIP, TEXT, save_ip_adapter, save_sd3  # noqa: E402

from uae_lightning.models.ip_adapter import IPAdapterSD3Decoder  # noqa: E402
from uae_lightning.models.library_pipelines import library_pipeline  # noqa: E402
from uae_lightning.models.sd3 import SD3Decoder  # noqa: E402
from uae_lightning.types import Conditioning, Sampling  # noqa: E402

SIDE, STEPS, GUIDANCE = 64, 3, 2.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`sd3`, and for it `own` in the layout of diffusers, `published` in InstantX's."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    save_sd3(folder / "sd3")
    for name in ("own", "published"):
        (folder / name).mkdir()
        save_ip_adapter(folder / name, folder / "sd3", published=name == "published")
    return folder


@pytest.fixture(scope="module")
def make(folder):
    def make(name: str = "own", **options) -> IPAdapterSD3Decoder:
        options = {"adapter": str(folder / name), "vision": str(folder / name / "siglip")} | options
        return IPAdapterSD3Decoder(str(folder / "sd3"), resolution=SIDE, **options)

    return make


@pytest.fixture
def levels() -> Tensor:
    """[1, 3, 28, 28] uint8, of SigLIP's size."""
    return torch.randint(256, (1, 3, 28, 28), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def conditioning(*lengths: int, seed: int = 1, pad: int = 0) -> Conditioning:
    states = torch.randn(len(lengths), max(lengths), TEXT, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(max(lengths) + pad) < torch.tensor(lengths)[:, None]
    return Conditioning(torch.nn.functional.pad(states, (0, 0, 0, pad), value=3.0), mask)


def noise(decoder: SD3Decoder) -> Tensor:
    return torch.randn(1, *decoder.latent_shape, generator=torch.Generator().manual_seed(2))


def drawn_by_diffusers(folder: Path, name: str, levels: Tensor, x: Tensor, text, without, pooled: Tensor) -> Tensor:
    """Latents by the pipeline that `load_ip_adapter` is a method of."""
    absent = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    pipe = library_pipeline("StableDiffusion3Pipeline")(
        transformer=SD3Transformer2DModel.from_pretrained(folder / "sd3", subfolder="transformer"),
        vae=AutoencoderKL.from_pretrained(folder / "sd3", subfolder="vae"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "sd3", subfolder="scheduler"),
        image_encoder=SiglipVisionModel.from_pretrained(folder / name / "siglip"),
        feature_extractor=SiglipImageProcessorPil.from_pretrained(folder / name / "siglip"),
        **dict.fromkeys(absent),
    )
    file = next((folder / name).glob("ip-adapter.*")).name
    pipe.load_ip_adapter(str(folder / name), weight_name=file, low_cpu_mem_usage=False)
    pipe.set_ip_adapter_scale(0.7)
    pipe.set_progress_bar_config(disable=True)
    texts = {"prompt_embeds": text.states, "negative_prompt_embeds": without.states}
    texts |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled}
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    picture = Image.fromarray(levels[0].permute(1, 2, 0).numpy())
    return pipe(**texts, **size, latents=x, ip_adapter_image=picture, output_type="latent").images


@pytest.mark.parametrize("name", ["own", "published"])
def test_what_is_drawn_is_what_diffusers_draws(name, folder, make, levels):
    # red with layers in another order, keys that are normed twice or not, another scale, a guidance branch without
    # features of zeros, another layer of SigLIP, or InstantX's names not translated
    decoder = make(name, adapter_scale=0.7)
    text, without, x = conditioning(5), conditioning(5, seed=3), noise(decoder)
    with torch.no_grad():
        seen = Conditioning(text.states, text.mask, decoder.look(levels / 255))
        latents = decoder.draw(seen, x, Sampling(STEPS, GUIDANCE), without)
        plain = decoder.draw(text, x, Sampling(STEPS, GUIDANCE), without)
        wanted = drawn_by_diffusers(folder, name, levels, x, text, without, decoder.pooled)
    torch.testing.assert_close(latents, wanted, atol=1e-5, rtol=0)
    assert (latents - plain).abs().mean() > 0.01


def test_without_a_reference_it_is_the_picture_of_the_text(folder, make, levels):
    # red if the adapter changes what is drawn from text alone, or a scale of 0 leaves something of it
    plain, decoder, off = SD3Decoder(str(folder / "sd3"), resolution=SIDE), make(), make(adapter_scale=0.0)
    text, x = conditioning(4), noise(plain)
    seen = Conditioning(text.states, text.mask, decoder.look(levels / 255))
    for sampling in (Sampling(2), Sampling(2, 2.0)):
        with torch.no_grad():
            wanted = plain.draw(text, x, sampling)
            assert torch.equal(decoder.draw(text, x, sampling), wanted)
            assert torch.equal(off.draw(seen, x, sampling), wanted)


def test_padding_of_the_text_does_not_reach_the_picture(make, levels):
    # red with diffusers' own processor, which knows no mask
    decoder = make()
    short, padded, x = conditioning(4), conditioning(4, pad=3), noise(decoder)
    features = decoder.look(levels / 255)
    rows = Conditioning(padded.states, padded.mask, features), Conditioning(short.states, short.mask, features)
    other = conditioning(7, seed=5)  # keeps the padded columns
    both = [Conditioning(torch.cat([r.states, other.states]), torch.cat([r.mask, other.mask]), features.repeat(2, 1, 1))
            for r in rows[:1]]  # fmt: skip
    with torch.no_grad():
        alone = decoder.draw(rows[1], x, Sampling(2))
        beside = decoder.draw(both[0], x.repeat(2, 1, 1, 1), Sampling(2))
    torch.testing.assert_close(beside[:1], alone, atol=1e-5, rtol=0)


def test_what_is_saved_is_the_decoder(folder, make, tmp_path):
    # red if weights of the adapter get into the transformer's file, where diffusers would refuse them
    make().save(tmp_path)
    saved, plain = SD3Decoder(str(tmp_path), resolution=SIDE), SD3Decoder(str(folder / "sd3"), resolution=SIDE)
    names = set(load_file(next((tmp_path / "transformer").glob("*.safetensors"))))
    assert names == set(plain.transformer.state_dict())
    with torch.no_grad():
        drawn = (one.draw(conditioning(4), noise(plain), Sampling(2)) for one in (saved, plain))
        torch.testing.assert_close(*drawn)


def test_wrong_files_are_named(folder, make, tmp_path):
    # red where a library's own error comes through, or a wrong adapter is loaded in part
    with pytest.raises(FileNotFoundError, match=r"holds no IP-Adapter \(ip-adapter.safetensors or ip-adapter.bin\)"):
        make(adapter=str(folder / "sd3"))
    state = load_file(folder / "own" / "ip-adapter.safetensors")
    wrong = {
        "keys": {"unet.weight": torch.zeros(2)},
        "a layer less": {k: v for k, v in state.items() if not k.startswith("ip_adapter.2.")},
        "a layer more": state | {"ip_adapter.3.to_k_ip.weight": torch.zeros(32, 32)},
        "width": {k: (torch.zeros(8, 8) if k.endswith("to_k_ip.weight") else v) for k, v in state.items()},
        "resampler": {k: v for k, v in state.items() if "proj_out" not in k},
    }
    for number, tensors in enumerate(wrong.values()):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        with pytest.raises(ValueError, match=r"is no IP-Adapter for this SD3 \(3 attention layers\)"):
            make(adapter=str(tmp_path / f"{number}.safetensors"))
    (tmp_path / "text.bin").write_text("no pickle")
    with pytest.raises(ValueError, match="is no IP-Adapter for this SD3"):
        make(adapter=str(tmp_path / "text.bin"))


def test_another_vision_tower_is_refused(folder, make, tmp_path):
    # red without the look at its width: the resampler would fail in the middle of drawing
    shutil.copytree(folder / "own" / "siglip", tmp_path / "siglip")
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig.from_pretrained(tmp_path / "siglip")
    config.vision_config.hidden_size = 2 * SIGLIP
    config.text_config.projection_size = 2 * SIGLIP
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match=f"features of {SIGLIP} numbers, and those of .* have {2 * SIGLIP}"):
        make(vision=str(tmp_path / "siglip"))
