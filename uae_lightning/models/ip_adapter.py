"""SD3.5 with a published IP-Adapter: it draws from a reference picture beside the text, and nothing has to be trained.

The format is that of InstantX's adapter for SD3.5-large (1.6 GB, Stability AI Community licence), which diffusers
reads; resampler and attention layers are diffusers' modules. They look at features of a vision tower of their own
(SigLIP), by the time step, and with the picture's keys beside those of the features. What diffusers' layer lacks is the
mask for text padding, hence the processor here.

N pictures   K places   E width of a feature   Q queries of the resampler   D width of the transformer
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from torch import Tensor, nn
from transformers import AutoModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from uae_lightning.models.attention import MaskedJointAttention
from uae_lightning.models.loading import load, reading
from uae_lightning.models.resizing import normalized, resize
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.paths import resolve, weightless
from uae_lightning.ranges import NonNegative, checked
from uae_lightning.types import Conditioning

ADAPTER = "guiyrt/InstantX-SD3.5-Large-IP-Adapter-diffusers"
SIGLIP = "google/siglip-so400m-patch14-384"
FILES = ("ip-adapter.safetensors", "ip-adapter.bin")  # looked for in a folder, in that order
VISION_FILES = ["config.json", "preprocessor_config.json", "*.safetensors"]
TIME = 1280  # width of the published adapter's embedding of the time step


class IPAdapterAttention(MaskedJointAttention):
    """Joint attention, and beside it the picture's queries on keys of picture and features together.

    Args:
        layer: of diffusers, whose weights the decoder holds.
        scale: of what is added.
    """

    def __init__(self, layer: SD3IPAdapterJointAttnProcessor2_0, scale: float) -> None:
        self.layer, self.scale = layer, scale

    def beside(self, query: Tensor, own: tuple[Tensor, Tensor, Tensor], visual: Any) -> Tensor:
        (own_query, own_key, own_value), (states, time) = own, visual
        layer, heads = self.layer, lambda x: x.unflatten(-1, (own_key.shape[1], -1)).transpose(1, 2)
        states = layer.norm_ip(states, temb=time)
        key = torch.cat([layer.norm_k(own_key), layer.norm_ip_k(heads(layer.to_k_ip(states)))], 2)
        value = torch.cat([own_value, heads(layer.to_v_ip(states))], 2)
        return self.scale * self.attend(layer.norm_q(own_query).to(query), key.to(query), value.to(query), None)


@checked
class IPAdapterSD3Decoder(SD3Decoder):
    """`SD3Decoder` with an IP-Adapter, frozen, that a reference picture is drawn through (`uae generate --reference`).
    Without one it draws the picture of the text alone, to the bit.

    Args:
        path: of the decoder; the adapter must have been made for a transformer of these sizes.
        adapter: file in the format that `StableDiffusion3Pipeline.load_ip_adapter` reads, a folder with such a file
            (ip-adapter.safetensors or ip-adapter.bin), or a hub id.
        vision: folder or hub id of the SigLIP that the adapter was trained on.
        adapter_scale: of what it adds (diffusers: .5).
        **options: of `SD3Decoder`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no IP-Adapter for SD3, or not for this transformer or this SigLIP; and what `SD3Decoder`
            raises.
    """

    reads_visual = True

    def __init__(
        self,
        path: str,
        adapter: str = ADAPTER,
        vision: str = SIGLIP,
        adapter_scale: NonNegative = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self.scale = float(adapter_scale)
        self.image_proj, layers = self._empty_adapter() if weightless() else self._read_adapter(file_of(adapter))
        self.adapter = nn.ModuleList(layers)
        self._see_by(vision)
        for part in (self.image_proj, self.adapter, self.vision):
            nn.Module.to(part.requires_grad_(False).eval(), self.dtype)
        self.given: Tensor | None = None  # features of the call of the transformer that is under way
        self.transformer.register_forward_pre_hook(self._hand_on, with_kwargs=True)

    # ------------------------------------------------------------------------------------------------ loading

    def _empty_adapter(self) -> tuple[nn.Module, list[nn.Module]]:
        """One of the published sizes, for a plan."""
        config = self.transformer.config
        width = config.num_attention_heads * config.attention_head_dim
        layers = [
            SD3IPAdapterJointAttnProcessor2_0(width, width, config.attention_head_dim, TIME)
            for _ in self.transformer.attn_processors
        ]
        return IPAdapterTimeImageProjection(output_dim=width), layers

    def _read_adapter(self, file: Path) -> tuple[nn.Module, list[nn.Module]]:
        """Resampler, and a layer for each attention, as diffusers reads them into a pipeline."""
        ours, transformer = self.transformer.attn_processors, self.transformer
        try:
            with quiet_loading():
                self.pipeline().load_ip_adapter(
                    str(file.parent), weight_name=file.name, image_encoder_folder=None, low_cpu_mem_usage=False
                )
            image_proj, transformer.image_proj = transformer.image_proj, None  # it has attention of its own
            layers = list(transformer.attn_processors.values())
        except Exception as error:  # a pickle that is none, or keys, sizes and counts of another adapter: of all kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(
                f"{file} is no IP-Adapter for this SD3 ({len(ours)} attention layers): name one in the format of "
                f"{ADAPTER}, and the decoder that it was made for, under model.autoencoder.decoder ({reason})"
            ) from error
        backends = [getattr(processor, "_attention_backend", None) for processor in ours.values()]
        processors = {name: IPAdapterAttention(layer, self.scale) for name, layer in zip(ours, layers, strict=True)}
        for processor, backend in zip(processors.values(), backends, strict=True):
            processor._attention_backend = backend
        transformer.set_attn_processor(processors)
        return image_proj, layers

    def _see_by(self, vision: str) -> None:
        folder = resolve(vision, VISION_FILES)
        model = load(AutoModel, folder, self.dtype, unread=r"^(text_model|logit_)")
        self.vision = getattr(model, "vision_model", model)  # a SigLIP has a text tower, too
        with reading("preprocessor", folder):
            self.preprocessor = SiglipImageProcessorPil.from_pretrained(folder)
        width, wanted = self.vision.config.hidden_size, self.image_proj.proj_in.in_features
        if width != wanted:
            raise ValueError(
                f"the adapter looks at features of {wanted} numbers, and those of {vision} have {width}: set "
                f"model.autoencoder.decoder.vision to the model it was trained on (published: {SIGLIP})"
            )

    # ------------------------------------------------------------------------------------------------ drawing

    @torch.no_grad()
    def look(self, images: Tensor) -> Tensor:
        """SigLIP's last states but one, as diffusers' pipeline has them: [N, K, E]."""
        size = self.preprocessor.size
        images = resize(images, (size["height"], size["width"]))
        pixels = normalized(images, self.preprocessor).to(self.vision.dtype)
        return self.vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-2].float()

    def _hand_on(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The transformer passes to its blocks what the resampler makes of the features at this time step."""
        if self.given is None or self.scale == 0:
            return args, kwargs
        visual = self.image_proj(self.given.to(self.image_proj.latents.dtype), kwargs["timestep"])
        return args, kwargs | {"joint_attention_kwargs": kwargs["joint_attention_kwargs"] | {"visual": visual}}

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None) -> Tensor:
        self.given = None if conditioning is None else conditioning.visual
        return super().velocity(x, sigma, conditioning)

    def ode_step(
        self,
        x: Tensor,
        sigma: Tensor,
        after: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None,
        guidance: float,
    ) -> Tensor:
        """Beside a reference the guidance branch sees features of zeros, as in diffusers; they change what is drawn."""
        if conditioning.visual is not None:
            unconditional = replace(unconditional or self.nothing(x), visual=torch.zeros_like(conditioning.visual))
        return super().ode_step(x, sigma, after, conditioning, unconditional, guidance)


def file_of(adapter: str) -> Path:
    """The file that `adapter` names.

    Raises:
        FileNotFoundError: there is none.
    """
    place = resolve(adapter, list(FILES))
    if place.is_file():
        return place
    for name in FILES:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(
        f"{place} holds no IP-Adapter ({' or '.join(FILES)}): name the file, its folder or a hub id such as {ADAPTER} "
        "under model.autoencoder.decoder.adapter"
    )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """diffusers warns that there is no image encoder in its pipeline; ours is read beside it."""
    logger = logging.getLogger("diffusers.loaders.ip_adapter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
