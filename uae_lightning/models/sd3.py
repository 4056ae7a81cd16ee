"""SD3 / SD3.5 as the decoder: transformer, latent codec and scheduler from a folder in the layout of diffusers."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from uae_lightning.files import replacing
from uae_lightning.models.attention import use_masked_attention
from uae_lightning.models.diffusers_decoder import DiffusersDecoder
from uae_lightning.models.loading import check_texts, load, reading
from uae_lightning.models.weight_files import verify
from uae_lightning.paths import weightless

TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # the CLIPs; T5 is not used
FOLDERS = ("transformer", "vae", "scheduler", *TEXT_ENCODERS, *TEXT_ENCODERS.values())
FILES = ["pooled.safetensors", *(f"{folder}/*" for folder in FOLDERS)]  # that are wanted of a model on the hub
ATTENTION_PROJECTIONS = [  # Flow-GRPO code: LoRA targets of SD3
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
]  # fmt: skip


class SD3Decoder(DiffusersDecoder):
    """`SD3Transformer2DModel`; arguments as of `DiffusersDecoder`.

    Beside the rest `path` holds the pooled text embedding of the empty prompt (released UAE) in `pooled.safetensors`.
    Where that file is missing it is computed once from the CLIP text encoders and kept there; where they are missing
    too, it is zero.
    """

    family, title = "sd3", "SD3"
    kind, pipeline_class, spacing = SD3Transformer2DModel, "StableDiffusion3Pipeline", "sd3"
    targets, files, comfyui = ATTENTION_PROJECTIONS, FILES, True

    def prepare(self) -> None:
        size = self.transformer.config.pooled_projection_dim
        self.register_buffer("pooled", empty_prompt_embedding(self.folder, size))

    @property
    def most_patches(self) -> int:
        return self.transformer.config.pos_embed_max_size

    def use_attention(self, backend: str, *, masked: bool) -> None:
        use_masked_attention(self.transformer, backend, masked=masked)

    def predict(self, x: Tensor, sigma: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=sigma * self.scheduler.config.num_train_timesteps,
            encoder_hidden_states=states,
            pooled_projections=self.pooled.to(x.dtype).expand(len(x), -1),
            joint_attention_kwargs={"text_mask": mask},
        ).sample

    def save_more(self, folder: Path) -> None:
        save_file({"pooled": self.pooled.cpu()}, folder / "pooled.safetensors")


def empty_prompt_embedding(folder: Path, size: int) -> Tensor:
    """Pooled text embedding [1, size] of the empty prompt: read, or computed and written for the next time."""
    file = folder / "pooled.safetensors"
    if file.exists() and not weightless():
        verify(folder, file.name)
        try:
            return load_file(file)["pooled"].reshape(1, size)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"{file} holds no pooled embedding of {size} numbers ({error}): delete it, and it is computed again "
                "from the CLIP text encoders, or is zero where there are none"
            ) from error
    if weightless() or not all((folder / part).is_dir() for part in TEXT_ENCODERS):
        return torch.zeros(1, size)
    pooled = torch.cat([_empty_prompt(folder, *part) for part in TEXT_ENCODERS.items()], 1)
    try:
        with replacing(file) as partial:
            partial.write_bytes(save({"pooled": pooled}))  # `save_file` would make it unreadable for others
    except OSError:  # a folder that nobody may write to: computed each time
        pass
    return pooled


@torch.no_grad()
def _empty_prompt(folder: Path, text_encoder: str, tokenizer: str) -> Tensor:
    """[1, D] of one CLIP text encoder, as diffusers' SD3 pipeline has it."""
    model = load(CLIPTextModelWithProjection, folder, torch.float32, text_encoder)
    check_texts(folder / tokenizer)
    with reading("tokenizer", folder / tokenizer):
        words = CLIPTokenizer.from_pretrained(folder, subfolder=tokenizer)
    inputs = words("", padding="max_length", max_length=words.model_max_length, truncation=True, return_tensors="pt")
    return model(inputs["input_ids"]).text_embeds
