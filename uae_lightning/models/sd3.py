"""SD3 / SD3.5 as the decoder: transformer, latent codec and scheduler from a folder in the layout of diffusers."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from inspect import signature
from pathlib import Path
from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from uae_lightning.algorithms import flow
from uae_lightning.files import replacing
from uae_lightning.interfaces import Codec, FlowDecoder
from uae_lightning.models.activations import checkpoint_blocks
from uae_lightning.models.adapters import MergedState, adapters_of, adapters_off, add_lora, lora_layers, to_dtype
from uae_lightning.models.attention import use_masked_attention
from uae_lightning.models.codecs import codec_of
from uae_lightning.models.handed_on import save_adapter, source_of
from uae_lightning.models.loading import check_texts, load, read_object, reading
from uae_lightning.models.quantization import Quantization, quantize_linears
from uae_lightning.models.saving import save_diffusers
from uae_lightning.models.tensor_files import stored_dtypes
from uae_lightning.models.weight_files import seal, verify
from uae_lightning.paths import weightless
from uae_lightning.ranges import Count, checked
from uae_lightning.types import Conditioning, Learning, LoRA

TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # the CLIPs; T5 is not used
FOLDERS = ("transformer", "vae", "scheduler", *TEXT_ENCODERS, *TEXT_ENCODERS.values())
FILES = ["pooled.safetensors", *(f"{folder}/*" for folder in FOLDERS)]  # that are wanted of a model on the hub

# of scheduler_config.json: what `schedule` uses, and what has a meaning under dynamic shifting alone
OBEYED = {"shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"}
ATTENTION_PROJECTIONS = [  # Flow-GRPO code: LoRA targets of SD3
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
]  # fmt: skip


@checked
class SD3Decoder(FlowDecoder):
    """`SD3Transformer2DModel` conditioned on projected encoder states.

    Args:
        path: folder or hub id in the layout of diffusers: `transformer/`, `vae/`, `scheduler/`, and the pooled text
            embedding of the empty prompt (released UAE) in `pooled.safetensors`. Where that file is missing it is
            computed once from the CLIP text encoders and kept there; where they are missing too, it is zero.
        resolution: side of the pictures in pixels.
        codec: None is that in `vae/`, in `dtype`.
        dtype: of the frozen weights; weights trained in full are kept in float32.
        quantization: of the linear layers in the blocks, "8bit" or "4bit" (NF4) by bitsandbytes.
        attention: a backend of diffusers, such as "native" (torch's) or "flash_varlen".
        checkpoint_activations: compute the blocks' activations again in the backward pass instead of keeping them.
        compile: torch.compile of the blocks, in sampling and replay alike. It pays on a GPU.
        mask_padding: nothing attends to text padding; False as the released UAE, where pictures depend on it.
        sigma_spacing: "sd3" as diffusers' pipeline (the last step before 0 is tiny), "even" between 1 and 1/steps
            before the shift, which wastes no step when there are few (ours).

    Raises:
        FileNotFoundError: `path` names no model that can be had.
        ValueError: the attention backend cannot be used, the model cannot draw at that resolution or with that codec,
            weights are damaged or incomplete, or a config is of another model or asks for what is not computed here.
    """

    def __init__(
        self,
        path: str,
        resolution: Count = 1024,
        codec: Codec | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        quantization: Quantization = "none",
        attention: str = "native",
        checkpoint_activations: bool = False,
        compile: bool = False,
        mask_padding: bool = True,
        sigma_spacing: Literal["sd3", "even"] = "sd3",
    ) -> None:
        super().__init__()
        self.source, self.dtype = source_of(path, FILES), to_dtype(dtype)
        self.folder = self.source.folder
        self.quantization, self.compiled = quantization, compile
        self.transformer = load(SD3Transformer2DModel, self.folder, self.dtype, "transformer").requires_grad_(False)
        self.source.merge_into(self.transformer, self.blocks())
        use_masked_attention(self.transformer, attention, masked=mask_padding)
        quantize_linears(self.transformer, self.blocks(), quantization)
        if checkpoint_activations:
            checkpoint_blocks(self.blocks())
        if compile:
            for block in self.blocks():  # graphs serve all blocks that are alike; a whole transformer takes minutes
                block.compile()
        self.codec = codec_of(self.folder, dtype) if codec is None else codec
        self.scheduler = load_scheduler(self.folder)
        self.mask_padding, self.sigma_spacing = mask_padding, sigma_spacing
        config = self.transformer.config
        self.register_buffer("pooled", empty_prompt_embedding(self.folder, config.pooled_projection_dim))
        self.image_size, self.conditioning_size = resolution, config.joint_attention_dim
        self._check_codec()

    def _check_codec(self) -> None:
        """Raises ValueError where codec, transformer and resolution do not fit."""
        config, codec = self.transformer.config, self.codec
        if codec.channels != config.in_channels:
            raise ValueError(
                f"codec and transformer do not fit: the latents of {type(codec).__name__} have {codec.channels} "
                f"channels, the transformer takes {config.in_channels}; give model.autoencoder.decoder.codec another, "
                "or model.autoencoder.decoder.path a transformer that was trained on it"
            )
        unit, most = codec.downsampling * config.patch_size, config.pos_embed_max_size
        if self.image_size % unit or self.image_size > unit * most:
            raise ValueError(
                f"resolution must be a multiple of {unit}, at most {unit * most} px, got {self.image_size}"
            )

    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.transformer_blocks)

    def adapt(self, learning: Learning) -> None:
        """All weights of the transformer, or a LoRA on its attention where its `targets` name nothing else."""
        if learning == "all":
            self._make_exact()
        self.transformer.requires_grad_(learning == "all")
        if isinstance(learning, LoRA):
            targets, one_product = ATTENTION_PROJECTIONS, not self.compiled
            add_lora(self.transformer, learning, targets, self.random_state, one_product=one_product)

    def _make_exact(self) -> None:
        """Takes the transformer to float32, from the files where its weights were rounded."""
        if self.quantization != "none":
            raise ValueError(
                f"quantization: {self.quantization} is for frozen weights: set model.autoencoder.decoder.quantization "
                "to none, or model.init_args.learn.decoder to a LoRA"
            )
        if self.dtype == torch.float32:
            return
        if weightless() or (stored_dtypes(self.folder / "transformer") == {self.dtype} and not self.source.adapters):
            nn.Module.to(self.transformer, torch.float32)  # nothing was rounded: no second reading
        else:
            exact = load(SD3Transformer2DModel, self.folder, torch.float32, "transformer")
            self.source.merge_into(exact, list(exact.transformer_blocks))
            self.transformer.load_state_dict(exact.state_dict(), assign=True)
        self.dtype = torch.float32

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None) -> Tensor:
        if conditioning is None:  # one zero state: the text embedder's bias is the learned null token
            conditioning = Conditioning(
                x.new_zeros(len(x), 1, self.conditioning_size), torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
            )
        if self.mask_padding:  # beyond the longest text there is nothing to attend to
            conditioning = conditioning.cropped()
        dtype = self.dtype
        sample = self.transformer(
            hidden_states=x.to(dtype),
            timestep=(sigma * self.scheduler.config.num_train_timesteps).to(x.device),
            encoder_hidden_states=conditioning.states.to(dtype),
            pooled_projections=self.pooled.to(dtype).expand(len(x), -1),
            joint_attention_kwargs={"text_mask": conditioning.mask if self.mask_padding else None},
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
        state = MergedState(self.transformer, dtype)
        with torch.device("meta"):
            model = SD3Transformer2DModel.from_config(self.transformer.config)
        sums = save_diffusers(model, state, folder / "transformer")
        self.codec.save(folder / "vae")
        self.scheduler.save_pretrained(folder / "scheduler")
        save_file({"pooled": self.pooled.cpu()}, folder / "pooled.safetensors")
        if lora_layers(self.transformer):
            self._save_lora(folder)
        seal(folder, sums)

    def hand_on(self, folder: Path) -> None:
        if not lora_layers(self.transformer):
            return self.save(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_lora(folder)
        save_adapter(folder, self.transformer, self.source, self.quantization)

    def handed_on(self) -> list[nn.Parameter]:
        return adapters_of(self.transformer) or list(self.parameters())

    def _save_lora(self, folder: Path) -> None:
        from diffusers import StableDiffusion3Pipeline  # takes seconds, and complains about torchvision

        adapter = {name: tensor.cpu() for name, tensor in get_peft_model_state_dict(self.transformer).items()}
        config = self.transformer.peft_config["default"].to_dict()  # alpha, which the tensors do not tell
        config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        StableDiffusion3Pipeline.save_lora_weights(
            folder, transformer_lora_layers=adapter, transformer_lora_adapter_metadata=config
        )


def load_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """Of its settings `schedule` obeys `shift`; others that would change the noise levels are refused.

    Raises:
        FileNotFoundError: there is no scheduler_config.json.
        ValueError: it asks for another class, or for what is not computed here.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no scheduler in {folder}: {file} is missing, copy it from the model")
    settings = read_object(file)
    name = settings.pop("_class_name", FlowMatchEulerDiscreteScheduler.__name__)
    if name != FlowMatchEulerDiscreteScheduler.__name__:
        raise ValueError(f"{file}: {name} is not known here, only FlowMatchEulerDiscreteScheduler")
    defaults = {key: field.default for key, field in signature(FlowMatchEulerDiscreteScheduler).parameters.items()}
    others = {key: value for key, value in settings.items() if key not in OBEYED and not key.startswith("_")}
    if refused := {key: value for key, value in others.items() if key not in defaults or value != defaults[key]}:
        listed = ", ".join(f"{key}: {json.dumps(value)}" for key, value in refused.items())
        raise ValueError(f"{file} asks for {listed}, which is not computed here: remove it, and set `shift` instead")
    shift = settings.get("shift", defaults["shift"])
    if not isinstance(shift, int | float) or not 0 < shift < float("inf"):
        raise ValueError(f"{file}: shift must be a positive number, got {json.dumps(shift)}")
    return FlowMatchEulerDiscreteScheduler(shift=shift)


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
