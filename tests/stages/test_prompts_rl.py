"""The decoder's RL from prompts alone: two steps, a resume to the bit, and what needs pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import small_stages as small
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import RewardCallback, SampleGallery, StageCheckpoint
from uae_lightning.autoencoder import Captioning
from uae_lightning.evaluation.geneval_reward import GenEvalReward
from uae_lightning.interfaces import Reward
from uae_lightning.parallel.checkpoint_io import AtomicCheckpointIO
from uae_lightning.report.pictures import before_after, gallery, gallery_columns
from uae_lightning.rewards.by_caption import ByCaption
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.rewards.weighted_sum import WeightedSum
from uae_lightning.run.folder import read_rows
from uae_lightning.scenes.object_detector import SceneObjectDetector
from uae_lightning.scenes.prompt_data import ScenePromptData
from uae_lightning.scenes.stated_objects import StatedObjects
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.stages.replay import DecoderReplay
from uae_lightning.types import RewardInput, RewardOutput
from uae_lightning.usage import UsageError

make_stage = small.make_stage


class Redness(Reward):
    """Of the drawing, and a little for each letter of its prompt."""

    needs_originals = False

    def forward(self, inputs: RewardInput) -> RewardOutput:
        assert [row["prompt"] for row in inputs.metadata] == inputs.captions
        letters = torch.tensor([len(text) for text in inputs.captions])
        total = inputs.reconstructions[:, 0].mean((1, 2)) + 1e-3 * letters
        return RewardOutput(total, {"redness": total})


def fit(stage, folder: Path, reward: Reward, steps: int = 2, resume: bool = False) -> dict[str, torch.Tensor]:
    callbacks = [RewardCallback(reward, Redness(), micro_batch=3), SampleGallery(2)]
    callbacks.append(StageCheckpoint(folder, "last", every_n_train_steps=1))
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, logger=TensorBoardLogger(folder, "", ""), enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", plugins=[AtomicCheckpointIO()], callbacks=callbacks,
        default_root_dir=folder, num_sanity_val_steps=-1, val_check_interval=2, check_val_every_n_epoch=None,
        log_every_n_steps=1,
    )  # fmt: skip
    data = ScenePromptData(batch_size=2, validation_pictures=4, validation_batch_size=2)
    trainer.fit(stage, datamodule=data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return {name: p.detach().clone() for name, p in stage.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", [DecoderRL, DecoderMatching])
def test_two_steps_from_prompts_and_a_resume_to_the_bit(make_stage, tmp_path, kind):
    # red if pictures are captioned that are not there, rows of metadata are not repeated with their prompt, or the
    # place among the prompts is left out of a checkpoint
    torch.manual_seed(0)
    stage = make_stage(kind)
    start = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    expected = fit(stage, tmp_path / "straight", Redness())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in expected.items())
    rows = read_rows(tmp_path / "straight")
    assert [row["step"] for row in rows] == [0, 2] and rows[0]["reward_name"] == "Redness"
    assert len(rows[0]["keys"]) == 4 and min(rows[0]["caption_tokens"]) > 3
    stage.load_state_dict(start)
    fit(stage, tmp_path / "stopped", Redness(), steps=1)
    found = fit(stage, tmp_path / "stopped", Redness(), resume=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert read_rows(tmp_path / "stopped")[-1] == rows[-1]


def test_galleries_and_curves_have_drawings_and_no_originals(make_stage, tmp_path):
    # red if the ratios to originals of no pixels are logged, or a picture without width is written
    fit(make_stage(DecoderRL), tmp_path, Redness())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    assert "train/drawn/saturation" in tags["scalars"] and "train/image/saturation" not in tags["scalars"]
    assert tags["images"] == ["gallery/drawings", "gallery/captions_beside"]
    assert not (tmp_path / "gallery" / "originals.png").exists()
    columns = gallery_columns([tmp_path])
    assert [column.title for column in columns] == ["at the start", f"after {tmp_path.name}"]
    assert before_after([*columns, *columns]) is None and "held-out prompts" in gallery(columns, [["a", "b"]])


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (PixelSimilarity(), "PixelSimilarity"),
        (WeightedSum({"a": PixelSimilarity(), "b": Redness()}, {"a": 1.0, "b": 1.0}), "WeightedSum"),
        (ByCaption(PixelSimilarity(), Redness()), "ByCaption"),
    ],
)
def test_a_reward_that_needs_originals_is_refused_before_anything_is_drawn(make_stage, tmp_path, reward, name):
    # red without check_originals, or if a sum or ByCaption does not ask its rewards
    stage = make_stage(DecoderRL)
    stage.autoencoder.generate = None
    with pytest.raises(UsageError, match=f"reward of callbacks.RewardCallback: {name} compares with the original"):
        fit(stage, tmp_path, reward)


def test_stages_and_losses_that_need_pictures_say_so(make_stage, tmp_path):
    # red if EncoderRL takes prompts, or replay encodes pictures of no pixels
    with pytest.raises(UsageError, match="EncoderRL needs pictures"):
        fit(make_stage(EncoderRL), tmp_path, Redness())
    with pytest.raises(ValueError, match="DecoderReplay learns from pictures, and prompts have none"):
        fit(make_stage(DecoderRL, auxiliaries=[DecoderReplay(0.1)]), tmp_path, Redness())


def test_prompts_are_drawn_whatever_the_share_of_own_captions(make_stage):
    # red if own_captions of 0 asks the encoder for captions of nothing
    stage = make_stage(DecoderRL, own_captions=0.0, captioning=Captioning(0.0, 4))
    stage.autoencoder.encoder.generate = None
    batch = next(iter(ScenePromptData(batch_size=2).train_dataloader()))
    inputs = stage.rollout(batch).reward_input
    assert inputs.captions == [text for text in batch.captions for _ in range(4)] and inputs.given.all()
    assert inputs.metadata == [row for row in batch.metadata for _ in range(4)]


def test_the_scenes_own_rewards_take_prompts():
    # red if StatedObjects or GenEvalReward asks for originals, or for metadata that scenes do not have
    batch = next(iter(ScenePromptData(batch_size=3).train_dataloader()))
    drawn = torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    inputs = RewardInput(batch.images, drawn, batch.captions, metadata=batch.metadata)
    for reward in (StatedObjects(), GenEvalReward(SceneObjectDetector())):
        assert not reward.needs_originals and reward(inputs).total.shape == (3,)
    with pytest.raises(ValueError, match="GenEvalReward reads what a prompt asks for .*give data.init_args.path"):
        GenEvalReward(SceneObjectDetector())(replace(inputs, metadata=None))
