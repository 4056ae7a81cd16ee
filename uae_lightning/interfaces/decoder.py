"""What is asked of a decoder, of any family, and of its codec."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.digest import digest_of, dtypes
from uae_lightning.interfaces.component import Component
from uae_lightning.types import Conditioning, Learning, Sampling

ROWS_TOGETHER = 16  # in a forward pass of a decoder that is trained, at least


class Codec(Component):
    """Pictures <-> latents. Scale and shift of the latents are its own business."""

    channels: int  # C
    downsampling: int  # pixels that a latent stands for, in each direction

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of pictures of that many pixels."""
        return self.channels, height // self.downsampling, width // self.downsampling

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
        return self.codec.latent_shape(self.image_size, self.image_size)

    def check_size(self, width: int, height: int) -> None:
        """Raises ValueError where it cannot draw a picture of so many pixels."""
        if (width, height) != (self.image_size, self.image_size):
            raise ValueError(f"{type(self).__name__} draws squares of {self.image_size} px alone")

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
