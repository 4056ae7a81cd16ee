"""The cache of generation, against that of transformers."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from uae_lightning.models.prompt_cache import PromptReader


def keys(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 2, length, 4, generator=torch.Generator().manual_seed(seed))


def test_growing_room_holds_what_the_cache_of_transformers_holds():
    # red if `start` is off by one, old tokens are lost when room is added, only keys leave, or copies do not stand
    # side by side
    reader, plain = PromptReader(), DynamicCache()
    for layer in range(2):
        prompt = keys(3, 5, layer), keys(3, 5, 10 + layer)
        reader.update(*prompt, layer)
        plain.update(*(part.repeat_interleave(2, 0) for part in prompt), layer)
    growing, rows = reader.for_generation(copies=2, room=2), 6
    for token in range(7):
        if token == 4:
            stay = torch.tensor([0, 2, 3, 5])
            growing.batch_select_indices(stay)
            plain.batch_select_indices(stay)
            rows = 4
        for layer in range(2):
            new = keys(rows, 1, 100 + token + layer), keys(rows, 1, 200 + token + layer)
            for held, wanted in zip(growing.update(*new, layer), plain.update(*new, layer), strict=True):
                assert torch.equal(held, wanted)
        assert growing.get_seq_length() == plain.get_seq_length() == 6 + token
    assert growing.layers[0].store[0].shape[-2] <= 12 + 1  # red if room for all tokens is taken each time
    assert all(layer[0].shape == (3, 2, 5, 4) for layer in reader.read.values())  # the prompt stays as it was
