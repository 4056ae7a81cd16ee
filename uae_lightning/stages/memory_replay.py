"""Replay from memory: the encoder in training stays close to the one that it was, on pictures it has once described."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning as L
import torch
from torch import Tensor

from uae_lightning.algorithms.distillation import forward_kl, rarity_weights, state_distance
from uae_lightning.interfaces import Encoder
from uae_lightning.parallel.collectives import mean_over_ranks, own_rows, ranks
from uae_lightning.policies.captions import take
from uae_lightning.ranges import Count, NonNegative, Positive, ShareBelow1, checked
from uae_lightning.stages.auxiliary import Auxiliary
from uae_lightning.stages.common import Stage
from uae_lightning.types import Batch, Captions


@dataclass(frozen=True)
class Remembered:
    """A batch of n pictures, as the encoder saw and described them before it was trained."""

    seen: Any  # of the n pictures
    captions: Captions  # n, with the end-of-text of each that has one
    weights: Tensor  # [n, T] how much each token counts
    texts: list[list[str]]  # n: what is read alone, its caption and the text that the data has of the picture


@checked
class Replay(Auxiliary):
    """Distils the encoder of before the stage (adapters off) into the one in training, on a small memory.

    SEDEG (arXiv 2508.12932) keeps a few samples of what a network could do, and distils in two ways. Here:
    KL(p_ref || p) at the tokens of remembered captions, balanced so that rare words (counts, relations) are not lost
    among frequent ones; and |s / |s| - r / |r||^2 of the states of texts read alone, on which the decoder draws. The
    captions are the encoder's own, so that nothing is supervised; texts that the data has, captions or prompts, are
    read only.

    The memory is made when a run begins, and the same again when it is resumed, from the pictures of `data`, the seed,
    and the encoder with its adapters off. Each step replays one of its batches, in turn.

    Args:
        weight: what the loss is multiplied by.
        data: whose first training batches are remembered; its batch_size is that of a replay, on all ranks together.
        batches: how many of them.
        micro_batch: pictures per forward and backward pass. On float32 weights every pass adds the adapters to them
            anew (`models.lora_product`), so that small ones compute more.
        feature_weight: of the distance of states, a mean over texts; the KL is a mean over tokens.
        balance: of `algorithms.distillation.rarity_weights`; 0 weighs all tokens alike.

    Raises:
        ValueError: the stage does not train the encoder, or states are to be kept that do not move.
    """

    name, trains = "replay", ("encoder",)

    def __init__(
        self,
        weight: Positive,
        data: L.LightningDataModule,
        batches: Count = 16,
        micro_batch: Count = 16,
        feature_weight: NonNegative = 1.0,
        balance: ShareBelow1 = 0.99,
    ) -> None:
        super().__init__(weight)
        self.data, self.batches, self.micro_batch = data, batches, micro_batch
        self.feature_weight, self.balance = feature_weight, balance
        self.memory: list[Remembered] = []

    def check(self, stage: Stage) -> None:
        super().check(stage)
        if self.feature_weight and stage.autoencoder.condition_on == "frozen":
            raise ValueError(
                "Replay keeps states that do not move with condition_on: frozen: set feature_weight of the auxiliary "
                "to 0, or model.autoencoder.condition_on to adapted"
            )

    # ------------------------------------------------------------------------------------------------ the memory

    @torch.no_grad()
    def begin(self, stage: Stage) -> None:
        encoder, autoencoder, written = stage.autoencoder.reader, stage.autoencoder, []
        with torch.random.fork_rng(devices=[]), encoder.reference():  # loaders draw from the global random state
            for number, batch in enumerate(self.pictures()):
                seen = encoder.see(batch.images.to(autoencoder.device))
                written.append((seen, autoencoder.write(seen, 1, (stage.seed + number) % 2**32), batch.captions))
        counts = torch.cat([captions.tokens[captions.mask] for _, captions, _ in written]).bincount()
        self.memory = [remembered(*one, rarity_weights(counts, self.balance)) for one in written]

    def pictures(self) -> list[Batch]:
        self.data.prepare_data()
        self.data.setup("fit")
        found = list(islice(self.data.train_dataloader(), self.batches))
        if len(found) < self.batches:
            raise ValueError(f"Replay is to remember {self.batches} batches, its data has {len(found)}: lower batches")
        for batch in found:
            if not batch.has_images:
                raise ValueError("Replay looks at pictures, and a cache has none: give its data with pictures")
            if len(batch.images) % ranks():
                raise ValueError(
                    f"Replay cannot share out {len(batch.images)} pictures among {ranks()} devices: set batch_size of "
                    "its data to a multiple"
                )
        return found

    # ------------------------------------------------------------------------------------------------ the loss

    def loss(self, stage: Stage, batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.stack([*self.losses(stage, batch, generator)]).sum()

    def losses(self, stage: Stage, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        encoder, replayed = stage.autoencoder.reader, self.memory[int(stage.batches_seen) % len(self.memory)]
        rows = own_rows(torch.arange(len(replayed.texts), device=replayed.weights.device))
        weight = mean_over_ranks(replayed.weights[rows].sum())
        texts = mean_over_ranks(weight.new_tensor(sum(len(replayed.texts[row]) for row in rows.tolist())))
        for part in rows.split(self.micro_batch):
            kl = self.divergence(encoder, replayed.seen[part], take(replayed.captions, part))
            loss = (kl * replayed.weights[part]).sum() / weight
            if self.feature_weight:
                read = [text for row in part.tolist() for text in replayed.texts[row]]
                loss = loss + self.feature_weight * self.distances(encoder, read).sum() / texts
            yield loss

    def divergence(self, encoder: Encoder, seen: Any, captions: Captions) -> Tensor:
        """KL(p_ref || p) in nats at each token of n captions: [n, T]."""
        logits = encoder.token_logits(seen, captions)
        with torch.no_grad(), encoder.reference():
            reference = encoder.token_logits(seen, captions)
        return forward_kl(logits, reference)

    def distances(self, encoder: Encoder, texts: list[str]) -> Tensor:
        """Of the states of n texts, a mean over each: [n]."""
        states, mask = encoder.embed(texts)
        with torch.no_grad(), encoder.reference():
            reference, _ = encoder.embed(texts)
        return (state_distance(states, reference) * mask).sum(1) / mask.sum(1)


def remembered(seen: Any, captions: Captions, texts: list[str], weights: Tensor) -> Remembered:
    """`texts` are those of the data, "" where it has none; `weights` [V] of each token."""
    of_tokens = weights[captions.tokens * captions.mask] * captions.mask
    read = [[own, text] if text else [own] for own, text in zip(captions.texts, texts, strict=True)]
    return Remembered(seen, captions, of_tokens, read)
