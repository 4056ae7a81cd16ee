"""The auto-encoder that everything here is about: picture -> caption -> picture.

A stage trains it, a suite measures it, a command uses it; it knows none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from uae_lightning.interfaces import Component, Decoder, DrawingEncoder, Encoder, FlowDecoder, Projector
from uae_lightning.parallel.sharding import whole
from uae_lightning.ranges import Count, NonNegative, checked
from uae_lightning.types import Captions, Conditioning, Sampling


@checked
@dataclass
class Captioning:
    """How captions are sampled.

    Args:
        temperature: 0 is greedy.
        max_new_tokens: longer captions are cut there.
    """

    temperature: NonNegative = 1.0
    max_new_tokens: Count = 512


class AutoEncoder(nn.Module):
    """The parts, and how captions and pictures are sampled.

    Args:
        encoder: reads and writes captions; None is enough for what comes from a cache.
        projector, decoder: draw what the encoder has read.
        captioning, sampling: of captions and pictures, in training and afterwards.
        condition_on: "adapted" reads captions with the encoder as it is, "frozen" with its adapters off.
        negative_prompt: read in place of the caption for the guidance branch; None is the decoder's own null input.

    Raises:
        ValueError: projector and encoder or decoder differ in width, or there is nobody to read the negative prompt.
    """

    def __init__(
        self,
        encoder: Encoder | None,
        projector: Projector,
        decoder: Decoder,
        captioning: Captioning = Captioning(),  # noqa: B008  frozen by use: nobody writes to it
        sampling: Sampling = Sampling(),  # noqa: B008
        condition_on: Literal["adapted", "frozen"] = "adapted",
        negative_prompt: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.decoder = encoder, projector, decoder
        self.captioning, self.sampling = captioning, sampling
        self.condition_on, self.negative_prompt = condition_on, negative_prompt
        self._check_widths()
        if encoder is None and negative_prompt is not None:
            raise ValueError(
                "negative_prompt is read by the encoder, and there is none: set model.autoencoder.negative_prompt to "
                "null (the decoder's own null input; training is the same), or give model.autoencoder.encoder"
            )

    def _check_widths(self) -> None:
        size = self.encoder.hidden_size if self.encoder is not None else self.projector.input_size
        if size != (wanted := self.projector.input_size):
            raise ValueError(
                f"encoder and projector do not fit: the encoder's states have {size} channels, the projector takes "
                f"{wanted}; set model.autoencoder.projector.input_size to {size}"
            )
        if (size := self.projector.output_size) != (wanted := self.decoder.conditioning_size):
            raise ValueError(
                f"projector and decoder do not fit: the projector gives {size} channels, the decoder takes "
                f"{wanted}; set model.autoencoder.projector.output_size to {wanted}"
            )

    @property
    def parts(self) -> dict[str, Component]:
        """Those there are, by name."""
        parts = {"encoder": self.encoder, "projector": self.projector, "decoder": self.decoder}
        return {name: part for name, part in parts.items() if part is not None}

    def owners(self, names: Iterable[str]) -> tuple[str, ...]:
        """Of parts that a stage trained, those that hold their weights and hand them on."""
        return tuple(names)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # ------------------------------------------------------------------------------------------------ four verbs

    def write(self, images: Tensor | Any, samples: int = 1, seed: int = 0) -> Captions:
        """`samples` captions of each picture [B, 3, H, W], or of what `encoder.see` made of it."""
        with whole(self.reader):  # ranks need not wait for each other's tokens
            return self.reader.generate(images, samples=samples, seed=seed, **vars(self.captioning))

    def rewrite(self, texts: list[str], samples: int = 1, seed: int = 0, how: Captioning | None = None) -> Captions:
        """`samples` complete captions of each of B terse prompts, to be drawn in their place.

        Args:
            how: they are sampled; None is as captions of pictures.
        """
        with whole(self.reader):
            return self.reader.rewrite(texts, samples=samples, seed=seed, **vars(how or self.captioning))

    def read(self, texts: list[str], *, into_encoder: bool = False, reference: Tensor | None = None) -> Conditioning:
        """Captions, read and projected: N -> [N, L, D]. Gradients reach the projector, and where it is asked for what
        the encoder is trained in: the states of the words are soft, the words themselves are given.

        Args:
            reference: pictures [N, 3, H, W] in [0, 1] whose visual features are drawn from beside the text.
        """
        with torch.set_grad_enabled(into_encoder and torch.is_grad_enabled()):
            states, mask = self.embed(texts)
        read = self.projector.conditioning(states, mask)
        return read if reference is None else replace(read, visual=self.visual_features(reference))

    def visual_features(self, images: Tensor) -> Tensor:
        """Of pictures [N, 3, H, W], for the decoder: [N, K, E].

        Raises:
            ValueError: the decoder does not look at them.
        """
        if not self.decoder.reads_visual:
            raise ValueError(
                f"{type(self.decoder).__name__} draws from text alone: a reference picture needs a decoder that was "
                "trained with one, such as uae_lightning.models.visual_decoder.VisualSD3Decoder "
                "(conf/scenes/bridge_pretrain.yaml), or SD3.5 with an IP-Adapter (conf/real/ip_adapter.yaml)"
            )
        seen = self.decoder.look(images)
        return self.reader.visual_features(images) if seen is None else seen

    @torch.no_grad()
    def draw(self, conditioning: Conditioning, noise: Tensor) -> Tensor:
        """From noise [N, C, h, w] to pictures [N, 3, H, W] in [0, 1]."""
        return self.decoder.decode_latents(self.draw_latents(conditioning, noise))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, seed: int = 0) -> tuple[Captions, Tensor]:
        """Picture -> caption -> picture: [B, 3, H, W] in [0, 1] both ways, the same for the same seed."""
        captions = self.write(images, 1, seed)
        return captions, self.draw(self.read(captions.texts), self.noise(len(images), seed))

    @torch.no_grad()
    def generate(
        self, texts: list[str], seed: int = 0, reference: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """N texts -> pictures [N, 3, H, W] in [0, 1], the same for the same seed; `reference` as in `read`.

        `size` is (width, height) in pixels, of None the decoder's; the noise levels are always those of its own size.

        Raises:
            ValueError: the decoder draws none of that size.
        """
        return self.draw(self.read(texts, reference=reference), self.noise(len(texts), seed, size))

    # ------------------------------------------------------------------------------------------------ what they are of

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return self.decoder.image_size

    @property
    def reader(self) -> Encoder:
        """The encoder; a ValueError where there is none."""
        if self.encoder is None:
            raise ValueError(
                "there is no encoder to read or write captions: `encoder: null` is for batches from a cache (data: "
                "uae_lightning.data.cached.CachedData, without validation_path); give model.autoencoder.encoder"
            )
        return self.encoder

    @property
    def flow_decoder(self) -> FlowDecoder:
        """The decoder; a ValueError where it is none by flow matching."""
        return self.decoder.by_flow()

    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Captions, read alone by the encoder: last-layer states [N, L, hidden_size] and mask [N, L]."""
        with self.reader.reference() if self.condition_on == "frozen" else nullcontext():
            return self.reader.embed(texts)

    def unconditional(self, size: int) -> Conditioning | None:
        """What the guidance branch reads; None: nothing is guided, or by the decoder's own null input."""
        if self.negative_prompt is None or self.sampling.guidance == 1:
            return None
        return self.read([self.negative_prompt]).repeat(size)

    @torch.no_grad()
    def draw_latents(self, conditioning: Conditioning, noise: Tensor) -> Tensor:
        """From noise to clean latents, both [N, C, h, w]."""
        return self.decoder.draw(conditioning, noise, self.sampling, self.unconditional(len(noise)))

    @torch.no_grad()
    def redraw_latents(self, latents: Tensor, level: float, conditioning: Conditioning, noise: Tensor) -> Tensor:
        """Clean latents [N, C, h, w] once more, from a noise level in (0, 1] on; 1 is `draw_latents`."""
        unconditional = self.unconditional(len(noise))
        return self.decoder.redraw(latents, level, conditioning, noise, self.sampling, unconditional)

    def noise(self, pictures: int, seed: int, size: tuple[int, int] | None = None) -> Tensor:
        """[pictures, C, h, w] to draw from, the same on every device; `size` as in `generate`."""
        width, height = size or (self.image_size, self.image_size)
        self.decoder.check_size(width, height)
        shape = self.decoder.codec.latent_shape(width, height)
        return torch.randn(pictures, *shape, generator=torch.Generator().manual_seed(seed)).to(self.device)


class OneBackbone(AutoEncoder):
    """One model that reads and draws (UAE's second one is Janus-Pro): the encoder owns its weights, projector and
    decoder are views of it. So they are adapted, optimized, kept and handed on once, under the encoder's name,
    whichever of both a stage trains.

    Args:
        encoder: that draws, such as uae_lightning.models.janus.JanusEncoder.
        captioning, sampling, negative_prompt: as of `AutoEncoder`.
        condition_on: "adapted" draws with the backbone as it is, "frozen" with its adapters off.
    """

    def __init__(
        self,
        encoder: DrawingEncoder,
        captioning: Captioning = Captioning(),  # noqa: B008  frozen by use: nobody writes to it
        sampling: Sampling = Sampling(),  # noqa: B008
        condition_on: Literal["adapted", "frozen"] = "adapted",
        negative_prompt: str | None = None,
    ) -> None:
        super().__init__(encoder, *encoder.halves(), captioning, sampling, condition_on, negative_prompt)

    def owners(self, names: Iterable[str]) -> tuple[str, ...]:
        return ("encoder",)

    @torch.no_grad()
    def draw_latents(self, conditioning: Conditioning, noise: Tensor) -> Tensor:
        with self.reader.reference() if self.condition_on == "frozen" else nullcontext():
            return super().draw_latents(conditioning, noise)
