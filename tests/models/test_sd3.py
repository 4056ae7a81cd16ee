import numpy as np
import pytest
import torch
from conftest import LATENT_SHAPE
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0

from uae_lightning.models.attention import MaskedJointAttention
from uae_lightning.models.patch_codec import PatchCodec
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import Conditioning, LoRA


def conditioning(n: int, length: int = 6) -> Conditioning:
    generator = torch.Generator().manual_seed(1)
    return Conditioning(torch.randn(n, length, 24, generator=generator), torch.ones(n, length, dtype=torch.bool))


def noise(n: int) -> torch.Tensor:
    return torch.randn(n, *LATENT_SHAPE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dual", [(), (0,)])
def test_without_padding_attention_is_that_of_diffusers(dual):
    # red if image and text are joined in the other order, or a norm is left out
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
        pos_embed_max_size=4, qk_norm="rms_norm", dual_attention_layers=dual,
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = dict(
        hidden_states=torch.randn(2, 4, 4, 4), encoder_hidden_states=torch.randn(2, 5, 12),
        pooled_projections=torch.randn(2, 8), timestep=torch.tensor([500.0, 20.0]),
    )  # fmt: skip
    with torch.no_grad():
        model.set_attn_processor(JointAttnProcessor2_0())
        wanted = model(**inputs).sample
        model.set_attn_processor(MaskedJointAttention())
        mask = torch.ones(2, 5, dtype=torch.bool)
        got = model(**inputs, joint_attention_kwargs={"text_mask": mask}).sample
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_padding_never_reaches_the_picture(make_decoder):
    # red if the processor ignores `text_mask`
    decoder, cond = make_decoder(), conditioning(3)
    padded = Conditioning(
        torch.cat([cond.states, torch.full((3, 4, 24), 7.0)], 1), torch.nn.functional.pad(cond.mask, (0, 4))
    )
    sigma = torch.full((3,), 0.7)
    with torch.no_grad():
        clean, dirty = (decoder.velocity(noise(3), sigma, c) for c in (cond, padded))
    torch.testing.assert_close(clean, dirty, atol=1e-5, rtol=1e-5)


def test_dropped_rows_are_the_unconditional_branch(make_decoder):
    # red if `drop` masks the wrong position
    decoder, sigma = make_decoder(), torch.full((3,), 0.7)
    dropped = conditioning(3).drop(torch.tensor([True, False, True]))
    with torch.no_grad():
        unconditional = decoder.velocity(noise(3), sigma, None)
        mixed = decoder.velocity(noise(3), sigma, dropped)
        plain = decoder.velocity(noise(3), sigma, conditioning(3))
    torch.testing.assert_close(mixed[[0, 2]], unconditional[[0, 2]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], plain[1], atol=1e-5, rtol=1e-5)


def test_lora_reference_save_and_merge(make_decoder, tmp_path):
    # red if an adapter is left out of `MergedState`
    decoder, plain = make_decoder(LoRA(rank=4, alpha=8)), make_decoder()
    trained = [name for name, parameter in decoder.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name and ".attn." in name for name in trained)
    for name, parameter in decoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    sigma = torch.full((2,), 0.5)
    with torch.no_grad():
        changed = decoder.velocity(noise(2), sigma, conditioning(2))
        start = plain.velocity(noise(2), sigma, conditioning(2))
        assert not torch.allclose(changed, start, atol=1e-3)
        with decoder.reference():
            assert torch.equal(decoder.velocity(noise(2), sigma, conditioning(2)), start)
        decoder.save(tmp_path)
        again = type(decoder)(str(tmp_path), resolution=IMAGE_SIZE)
        torch.testing.assert_close(again.velocity(noise(2), sigma, conditioning(2)), changed, atol=1e-4, rtol=1e-4)
    plain.transformer.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix="transformer")
    with torch.no_grad():  # red without the metadata: diffusers then takes the rank, 4, for alpha, which is 8
        torch.testing.assert_close(plain.velocity(noise(2), sigma, conditioning(2)), changed, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("mask_padding", "read"), [(True, 6), (False, 9)])
def test_columns_that_are_padding_everywhere_are_not_computed(make_decoder, mask_padding, read):
    # red if one more column is cut off, or the release, which attends to padding, is cropped too
    decoder, long, lengths = make_decoder(mask_padding=mask_padding), conditioning(2, 9), []
    long.mask[0, 3:], long.mask[1, 6:] = False, False
    forward = decoder.transformer.forward
    decoder.transformer.forward = lambda **inputs: (
        lengths.append(len(inputs["encoder_hidden_states"][0])) or forward(**inputs)
    )
    sigma = torch.full((2,), 0.5)
    with torch.no_grad():
        velocity = decoder.velocity(noise(2), sigma, long)
        again = decoder.velocity(noise(2), sigma, Conditioning(long.states[:, :6], long.mask[:, :6]))
    assert lengths == [read, 6]
    assert torch.allclose(velocity, again, atol=1e-5) == mask_padding


def test_schedules(make_decoder):
    # red if the shift is left out of the even spacing
    decoder = make_decoder()
    even = decoder.schedule(4)
    raw = torch.tensor([1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(even, torch.cat([3 * raw / (1 + 2 * raw), torch.zeros(1)]))
    decoder.sigma_spacing = "sd3"
    decoder.scheduler.set_timesteps(4)
    torch.testing.assert_close(decoder.schedule(4), decoder.scheduler.sigmas, atol=1e-5, rtol=1e-5)


def test_codec_keeps_the_picture(make_decoder, images):
    # red if latents are not unscaled before decoding
    decoder = make_decoder()
    latents = decoder.encode_images(images)
    assert latents.shape == (4, *decoder.latent_shape)
    error = (decoder.decode_latents(latents) - images).square().mean()
    assert -10 * np.log10(error.item()) > 20  # dB, with 8 of 192 components


def test_codec_with_all_components_is_exact():
    codec = PatchCodec(patch_size=4, latent_channels=48)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec.fit(images)
    latents = codec.encode(images)
    torch.testing.assert_close(codec.decode(latents), images, atol=1e-4, rtol=1e-4)
    assert abs(latents.std((0, 2, 3)).mean().item() - 1) < 0.1
