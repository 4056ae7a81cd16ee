from dataclasses import replace

import pytest
import torch

from uae_lightning.scenes.scene import Scene, SceneObject, pictures
from uae_lightning.scenes.stated_objects import StatedObjects
from uae_lightning.types import RewardInput

CAT = SceneObject("cat", "red", "large", 0)
CAR = SceneObject("car", "blue", "small", 5)
APPLE = SceneObject("apple", "pink", "large", 8)
COMPLETE = "two objects on grass . a large red cat is at the top left . a small blue car is at the middle right ."
PROMPT = "a picture of a red cat at the top left and a blue car at the middle right"


@pytest.fixture(scope="module")
def reward():
    return StatedObjects()


def of(reward, text, *objects):
    images = pictures([Scene("grass", objects)])
    with torch.no_grad():
        output = reward(RewardInput(torch.zeros_like(images), images, [text]))
    return output.total.item(), {name: value.item() for name, value in output.parts.items()}


@pytest.mark.parametrize("text", [COMPLETE, PROMPT])
def test_a_picture_of_what_the_text_says_is_worth_one(reward, text):
    # red if + 1 goes from the count of items, or `~occupied` becomes `occupied`
    total, parts = of(reward, text, CAT, CAR)
    assert total == pytest.approx(1, abs=0.05) and parts == pytest.approx({"present": 1, "empty": 1}, abs=0.05)


@pytest.mark.parametrize(
    ("objects", "total"),
    [
        ((CAR,), 2 / 3),
        ((CAT, CAR, APPLE), 1 - 1 / 3 / 7),
        ((replace(CAT, name="elephant"), CAR), 2 / 3),
        ((replace(CAT, color="white"), CAR), 2 / 3),
        ((replace(CAT, cell=3), CAR), 2 / 3 - 1 / 3 / 7),
        ((replace(CAT, cell=5), replace(CAR, cell=0)), 1 / 3),
    ],
    ids=["missing", "added", "class", "color", "moved", "exchanged"],
)
@pytest.mark.parametrize("text", [COMPLETE, PROMPT])
def test_a_fault_takes_off_the_share_of_its_object(reward, text, objects, total):
    # red if a fact is not multiplied in, or the places of a prompt's nouns are mixed
    assert of(reward, text, *objects)[0] == pytest.approx(total, abs=0.05)


def test_what_the_text_leaves_open_does_not_count(reward):
    # red if `indices >= 0` becomes `indices >= -1`: the last color is then asked for where none is said
    small = replace(CAT, size="small")
    assert of(reward, PROMPT, small, CAR)[0] == pytest.approx(1, abs=0.05)
    assert of(reward, COMPLETE, small, CAR)[0] == pytest.approx(2 / 3, abs=0.05)
    assert of(reward, "a picture of a cat at the top left", replace(CAT, color="green"))[0] == pytest.approx(
        1, abs=0.05
    )
    assert of(reward, "it is dark", CAT) == (
        pytest.approx(8 / 9, abs=0.05),
        pytest.approx({"present": 1, "empty": 8 / 9}, abs=0.05),
    )
