"""What decoders of diffusers share: transformer, latent codec and scheduler, conditioned on our projector.

A family (`sd3.py`, `sana.py`, ...) says which transformer that is, what it is called with, and what a LoRA adapts.
"""

from __future__ import annotations

from abc import abstractmethod
from inspect import Parameter, signature
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from diffusers import ModelMixin
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from uae_lightning.interfaces import Codec, FlowDecoder
from uae_lightning.models.activations import checkpoint_blocks
from uae_lightning.models.adapters import MergedState, add_lora, lora_layers, to_dtype
from uae_lightning.models.attention import use_backend
from uae_lightning.models.codec_folders import codec_of
from uae_lightning.models.codecs import DiffusersCodec
from uae_lightning.models.handed_on import AdaptedPart, source_of
from uae_lightning.models.library_pipelines import library_pipeline
from uae_lightning.models.loading import load
from uae_lightning.models.quantization import Quantization
from uae_lightning.models.saving import save_diffusers
from uae_lightning.models.schedules import STATIC, Spacing, linear_in_tokens, load_scheduler, schedule
from uae_lightning.models.tensor_files import stored_dtypes
from uae_lightning.models.weight_files import seal
from uae_lightning.paths import weightless
from uae_lightning.ranges import Count, checked
from uae_lightning.types import Conditioning, Learning, LoRA

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FILES = ["transformer/*", "vae/*", "scheduler/*"]  # that are wanted of a model on the hub


@checked
class DiffusersDecoder(AdaptedPart, FlowDecoder):
    """A flow-matching transformer of diffusers in the latent space of a codec.

    Args:
        path: folder or hub id in the layout of diffusers: `transformer/`, `vae/`, `scheduler/`. The model's own text
            encoders are not read: projected states of our encoder take the place of theirs.
        resolution: side of the pictures in pixels.
        codec: None is that in `vae/`, in `dtype`.
        dtype: of the frozen weights; weights trained in full are kept in float32.
        quantization: of the linear layers in the blocks, "8bit" or "4bit" (NF4) by bitsandbytes.
        attention: a backend of diffusers, such as "native" (torch's) or "flash_varlen".
        checkpoint_activations: compute the blocks' activations again in the backward pass instead of keeping them.
        compile: torch.compile of the blocks, in sampling and replay alike. It pays on a GPU.
        mask_padding: nothing attends to text padding; False as released code that attends to it.
        sigma_spacing: "sd3" as `FlowMatchEulerDiscreteScheduler` by itself (the last step before 0 is tiny), "even"
            between 1 and 1/steps before the shift, which wastes no step when there are few; None as the family's
            pipeline in diffusers has it.

    Raises:
        FileNotFoundError: `path` names no model that can be had.
        ValueError: the attention backend cannot be used, the model cannot draw at that resolution or with that codec,
            weights are damaged or incomplete, or a config is of another model or asks for what is not computed here.
    """

    kind: ClassVar[type[ModelMixin]]
    family: ClassVar[str]  # by which an export finds its code
    title: ClassVar[str]  # for people
    pipeline_class: ClassVar[str]  # of diffusers, which holds the same parts
    spacing: ClassVar[Spacing] = "even"  # of that pipeline
    targets: str | list[str]  # of a LoRA, by name
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    width: ClassVar[str] = "joint_attention_dim"  # key of the transformer's config: of the states it reads
    files: ClassVar[list[str]] = FILES
    comfyui: ClassVar[bool] = False  # its LoRA is known to ComfyUI by the names of diffusers
    obeyed: ClassVar[set[str]] = STATIC  # settings of the scheduler

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
        sigma_spacing: Literal["sd3", "even"] | None = None,
    ) -> None:
        super().__init__()
        self.source, self.dtype = source_of(path, self.files), to_dtype(dtype)
        self.folder = self.source.folder
        self.quantization, self.compiled = quantization, compile
        self.transformer = load(self.kind, self.folder, self.dtype, "transformer").requires_grad_(False)
        self.source.complete(self.transformer, self.blocks(), quantization)
        self.use_attention(attention, masked=mask_padding)
        if checkpoint_activations:
            checkpoint_blocks(self.blocks())
        if compile:
            for block in self.blocks():  # graphs serve all blocks that are alike; a whole transformer takes minutes
                block.compile()
        self.codec = codec_of(self.folder, dtype) if codec is None else codec
        self.scheduler = load_scheduler(self.folder, self.obeyed)
        self.mask_padding, self.sigma_spacing = mask_padding, sigma_spacing or self.spacing
        self.image_size, self.conditioning_size = resolution, self.transformer.config[self.width]
        self.prepare()
        self._check_codec()

    def prepare(self) -> None:
        """What a family has besides: called once all else is there."""

    # ------------------------------------------------------------------------------------------------ of a family

    @abstractmethod
    def predict(self, x: Tensor, sigma: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        """Velocity at latents x [N, C, h, w] and sigma [N], by states [N, L, D] and their mask [N, L]; None: all of
        them are read."""

    @property
    def patch_size(self) -> int:
        """Latents that a token of the transformer stands for, in each direction."""
        return self.transformer.config.patch_size

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the transformer takes."""
        return self.transformer.config.in_channels

    @property
    def most_patches(self) -> int | None:
        """On a side, at most; None: no bound is known."""
        return None

    def use_attention(self, backend: str, *, masked: bool) -> None:
        use_backend(self.transformer, backend, masked=masked)

    def blocks(self) -> list[nn.Module]:
        return self.blocks_of(self.transformer)

    def blocks_of(self, transformer: nn.Module) -> list[nn.Module]:
        return [block for name in self.block_lists for block in getattr(transformer, name)]

    # ------------------------------------------------------------------------------------------------ of them all

    def _check_codec(self) -> None:
        """Raises ValueError where codec, transformer and resolution do not fit."""
        codec = self.codec
        if codec.channels != self.latent_channels:
            raise ValueError(
                f"codec and transformer do not fit: the latents of {type(codec).__name__} have {codec.channels} "
                f"channels, the transformer takes {self.latent_channels}; give model.autoencoder.decoder.codec "
                "another, or model.autoencoder.decoder.path a transformer that was trained on it"
            )
        try:
            self.check_size(self.image_size, self.image_size)
        except ValueError as error:
            raise ValueError(f"resolution: {error}") from error

    def check_size(self, width: int, height: int) -> None:
        unit, most = self.codec.downsampling * self.patch_size, self.most_patches
        if any(side % unit or (most is not None and side > unit * most) for side in (width, height)):
            at_most = "" if most is None else f", at most {unit * most} px"
            raise ValueError(f"sides must be multiples of {unit}{at_most}, got {width} x {height}")

    def adapt(self, learning: Learning) -> None:
        """All weights of the transformer, or a LoRA on its attention where its `targets` name nothing else."""
        if learning == "all":
            self._make_exact()
        self.transformer.requires_grad_(learning == "all")
        if isinstance(learning, LoRA):
            add_lora(self.transformer, learning, self.targets, self.random_state, one_product=not self.compiled)

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
            exact = load(self.kind, self.folder, torch.float32, "transformer")
            self.source.complete(exact, self.blocks_of(exact))
            self.transformer.load_state_dict(exact.state_dict(), assign=True)
        self.dtype = torch.float32

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None) -> Tensor:
        conditioning = conditioning or self.nothing(x)
        if self.mask_padding:  # beyond the longest text there is nothing to attend to
            conditioning = conditioning.cropped()
        mask = conditioning.mask if self.mask_padding else None
        states = conditioning.states.to(self.dtype)
        return self.predict(x.to(self.dtype), sigma.to(x.device), states, mask).float()

    def nothing(self, like: Tensor) -> Conditioning:
        """The null input [N, 1, D], one zero state: the text embedder's bias is the learned null token."""
        states = like.new_zeros(len(like), 1, self.conditioning_size)
        return Conditioning(states, torch.ones(len(like), 1, dtype=torch.bool, device=like.device))

    def schedule(self, steps: int) -> Tensor:
        side = self.image_size // (self.codec.downsampling * self.patch_size)
        return schedule(self.scheduler, steps, self.sigma_spacing, self.shift(side * side, steps))

    def shift(self, tokens: int, steps: int) -> float:
        """Of the noise levels, for pictures of that many tokens of the transformer."""
        config = self.scheduler.config
        return exp(linear_in_tokens(tokens, config)) if config.use_dynamic_shifting else config.shift

    @property
    def learner(self) -> nn.Module:
        return self.transformer

    # ------------------------------------------------------------------------------------------------ files

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = MergedState(self.transformer, dtype)
        with torch.device("meta"):
            model = self.kind.from_config(self.transformer.config)
        sums = save_diffusers(model, state, folder / "transformer")
        self.codec.save(folder / "vae")
        self.scheduler.save_pretrained(folder / "scheduler")
        self.save_more(folder)
        if lora_layers(self.transformer):
            self.save_lora(folder)
        seal(folder, sums)

    def save_lora(self, folder: Path) -> None:
        adapter = {name: tensor.cpu() for name, tensor in get_peft_model_state_dict(self.transformer).items()}
        self.save_adapter(adapter, self.transformer.peft_config["default"].to_dict(), folder)

    def save_more(self, folder: Path) -> None:
        """What a family has besides."""

    @classmethod
    def save_adapter(cls, state: dict[str, Tensor], config: dict[str, Any], folder: Path) -> None:
        """A LoRA as diffusers has it, `config` beside the tensors: they do not tell alpha.

        Args:
            state: by the names of layers in the transformer.
            config: of peft.
        """
        config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        cls.library_pipeline().save_lora_weights(
            folder, transformer_lora_layers=state, transformer_lora_adapter_metadata=config
        )

    @classmethod
    def library_pipeline(cls) -> type[DiffusionPipeline]:
        return library_pipeline(cls.pipeline_class)

    def pipeline(self) -> DiffusionPipeline:
        """That of diffusers with these parts, its text encoders absent."""
        kind = self.library_pipeline()
        absent = [name for name, one in signature(kind).parameters.items() if one.default is Parameter.empty]
        vae = self.codec.pipeline_model() if isinstance(self.codec, DiffusersCodec) else None
        parts = {"transformer": self.transformer, "vae": vae, "scheduler": self.scheduler}
        return kind(**(dict.fromkeys(absent) | parts))
