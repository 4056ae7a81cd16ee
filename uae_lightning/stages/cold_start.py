"""Cold start, UAE v1's (arXiv 2509.09666v1): the reconstruction's loss goes back through the sampler into all parts.

    B  pictures in the batch   L text positions   C h w latents   H W pixels   S steps of the sampler, K with gradient

    picture -> caption, sampled -> read with gradient -> projected -> drawn, K steps with gradient -> decoded -> reward

The words of a caption are drawn and have no gradient; the states in which the encoder reads them have (soft states).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uae_lightning.algorithms.truncated_backprop import unroll
from uae_lightning.parallel.collectives import own_rows, ranks
from uae_lightning.ranges import Count, Share, checked
from uae_lightning.stages.common import Stage
from uae_lightning.stages.own_captions import captions_to_draw, drawn_from_their_own
from uae_lightning.types import Batch, RewardInput, Work


@checked
class ColdStart(Stage):
    """Ascends the run's reward, that of callbacks.RewardCallback, by its gradient: the loss is 1 - reward.

    UAE v1 takes 1 - cos(CLIP-L/14), a 10-step sampler and the encoder alone; how far it truncates is not published.
    Two things of the code that its authors released are not copied: the pictures that are scored are those that are
    decoded, in [0, 1], where the code scales pixels by 1/255 twice; and a caption is read alone, as whenever pictures
    are drawn afterwards, where the code conditions on states that have seen the picture.

    A reward that trains by its gradient is easier to please without being right than one that only scores: look at the
    second opinion of the validation, and at the pictures.

    Args:
        gradient_steps: K, the steps of the sampler that gradients flow through, the last ones (DRaFT-K, arXiv
            2309.17400). The last steps are about details: what a caption says is decided in the first. A step as tiny
            as the last one of sigma_spacing "sd3" (from sigma 0.01 to 0) has next to no gradient: count one more.
        own_captions: share of a batch's pictures whose caption is that of the data, such as prompts, where the others'
            is the encoder's; `rewards.by_caption.ByCaption` has a reward for each.
        **parts: of `Stage`.

    Raises:
        ValueError: the reward gives no gradient.
    """

    trained = ("encoder", "projector", "decoder")
    learns_from_reward = True

    def __init__(self, *args, gradient_steps: Count = 1, own_captions: Share = 0.0, **parts) -> None:
        super().__init__(*args, **parts)
        self.gradient_steps, self.own_captions = gradient_steps, own_captions

    @staticmethod
    def check_training(options: Any) -> None:
        if options.gradient_steps > (steps := options.sampling.steps):
            raise ValueError(
                f"gradient_steps must not exceed the {steps} steps of the sampler, got {options.gradient_steps}: lower "
                "it, or raise model.autoencoder.sampling.steps"
            )
        if options.learn.encoder is not None and options.condition_on == "frozen":
            raise ValueError(
                "the encoder learns by how it reads captions, and condition_on: frozen reads them without its "
                "adapters: set model.autoencoder.condition_on to adapted, or leave encoder out of model.init_args.learn"
            )

    @staticmethod
    def work(options: Any) -> Work:
        """Of the steps with gradient all but the last are computed twice."""
        sampling, trained = options.sampling, options.gradient_steps
        return Work(sampling.forwards + sampling.branches * (3 * trained - 1), 1, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.score is not None  # `on_train_batch_start` has asked
        own = drawn_from_their_own(batch, self.own_captions, self.global_rank)
        with self.timed("rollout"), torch.no_grad():
            captions = captions_to_draw(self, batch, own)
        noise = torch.randn(len(batch.images) * ranks(), *self.decoder.latent_shape, generator=self.generator(1))
        pictures = self.draw(captions.texts, own_rows(noise).to(batch.images.device))
        with self.timed("score"):
            given = torch.tensor(own, device=batch.images.device)
            rewards = self.score(RewardInput(batch.images, pictures, captions.texts, given, batch.metadata)).total
        if not rewards.requires_grad:
            raise ValueError(
                "ColdStart learns by the gradient of the reward, and that of callbacks.RewardCallback has none: give "
                "it one of a differentiable network, such as uae_lightning.rewards.perceptual_grid.PerceptualGrid or "
                "uae_lightning.rewards.clip_similarity.ClipSimilarity, or take stages.encoder_rl and stages.decoder_rl"
            )
        loss = 1 - rewards.mean()
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log("train/caption_tokens", captions.lengths.float().mean(), sync_dist=True)
        return sum(self.auxiliary_losses(batch), loss)

    def draw(self, texts: list[str], noise: Tensor) -> Tensor:
        """B captions -> pictures [B, 3, H, W] in [0, 1], with gradient; noise [B, C, h, w]."""
        model, decoder, sampling = self.autoencoder, self.autoencoder.flow_decoder, self.sampling
        conditioning = model.read(texts, into_encoder=True)  # [B, L, D]
        unconditional = model.unconditional(len(texts))

        def step(x: Tensor, sigma: Tensor, after: Tensor) -> Tensor:
            return decoder.ode_step(x, sigma, after, conditioning, unconditional, sampling.guidance)

        latents = unroll(step, noise, decoder.schedule(sampling.steps), self.gradient_steps)
        return decoder.decode_latents(latents)
