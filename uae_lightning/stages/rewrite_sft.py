"""The encoder learns to rewrite: a terse prompt -> the complete caption of a picture that fulfils it.

The first phase of Think-Then-Generate (arXiv 2601.10332), which fine-tunes the text encoder of an image generator on
prompts and what is to be drawn. N pairs in the batch, T tokens of a caption.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uae_lightning.interfaces import Encoder
from uae_lightning.parallel.collectives import mean_over_ranks
from uae_lightning.stages.common import Stage
from uae_lightning.types import Batch, Captions, Work


class RewriteSFT(Stage):
    """Supervised fine-tuning: the cross-entropy of captions, their end included, given the prompts of the batch.

    A caption may open with thoughts, from `<think>` to `</think>`: they are learnt, and cut off by `Encoder.rewrite`.
    Projector and decoder are there for the validation alone, which is the round trip of pictures: what the encoder's
    captions lose. What rewriting brings is seen with `rewriting` of the suite GenEval.

    Args:
        *args, **parts: of `Stage`.
    """

    trained = ("encoder",)

    @staticmethod
    def work(options: Any) -> Work:
        return Work(0, captions_trained=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        prompts, captions = pairs(batch)
        encoder = self.autoencoder.reader
        loss = cross_entropy(encoder, encoder.ask(prompts), encoder.tokenize(captions, ended=True))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the cross-entropy is {loss.item()} at step {self.global_step}: lower the lr")
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        if encoder.control_texts:  # since the start or the last resume, on this rank
            self.log("data/control_texts", float(encoder.control_texts))
        return sum(self.auxiliary_losses(batch), loss)


def pairs(batch: Batch) -> tuple[list[str], list[str]]:
    """(prompts, captions) of a batch, N each; a ValueError where a prompt or a caption is missing."""
    prompts = batch.prompts or [""] * len(batch.keys)
    for key, *texts in zip(batch.keys, prompts, batch.captions, strict=True):
        if not all(texts):
            raise ValueError(
                f"RewriteSFT learns from prompts and their complete captions, and {key} lacks one of both: name the "
                "column of prompts with data.init_args.prompt_column of uae_lightning.data.image_text.ImageTextData"
            )
    return prompts, batch.captions


def cross_entropy(encoder: Encoder, context: Any, captions: Captions) -> Tensor:
    """[] in nats per token of N captions, over all ranks.

    Args:
        context: of the captions: pictures as the encoder sees them, or prompts that it is asked about.
    """
    logp, _ = encoder.token_logprobs(context, captions, temperature=1.0)  # [N, T]
    tokens = mean_over_ranks(captions.mask.sum().float())
    return -logp.masked_fill(~captions.mask, 0.0).sum() / tokens
