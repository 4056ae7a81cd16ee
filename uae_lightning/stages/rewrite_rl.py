"""The rewriter learns from what is drawn: RL of prompt -> caption, with pictures judged by the prompt as it was.

The second phase of Think-Then-Generate (arXiv 2601.10332), its encoder's half. P prompts in the batch, G rewrites of
each (a group), N = P * G.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.stages.policy import Rollout
from uae_lightning.types import Batch, RewardInput, ValidationOutput


class RewriteRL(EncoderRL):
    """GRPO on the tokens of rewrites, thoughts included; the decoder draws each rewrite, from one noise for its group.

    The reward is given the raw prompt with the picture, as a text of the data's own (`RewardInput.given`), and never
    sees the rewrite: what the rewriter adds cannot be what it is judged by. It needs no original: the likelihood of the
    prompt given the picture (`rewards.caption_likelihood.CaptionLikelihood`), a scorer of GenEval's prompts, PickScore.
    Penalties on captions would read prompts: limit rewrites by `cut_penalty`, `mask_cut_captions` and
    `reinforced_tokens`. A rewrite that is empty leaves the prompt as it is. Validation rewrites and draws held-out
    prompts.

    Start from what `stages.rewrite_sft.RewriteSFT` has taught, and with `condition_on: adapted` keep what the decoder
    reads (`stages.memory_replay.Replay` among the `auxiliaries`).

    Args:
        *args, **parts: of `EncoderRL`, where a caption is a rewrite and a picture a prompt.
    """

    trains_from_prompts = True

    @torch.no_grad()
    def rollout(self, batch: Batch) -> Rollout:
        prompts, group = raw_prompts(batch), self.policy.group_size
        acts = self.policy.act(prompts, self)
        pictures = self.draw(acts.captions.texts, self.noise_of_groups(batch))
        asked = [prompt for prompt in prompts for _ in range(group)]
        given, images = pictures.new_ones(len(asked), dtype=torch.bool), batch.images.repeat_interleave(group, 0)
        inputs = RewardInput(images, pictures, asked, given, batch.metadata_of_each(group))
        return Rollout(batch, acts.captions, [acts], inputs)

    def validation_step(  # type: ignore[override]  # see Stage
        self, batch: Batch, batch_idx: int
    ) -> ValidationOutput:
        prompts, seed = raw_prompts(batch), self.validation_seed(batch_idx)
        rewrites = self.autoencoder.rewrite(prompts, 1, seed)
        output = super().validation_step(replace(batch, captions=rewrites.texts), batch_idx)
        asked = replace(output.inputs, captions=prompts)
        return replace(output, inputs=asked, caption_tokens=rewrites.lengths, drawn=rewrites.texts)


def raw_prompts(batch: Batch) -> list[str]:
    """Those of a batch; a ValueError where it is of pictures."""
    if batch.has_images or batch.latents is not None:
        raise ValueError(
            "RewriteRL rewrites prompts, and the data are pictures: set data.class_path to "
            "uae_lightning.data.prompts.PromptData (on scenes uae_lightning.scenes.prompt_data.ScenePromptData)"
        )
    return batch.captions
