"""Prompts about scenes without their pictures, as a LightningDataModule."""

from __future__ import annotations

import functools
from itertools import islice

from uae_lightning.data.prompt_files import PromptRow, Prompts
from uae_lightning.data.prompts import PromptData
from uae_lightning.evaluation.geneval import TASKS, Prompt, record_of
from uae_lightning.ranges import Count, Seed, checked
from uae_lightning.scenes.geneval import scene_prompts
from uae_lightning.scenes.prompts import LISTED, prompts
from uae_lightning.usage import UsageError


@checked
class ScenePromptData(PromptData):
    """The prompts of `scenes.prompts` that are not held out, and for validation those that are, the six tasks in turn;
    each with what it asks for in GenEval's form.

    Args:
        batch_size, validation_pictures, validation_batch_size, seed: as in PromptData.
    """

    def __init__(
        self,
        batch_size: Count = 8,
        validation_pictures: Count = 64,
        validation_batch_size: Count = 64,
        seed: Seed = 0,
    ) -> None:
        super().__init__(
            "prompts about scenes", batch_size=batch_size, validation_pictures=validation_pictures,
            validation_batch_size=validation_batch_size, seed=seed,
        )  # fmt: skip

    @functools.cached_property
    def split(self) -> tuple[Prompts, list[PromptRow]]:
        different = {prompt.text: prompt for prompt in scene_prompts(len(TASKS) * LISTED)}
        if len(different) < self.validation_pictures:
            raise UsageError(
                f"there are {len(different)} held-out prompts about scenes, fewer than "
                f"data.init_args.validation_pictures ({self.validation_pictures}): lower it"
            )
        training = [row_of(prompt) for task in TASKS for prompt in prompts(task, held_out=False)]
        return Prompts(str(self.path), training), [*map(row_of, islice(different.values(), self.validation_pictures))]


def row_of(prompt: Prompt) -> PromptRow:
    return PromptRow(prompt.text, record_of(prompt))
