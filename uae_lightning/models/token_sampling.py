"""The decoding loop: tokens one after the other, finished captions leave the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from uae_lightning.algorithms.token_logprobs import gather_logprobs

LEAVE = 0.75  # finished captions leave once no more than this share still runs: leaving copies the cache


def end_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens after which a caption is finished: all that generation_config.json names, and the tokenizer's own."""
    named = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return sorted({*named, tokenizer.eos_token_id} - {None})


def is_end(tokens: Tensor, ends: list[int]) -> Tensor:
    return torch.isin(tokens, torch.tensor(ends, device=tokens.device))


def up_to_first(end: Tensor) -> Tensor:
    """[N, T] bool, True up to the first True of `end` and there."""
    return end.cumsum(1) - end.long() == 0


def sample_tokens(
    logits_after: Callable[[Tensor | None, Tensor | None, int], Tensor],
    *,
    count: int,
    temperature: float,
    length: int,
    ends: list[int],
    pad: int,
    heard: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Captions [count, T <= length], each ended by one of `ends` and filled up with `pad`, and their log-probabilities.

    They are those of `torch.multinomial`, row by row, whichever rows have left: the noise of all rows is drawn for
    every token.

    Args:
        logits_after: (tokens [rows], which of the last rows these are, or None for all, index of the token) -> logits
            [rows, V] of the next token; for the first token it is called with (None, None, 0).
        temperature: 0 is greedy.
        heard: is given the tokens so far [count, t], after each.
    """
    logits = logits_after(None, None, 0)
    tokens = torch.full((count, length), pad, device=logits.device)
    logp = torch.zeros(count, length, device=logits.device)
    running = torch.arange(count, device=logits.device)  # the captions that `logits` are of
    done = torch.zeros(count, dtype=torch.bool, device=logits.device)  # of those
    for index in range(length):
        chosen = choose(logits, running, count, temperature).masked_fill(done, pad)
        tokens[running, index] = chosen
        logp[running, index] = gather_logprobs(logits, chosen, temperature=temperature or 1.0)
        done = done | is_end(chosen, ends)
        if heard is not None:
            heard(tokens[:, : index + 1])
        left = int((~done).sum())
        if left == 0 or index == length - 1:
            return tokens[:, : index + 1], logp[:, : index + 1]
        rows = None
        if left <= LEAVE * len(running):
            rows = (~done).nonzero()[:, 0]
            running, chosen, done = running[rows], chosen[rows], done[rows]
        logits = logits_after(chosen, rows, index)
    raise ValueError(f"max_new_tokens must be at least 1, got {length}")


def choose(logits: Tensor, running: Tensor, count: int, temperature: float) -> Tensor:
    """[rows, V] -> [rows] tokens drawn from softmax(logits / temperature), or the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    noise = torch.empty(count, logits.shape[-1], device=logits.device).exponential_()[running]
    return (probabilities / noise).argmax(-1)  # as torch.multinomial does it: an exponential race
