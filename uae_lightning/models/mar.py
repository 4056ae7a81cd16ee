"""MARDecoder: masked autoregression over continuous latents, with a small flow-matching head for each token.

The method is MAR's (arXiv 2406.11838), with which Harmon (arXiv 2503.21979) draws. MAR's head learns by a diffusion
loss in 1000 steps; this one by rectified flow, which needs few. In Harmon a language model stands between encoder and
decoder; here the projected states of a caption stand in front of both.

N pictures   K tokens of each   P numbers of a token   W width   L text positions   D width of the states
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, cos, pi
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from uae_lightning.algorithms import flow
from uae_lightning.interfaces import Codec, Decoder
from uae_lightning.models.activations import checkpoint_blocks
from uae_lightning.models.adapters import MergedState
from uae_lightning.models.codec_folders import codec_of
from uae_lightning.models.loading import load
from uae_lightning.models.saving import save_diffusers
from uae_lightning.models.weight_files import seal
from uae_lightning.paths import resolve
from uae_lightning.ranges import Count, checked
from uae_lightning.types import Conditioning, Sampling

LEVEL = 64  # numbers that tell a noise level
CHANCE = 64.0  # how many times noise is magnified before its fraction is taken: the fraction tells nothing of the noise
LEAST, MEAN, DEVIATION = 0.7, 1.0, 0.25  # of the share of tokens hidden in training, a normal cut to [.7, 1] (MAR)


class Block(nn.Module):
    """Attention and MLP, normalized in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """[N, S, W], and which of the S are looked at [N, S] -> [N, S, W]."""
        query, key, value = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class HeadBlock(nn.Module):
    """MLP of one token, scaled, shifted and gated by what is known of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(known).chunk(3, -1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class MARTransformer(ModelMixin, ConfigMixin):
    """Encoder of the tokens that are there, decoder of all places, and the head of a token.

    Args:
        token_size: P.
        places: K.
        conditioning_size: D.
        width, encoder_layers, decoder_layers, heads: of both transformers.
        head_width, head_layers: of the head.
    """

    @register_to_config
    def __init__(
        self,
        token_size: int,
        places: int,
        conditioning_size: int,
        width: int = 128,
        encoder_layers: int = 4,
        decoder_layers: int = 4,
        heads: int = 4,
        head_width: int = 256,
        head_layers: int = 3,
    ) -> None:
        super().__init__()
        self.text, self.token = nn.Linear(conditioning_size, width), nn.Linear(token_size, width)
        self.hidden = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(2, places, width))  # for encoder and decoder
        self.encoder = nn.ModuleList(Block(width, heads) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(Block(width, heads) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.known, self.level = nn.Linear(width, head_width), nn.Linear(LEVEL, head_width)
        self.noisy = nn.Linear(token_size, head_width)
        self.head = nn.ModuleList(HeadBlock(head_width) for _ in range(head_layers))
        self.velocity = nn.Sequential(nn.LayerNorm(head_width), nn.Linear(head_width, token_size))

    def read(self, tokens: Tensor, there: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of the encoder, for the text [N, L, W] and for the places [N, K, W]: arguments as of `context`."""
        text, tokens = self.text(states.to(self.text.weight.dtype)), tokens.masked_fill(~there[..., None], 0)
        x, seen = torch.cat([text, self.token(tokens) + self.positions[0]], 1), torch.cat([mask, there], 1)
        for block in self.encoder:
            x = block(x, seen)
        return x[:, : states.shape[1]], x[:, states.shape[1] :]

    def context(self, tokens: Tensor, there: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """What is known of every place: tokens [N, K, P], of which those of [N, K] are there, and a text [N, L, D] with
        its mask [N, L] -> [N, K, W]."""
        read, x = self.read(tokens, there, states, mask)
        x = torch.cat([read, torch.where(there[..., None], x, self.hidden) + self.positions[1]], 1)
        seen = torch.cat([mask, torch.ones_like(there)], 1)
        for block in self.decoder:
            x = block(x, seen)
        return self.norm(x[:, states.shape[1] :])

    def token_velocity(self, x: Tensor, sigma: Tensor, known: Tensor) -> Tensor:
        """Noisy tokens [N, K, P] at levels sigma [N], and what is known of their places [N, K, W] -> [N, K, P]."""
        level = get_timestep_embedding(1000 * sigma, LEVEL).to(x.dtype)
        x, known = self.noisy(x), self.known(known) + self.level(level)[:, None]
        for block in self.head:
            x = block(x, known)
        return self.velocity(x)


@checked
class MARDecoder(Decoder):
    """Tokens in a random order, several at a time, each from noise by the head: `sampling.steps` says in how many goes,
    as many more with each as MAR's cosine has it. The picture is a function of its noise, order included.

    Args:
        path: folder that `save` wrote, whose sizes count; None starts from random weights of those below.
        resolution: side of the pictures in pixels.
        codec: None is that in `vae/` of `path`.
        conditioning_size: D, width of the projector's states.
        patch_size: latents of a token in each direction.
        width, encoder_layers, decoder_layers, heads: of the transformers.
        head_width, head_layers: of the head.
        head_steps: Euler steps of the head, from noise to a token.
        checkpoint_activations: compute the blocks' activations again in the backward pass instead of keeping them.

    Raises:
        FileNotFoundError: `path` names no model that can be had.
        ValueError: it holds another kind of model, damaged weights, or one of another resolution or codec; or there is
            neither a path nor a codec.
    """

    network = "context"

    def __init__(
        self,
        path: str | None = None,
        resolution: Count = 512,
        codec: Codec | None = None,
        conditioning_size: Count = 4096,
        patch_size: Count = 1,
        width: Count = 128,
        encoder_layers: Count = 4,
        decoder_layers: Count = 4,
        heads: Count = 4,
        head_width: Count = 256,
        head_layers: Count = 3,
        head_steps: Count = 3,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if path is None and codec is None:
            raise ValueError("MARDecoder draws latents of a codec: give model.autoencoder.decoder.codec, or a path")
        folder = None if path is None else resolve(path)
        self.codec = codec_of(folder, "float32") if codec is None else codec
        self.image_size, self.patch_size, self.head_steps = int(resolution), int(patch_size), int(head_steps)
        channels, side, _ = self.latent_shape
        if self.image_size % (self.codec.downsampling * self.patch_size):
            raise ValueError(
                f"resolution must be a multiple of {self.codec.downsampling * self.patch_size}, got {resolution}"
            )
        fits = {"token_size": channels * self.patch_size**2, "places": (side // self.patch_size) ** 2}
        if folder is None:
            sizes = {"conditioning_size": conditioning_size, "width": width, "heads": heads, "head_width": head_width}
            sizes |= {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers, "head_layers": head_layers}
            self.transformer = MARTransformer(**fits, **{name: int(size) for name, size in sizes.items()}).eval()
        else:
            self.transformer = load(MARTransformer, folder, torch.float32, "transformer")
        self.transformer.requires_grad_(False)
        self._check_fit(fits)
        self.conditioning_size = self.transformer.config.conditioning_size
        if checkpoint_activations:
            checkpoint_blocks(self.blocks())

    def _check_fit(self, fits: dict[str, int]) -> None:
        found = {name: self.transformer.config[name] for name in fits}
        if found != fits:
            raise ValueError(
                f"codec, resolution and weights do not fit: they have {fits}, and the transformer in "
                f"model.autoencoder.decoder.path {found}: set resolution, patch_size and codec to those it had"
            )

    def blocks(self) -> list[nn.Module]:
        return [*self.transformer.encoder, *self.transformer.decoder]

    # ----------------------------------------------------------------------------------------------------- tokens

    def tokens_of(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, K, P]."""
        return F.pixel_unshuffle(latents, self.patch_size).flatten(2).transpose(1, 2)

    def latents_of(self, tokens: Tensor) -> Tensor:
        """The reverse."""
        side = self.latent_shape[1] // self.patch_size
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), self.patch_size)

    def context(self, tokens: Tensor, there: Tensor, conditioning: Conditioning | None) -> Tensor:
        """[N, K, W] of `MARTransformer.context`; None is the empty text."""
        conditioning = (conditioning or self.nothing(tokens)).cropped()
        return self.transformer.context(tokens, there, conditioning.states, conditioning.mask)

    def nothing(self, like: Tensor) -> Conditioning:
        """The empty text [N, 1, D]: one state of zeros, as dropped captions are."""
        states = like.new_zeros(len(like), 1, self.conditioning_size)
        return Conditioning(states, torch.ones_like(states[..., 0], dtype=torch.bool))

    @torch.no_grad()
    def features(self, latents: Tensor) -> Tensor:
        """Of the encoder, which sees all tokens and no text."""
        tokens, text = self.tokens_of(latents), self.nothing(latents)
        there = torch.ones_like(tokens[..., 0], dtype=torch.bool)
        return self.transformer.read(tokens, there, text.states, text.mask)[1].float()

    def order(self, noise: Tensor) -> Tensor:
        """[N, K] places in the order in which they are drawn: by a fraction of the noise, independent of it."""
        return (CHANCE * self.tokens_of(noise)[..., 0]).remainder(1).argsort(dim=1, stable=True)

    def hidden_in_training(self, noise: Tensor) -> Tensor:
        """[N, K] bool, the last places of the order: a share of them that the noise decides."""
        u = (CHANCE * noise[:, -1, -1, -1]).remainder(1)  # a number that `order` does not look at
        normal = torch.distributions.Normal(MEAN, DEVIATION)
        low, high = normal.cdf(torch.tensor([LEAST, 1.0], device=noise.device))
        share = normal.icdf(low + u * (high - low)).clamp(LEAST, 1)
        order = self.order(noise)
        rank = order.argsort(1)
        count = (share * order.shape[1]).ceil()
        return rank >= order.shape[1] - count[:, None]

    # ----------------------------------------------------------------------------------------------------- training

    def regression(
        self, latents: Tensor, conditioning: Conditioning, noise: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities of hidden tokens; of the others zeros, and the hidden ones are scaled so that the mean square of
        the difference is that of hidden tokens alone."""
        hidden = self.hidden_in_training(noise)
        tokens = self.tokens_of(latents)
        x, target = flow.interpolate(tokens, self.tokens_of(noise), sigma)
        velocity = self.transformer.token_velocity(x, sigma, self.context(tokens, ~hidden, conditioning)).float()
        scale = hidden * (hidden.shape[1] / hidden.sum(1, keepdim=True)).sqrt()
        return self.latents_of(velocity * scale[..., None]), self.latents_of(target * scale[..., None])

    # ----------------------------------------------------------------------------------------------------- drawing

    def left_hidden(self, steps: int, level: float = 1.0) -> list[int]:
        """How many tokens are not there yet, before the first go and after each: the level's share, then K cos(pi k /
        2 steps) at most, and one less each time at least."""
        places = self.transformer.config.places
        left = [ceil(level * places)]
        for step in range(1, steps):
            left.append(min(int(places * cos(pi * step / steps / 2)), left[-1] - 1))
        return [count for count in left if count > 0] + [0]

    def draw(
        self, conditioning: Conditioning, noise: Tensor, sampling: Sampling, unconditional: Conditioning | None = None
    ) -> Tensor:
        *_, latents = self.draw_in_steps(conditioning, noise, sampling, unconditional)
        return latents

    def draw_in_steps(
        self, conditioning: Conditioning, noise: Tensor, sampling: Sampling, unconditional: Conditioning | None = None
    ) -> Iterator[Tensor]:
        """What is there after each go; zero, the mean of latents, elsewhere."""
        yield from self._goes(torch.zeros_like(noise), 1.0, conditioning, noise, sampling, unconditional)

    def redraw(
        self,
        latents: Tensor,
        level: float,
        conditioning: Conditioning,
        noise: Tensor,
        sampling: Sampling,
        unconditional: Conditioning | None = None,
    ) -> Tensor:
        """The level's share of the tokens anew, beside those that stay."""
        *_, latents = self._goes(latents, level, conditioning, noise, sampling, unconditional)
        return latents

    def evaluations(self, sampling: Sampling, level: float = 1.0) -> int:
        """Of the transformers; the head is small."""
        return (len(self.left_hidden(sampling.steps, level)) - 1) * sampling.branches

    def _goes(
        self,
        latents: Tensor,
        level: float,
        conditioning: Conditioning,
        noise: Tensor,
        sampling: Sampling,
        unconditional: Conditioning | None,
    ) -> Iterator[Tensor]:
        tokens, noises, order = self.tokens_of(latents), self.tokens_of(noise), self.order(noise)
        left = self.left_hidden(sampling.steps, level)
        for before, after in zip(left, left[1:], strict=False):
            there = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, -before:], False)
            place = order[:, order.shape[1] - before : order.shape[1] - after, None]  # [N, those of this go, 1]
            known = [self.context(tokens, there, conditioning)]
            if sampling.guidance != 1:
                known.append(self.context(tokens, there, unconditional))
            known = [one.take_along_dim(place, 1) for one in known]
            drawn = self.draw_tokens(noises.take_along_dim(place, 1), known, sampling.guidance)
            tokens = tokens.scatter(1, place.expand_as(drawn), drawn)
            shown = tokens.scatter(1, order[:, order.shape[1] - after :, None].expand(-1, -1, tokens.shape[2]), 0.0)
            yield self.latents_of(shown if after else tokens)

    def draw_tokens(self, x: Tensor, known: list[Tensor], guidance: float) -> Tensor:
        """Noise [N, k, P] -> tokens, by what is known of their places [N, k, W] with the text and, guided, without."""
        for step in range(self.head_steps):
            sigma = x.new_full((len(x),), 1 - step / self.head_steps)
            velocity, *unguided = (self.transformer.token_velocity(x, sigma, one).float() for one in known)
            x = x - (flow.guide(velocity, *unguided, guidance) if unguided else velocity) / self.head_steps
        return x

    # ----------------------------------------------------------------------------------------------------- files

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        with torch.device("meta"):
            model = MARTransformer.from_config(self.transformer.config)
        sums = save_diffusers(model, MergedState(self.transformer, dtype), folder / "transformer")
        self.codec.save(folder / "vae")
        seal(folder, sums)
