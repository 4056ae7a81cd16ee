"""A stage is resumed with what it was started with, or somebody is told."""

import pytest

from uae_lightning.run.settings import check_resumed
from uae_lightning.usage import UsageError

STARTED = {
    "seed_everything": 0,
    "model": {
        "class_path": "a.Stage",
        "init_args": {"optimizer": {"init_args": {"lr": 0.1}}, "parts": [{"path": "x"}]},
    },
    "trainer": {"max_steps": 4, "default_root_dir": "runs/fit"},
}


def changed(key: str, value: object) -> dict:
    *parents, last = key.split(".")
    copy = {**STARTED}
    place = copy
    for parent in parents:
        place[parent] = {**place[parent]}
        place = place[parent]
    place[last] = value
    return copy


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed_everything", 1, "seed_everything 0 -> 1"),
        ("model.class_path", "a.Other", "model.class_path a.Stage -> a.Other"),
        ("model.init_args.optimizer.init_args.lr", 0.2, "model.init_args.optimizer.init_args.lr 0.1 -> 0.2"),
        ("model.init_args.optimizer", None, "lr 0.1 -> (not given)"),
    ],
)
def test_half_of_one_and_half_of_the_other_is_refused(key, value, said):
    # red with a key left out of MIXED
    with pytest.raises(UsageError, match="runs/x was started with other settings") as caught:
        check_resumed(STARTED, changed(key, value), "runs/x")
    assert said in str(caught.value) and "--overwrite" in str(caught.value)


def test_what_else_differs_is_named():
    # red without the numbers of lists in leaves, or with FREE empty
    assert check_resumed(STARTED, STARTED, "x") == []
    now = changed("trainer", {"max_steps": 8, "default_root_dir": "elsewhere"})
    now["model"] = changed("model.init_args.parts", [{"path": "y"}])["model"]
    expected = ["model.init_args.parts.0.path x -> y", "trainer.max_steps 4 -> 8"]
    assert check_resumed(STARTED, now, "x") == expected


def test_what_is_not_saved_is_not_compared():
    # red with HIDDEN empty: an interpolation would differ from its value, and a secret would be printed
    assert check_resumed(changed("model.class_path", "${oc.env:STAGE}"), STARTED, "x") == []
