"""Names of version 0.1 that a YAML, or the folder of a run, may still have, and what they are now (CHANGELOG.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from uae_lightning.usage import UsageError

CLASSES = {
    f"uae_lightning.{old}": f"uae_lightning.{new}"
    for old, new in {
        "data.scenes_data.ScenesData": "scenes.data.ScenesData",
        "rewards.scene_facts.SceneFacts": "scenes.scene_facts.SceneFacts",
        "rewards.detector_features.DetectorFeatures": "scenes.detector_features.DetectorFeatures",
        "evaluation.unified_bench.PooledEfficientNet": "rewards.perceptual_grid.PooledEfficientNet",
        "evaluation.unified_bench.Pixels": "rewards.pixel_similarity.Pixels",
        "evaluation.object_detectors.SceneObjectDetector": "scenes.object_detector.SceneObjectDetector",
    }.items()
}
OF_THE_AUTOENCODER = (
    "encoder", "projector", "decoder", "captioning", "sampling", "condition_on", "negative_prompt",
)  # fmt: skip

SEED = re.compile(r"(model|data)(\.init_args)?\.seed")


def check_seeds(keys: Iterable[str], where: str = "") -> None:
    """Raises UsageError where a stage or its data is given a seed apart from the run's."""
    for key in keys:
        if SEED.fullmatch(key):
            raise UsageError(f"{where}{key} is of version 0.1: set seed_everything, the seed of all (CHANGELOG.md)")


OPTIONS = {
    "kl_includes_dt": "kl_form: gaussian where it was true, without_dt where it was false",
}

LEARNING = r"""Option '(?:train|lora)\b[\w.]*' is not accepted|arguments: --(?:train|lora)\b"""


def of_version_1(message: str) -> str | None:
    """What an error about a name of 0.1 should say; None where there is no such name in it."""
    for old, new in CLASSES.items():
        if old in message:
            return f"{old} is of version 0.1: it is {new} now (CHANGELOG.md)"
    for name in OF_THE_AUTOENCODER:
        if re.search(rf"Option '{name}\b[\w.]*' is not accepted", message):
            now = f"model.init_args.autoencoder.{name}"
            return f"model.init_args.{name} is of version 0.1: it is {now} now (CHANGELOG.md)"
    for name, now in OPTIONS.items():
        if f"Option '{name}' is not accepted" in message or f"arguments: --{name}" in message:
            return f"{name} is of version 0.1: it is {now} now (CHANGELOG.md)"
    if (part := re.search(r'Parser key "(encoder|decoder)"', message)) and re.search(LEARNING, message):
        return (
            f"train and lora of the {part[1]} are of version 0.1: the stage says what learns now, "
            f"model.init_args.learn.{part[1]}: all, or the settings of a LoRA (CHANGELOG.md)"
        )
    return None
