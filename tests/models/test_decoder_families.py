"""Decoders of diffusers' families against the pipelines that diffusers has for them: random small weights."""

from __future__ import annotations

import sys
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "conf"))
import small_decoders  # noqa: E402
from small_decoders import WIDTH  # noqa: E402

from uae_lightning.models.diffusers_decoder import DiffusersDecoder  # noqa: E402
from uae_lightning.models.flux2 import Flux2Decoder  # noqa: E402
from uae_lightning.models.qwen_image import QwenImageDecoder  # noqa: E402
from uae_lightning.models.sana import SanaDecoder  # noqa: E402
from uae_lightning.models.z_image import ZImageDecoder  # noqa: E402
from uae_lightning.types import Conditioning, LoRA, Sampling  # noqa: E402

SIDE, STEPS, GUIDANCE = 64, 3, 2.5
FAMILIES = {
    "sana": (SanaDecoder, small_decoders.save_sana),
    "flux2": (Flux2Decoder, small_decoders.save_flux2),
    "z_image": (ZImageDecoder, small_decoders.save_z_image),
    "qwen_image": (QwenImageDecoder, small_decoders.save_qwen_image),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(family)
    FAMILIES[family][1](folder)
    return folder


@pytest.fixture(scope="module")
def decoder(family, folder) -> DiffusersDecoder:
    return FAMILIES[family][0](str(folder), resolution=SIDE)


def conditioning(*lengths: int, seed: int = 1) -> Conditioning:
    states = torch.randn(len(lengths), max(lengths), WIDTH, generator=torch.Generator().manual_seed(seed))
    return Conditioning(states, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def noise(decoder: DiffusersDecoder, n: int, width: int = SIDE, height: int = SIDE) -> Tensor:
    return torch.randn(n, *decoder.codec.latent_shape(width, height), generator=torch.Generator().manual_seed(2))


def drawn_by_diffusers(decoder: DiffusersDecoder, family: str, x: Tensor, text: Conditioning, without: Conditioning):
    """Pictures [N, 3, H, W] by the family's pipeline, which takes padded texts in ways of its own."""
    height, width = (decoder.codec.downsampling * side for side in x.shape[2:])
    size = {"height": height, "width": width, "num_inference_steps": STEPS, "output_type": "pt"}
    masks = {"prompt_attention_mask": text.mask, "negative_prompt_attention_mask": without.mask}
    lists = [[states[mask] for states, mask in zip(c.states, c.mask, strict=True)] for c in (text, without)]
    packed = torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
    own = {
        "sana": {"use_resolution_binning": False, "guidance_scale": GUIDANCE, **masks},
        "flux2": {"guidance_scale": GUIDANCE},
        "z_image": {"guidance_scale": GUIDANCE - 1, "prompt_embeds": lists[0], "negative_prompt_embeds": lists[1]},
        "qwen_image": {
            "true_cfg_scale": GUIDANCE, "latents": packed,
            "prompt_embeds_mask": text.mask, "negative_prompt_embeds_mask": without.mask,
        },
    }[family]  # fmt: skip
    texts = {"prompt_embeds": text.states, "negative_prompt_embeds": without.states}
    if family in ("sana", "flux2", "qwen_image"):
        size |= texts
    if family == "sana":  # its default is a text for its text encoder
        size["negative_prompt"] = None
    pipe = decoder.pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe(**({"latents": x} | size | own)).images


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (2 * SIDE, SIDE // 2)])  # (width, height), of as many tokens
def test_the_whole_sampler_is_that_of_diffusers(decoder, family, shape):
    # red with another sign or scale of the time, other noise levels, another layout of tokens or positions, guidance
    # without what the pipeline does to it, latents scaled otherwise, padding that reaches the picture, width for height
    lengths = [(5, 5), (5, 5)] if family == "flux2" else [(5, 3), (2, 5)]  # its pipeline has no mask
    text, without = conditioning(*lengths[0]), conditioning(*lengths[1], seed=3)
    x = noise(decoder, 2, *shape)
    with torch.no_grad():
        latents = decoder.draw(text, x, Sampling(STEPS, GUIDANCE), without)
        pictures = decoder.decode_latents(latents)
        wanted = drawn_by_diffusers(decoder, family, x, text, without)
    assert pictures.std() > 0.01 and all(decoder.schedule(steps)[0] <= 1 for steps in range(1, 60))
    torch.testing.assert_close(pictures, wanted, atol=1e-5, rtol=0)


def test_latents_of_a_picture_are_drawn_as_that_picture(decoder, family):
    # red with a scale or a shift of the latents that is not taken back; the sampler's test sees one direction alone
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    latents, vae = decoder.encode_images(images), decoder.codec.model
    assert latents.shape == (2, *decoder.latent_shape)
    frames = images.unsqueeze(2) if family == "qwen_image" else images
    encoded = vae.encode(2 * frames - 1)
    clean = encoded.latent if family == "sana" else encoded.latent_dist.mode()
    wanted = (vae.decode(clean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoder.decode_latents(latents), wanted.view_as(images), atol=1e-5, rtol=0)


def test_padding_never_reaches_the_picture(decoder):
    # red if the mask is not handed on, or the last column is cropped
    text, sigma = conditioning(5, 3), torch.full((2,), 0.7)
    dirty = Conditioning(text.states.masked_fill(~text.mask.unsqueeze(-1), 7.0), text.mask)
    with torch.no_grad():
        clean, padded = (decoder.velocity(noise(decoder, 2), sigma, c) for c in (text, dirty))
        alone = decoder.velocity(noise(decoder, 2)[1:], sigma[1:], Conditioning(text.states[1:, :3], text.mask[1:, :3]))
    torch.testing.assert_close(padded, clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clean[1:], alone, atol=1e-5, rtol=1e-4)


def test_dropped_rows_are_the_unconditional_branch(decoder):
    # red if the unconditional branch reads more than one zero state
    text, sigma = conditioning(5, 3), torch.full((2,), 0.7)
    with torch.no_grad():
        dropped = decoder.velocity(noise(decoder, 2), sigma, text.drop(torch.tensor([True, False])))
        none, plain = (decoder.velocity(noise(decoder, 2), sigma, c) for c in (None, text))
    torch.testing.assert_close(dropped[0], none[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dropped[1], plain[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(none, plain, atol=1e-3)


def test_lora_is_learned_merged_and_read_by_diffusers(family, folder, decoder, tmp_path):
    # red with targets that match nothing, or an alpha that is not kept beside the tensors
    kind, text, sigma = FAMILIES[family][0], conditioning(5, 3), torch.full((2,), 0.5)
    adapted = kind(str(folder), resolution=SIDE, checkpoint_activations=True)
    adapted.adapt(LoRA(rank=4, alpha=8))
    adapted.velocity(noise(decoder, 2), sigma, text).square().mean().backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name and p.grad is not None for name, p in trained.items())
    touched = {name.split(".")[1] for name in trained}
    assert touched == set(kind.block_lists)
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        start = decoder.velocity(noise(decoder, 2), sigma, text)
        changed = adapted.velocity(noise(decoder, 2), sigma, text)
        assert not torch.allclose(changed, start, atol=1e-3)
        with adapted.reference():
            assert torch.equal(adapted.velocity(noise(decoder, 2), sigma, text), start)
        adapted.save(tmp_path)
        again = kind(str(tmp_path), resolution=SIDE)
        torch.testing.assert_close(again.velocity(noise(decoder, 2), sigma, text), changed, atol=1e-4, rtol=1e-4)
        assert again.schedule(4).tolist() == decoder.schedule(4).tolist()
        foreign = kind(str(folder), resolution=SIDE)
        foreign.pipeline().load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
        torch.testing.assert_close(foreign.velocity(noise(decoder, 2), sigma, text), changed, atol=1e-4, rtol=1e-4)


def test_the_solver_that_sana_is_released_with_has_the_levels_of_euler(tmp_path, folder, family, decoder):
    # red if flow_shift is not read
    if family != "sana":
        pytest.skip("SANA's alone")
    solver = diffusers.DPMSolverMultistepScheduler(
        flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    for part in ("transformer", "vae"):
        (tmp_path / part).symlink_to(folder / part)
    solver.save_pretrained(tmp_path / "scheduler")
    released = SanaDecoder(str(tmp_path), resolution=SIDE, sigma_spacing="even")
    assert released.scheduler.config.shift == decoder.scheduler.config.shift == 3
    solver.set_timesteps(1000)  # the finer, the less it matters where a spacing ends
    torch.testing.assert_close(released.schedule(1000)[:-1], solver.sigmas[:-1], atol=4e-3, rtol=0)


def test_what_the_models_cannot_do_is_said(tmp_path, folder, family, decoder):
    # red without the checks of resolution and channels, or with a backend that SANA ignores
    kind = FAMILIES[family][0]
    with pytest.raises(ValueError, match="resolution: sides must be multiples of 8"):
        kind(str(folder), resolution=SIDE + 4)
    if family == "sana":
        with pytest.raises(ValueError, match="attention: flash cannot be used by SANA"):
            kind(str(folder), resolution=SIDE, attention="flash")
        with pytest.raises(ValueError, match="codec and transformer do not fit"):
            small_decoders.kl().save_pretrained(tmp_path / "kl")
            from uae_lightning.models.codecs import KLCodec

            kind(str(folder), resolution=SIDE, codec=KLCodec(str(tmp_path / "kl")))
