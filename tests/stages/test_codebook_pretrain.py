"""Stage 1 on codes in place of captions, and RL on them."""

import lightning as L
import pytest
import torch
from conftest import SCENES_PROMPTS
from staged import staged

from uae_lightning.autoencoder import Captioning
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.quantizers import SimVQ
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.vision_codes import Detail, VisionCodes
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.codebook_pretrain import CodebookPretrain
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.types import Batch, Learn, RewardOutput, Sampling

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


def test_both_levels_learn(parts_folder, make_decoder, batch):
    # red if the second level's vectors or its codebook's loss do not reach the stage
    vision = QwenVLEncoder(str(parts_folder / "encoder"), **SCENES_PROMPTS)
    encoder = VisionCodes(vision, SimVQ(32), places=9, detail=Detail(0, SimVQ(16)))
    projector = MLPProjector(None, encoder.hidden_size, 32, make_decoder().conditioning_size, True)
    options = {"captioning": Captioning(0.0, 9), "learn": ALL, "sigma_distribution": "uniform"}
    stage = staged(CodebookPretrain, encoder, projector, make_decoder(), **options)
    stage.log = stage.log_dict = lambda *args, **kwargs: None
    for _ in range(2):
        stage.training_step(batch, 0).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.detail.parameters())
    assert stage.use.shape == (48,) and stage.use[:32].sum() > 0 and stage.use[32:].sum() > 0
    said, drawn = stage.autoencoder.reconstruct(batch.images)
    assert drawn.shape == batch.images.shape and said.tokens.shape == (4, 18)


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


def test_encoder_rl_moves_the_codebook(parts_folder, make_projector, make_decoder):
    # red if the scores of codes have no gradient, or a policy of codes needs an end of text
    vision = QwenVLEncoder(str(parts_folder / "encoder"), **SCENES_PROMPTS)
    options = {"group_size": 4, "micro_batch": 4, "captioning": Captioning(1.0, 9), "sampling": Sampling(2)}
    encoder = VisionCodes(vision, SimVQ(32), places=9)
    with torch.no_grad():
        encoder.quantizer.codebook.mul_(3.0)  # else random codes are all as far
    stage = staged(EncoderRL, encoder, make_projector(), make_decoder(), learn=Learn(encoder="all"), **options)
    stage.score = lambda inputs: RewardOutput((found := inputs.reconstructions.mean((1, 2, 3))), {"light": found})
    before = encoder.quantizer.codebook.detach().clone()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_steps=2, max_epochs=-1, limit_val_batches=0, accelerator="cpu", **quiet)
    trainer.fit(stage, datamodule=ScenesData(batch_size=2))
    assert not torch.equal(before, encoder.quantizer.codebook)


def test_an_encoder_that_speaks_has_no_codebook(make_stage, make_encoder):
    # red if the stage trains on states that nobody reads again
    with pytest.raises(ValueError, match="QwenVLEncoder has no codebook"):
        make_stage(Learn(projector="all"), encoder=make_encoder())
