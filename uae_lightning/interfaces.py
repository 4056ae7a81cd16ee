"""What a stage asks of its parts. Stages know these classes only; YAML swaps any of them by `class_path`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.digest import digest_of, dtypes
from uae_lightning.algorithms.token_logprobs import entropy, gather_logprobs
from uae_lightning.types import Captions, Conditioning, Learning, RewardInput, RewardOutput, Sampling

PROBE = 'Two red cats (left), 17 dogs; a sign: "caf\u00e9".'  # by its tokens a tokenizer is known
ROWS_TOGETHER = 16  # in a forward pass of a decoder that is trained, at least


class Component(nn.Module, ABC):
    """A part with weights of its own that one stage can hand to the next."""

    entered_by_call = False  # every way into the part is a call of the part itself

    def __init__(self) -> None:
        super().__init__()
        self.random_state = torch.get_rng_state()  # adapters are drawn from it, whatever was built in between

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the part in the format of its library (safetensors), adapters merged; its class can start from it."""

    def adapt(self, learning: Learning) -> None:
        """Makes trainable what a stage trains of the part, and nothing else; it is called before weights are sharded.

        Raises:
            ValueError: the part cannot learn in this way.
        """
        if learning not in ("all", None):
            raise ValueError(f"{type(self).__name__} has no adapters, it learns as a whole or not at all: all or null")
        self.requires_grad_(learning == "all")

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the adapters are off: the part is the one the stage started from."""
        return nullcontext()

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        """What its outputs depend on, name -> value; a cache is stale where one differs.

        Args:
            adapters: are read too.
        """
        return {"weights": digest_of(self, adapters), "dtype": dtypes(self, adapters)}

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks: units of sharding, of activation checkpointing and of compilation."""
        return []


class Encoder(Component):
    """Vision-language model: image -> caption, and caption -> hidden states."""

    hidden_size: int
    control_texts: int = 0  # texts read by `embed` that held control tokens, which are text there

    def see(self, images: Tensor) -> Tensor | Any:
        """What is computed once of images [B, 3, H, W] and given to the next three methods in their place; can be
        indexed by rows. For a frozen vision tower its features; the images themselves where there is none."""
        return images

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        return {
            "encoder": type(self).__name__,
            "encoder weights": digest_of(self, adapters),
            "encoder dtype and quantization": dtypes(self, adapters),
            "tokenizer": str(self.tokenize([PROBE]).tokens[0].tolist()),
        }

    @abstractmethod
    def generate(self, images: Tensor, *, samples: int, temperature: float, max_new_tokens: int, seed: int) -> Captions:
        """`samples` captions of each image [B, 3, H, W]; N = B * samples. Temperature 0 is greedy.

        The same seed gives the same captions and leaves the global random state as it was.
        """

    @abstractmethod
    def token_logits(self, images: Tensor, captions: Captions) -> Tensor:
        """Teacher-forced logits [N, T, V] of captions of images [B, 3, H, W]; position t predicts tokens[:, t].

        N is a multiple of B, the captions of an image stand next to each other.
        """

    def token_logprobs(self, images: Tensor, captions: Captions, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability, and entropy in nats (no gradient), at each token of the captions: [N, T] float32 each."""
        logits = self.token_logits(images, captions)
        with torch.no_grad():
            entropies = entropy(logits, temperature=temperature)
        return gather_logprobs(logits, captions.tokens, temperature=temperature), entropies

    @abstractmethod
    def tokenize(self, texts: list[str], *, ended: bool = False) -> Captions:
        """Texts as captions that `token_logits` can score: right-padded, with an end-of-text token only where `ended`
        asks for it."""

    @abstractmethod
    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Last-layer states of texts read alone, without an image: ([N, L, hidden_size], mask [N, L] bool)."""


class Projector(Component):
    """Encoder states [N, L, hidden_size] -> conditioning states [N, L, D]."""

    input_size: int  # hidden_size of the encoder it fits
    output_size: int  # conditioning_size of the decoder it fits
    entered_by_call = True

    @abstractmethod
    def forward(self, states: Tensor) -> Tensor: ...


class Codec(Component):
    """Pictures <-> latents. Scale and shift of the latents are its own business."""

    channels: int  # C
    downsampling: int  # pixels that a latent stands for, in each direction

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        """(C, h, w) of pictures of that many pixels."""
        return self.channels, side // self.downsampling, side // self.downsampling

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> latents [N, C, h, w], float32."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> images [N, 3, H, W] in [0, 1], float32."""

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        return {
            "VAE": type(self).__name__,
            "VAE weights": digest_of(self, adapters),
            "VAE dtype": dtypes(self, adapters),
        }


class Decoder(Component):
    """Image generator in the latent space of its codec, which no stage trains."""

    codec: Codec
    image_size: int  # side of the pictures in pixels
    conditioning_size: int  # D
    mask_padding: bool = True  # padding of the conditioning does not reach the picture

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.codec.latent_shape(self.image_size)

    def encode_images(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> latents [N, C, h, w]."""
        return self.codec.encode(images)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> images [N, 3, H, W] in [0, 1]."""
        return self.codec.decode(latents)

    def adapt(self, learning: Learning) -> None:
        super().adapt(learning)
        self.codec.requires_grad_(False)

    def by_flow(self) -> FlowDecoder:
        """The decoder, for who needs one by flow matching; a ValueError where it is none."""
        raise ValueError(
            f"{type(self).__name__} is no decoder by flow matching: give model.autoencoder.decoder a subclass of "
            "uae_lightning.interfaces.FlowDecoder, or take another stage"
        )

    @abstractmethod
    def draw(
        self, conditioning: Conditioning, noise: Tensor, sampling: Sampling, unconditional: Conditioning | None = None
    ) -> Tensor:
        """Noise -> clean latents, both [N, C, h, w].

        Args:
            unconditional: what the guidance branch reads; None is the decoder's own null input.
        """


class FlowDecoder(Decoder):
    """A decoder by flow matching: what Flow-GRPO, DiffusionNFT and decoder pre-training ask for. sigma in (0, 1], 1 is
    pure noise."""

    def by_flow(self) -> FlowDecoder:
        return self

    @abstractmethod
    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None) -> Tensor:
        """v = noise - x0 at x [N, C, h, w], sigma [N], float32; conditioning None is the unconditional branch."""

    @abstractmethod
    def schedule(self, steps: int) -> Tensor:
        """[steps + 1] sigmas of the sampler, from 1 down to 0."""

    def loss(self, latents: Tensor, conditioning: Conditioning, noise: Tensor, sigma: Tensor) -> Tensor:
        """Squared error of the velocity between latents and noise [N, C, h, w] at sigma [N]: a map [N, 1, h, w].

        Texts of like length are computed together: short prompts are not padded to the longest caption. How many parts
        there are depends on N alone: sharded ranks must call as often as each other.
        """
        x, target = flow.interpolate(latents, noise, sigma)
        parts = max(1, len(x) // ROWS_TOGETHER)
        if parts == 1:
            velocity = self.velocity(x, sigma, conditioning)
        else:
            order = conditioning.mask.sum(1).argsort()
            velocities = [self.velocity(x[r], sigma[r], conditioning[r]) for r in order.tensor_split(parts)]
            velocity = torch.cat(velocities)[order.argsort()]
        return (velocity - target).square().mean(1, keepdim=True)

    def draw(
        self, conditioning: Conditioning, noise: Tensor, sampling: Sampling, unconditional: Conditioning | None = None
    ) -> Tensor:
        """ODE (Euler)."""
        sigmas, x = self.schedule(sampling.steps), noise
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            unguided = self.unguided_velocity(x, sigma, unconditional, sampling.guidance)
            velocity = self.guided_velocity(x, sigma, conditioning, unguided, sampling.guidance)
            x = flow.euler_step(x, velocity, sigma, after)
        return x

    def guided_velocity(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, unguided: Tensor | None, guidance: float
    ) -> Tensor:
        """Velocity [N, C, h, w] at one sigma [], guided away from `unguided` of the same states where that is given."""
        velocity = self.velocity(x, sigma.to(x).expand(len(x)), conditioning)
        return velocity if unguided is None else flow.guide(velocity, unguided, guidance)

    def unguided_velocity(
        self, x: Tensor, sigma: Tensor, unconditional: Conditioning | None, guidance: float
    ) -> Tensor | None:
        """Velocity [N, C, h, w] of the guidance branch; None where nothing is guided."""
        return None if guidance == 1 else self.velocity(x, sigma.to(x).expand(len(x)), unconditional)


class Reward(nn.Module, ABC):
    """How well pictures survived the round trip; frozen, in eval mode. Higher is better."""

    @abstractmethod
    def forward(self, inputs: RewardInput) -> RewardOutput: ...

    def title(self) -> str:
        """For people who read figures."""
        return type(self).__name__
