"""The cache of generation, against that of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, LinearAttentionLayer

from uae_lightning.models.prompt_cache import FixedPrefix, PromptReader


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


def inputs(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 6, length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [2, 4, 7])
def test_states_are_those_of_the_cache_of_transformers(length):
    # red if a prompt that is shorter than the convolution is filled up on the right, copies do not stand side by side,
    # rows that leave keep their states, or what is generated is written into the prompt
    reader, plain = PromptReader(), Cache(layers=[LinearAttentionLayer()])
    prompt, state = inputs(3, length, 0), keys(3, 4, 1)
    assert reader.get_conv_state(0) is None and reader.get_recurrent_state(0) is None
    assert reader.update_conv_state(prompt, 0, conv_kernel_size=4) is prompt
    assert reader.update_recurrent_state(state, 0) is state
    plain.update_conv_state(prompt.repeat_interleave(2, 0), 0, conv_kernel_size=4)
    plain.update_recurrent_state(state.repeat_interleave(2, 0), 0)
    ours, kept = reader.for_generation(copies=2), reader.convolved[0].clone()
    for token, rows in enumerate([6, 6, 4]):
        if rows == 4:
            stay = torch.tensor([0, 2, 3, 5])
            ours.batch_select_indices(stay)
            plain.reorder_cache(stay)
        new, after = inputs(rows, 1, 10 + token), keys(rows, 4, 20 + token)
        results = [cache.update_conv_state(new, 0) for cache in (ours, plain)]
        assert torch.equal(*results)
        for cache in (ours, plain):
            cache.update_recurrent_state(after, 0)
        assert torch.equal(ours.get_conv_state(0), plain.get_conv_state(0))
        assert torch.equal(ours.get_recurrent_state(0), plain.get_recurrent_state(0))
    assert torch.equal(reader.convolved[0], kept) and torch.equal(reader.states[0], state)


def test_a_fixed_prefix_keeps_nothing():
    # red if a pass over further tokens is written into the states, as in a cache of transformers
    reader = PromptReader()
    reader.update_conv_state(inputs(1, 5, 0), 0, conv_kernel_size=4)
    reader.update_recurrent_state(keys(1, 4, 1), 0)
    prefix = FixedPrefix(reader, copies=1)
    before = [part.clone() for part in (prefix.get_conv_state(0), prefix.get_recurrent_state(0))]
    for _ in range(2):
        seen = prefix.update_conv_state(inputs(1, 1, 2), 0, conv_kernel_size=4)
        assert torch.equal(seen, torch.cat([before[0], inputs(1, 1, 2)], -1))
        prefix.update_recurrent_state(keys(1, 4, 3), 0)
    assert torch.equal(prefix.get_conv_state(0), before[0]) and torch.equal(prefix.get_recurrent_state(0), before[1])
    assert prefix.is_recording_past(0)  # else a single token is written into `get_conv_state` in place
