"""Stages 2 and 3 in one step: captions that reconstruct better, and pictures that follow them.

P pictures in the batch   G captions of each   K drawings of each caption, N = P * G * K
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.policies.captions import CaptionGRPO
from uae_lightning.policies.flow_grpo import FlowGRPO
from uae_lightning.ranges import Count, checked
from uae_lightning.stages.policy import PolicyStage, Rollout
from uae_lightning.types import TOTAL, Batch, RewardInput, RewardOutput, Work


@checked
class JointRL(PolicyStage):
    """Both policies of a tree: a caption is worth the mean of its drawings, a drawing is compared with the others of
    its caption.

    Args:
        captions: of the encoder, by the options of EncoderRL; its group_size is G.
        pictures: of the decoder, by the options of DecoderRL; its group_size is K.
        caption_reward, picture_reward: the part of the reward that each side learns from, such as a level of
            LayeredSimilarity; "total" is all of it.
        updates_per_batch: optimiser steps on one rollout; 1 is on policy.
        **parts: of `Stage`.
    """

    trained = ("encoder", "decoder")

    def __init__(
        self,
        *args,
        captions: Callable[[AutoEncoder], CaptionGRPO],
        pictures: Callable[[AutoEncoder], FlowGRPO],
        caption_reward: str = TOTAL,
        picture_reward: str = TOTAL,
        updates_per_batch: Count = 1,
        **parts,
    ) -> None:
        super().__init__(*args, updates_per_batch=updates_per_batch, **parts)
        self.caption_reward, self.picture_reward = caption_reward, picture_reward
        self.policies = {"captions": captions(self.autoencoder), "pictures": pictures(self.autoencoder)}

    @staticmethod
    def check_training(options: Any) -> None:
        CaptionGRPO.check(SimpleNamespace(**vars(options.captions.init_args), captioning=options.captioning))
        FlowGRPO.check(SimpleNamespace(**vars(options.pictures.init_args), sampling=options.sampling))

    @staticmethod
    def work(options: Any) -> Work:
        captions, pictures, updates = options.captions.init_args.group_size, options.pictures, options.updates_per_batch
        drawn = SimpleNamespace(**vars(pictures.init_args), sampling=options.sampling, updates_per_batch=updates)
        forwards = captions * drawn.group_size * FlowGRPO.decoder_forwards(drawn)
        return Work(forwards, captions, updates * captions)

    @torch.no_grad()
    def rollout(self, batch: Batch) -> Rollout:
        captions, pictures = self.policies.values()
        said = captions.act(batch.images, self)
        drawn = pictures.act(self.autoencoder.read(said.captions.texts), self)
        texts = [text for text in said.captions.texts for _ in range(pictures.group_size)]
        samples = captions.group_size * pictures.group_size
        images, metadata = batch.images.repeat_interleave(samples, 0), batch.metadata_of_each(samples)
        inputs = RewardInput(images, drawn.pictures, texts, metadata=metadata)
        return Rollout(batch, said.captions, [said, drawn], inputs)

    def credit(self, rollout: Rollout, scores: RewardOutput) -> list[Tensor]:
        (captions, pictures), said = self.policies.values(), rollout.acts[0]
        of_pictures = part_of(scores, self.picture_reward, "picture_reward")
        of_drawings = part_of(scores, self.caption_reward, "caption_reward")
        of_captions = of_drawings.each(lambda values: values.view(-1, pictures.group_size).mean(1))  # P * G
        return [self.compared("captions", captions.rewards(said, of_captions)), self.compared("pictures", of_pictures)]


def part_of(scores: RewardOutput, name: str, option: str) -> RewardOutput:
    """One part in place of the total; a ValueError where the reward has no such part."""
    if name == TOTAL:
        return scores
    if name not in scores.parts:
        raise ValueError(
            f"model.init_args.{option}: the reward has no part {name!r}; name one of {', '.join(scores.parts)}, or "
            f"{TOTAL} for all of it"
        )
    return RewardOutput(scores.parts[name], {name: scores.parts[name]})
