"""How much of a prompt a picture shows, where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uae_lightning.evaluation.geneval import TASKS, Prompt, Wanted, prompt_of, record_of, score, share
from uae_lightning.evaluation.geneval_reward import GenEvalReward
from uae_lightning.evaluation.object_detectors import DetectedObject
from uae_lightning.scenes.faults import FAULTS, faulty_scenes
from uae_lightning.scenes.geneval import perfect, planted, scene_prompts
from uae_lightning.scenes.object_detector import SceneObjectDetector
from uae_lightning.scenes.prompts import prompts
from uae_lightning.scenes.scene import pictures
from uae_lightning.types import RewardInput


def test_the_share_is_1_where_the_prompt_is_fulfilled_and_nowhere_else():
    # red if a color, a relation or an excluded entry is left out of the share
    unfulfilled = 0
    for item, prompt in enumerate(scene_prompts(120)):
        scene = planted(prompt, None, np.random.default_rng(item))
        for changed in [scene, *(faulty for kind in FAULTS for faulty in faulty_scenes(scene, kind)[:2])]:
            found = perfect(changed)
            assert (share(prompt, found) == 1) == score(prompt, found), (prompt, changed)
            unfulfilled += not score(prompt, found)
        assert 0 <= share(prompt, []) < 1
    assert unfulfilled > 100


def test_half_of_a_prompt_is_half_a_reward():
    # red if an entry counts by whether all of it is there, or an absent other makes a relation true
    cup = DetectedObject("cup", (0, 0, 9, 9), 0.9, "red")
    assert share(Prompt("two_objects", "", (Wanted("cup"), Wanted("dog"))), [cup]) == 0.5
    counting = Prompt("counting", "", (Wanted("cup", 4),), (Wanted("cup", 5),))
    assert share(counting, [cup]) == pytest.approx((0.25 + 1) / 2)
    assert share(Prompt("colors", "", (Wanted("cup", color="blue"),)), [cup]) == 0.0
    beside = Prompt("position", "", (Wanted("dog"), Wanted("cup", relation=("left of", 0))))
    assert share(beside, [cup]) == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_what_a_file_says_of_a_prompt_is_read_back(task):
    # red if a tag, count, color or relation is left out of record_of
    for prompt in prompts(task, held_out=True)[:20]:
        assert prompt_of(record_of(prompt)) == prompt


def test_the_reward_reads_pictures_by_their_metadata():
    # red if a picture is judged by another's prompt, or `total` is not the part that is named
    wanted = scene_prompts(24)
    images = pictures([planted(prompt, None, np.random.default_rng(item)) for item, prompt in enumerate(wanted)])
    rows, texts = [record_of(prompt) for prompt in wanted], [prompt.text for prompt in wanted]
    nothing = torch.zeros(24, 3, 0, 0)
    right = GenEvalReward(SceneObjectDetector())(RewardInput(nothing, images, texts, metadata=rows))
    assert right.total is right.parts["share"] and right.parts["fulfilled"].mean() > 0.95
    strict = GenEvalReward(SceneObjectDetector(), "fulfilled")
    wrong = strict(RewardInput(nothing, images.flip(0), texts, metadata=rows))
    assert wrong.total is wrong.parts["fulfilled"] and wrong.total.mean() < 0.5 < right.total.mean()
