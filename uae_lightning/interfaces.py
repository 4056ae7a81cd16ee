"""What a stage asks of its parts. Stages know these classes only; YAML swaps any of them by `class_path`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.digest import digest_of, dtypes
from uae_lightning.algorithms.token_logprobs import logprobs_and_entropy
from uae_lightning.types import Captions, CaptionTurn, Conditioning, Learning, RewardInput, RewardOutput, Sampling

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

    def hand_on(self, folder: Path) -> None:
        """Write what a stage trained, as small as can be, so that the class of the part can start from it: where all
        else is to be had elsewhere, the adapters alone."""
        self.save(folder)

    def handed_on(self) -> list[nn.Parameter]:
        """What `hand_on` writes: ranks that hold shares of it gather nothing else."""
        return list(self.parameters())

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


def after_thoughts(text: str) -> str:
    """What stands behind the last `</think>`; "" where thoughts have no end."""
    answer = text.rpartition("</think>")[2]
    return "" if "<think>" in answer else answer.strip()


class Projector(Component):
    """Encoder states [N, L, hidden_size] -> conditioning states [N, L, D]."""

    input_size: int  # hidden_size of the encoder it fits
    output_size: int  # conditioning_size of the decoder it fits
    entered_by_call = True

    @abstractmethod
    def forward(self, states: Tensor) -> Tensor: ...

    def conditioning(self, states: Tensor, mask: Tensor) -> Conditioning:
        """What the decoder is given of texts that were read as states [N, L, hidden_size]."""
        return Conditioning(self(states), mask)

    def by_bridge(self) -> Bridge:
        """The projector, for who needs one that predicts visual features; a ValueError where it does not."""
        raise ValueError(
            f"{type(self).__name__} predicts no visual features: give model.autoencoder.projector a subclass of "
            "uae_lightning.interfaces.Bridge, such as uae_lightning.models.bridge.VisualBridge, or take another stage"
        )


class Bridge(Projector):
    """A projector that also predicts, from the states of a text alone, visual features of what it describes: nothing of
    a picture can pass beside the text."""

    def by_bridge(self) -> Bridge:
        return self

    @abstractmethod
    def predict(self, states: Tensor, mask: Tensor) -> Tensor:
        """Visual features [N, K, E] by states [N, L, hidden_size]; without gradient."""

    @abstractmethod
    def bridge_loss(self, states: Tensor, mask: Tensor, visual: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """[N] of the prediction of `visual` [N, K, E], with noise [N, K, E] and levels sigma [N] in (0, 1) where it
        learns to generate."""

    def conditioning(self, states: Tensor, mask: Tensor) -> Conditioning:
        return replace(super().conditioning(states, mask), visual=self.predict(states, mask))


class Codec(Component):
    """Pictures <-> latents. Scale and shift of the latents are its own business."""

    channels: int  # C
    downsampling: int  # pixels that a latent stands for, in each direction

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        """(C, h, w) of pictures of that many pixels."""
        return self.channels, side // self.downsampling, side // self.downsampling

    def by_learning(self) -> LearningCodec:
        """The codec, for who needs one that learns; a ValueError where it does not."""
        raise ValueError(
            f"{type(self).__name__} does not learn: give model.autoencoder.decoder.codec a subclass of "
            "uae_lightning.interfaces.LearningCodec, such as uae_lightning.models.diffusion_codec.DiffusionCodec, or "
            "take another stage"
        )

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


class LearningCodec(Codec):
    """A codec whose way from latents to pictures is trained, by a stage of its own."""

    def by_learning(self) -> LearningCodec:
        return self

    @abstractmethod
    def restore(self, images: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, H, W] in [0, 1] by their latents, at a draw of noise [N, 3, H, W] and level sigma [N]: a map
        [N, 1, H, W] of squared errors, and what it takes the images for, both with gradients into the codec."""


class Decoder(Component):
    """Image generator in the latent space of its codec, which no stage trains but one of the codec's own."""

    codec: Codec
    image_size: int  # side of the pictures in pixels
    conditioning_size: int  # D
    mask_padding: bool = True  # padding of the conditioning does not reach the picture
    reads_visual: bool = False  # `Conditioning.visual` reaches the picture
    network: str  # method that is a pass of the network, with a row for each picture first: `uae plan` counts it

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

    def look(self, images: Tensor) -> Tensor | None:
        """Visual features [N, K, E] of reference pictures [N, 3, H, W] by an eye of the decoder's own, without
        gradient; None: it has none, and is given the encoder's."""
        return None

    def features(self, latents: Tensor) -> Tensor:
        """What the decoder makes of clean latents [N, C, h, w], by place: [N, K, E], without gradient.

        Raises:
            ValueError: it does not look at them.
        """
        raise ValueError(
            f"{type(self).__name__} has no features of pictures: leave `decoder` out, or give "
            "model.autoencoder.decoder one with `features`, such as uae_lightning.models.mar.MARDecoder"
        )

    @abstractmethod
    def regression(
        self, latents: Tensor, conditioning: Conditioning, noise: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is predicted of latents [N, C, h, w] at a draw of noise [N, C, h, w] and level sigma [N] in (0, 1], and
        what it should be, both [N, C, h, w]: training lowers the mean square of their difference. All that is random in
        it comes from the noise."""

    def loss(self, latents: Tensor, conditioning: Conditioning, noise: Tensor, sigma: Tensor) -> Tensor:
        """Squared error of `regression`: a map [N, 1, h, w].

        Texts of like length are computed together: short prompts are not padded to the longest caption. How many parts
        there are depends on N alone: sharded ranks must call as often as each other.
        """
        order = conditioning.mask.sum(1).argsort() if len(latents) >= 2 * ROWS_TOGETHER else None
        parts = [slice(None)] if order is None else order.tensor_split(len(latents) // ROWS_TOGETHER)
        found = [self.regression(latents[r], conditioning[r], noise[r], sigma[r]) for r in parts]
        error = torch.cat([(predicted - target).square().mean(1, keepdim=True) for predicted, target in found])
        return error if order is None else error[order.argsort()]

    @abstractmethod
    def draw(
        self, conditioning: Conditioning, noise: Tensor, sampling: Sampling, unconditional: Conditioning | None = None
    ) -> Tensor:
        """Noise -> clean latents, both [N, C, h, w].

        Args:
            unconditional: what the guidance branch reads; None is the decoder's own null input.
        """

    def draw_in_steps(
        self, conditioning: Conditioning, noise: Tensor, sampling: Sampling, unconditional: Conditioning | None = None
    ) -> Iterator[Tensor]:
        """What the decoder takes the clean latents [N, C, h, w] for, step by step; the last are those of `draw`."""
        yield self.draw(conditioning, noise, sampling, unconditional)

    def redraw(
        self,
        latents: Tensor,
        level: float,
        conditioning: Conditioning,
        noise: Tensor,
        sampling: Sampling,
        unconditional: Conditioning | None = None,
    ) -> Tensor:
        """Clean latents [N, C, h, w] again, from what is left of them at a noise level in (0, 1].

        Raises:
            ValueError: the decoder starts from nothing but noise.
        """
        raise ValueError(f"{type(self).__name__} does not start from a noisy picture: set restart to 1 (drawn anew)")

    def evaluations(self, sampling: Sampling, level: float = 1.0) -> int:
        """Calls of the network for a picture that is drawn, or drawn again from a noise level."""
        return sampling.steps * sampling.branches


class DrawingEncoder(Encoder):
    """An encoder whose backbone draws, too."""

    @abstractmethod
    def halves(self) -> tuple[Projector, Decoder]:
        """What draws with the same weights. They own none: no submodule of theirs is the encoder's, they write nothing,
        and what is to learn of the decoder is adapted in the encoder."""


class FlowDecoder(Decoder):
    """A decoder by flow matching on the whole picture: what Flow-GRPO and the cold start ask for. sigma in (0, 1], 1 is
    pure noise."""

    network = "velocity"

    def by_flow(self) -> FlowDecoder:
        return self

    @abstractmethod
    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning | None) -> Tensor:
        """v = noise - x0 at x [N, C, h, w], sigma [N], float32; conditioning None is the unconditional branch."""

    @abstractmethod
    def schedule(self, steps: int) -> Tensor:
        """[steps + 1] sigmas of the sampler, from 1 down to 0."""

    def regression(
        self, latents: Tensor, conditioning: Conditioning, noise: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities."""
        x, target = flow.interpolate(latents, noise, sigma)
        return self.velocity(x, sigma, conditioning), target

    def draw(
        self, conditioning: Conditioning, noise: Tensor, sampling: Sampling, unconditional: Conditioning | None = None
    ) -> Tensor:
        """ODE (Euler)."""
        return self.integrate(noise, self.schedule(sampling.steps), conditioning, sampling.guidance, unconditional)

    def draw_in_steps(
        self, conditioning: Conditioning, noise: Tensor, sampling: Sampling, unconditional: Conditioning | None = None
    ) -> Iterator[Tensor]:
        """x0 = x - sigma v of each Euler step; the last step, to sigma 0, ends there."""
        x, sigmas = noise, self.schedule(sampling.steps)
        for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            before, x = x, self.ode_step(x, sigma, after, conditioning, unconditional, sampling.guidance)
            yield x if after == 0 else before - (before - x) * (sigma / (sigma - after))

    def redraw(
        self,
        latents: Tensor,
        level: float,
        conditioning: Conditioning,
        noise: Tensor,
        sampling: Sampling,
        unconditional: Conditioning | None = None,
    ) -> Tensor:
        """The ODE from the level on, by the sigmas of the schedule below it (SDEdit, arXiv 2108.01073)."""
        x, _ = flow.interpolate(latents, noise, level)
        sigmas = self.schedule_from(level, sampling.steps)
        return self.integrate(x, sigmas, conditioning, sampling.guidance, unconditional)

    def evaluations(self, sampling: Sampling, level: float = 1.0) -> int:
        return (len(self.schedule_from(level, sampling.steps)) - 1) * sampling.branches

    def schedule_from(self, level: float, steps: int) -> Tensor:
        """The level, and the sigmas of `schedule` below it."""
        sigmas = self.schedule(steps)
        return torch.cat([sigmas.new_tensor([level]), sigmas[sigmas < level]])

    def integrate(
        self, x: Tensor, sigmas: Tensor, conditioning: Conditioning, guidance: float, unconditional: Conditioning | None
    ) -> Tensor:
        """x [N, C, h, w] at the first of the sigmas [S + 1] -> x at the last, by Euler steps."""
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            x = self.ode_step(x, sigma, after, conditioning, unconditional, guidance)
        return x

    def ode_step(
        self,
        x: Tensor,
        sigma: Tensor,
        after: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None,
        guidance: float,
    ) -> Tensor:
        """x [N, C, h, w] at sigma [] -> x at the level `after` []."""
        unguided = self.unguided_velocity(x, sigma, unconditional, guidance)
        return flow.euler_step(x, self.guided_velocity(x, sigma, conditioning, unguided, guidance), sigma, after)

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
    """How well pictures survived the round trip; frozen, in eval mode. Higher is better.

    Where its total has a gradient with respect to the reconstructions, `stages.cold_start` can learn by that too.
    """

    needs_originals: bool = True  # False: it judges pictures by their captions, and can where nothing is reconstructed
    skips_failures: bool = (
        False  # groups that it could not judge (NaN) are passed over in training; False: the run ends
    )

    @abstractmethod
    def forward(self, inputs: RewardInput) -> RewardOutput: ...

    def held_out(self) -> Reward:
        """What judges held-out pictures, all of captions that the encoder wrote."""
        return self

    def failure(self) -> str:
        """Why some of the last pictures that it could not judge, in words; "" where it does not know."""
        return ""

    def title(self) -> str:
        """For people who read figures."""
        return type(self).__name__
