"""Stage 1 on codes in place of captions, and RL on them."""

import pytest
import torch
from conftest import SCENES_PROMPTS
from staged import staged

from uae_lightning.autoencoder import Captioning
from uae_lightning.models.quantizers import SimVQ
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.vision_codes import VisionCodes
from uae_lightning.stages.codebook_pretrain import CodebookPretrain
from uae_lightning.types import Batch, Learn

ALL = Learn(encoder="all", projector="all", decoder="all")


@pytest.fixture
def make_stage(parts_folder, make_projector, make_decoder):
    def make(learn: Learn = ALL, encoder=None, **options) -> CodebookPretrain:
        torch.manual_seed(0)
        vision = QwenVLEncoder(str(parts_folder / "encoder"), **SCENES_PROMPTS)
        encoder = encoder or VisionCodes(vision, SimVQ(32), places=9)
        options = {"captioning": Captioning(0.0, 9), "learn": learn, "sigma_distribution": "uniform"} | options
        stage = staged(CodebookPretrain, encoder, make_projector(), make_decoder(), **options)
        stage.log = stage.log_dict = lambda *args, **kwargs: None
        return stage

    return make


@pytest.fixture
def batch(images) -> Batch:
    return Batch(images, [""] * 4, list("abcd"))


def test_codebook_projector_and_decoder_learn_and_the_tower_does_not(make_stage, batch):
    # red if the states are detached, or the vision tower is unfrozen
    stage = make_stage()
    stage.training_step(batch, 0).backward()
    learnt = {name for name, parameter in stage.named_parameters() if parameter.grad is not None}
    assert learnt == {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert not any(".vision." in name for name in learnt)
    assert {name.split(".")[1] for name in learnt} == {"encoder", "projector", "decoder"}


def test_it_learns_to_draw_what_it_sees(make_stage, batch):
    # red if the pictures' own codes are not what they are drawn from
    stage = make_stage(condition_dropout=0.0)
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = stage.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    said, drawn = stage.autoencoder.reconstruct(batch.images)
    assert drawn.shape == batch.images.shape and len(set(said.texts)) == 4
    assert stage.use.sum() > 0 and "use" in dict(stage.named_buffers(recurse=False))  # kept in checkpoints


def test_an_encoder_that_speaks_has_no_codebook(make_stage, make_encoder):
    # red if the stage trains on states that nobody reads again
    with pytest.raises(ValueError, match="QwenVLEncoder has no codebook"):
        make_stage(Learn(projector="all"), encoder=make_encoder())
