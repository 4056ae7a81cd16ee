"""What is asked of an encoder, and of an engine that writes in its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from uae_lightning.algorithms.digest import digest_of, dtypes
from uae_lightning.algorithms.token_logprobs import logprobs_and_entropy
from uae_lightning.interfaces.component import Component
from uae_lightning.interfaces.decoder import Decoder
from uae_lightning.interfaces.projector import Projector
from uae_lightning.types import Captions, CaptionTurn

PROBE = 'Two red cats (left), 17 dogs; a sign: "caf\u00e9".'  # by its tokens a tokenizer is known


class Encoder(Component):
    """Vision-language model: image -> caption, and caption -> hidden states."""

    hidden_size: int
    control_texts: int = 0  # texts read by `embed` or `ask` that held control tokens, which are text there

    def see(self, images: Tensor) -> Tensor | Any:
        """What is computed once of images [B, 3, H, W] and given to the next three methods in their place; can be
        indexed by rows. For a frozen vision tower its features; the images themselves where there is none."""
        return images

    def visual_features(self, images: Tensor) -> Tensor:
        """What the vision tower makes of images [B, 3, H, W]: [B, K, E] float32, each of mean 0 and variance 1, without
        gradient.

        Raises:
            ValueError: the encoder has no vision tower with features by place.
        """
        raise ValueError(
            f"{type(self).__name__} has no visual features to condition on: give model.autoencoder.encoder an encoder "
            "with `visual_features`, as uae_lightning.models.qwen_vl.QwenVLEncoder has it"
        )

    def ask(self, texts: list[str]) -> Any:
        """Text-only chat turns, each of which asks for a complete caption of the picture that a terse prompt is about.
        They are given to the same methods in place of images, and can be indexed by rows.

        Raises:
            ValueError: the encoder has no such turn.
        """
        raise ValueError(
            f"{type(self).__name__} does not rewrite prompts: leave --rewrite (or `rewriting`) out, or give "
            "model.autoencoder.encoder an encoder with `ask`, as uae_lightning.models.qwen_vl.QwenVLEncoder has it"
        )

    def rewrite(
        self, texts: list[str], *, samples: int, temperature: float, max_new_tokens: int, seed: int
    ) -> Captions:
        """`samples` complete captions of each of B prompts (Think-Then-Generate, arXiv 2601.10332); N = B * samples.

        The texts are what is to be drawn: without thoughts, and the prompt itself where nothing is left. The tokens
        are all that were sampled.
        """
        said = self.generate(
            self.ask(texts), samples=samples, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
        )
        prompts = [text for text in texts for _ in range(samples)]
        return replace(said, texts=[after_thoughts(one) or own for one, own in zip(said.texts, prompts, strict=True)])

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        return {
            "encoder": type(self).__name__,
            "encoder weights": digest_of(self, adapters),
            "encoder dtype and quantization": dtypes(self, adapters),
            "tokenizer": str(self.tokenize([PROBE]).tokens[0].tolist()),
        }

    def words(self, symbols: int, tokens: int) -> list[range]:
        """Those that each of a caption's tokens is one of, where the language has `symbols`: all of them."""
        return [range(symbols)] * tokens

    def by_serving(self) -> ServedEncoder:
        """The encoder, for who has its captions written elsewhere; a ValueError where nothing else can serve it."""
        raise ValueError(
            f"{type(self).__name__} writes its captions itself: leave `engine` out, or give model.autoencoder.encoder "
            "a subclass of uae_lightning.interfaces.ServedEncoder, such as uae_lightning.models.qwen_vl.QwenVLEncoder"
        )

    def by_codes(self) -> CodeEncoder:
        """The encoder, for who needs one whose language is a codebook; a ValueError where it is none."""
        raise ValueError(
            f"{type(self).__name__} has no codebook: give model.autoencoder.encoder a subclass of "
            "uae_lightning.interfaces.CodeEncoder, such as uae_lightning.models.vision_codes.VisionCodes, or take "
            "another stage"
        )

    @abstractmethod
    def generate(self, images: Tensor, *, samples: int, temperature: float, max_new_tokens: int, seed: int) -> Captions:
        """`samples` captions of each image [B, 3, H, W]; N = B * samples. Temperature 0 is greedy.

        The same seed gives the same captions and leaves the global random state as it was.
        """

    def dictate(
        self,
        images: Tensor | Any,
        heard: Callable[[list[str]], None],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> Captions:
        """What `generate` says with one sample of each image; `heard` is given the texts so far while it is said."""
        captions = self.generate(images, samples=1, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
        heard(captions.texts)
        return captions

    @abstractmethod
    def token_logits(self, images: Tensor, captions: Captions) -> Tensor:
        """Teacher-forced logits [N, T, V] of captions of images [B, 3, H, W]; position t predicts tokens[:, t].

        N is a multiple of B, the captions of an image stand next to each other.
        """

    def token_logprobs(self, images: Tensor, captions: Captions, *, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability, and entropy in nats, at each token of the captions: [N, T] float32 each, with gradients."""
        return logprobs_and_entropy(self.token_logits(images, captions), captions.tokens, temperature=temperature)

    @abstractmethod
    def tokenize(self, texts: list[str], *, ended: bool = False) -> Captions:
        """Texts as captions that `token_logits` can score: right-padded, with an end-of-text token only where `ended`
        asks for it."""

    @abstractmethod
    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Last-layer states of texts read alone, without an image: ([N, L, hidden_size], mask [N, L] bool)."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Which letters of a text each of the L states of `embed` stands at, from and up to; of what the encoder puts
        around the text, none: both are the same.

        Raises:
            ValueError: the encoder does not know.
        """
        raise ValueError(
            f"{type(self).__name__} does not say which of its states is which word: give model.autoencoder.encoder an "
            "encoder with `spans`, as uae_lightning.models.qwen_vl.QwenVLEncoder has it"
        )


class ServedEncoder(Encoder):
    """An encoder whose architecture others serve as well, with adapters that they can load."""

    def by_serving(self) -> ServedEncoder:
        return self

    @abstractmethod
    def shown(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in the size in which the encoder reads them."""

    @abstractmethod
    def turn(self, images: Tensor) -> CaptionTurn:
        """How it is asked for a caption of images [B, 3, H, W] as `shown` gives them."""

    @abstractmethod
    def captions_of(self, tokens: list[list[int]], logp: list[list[float]]) -> Captions:
        """N captions by their sampled tokens, and the log-probabilities with which these were sampled."""

    @abstractmethod
    def save_adapter(self, folder: Path) -> None:
        """Write the adapters in peft's format, for `PeftModel.from_pretrained` and for servers."""


class CodeEncoder(Encoder):
    """An encoder whose language is a codebook that can be trained."""

    codes: int  # V

    def by_codes(self) -> CodeEncoder:
        return self

    @abstractmethod
    def quantize(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W] -> codes [B, T], states [B, K, hidden_size] with gradients into the codebook, their mask
        [B, K], and a loss [] of the codebook. The states are what `embed` gives of the codes' words, of which a place
        may have several."""

    @abstractmethod
    def seed(self, images: Tensor, use: Tensor) -> None:
        """Codes that nothing is near to may move to what is seen in images [B, 3, H, W]: of all ranks, on all alike.

        Args:
            use: [V] how often each code was used of late, brought up to date in place; all zero at first.
        """


class DrawingEncoder(Encoder):
    """An encoder whose backbone draws, too."""

    @abstractmethod
    def halves(self) -> tuple[Projector, Decoder]:
        """What draws with the same weights. They own none: no submodule of theirs is the encoder's, they write nothing,
        and what is to learn of the decoder is adapted in the encoder."""


class Engine(ABC):
    """Writes captions in an encoder's place, elsewhere, with its weights; stages train on them as if it were off policy
    by a little (`algorithms.sampler_mismatch`)."""

    def shown(self, encoder: ServedEncoder, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] as both the engine and the update are to see them: in the encoder's size, and in the 256
        levels of files."""
        return (encoder.shown(images).clamp(0, 1) * 255).round() / 255

    @abstractmethod
    def write(
        self,
        encoder: ServedEncoder,
        images: Tensor,
        *,
        samples: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> Captions:
        """As `Encoder.generate`, of images as `shown` gives them; `Captions.logp` is the engine's own."""


def after_thoughts(text: str) -> str:
    """What stands behind the last `</think>`; "" where thoughts have no end."""
    answer = text.rpartition("</think>")[2]
    return "" if "<think>" in answer else answer.strip()
