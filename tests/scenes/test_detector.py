import json
import os

import pytest
import torch

from uae_lightning.paths import resolve
from uae_lightning.scenes.bootstrap import detector as training
from uae_lightning.scenes.detector import SceneDetector, scene_targets
from uae_lightning.scenes.scene import Scene, SceneObject


def test_shipped_detector_reads_held_out_scenes():
    # Red if the cells are transposed (.transpose(1, 2) on rows and columns), or images * 2 - 1 becomes images * 2.
    detector = SceneDetector.from_folder(resolve("shipped:scenes/detector"))
    accuracy = training.validate(detector, batches=2)
    for kind in ("presence", "class", "color", "size", "background"):
        assert accuracy["crisp"][kind] >= 0.99, accuracy
        assert accuracy["disturbed"][kind] >= 0.97, accuracy


def test_card_says_what_it_cost_and_can():
    # Red if a key of the card is renamed.
    card = json.loads((resolve("shipped:scenes/detector") / "card.json").read_text())
    assert card["seconds"] > 0 and card["steps"] > 0
    assert min(card["validation"]["crisp"].values()) >= 0.95


def test_targets_are_the_graph():
    # Red if the row and the cell change places, or -1 becomes 0.
    targets = scene_targets([Scene("sand", (SceneObject("apple", "orange", "small", 7),))])
    assert targets["presence"].nonzero().tolist() == [[0, 7]]
    assert [targets[kind][0, 7].item() for kind in ("class", "color", "size")] == [1, 1, 1]
    assert targets["background"].tolist() == [2]
    assert (targets["class"] == -1).sum() == 8


def test_loss_ignores_what_empty_cells_would_contain():
    # Red if ignore_index=-1 goes, or presence loses its .float().
    _, targets = training.scene_batch("train", 0, 0, 4)
    logits = SceneDetector(width=4)(torch.rand(4, 3, 96, 96))
    loss = training.detection_loss(logits, targets)
    empty = ~targets["presence"].unsqueeze(-1)
    changed = {k: logits[k].masked_fill(empty, 9.0) if k in ("class", "color", "size") else logits[k] for k in logits}
    torch.testing.assert_close(training.detection_loss(changed, targets), loss, atol=0, rtol=0)


def test_scenes_and_disturbance_are_functions_of_the_step():
    # Red if seed << 32 | step becomes seed << 32, or step * batch_size becomes step.
    images, _ = training.scene_batch("train", 0, 3, 4)
    assert torch.equal(images, training.scene_batch("train", 0, 3, 4)[0])
    assert not torch.equal(images[1:], training.scene_batch("train", 0, 4, 4)[0][:-1])
    assert torch.equal(training.disturb(images, 0, 3), training.disturb(images, 0, 3))
    assert not torch.equal(training.disturb(images, 0, 3), training.disturb(images, 0, 4))


def test_killed_and_resumed_ends_in_the_same_weights(tmp_path, monkeypatch):
    # Red if the schedule or the optimiser is left out of `parts`, or step + 1 in _store becomes step.
    settings = {"steps": 6, "batch_size": 4, "checkpoint_every": 2}
    monkeypatch.setattr(training, "validate", lambda detector: {})
    training.train_detector(tmp_path / "whole", work=tmp_path / "work_whole", **settings)

    class Killed(Exception): ...

    def kill_at_step_5(split, seed, step, batch_size, batch=training.scene_batch):
        if step == 5:
            raise Killed
        return batch(split, seed, step, batch_size)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "scene_batch", kill_at_step_5)
        training.train_detector(tmp_path / "parts", work=tmp_path / "work", **settings)
    training.train_detector(tmp_path / "parts", work=tmp_path / "work", **settings)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert not [name for name in os.listdir(tmp_path / "work") if name.endswith(".tmp")]
    with pytest.raises(ValueError, match="delete it to start afresh"):
        training.train_detector(tmp_path / "parts", work=tmp_path / "work", **{**settings, "batch_size": 8})


def test_wrong_picture_size_is_refused():
    # Red if the check of the shape goes.
    with pytest.raises(ValueError, match="96, 96"):
        SceneDetector(width=4)(torch.rand(1, 3, 32, 32))
