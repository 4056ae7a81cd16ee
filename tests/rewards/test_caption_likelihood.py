"""The likelihood of a caption given the picture that was drawn of it, by the shipped reader."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.rewards.caption_likelihood import CaptionLikelihood
from uae_lightning.scenes.captions import write_caption
from uae_lightning.scenes.faults import faulty_scenes, with_fault
from uae_lightning.scenes.scene import pictures, sample_scene
from uae_lightning.types import RewardInput

KINDS = ("class", "color", "moved", "dropped")


@pytest.fixture(scope="module")
def reader() -> QwenVLEncoder:
    prompts = {"caption_system": "", "caption_prompt": "describe the picture", "generate_system": ""}
    return QwenVLEncoder("shipped:scenes/encoder", **prompts, max_pixels=9216)


@pytest.fixture(scope="module")
def scenes():
    """That can have each of the faults."""
    stream = (sample_scene("test", 0, index) for index in itertools.count())
    return list(itertools.islice((s for s in stream if all(faulty_scenes(s, kind) for kind in KINDS)), 8))


def captions_of(scenes) -> list[str]:
    return [write_caption(scene, np.random.default_rng([0, row])) for row, scene in enumerate(scenes)]


def score(reward: CaptionLikelihood, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return reward(RewardInput(torch.zeros_like(images), images, captions)).total


def test_a_picture_that_is_as_the_caption_says_is_likelier_than_one_with_a_wrong_fact(reader, scenes):
    # red if the picture is the original's, the caption another picture's, or the sign is turned
    reward, captions, rng = CaptionLikelihood(reader), captions_of(scenes), np.random.default_rng(0)
    true = score(reward, pictures(scenes), captions)
    wins = {
        kind: (true > score(reward, pictures([with_fault(scene, kind, rng) for scene in scenes]), captions))
        for kind in KINDS
    }
    right = torch.stack(list(wins.values())).float().mean()  # .995 of 432 pairs (ours, 48 scenes with nine faults each)
    assert right >= 0.95, {kind: row.tolist() for kind, row in wins.items()}


def test_it_is_the_mean_over_tokens_and_the_end(reader, scenes):
    # red if padding counts, the end is left out, or a long caption weighs more than a short one
    captions, images = ["a red cat", captions_of(scenes)[1], ""], pictures(scenes[:3])
    reward = CaptionLikelihood(reader)
    tokens = [[*reader.foreign_text.encode([text])[0], reader.tokenizer.eos_token_id] for text in captions]
    asked = reader.tokenize(captions, ended=True)
    assert torch.equal(asked.tokens, pad_sequence([torch.tensor(row) for row in tokens], True, reader.pad))
    assert asked.lengths.tolist() == [4, len(tokens[1]), 1]
    with torch.no_grad():
        logp = reader.token_logits(images, asked).log_softmax(-1)
    wanted = [logp[row, range(len(own)), own].mean() for row, own in enumerate(tokens)]
    found = score(reward, images, captions)
    torch.testing.assert_close(found, torch.stack(wanted))
    torch.testing.assert_close(score(CaptionLikelihood(reader, "probability"), images, captions), found.exp())


def test_tokenize_ends_where_it_is_asked_to_alone(reader):
    # red if the default is True: scenes.questions scores answers that go on
    plain, ended = (reader.tokenize(["a red cat", "two"], ended=ended) for ended in (False, True))
    assert plain.lengths.tolist() == [3, 1] and ended.lengths.tolist() == [4, 2]
    assert ended.tokens[0, 3] == ended.tokens[1, 1] == reader.tokenizer.eos_token_id
    assert reader.tokenizer.eos_token_id in reader.ends


def test_the_reader_is_frozen_and_gradients_reach_the_picture(reader, scenes):
    # red if `freeze` goes, or the picture is seen without a gradient
    reward = CaptionLikelihood(reader).train()
    assert not reward.encoder.training and not any(p.requires_grad for p in reward.parameters())
    images = pictures(scenes[:1]).requires_grad_()
    reward(RewardInput(images.detach(), images, captions_of(scenes[:1]))).total.sum().backward()
    assert images.grad.abs().sum() > 0
