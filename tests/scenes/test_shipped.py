"""The weights in the package: small, safe, and as good as the README needs them to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from staged import staged

from uae_lightning.autoencoder import Captioning
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.scenes.bootstrap import SHIPPED
from uae_lightning.scenes.bootstrap.captioner import scenes_encoder
from uae_lightning.scenes.captions import matched_facts, parse_caption, write_caption
from uae_lightning.scenes.scene import IMAGE_SIZE, pictures, sample_scene
from uae_lightning.scenes.scene_facts import SceneFacts
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.types import RewardInput, Sampling


@pytest.fixture(scope="module")
def stage() -> DecoderPretrain:
    parts = (
        scenes_encoder("shipped:scenes/encoder"),
        MLPProjector("shipped:scenes/projector"),
        SD3Decoder("shipped:scenes/decoder", resolution=IMAGE_SIZE, sigma_spacing="even"),
    )
    return staged(DecoderPretrain, *parts, captioning=Captioning(1.0, 72), sampling=Sampling(6, 1.0))


def test_they_are_small_and_safetensors():
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 40e6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_the_encoder_tells_the_truth_but_not_all_of_it(stage):
    # red if the wrong weights, prompt or preprocessing are used
    scenes = [sample_scene("test", 1, i) for i in range(64)]
    captions = stage.encoder.generate(pictures(scenes), samples=1, temperature=1.0, max_new_tokens=72, seed=0)
    facts = [parse_caption(text) for text in captions.texts]
    right = sum(matched_facts(fact, scene)["class"] for fact, scene in zip(facts, scenes, strict=True))
    assert right / sum(len(fact.objects) for fact in facts) > 0.75  # of the objects named
    assert sum(fact.background is None for fact in facts) > 16  # terse


def test_the_decoder_draws_short_captions(stage):
    # red if projector and decoder do not belong together
    scenes = [sample_scene("test", 2, i) for i in range(48)]
    originals = pictures(scenes)
    captions = [write_caption(scene, np.random.default_rng(0), level="short") for scene in scenes]
    noise = torch.randn(48, *stage.decoder.latent_shape, generator=torch.Generator().manual_seed(0))
    drawn = stage.autoencoder.draw(stage.autoencoder.read(captions), noise)
    mixed = stage.autoencoder.draw(stage.autoencoder.read(captions[1:] + captions[:1]), noise)
    judge = SceneFacts()
    with torch.no_grad():
        right, wrong = (judge(RewardInput(originals, images, captions)).total.mean() for images in (drawn, mixed))
    assert right > 0.7 and right > wrong + 0.3
