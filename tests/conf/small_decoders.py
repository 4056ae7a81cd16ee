"""Small random models of the decoders' real classes, in the layout in which the hub has the big ones."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch

WIDTH = 24  # of the text that they read


def save_sana(folder: Path) -> None:
    """Heads of 8, a token for each latent of 16 channels, a DC-AE of 8 pixels a latent in place of 32."""
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=16, out_channels=16, num_attention_heads=4, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=WIDTH,
        sample_size=8, timestep_scale=1.0,
    )  # fmt: skip
    save_parts(folder, transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    diffusers.AutoencoderDC(
        latent_channels=16, attention_head_dim=8, scaling_factor=0.41407, encoder_block_out_channels=(8, 8, 8, 16),
        decoder_block_out_channels=(8, 8, 8, 16), encoder_layers_per_block=(1,) * 4, decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4, decoder_qkv_multiscales=((),) * 4,
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",),
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",),
    ).save_pretrained(folder / "vae")  # fmt: skip


def save_flux2(folder: Path) -> None:
    """A block of two streams and two of one; latents of 4 channels at a quarter of the side, packed 2 x 2."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    save_parts(folder, transformer, scheduler)
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    vae.save_pretrained(folder / "vae")


def save_z_image(folder: Path) -> None:
    """A layer of each refiner and two of the whole, patches of 2 x 2 latents."""
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6], axes_lens=[128, 32, 32],
    )  # fmt: skip
    save_parts(folder, transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    kl(scaling_factor=0.3611, shift_factor=0.1159).save_pretrained(folder / "vae")


def save_qwen_image(folder: Path) -> None:
    """Two blocks, patches of 2 x 2 latents of 4 channels, levels that end at .02 as in the release."""
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    save_parts(folder, transformer, scheduler)
    diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[-0.7, 0.1, 0.9, -0.2], latents_std=[2.8, 1.4, 2.3, 0.6],
    ).save_pretrained(folder / "vae")  # fmt: skip


def kl(**scaling: float) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4,
        use_quant_conv=False, use_post_quant_conv=False, **scaling,
    )  # fmt: skip


def save_parts(folder: Path, transformer: diffusers.ModelMixin, scheduler: diffusers.SchedulerMixin) -> None:
    for parameter in transformer.parameters():  # some start at zero, where nothing reaches the output
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
