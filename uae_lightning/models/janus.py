"""Janus: one language model that reads pictures by SigLIP's features and draws them as codes of a VQ model.

The paper's second model (Janus-Pro, arXiv 2501.17811). Encoder, projector and decoder are views of one
`JanusForConditionalGeneration`, which the encoder owns: a state dict, an optimizer and a folder hold its weights once
(`autoencoder.OneBackbone`). What crosses is the text alone: the decoder begins with the embeddings of its words.

N texts   L their positions   D width   K codes of a picture   V codes there are
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, JanusForConditionalGeneration
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.modeling_janus import JanusModel

from uae_lightning.algorithms import flow
from uae_lightning.algorithms.digest import digest_of
from uae_lightning.interfaces import Codec, Decoder, DrawingEncoder, Projector
from uae_lightning.models.adapters import lora_layers
from uae_lightning.models.intern_vl import InternVLEncoder
from uae_lightning.models.prompts import PLACE
from uae_lightning.models.seeing import Seen
from uae_lightning.types import Conditioning, Learning, Sampling

BEGIN, END = "<begin_of_image>", "<end_of_image>"


class JanusEncoder(InternVLEncoder, DrawingEncoder):
    """`JanusForConditionalGeneration` (Janus-Pro 1B and 7B, the repositories in the layout of transformers); arguments
    as of `QwenVLEncoder`. Every picture becomes one square of the tower's size; `max_pixels` has no meaning here.
    """

    kind, title, reading_role = JanusForConditionalGeneration, "Janus", "user"
    preprocessor_kind, placeholders = JanusImageProcessorPil, ("image_token_id",)

    def _check_preprocessor(self, folder: Path) -> None:
        super()._check_preprocessor(folder)
        if self.tokenizer.convert_tokens_to_ids(BEGIN) in (None, self.tokenizer.unk_token_id):
            raise ValueError(f"the tokenizer in {folder} has no {BEGIN}: copy tokenizer.json again")

    @property
    def side(self) -> int:
        return self.model.config.vision_config.image_size

    def vision_blocks(self) -> list[nn.Module]:
        return list(self.model.model.vision_model.encoder.layers)

    def merged_patches(self) -> int:
        return 1

    def by_place(self, output: Tensor, seen: Seen) -> Tensor:
        return output

    def picture_text(self, pad: str, grid: tuple[int, int]) -> str:
        return f"{BEGIN}{pad * self.model.config.vision_config.num_image_tokens}{END}"

    # ------------------------------------------------------------------------------------------------ text -> picture

    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of the words of the prompt to draw, up to the token that begins a picture: [N, L, D], [N, L]."""
        self.control_texts += self.foreign_text.with_control(texts)
        before, after = self.generate_prompt(PLACE).split(PLACE)
        rows = self.foreign_text.encode(texts, before, after + BEGIN)
        ids, mask = self.padded([[*self.start, *row] for row in rows])
        return self.model.get_input_embeddings()(ids), mask

    @property
    def start(self) -> list[int]:
        """What the tokenizer puts in front of every text."""
        return self.tokenizer("")["input_ids"]

    def nothing(self, mask: Tensor) -> Tensor:
        """Of prompts with that mask [N, L] (padding on the right), the same without words: padding in their place, as
        transformers guides by; [N, L, D]."""
        ids = torch.full(mask.shape, self.pad, device=mask.device)
        ids[:, : len(self.start)] = torch.tensor(self.start, dtype=ids.dtype, device=ids.device)
        last = mask.sum(1, keepdim=True) - 1
        begin = self.tokenizer.convert_tokens_to_ids(BEGIN)
        return self.model.get_input_embeddings()(ids.scatter(1, last, begin))

    def halves(self) -> tuple[Projector, Decoder]:
        return SameStates(self.hidden_size), JanusDecoder(self)


class SameStates(Projector):
    """Nothing stands between a text's embeddings and the backbone that draws from them.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_size = self.output_size = width

    def forward(self, states: Tensor) -> Tensor:
        return states

    def adapt(self, learning: Learning) -> None:
        if learning is not None:
            raise ValueError("one backbone has no projector: set model.init_args.learn.projector to null")

    def save(self, folder: Path) -> None:
        """There is nothing to be written."""


class JanusCodec(Codec):
    """The VQ model; latents are vectors of its codebook, of length 1 as its decoder takes them.

    Codes are the nearest by the angle, as in DeepSeek's code (transformers' `encode` compares vectors of any length).

    Args:
        encoder: whose model it is a part of, and who writes it.
    """

    def __init__(self, encoder: JanusEncoder) -> None:
        super().__init__()
        self.owner = (encoder,)  # in a tuple it is no submodule: its weights have one name
        config = self.vq.config
        self.channels, self.downsampling = config.embed_dim, 2 ** (len(config.channel_multiplier) - 1)

    @property
    def vq(self) -> nn.Module:
        return self.owner[0].model.model.vqmodel

    @property
    def table(self) -> Tensor:
        """[V, C]"""
        return F.normalize(self.vq.quantize.embedding.weight.float(), dim=-1)

    def codes_of(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, K]."""
        return (latents.float().flatten(2).transpose(1, 2) @ self.table.T).argmax(-1)

    def latents_of(self, codes: Tensor) -> Tensor:
        """[N, K] -> [N, C, h, w]."""
        side = self.vq.config.num_patches
        return self.table[codes].transpose(1, 2).unflatten(2, (side, side))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        pixels = (2 * images - 1).to(self.vq.dtype)
        return self.latents_of(self.codes_of(self.vq.quant_conv(self.vq.encoder(pixels))))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return (self.vq.decode(self.codes_of(latents)).float() / 2 + 0.5).clamp(0, 1)

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        return {"VAE": type(self).__name__, "VAE weights": digest_of(self.vq, adapters)}

    def save(self, folder: Path) -> None:
        """Its owner writes it."""


class JanusDecoder(Decoder):
    """The backbone as it draws: a code after the other, by the embeddings of a text and of the codes before.

    A code is where the cumulated chances pass the normal distribution function of a number of noise, so that a picture
    is a function of its noise. `sampling.steps` has no meaning: there are as many calls as codes.

    Args:
        encoder: that owns the backbone.
    """

    network = "scores"

    def __init__(self, encoder: JanusEncoder) -> None:
        super().__init__()
        self.owner = (encoder,)
        self.codec = JanusCodec(encoder)
        self.image_size = self.codec.vq.config.num_patches * self.codec.downsampling
        self.conditioning_size = encoder.hidden_size

    @property
    def encoder(self) -> JanusEncoder:
        return self.owner[0]

    @property
    def backbone(self) -> JanusModel:
        return self.encoder.model.model

    def adapt(self, learning: Learning) -> None:
        """What `learn.decoder` names is trained of the backbone, which is adapted once."""
        if learning is None:  # what `learn.encoder` says of it stays
            return
        if lora_layers(self.encoder.model):
            raise ValueError(
                "encoder and decoder are one backbone, which learns once: set model.init_args.learn.encoder or "
                "learn.decoder to null"
            )
        self.encoder.adapt(learning)

    def reference(self) -> AbstractContextManager[None]:
        return self.encoder.reference()

    def fingerprint(self, adapters: bool = True) -> dict[str, str]:
        return {"decoder": "the encoder"}

    # ------------------------------------------------------------------------------------------------ training

    def regression(
        self, latents: Tensor, conditioning: Conditioning, noise: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        raise ValueError(
            "Janus draws codes, which are learnt by their cross-entropy: there is nothing to regress on, as "
            "DecoderMatching does. Take DecoderPretrain or EncoderRL"
        )

    def loss(self, latents: Tensor, conditioning: Conditioning, noise: Tensor, sigma: Tensor) -> Tensor:
        """Cross-entropy of each code, in nats: a map [N, 1, h, w]. Noise and its level have no meaning."""
        codes = self.codec.codes_of(latents)
        scores = self.scores(self.without_dropped(conditioning), codes)
        found = F.cross_entropy(scores.flatten(0, 1).float(), codes.flatten(), reduction="none")
        return found.view(len(codes), 1, *latents.shape[2:])

    def without_dropped(self, conditioning: Conditioning) -> Conditioning:
        """Rows that `Conditioning.drop` made empty become prompts without words, as long as the longest text."""
        states, mask = conditioning.states, conditioning.mask
        dropped = (mask.sum(1) == 1) & (states[:, 0] == 0).all(-1)
        longest = conditioning.mask | dropped[:, None]
        nothing = self.encoder.nothing(longest).to(states)
        return Conditioning(nothing.where(dropped[:, None, None], states), longest)

    def scores(self, conditioning: Conditioning, codes: Tensor) -> Tensor:
        """Of every code [N, K], by the text and the codes before it: [N, K, V]."""
        states, mask = padded_on_the_left(conditioning)
        begun = torch.cat([states.to(self.encoder.dtype), self.embedded(codes[:, :-1])], 1)
        mask = F.pad(mask, (0, codes.shape[1] - 1), value=True)
        read = self.backbone.language_model(
            inputs_embeds=begun, attention_mask=mask.long(), position_ids=positions_of(mask), use_cache=False
        ).last_hidden_state
        return self.backbone.generation_head(read[:, -codes.shape[1] :])

    def embedded(self, codes: Tensor) -> Tensor:
        """[N, k] -> [N, k, D]."""
        return self.encoder.model.prepare_embeddings_for_image_generation(codes)

    # ------------------------------------------------------------------------------------------------ drawing

    def evaluations(self, sampling: Sampling, level: float = 1.0) -> int:
        return self.codec.vq.config.num_patches**2 * sampling.branches

    @torch.no_grad()
    def draw(
        self, conditioning: Conditioning, noise: Tensor, sampling: Sampling, unconditional: Conditioning | None = None
    ) -> Tensor:
        branches = [padded_on_the_left(conditioning)]
        if sampling.guidance != 1:
            without = unconditional or Conditioning(self.encoder.nothing(conditioning.mask), conditioning.mask)
            branches.append(padded_on_the_left(without))
        chances = torch.distributions.Normal(0.0, 1.0).cdf(noise[:, 0].flatten(1).float())  # [N, K]
        length = max(states.shape[1] for states, _ in branches)
        rows = [F.pad(states, (0, 0, length - states.shape[1], 0)) for states, _ in branches]
        masks = [F.pad(mask, (length - mask.shape[1], 0)) for _, mask in branches]
        given, mask = torch.cat(rows).to(self.encoder.dtype), torch.cat(masks)
        cache, drawn = DynamicCache(config=self.encoder.model.config.text_config), []
        places = positions_of(mask)
        for number in range(chances.shape[1]):
            read = self.backbone.language_model(
                inputs_embeds=given,
                attention_mask=mask.long(),
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            scores = list(self.backbone.generation_head(read[:, -1]).float().split(len(noise)))
            guided = scores[0] if len(scores) == 1 else flow.guide(*scores, sampling.guidance)
            drawn.append(inverse_of_cumulated(guided.softmax(-1), chances[:, number]))
            given = self.embedded(drawn[-1].repeat(len(scores))[:, None])
            mask, places = F.pad(mask, (0, 1), value=True), places[:, -1:] + 1
        return self.codec.latents_of(torch.stack(drawn, 1))

    def save(self, folder: Path) -> None:
        """Its owner writes it."""


def padded_on_the_left(conditioning: Conditioning) -> tuple[Tensor, Tensor]:
    """States [N, L, D] and mask [N, L] of texts that end in the last column, without columns that are empty in all."""
    conditioning = conditioning.cropped()
    length = conditioning.mask.shape[1]
    columns = torch.arange(length, device=conditioning.mask.device)
    order = (columns - (length - conditioning.mask.sum(1, keepdim=True))) % length
    return conditioning.states.take_along_dim(order[..., None], 1), conditioning.mask.take_along_dim(order, 1)


def positions_of(mask: Tensor) -> Tensor:
    """[N, S] of what is there, from 0 on."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def inverse_of_cumulated(chances: Tensor, at: Tensor) -> Tensor:
    """[N, V] and numbers [N] in (0, 1) -> [N] the first code whose cumulated chances pass the number."""
    cumulated = chances.cumsum(-1)
    found = torch.searchsorted(cumulated, (at[:, None] * cumulated[:, -1:]).contiguous())
    return found[:, 0].clamp(max=chances.shape[-1] - 1)
