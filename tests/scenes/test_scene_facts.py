import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from uae_lightning.paths import resolve
from uae_lightning.scenes.scene import IMAGE_SIZE, Scene, SceneObject, render
from uae_lightning.scenes.scene_facts import SceneFacts
from uae_lightning.types import RewardInput

CAT = SceneObject("cat", "red", "large", 0)
CAR = SceneObject("car", "blue", "large", 5)
TRUE = Scene("grass", (CAT, CAR))
ADDED = SceneObject("apple", "pink", "large", 8)


@pytest.fixture(scope="module")
def judge():
    return SceneFacts()


def facts(judge, scene):
    pictures = torch.from_numpy(np.stack([render(TRUE), render(scene)])).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        output = judge(RewardInput(pictures[:1], pictures[1:], [""]))
    return output.total.item(), {name: value.item() for name, value in output.parts.items()}


def test_equal_pictures_keep_every_fact(judge):
    # Red if 2 + len becomes 1 + len.
    total, parts = facts(judge, TRUE)
    assert total == 1
    assert parts == {"background": 1, "class": 1, "color": 1, "size": 1, "presence": 1}


@pytest.mark.parametrize(
    "scene, total, wrong",
    [
        (replace(TRUE, background="night"), 7 / 8, {"background": 0}),
        (Scene("grass", (replace(CAT, name="elephant"), CAR)), 7 / 8, {"class": 1 / 2}),
        (Scene("grass", (replace(CAT, color="white"), CAR)), 7 / 8, {"color": 1 / 2}),
        (Scene("grass", (replace(CAT, size="small"), CAR)), 7 / 8, {"size": 1 / 2}),
        (Scene("grass", (CAR,)), 5 / 8, {"class": 1 / 2, "color": 1 / 2, "size": 1 / 2, "presence": 8 / 9}),
        (Scene("grass", (CAT, CAR, ADDED)), (7 + 6 / 7) / 8, {"presence": 8 / 9}),
    ],
    ids=["background", "class", "color", "size", "dropped", "added"],
)
def test_a_planted_fault_shows_in_its_part(judge, scene, total, wrong):
    # Red if & becomes | in `kept`, if ~occupied becomes occupied, or == becomes != for the background.
    got_total, parts = facts(judge, scene)
    assert got_total == pytest.approx(total)
    assert parts == pytest.approx({"background": 1, "class": 1, "color": 1, "size": 1, "presence": 1} | wrong)


def test_a_missing_object_has_lost_its_facts_whatever_is_read_in_the_empty_cell(judge, monkeypatch):
    # Red if & becomes | in `both`.
    def read(images, cells):
        presence = torch.zeros(1, 9, dtype=torch.bool)
        presence[0, cells] = True
        same = torch.zeros(1, 9, dtype=torch.long)
        return {"presence": presence, "class": same, "color": same, "size": same, "background": same[:, 0]}

    answers = iter([[0, 5], [5]])  # of the original, of the reconstruction
    monkeypatch.setattr(judge.detector, "read", lambda images: read(images, next(answers)))
    output = judge(RewardInput(*torch.zeros(2, 1, 3, IMAGE_SIZE, IMAGE_SIZE), [""]))
    assert output.total.item() == pytest.approx(5 / 8)
    assert [output.parts[kind].item() for kind in ("class", "color", "size")] == [0.5] * 3


def test_it_stays_frozen(judge):
    # Red if self.freeze() goes.
    judge.train()
    assert not any(module.training for module in judge.modules())
    assert not any(p.requires_grad for p in judge.parameters())


def test_missing_or_foreign_detector_is_named(tmp_path):
    # Red if the check of exists, is_file or names goes.
    with pytest.raises(FileNotFoundError, match="nowhere.*correct the path"):
        SceneFacts(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="uae bootstrap"):
        resolve("shipped:nothing")
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        SceneFacts(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"width": 32, "names": {}}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="other scenes"):
        SceneFacts(tmp_path)
