"""What it costs to generate captions: the prompt is read once, then tokens come one by one from a cache that grows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from uae_lightning.models.lora_product import merged_while
from uae_lightning.models.prompt_cache import GrowingLayer
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.planning.meter import Meter
from uae_lightning.planning.sharding import GATHERED, ROLLOUTS
from uae_lightning.planning.text import caption
from uae_lightning.types import Captions

SCORES = 6  # [N, V] fp32 while a token is drawn: logits in two forms, probabilities, noise twice, their quotient


@dataclass
class Generation:
    """Stands in for `encoder.generate`, which stops where a value says so: here all captions have full length.

    The decoding steps are all alike but for the length of the cache, to which their cost is linear: the first and the
    last are run, the others counted.
    """

    encoder: QwenVLEncoder
    meter: Meter
    cache_bytes: int = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, *, samples: int, temperature: float, max_new_tokens: int, seed: int) -> Captions:
        copies = samples if temperature > 0 else 1  # greedy captions of a picture are all the same
        validating = self.meter.now is self.meter.phases.get("validation")
        with self.meter.phase("validation" if validating else "captions"):
            self.generate(images, copies, max_new_tokens)
            self.meter.now.calls["tokens"] += len(images) * copies * max_new_tokens
            self.meter.now.calls[ROLLOUTS] += 1
            self.meter.now.calls.pop(GATHERED, None)  # the encoder is whole for all of its tokens
        tokens = torch.zeros(len(images) * samples, max_new_tokens, dtype=torch.long)
        texts = [caption(max_new_tokens, row) for row in range(len(tokens))]
        return Captions(texts, tokens, torch.ones_like(tokens, dtype=torch.bool), torch.empty(tokens.shape))

    def generate(self, images: Tensor, copies: int, new_tokens: int) -> None:
        prefix = self.encoder.read_prompt(images)
        cache, rows = prefix.reader.for_generation(copies), len(images) * copies
        scores = self.encoder.head(prefix.last.repeat_interleave(copies, 0))
        self.meter.note(SCORES * 4 * scores.numel())
        del scores
        steps = new_tokens - 1  # the prompt gave the first token
        if not steps:
            return
        with merged_while(self.encoder.model):
            first = self.decoding_step(cache, rows)
            self.grow(cache, cache.get_seq_length() - 1 + new_tokens - 2)
            last = self.decoding_step(cache, rows)
        self.cache_bytes = max(self.cache_bytes, size_of(cache))
        self.meter.now.flops += (first + last) * (steps - 2) // 2

    def decoding_step(self, cache: Cache, rows: int) -> int:
        """One token for each row; returns its FLOPs."""
        before = self.meter.now.flops
        output = self.encoder.model.model.language_model(
            input_ids=torch.ones(rows, 1, dtype=torch.long),
            position_ids=self.encoder.places(torch.full((rows, 1), cache.get_seq_length())),
            past_key_values=cache,
            use_cache=True,
        )
        scores = self.encoder.head(output.last_hidden_state[:, -1])
        self.meter.note(SCORES * 4 * scores.numel())
        return self.meter.now.flops - before

    def grow(self, cache: Cache, length: int) -> None:
        """The cache then holds `length` tokens, in the room that would have been taken by then."""
        for layer in cache.layers:
            if not isinstance(layer, GrowingLayer):  # states stay as large as they are
                continue
            rows, heads, held, width = layer.store[0].shape
            room = held + -(-max(length - held, 0) // layer.room) * layer.room
            kind = layer.store[0].dtype
            layer.store = layer.keys = layer.values = None
            layer.store = [torch.empty(rows, heads, room, width, dtype=kind) for _ in ("keys", "values")]
            layer.length = length
            layer.show()


def size_of(cache: Cache) -> int:
    """Bytes of keys and values, of the room that was taken ahead, and of states."""
    return sum(
        held.nbytes
        for layer in cache.layers
        for held in (layer.store if isinstance(layer, GrowingLayer) else layer.found)
    )
