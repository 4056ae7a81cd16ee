"""SD3 / SD3.5 as the decoder: transformer, latent codec and scheduler from a folder in the layout of diffusers."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.modeling_utils import ModelMixin
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.interfaces import Decoder
from uae_lightning.models.adapters import LoRA, adapters_off, add_lora, lora_layers, merged_state, to_dtype
from uae_lightning.models.attention import MaskedJointAttention
from uae_lightning.models.patch_codec import PatchCodec
from uae_lightning.paths import resolve
from uae_lightning.types import Conditioning

ATTENTION_PROJECTIONS = [  # Flow-GRPO code: LoRA targets of SD3
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
]  # fmt: skip


class SD3Decoder(Decoder):
    """`SD3Transformer2DModel` conditioned on projected encoder states.

    Args:
        path: folder with `transformer/`, `vae/` and `scheduler/`; `pooled.safetensors` beside them holds the pooled
            text embedding (released UAE: that of the empty prompt), zeros where it is missing.
        resolution: side of the pictures in pixels.
        train: "nothing", "all" weights of the transformer, or a LoRA with the settings of `lora`.
        lora: settings of the adapters where `train` is "lora".
        dtype: of the transformer's frozen weights; weights trained in full are kept in float32.
        sigma_spacing: "sd3" as diffusers' pipeline (the last step before 0 is tiny), "even" between 1 and 1/steps
            before the shift, which wastes no step when there are few (ours).
    """

    def __init__(
        self,
        path: str,
        resolution: int = 1024,
        train: Literal["nothing", "all", "lora"] = "nothing",
        lora: LoRA | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        sigma_spacing: Literal["sd3", "even"] = "sd3",
    ) -> None:
        super().__init__()
        folder = resolve(path)
        weights_dtype = torch.float32 if train == "all" else to_dtype(dtype)
        self.transformer = SD3Transformer2DModel.from_pretrained(
            folder, subfolder="transformer", torch_dtype=weights_dtype
        )
        self.transformer.set_attn_processor(MaskedJointAttention())
        self.vae = _load_vae(folder).requires_grad_(False).eval()
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
        self.sigma_spacing = sigma_spacing
        pooled = folder / "pooled.safetensors"
        size = self.transformer.config.pooled_projection_dim
        self.register_buffer("pooled", load_file(pooled)["pooled"] if pooled.exists() else torch.zeros(1, size))
        self.conditioning_size = self.transformer.config.joint_attention_dim
        self.transformer.requires_grad_(train == "all")
        if train == "lora":
            add_lora(self.transformer, lora or LoRA(), ATTENTION_PROJECTIONS)
        channels = self.transformer.config.in_channels
        side = resolution // _downsampling(self.vae)
        self.latent_shape = (channels, side, side)

    def encode_images(self, images: Tensor) -> Tensor:
        vae_input = (2 * images - 1).to(self.vae.dtype)
        latents = self.vae.encode(vae_input).latent_dist.mode().float()
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        latents = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return (self.vae.decode(latents.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None) -> Tensor:
        if conditioning is None:  # one zero state: the text embedder's bias is the learned null token
            conditioning = Conditioning(
                x.new_zeros(len(x), 1, self.conditioning_size), torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
            )
        dtype = self.transformer.dtype
        sample = self.transformer(
            hidden_states=x.to(dtype),
            timestep=(sigma * self.scheduler.config.num_train_timesteps).to(x.device),
            encoder_hidden_states=conditioning.states.to(dtype),
            pooled_projections=self.pooled.to(dtype).expand(len(x), -1),
            joint_attention_kwargs={"text_mask": conditioning.mask},
        ).sample
        return sample.float()

    def schedule(self, steps: int) -> Tensor:
        shift = self.scheduler.config.shift
        if self.sigma_spacing == "sd3":
            return flow.sigma_schedule(steps, shift=shift)
        even = torch.linspace(1.0, 1 / steps, steps)
        return torch.cat([flow.shift_sigma(even, shift), torch.zeros(1)])

    def reference(self) -> AbstractContextManager[None]:
        return adapters_off(self.transformer)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = merged_state(self.transformer, dtype)
        with torch.device("meta"):
            model = SD3Transformer2DModel.from_config(self.transformer.config)
        model.load_state_dict(state, assign=True)
        model.save_pretrained(folder / "transformer")
        self.vae.save_pretrained(folder / "vae")
        self.scheduler.save_pretrained(folder / "scheduler")
        save_file({"pooled": self.pooled.cpu()}, folder / "pooled.safetensors")
        if lora_layers(self.transformer):
            adapter = {f"transformer.{k}": v.cpu() for k, v in get_peft_model_state_dict(self.transformer).items()}
            save_file(adapter, folder / "pytorch_lora_weights.safetensors")  # diffusers' load_lora_weights reads it


def _load_vae(folder: Path) -> ModelMixin:
    name = json.loads((folder / "vae" / "config.json").read_text())["_class_name"]
    kinds = {"AutoencoderKL": AutoencoderKL, "PatchCodec": PatchCodec}
    if name not in kinds:
        raise ValueError(f"{folder}/vae: class {name!r} is not one of {sorted(kinds)}")
    return kinds[name].from_pretrained(folder, subfolder="vae")


def _downsampling(vae: ModelMixin) -> int:
    return vae.config.patch_size if isinstance(vae, PatchCodec) else 2 ** (len(vae.config.block_out_channels) - 1)
