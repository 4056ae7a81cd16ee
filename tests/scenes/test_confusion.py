import torch

from uae_lightning.scenes.confusion import confusion, confusion_markdown
from uae_lightning.scenes.detector import scene_targets
from uae_lightning.scenes.scene import CLASSES, Scene, SceneObject


def scenes(names: list[str]) -> list[Scene]:
    return [Scene("sand", (SceneObject(name, "red", "small", 4),)) for name in names]


def test_mistakes_stand_in_the_row_of_the_truth():
    # red if truth and answer change places
    truth = scene_targets(scenes(["cat", "cat", "bus"]))
    read = scene_targets(scenes(["cat", "car", "bus"]))
    table = confusion(read, truth)["class"]
    assert table[CLASSES.index("cat"), CLASSES.index("car")] == 1
    assert table.diagonal().sum() == 2 and table.sum() == 3


def test_an_object_not_seen_counts_as_such():
    # red if `presence` of the answer is not asked
    truth = scene_targets(scenes(["cat"]))
    read = {**truth, "presence": torch.zeros_like(truth["presence"])}
    tables = confusion(read, truth)
    assert tables["class"][CLASSES.index("cat"), -1] == 1 and tables["background"].diagonal().sum() == 1


def test_the_page_shows_what_is_wrong():
    # red if the diagonal is divided by the rows instead of all
    truth = scene_targets(scenes(["cat", "cat", "bus", "bus"]))
    page = confusion_markdown(confusion(scene_targets(scenes(["cat", "car", "bus", "bus"])), truth))
    assert "**class**: 75.0% of 4 right" in page and "**color**: 100.0%" in page
