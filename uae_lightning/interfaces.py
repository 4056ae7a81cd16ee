"""What a stage asks of its parts. Stages know these classes only; YAML swaps any of them by `class_path`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae_lightning.algorithms.token_logprobs import entropy, gather_logprobs
from uae_lightning.types import Captions, Conditioning, RewardInput, RewardOutput


class Component(nn.Module, ABC):
    """A part with weights of its own that one stage can hand to the next."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the part in the format of its library (safetensors), adapters merged; its class can start from it."""

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
    def tokenize(self, texts: list[str]) -> Captions:
        """Texts as captions that `token_logits` can score: right-padded, without an end-of-text token."""

    @abstractmethod
    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Last-layer states of texts read alone, without an image: ([N, L, hidden_size], mask [N, L] bool)."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Inside it the model is the one the stage started from: adapters off."""


class Projector(Component):
    """Encoder states [N, L, hidden_size] -> conditioning states [N, L, D]."""

    input_size: int  # hidden_size of the encoder it fits
    output_size: int  # conditioning_size of the decoder it fits

    @abstractmethod
    def forward(self, states: Tensor) -> Tensor: ...


class Decoder(Component):
    """Flow-matching image generator in a latent space; sigma in (0, 1], 1 is pure noise."""

    latent_shape: tuple[int, int, int]  # C, h, w
    conditioning_size: int  # D

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> latents [N, C, h, w]."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> images [N, 3, H, W] in [0, 1]."""

    @abstractmethod
    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None) -> Tensor:
        """v = noise - x0 at x [N, C, h, w], sigma [N], float32; conditioning None is the unconditional branch."""

    @abstractmethod
    def schedule(self, steps: int) -> Tensor:
        """[steps + 1] sigmas of the sampler, from 1 down to 0."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Inside it the model is the one the stage started from: adapters off."""


class Reward(nn.Module, ABC):
    """How well pictures survived the round trip; frozen, in eval mode. Higher is better."""

    @abstractmethod
    def forward(self, inputs: RewardInput) -> RewardOutput: ...
