"""Scenes as a LightningDataModule: an endless training stream, and a fixed list of held-out pictures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from uae_lightning.ranges import Count, Positive, Seed, Share, checked
from uae_lightning.scenes.captions import LEVELS, write_caption
from uae_lightning.scenes.prompts import stated_objects, training_prompt
from uae_lightning.scenes.scene import CELL, OBJECT_COUNT_WEIGHTS, Scene, pictures, sample_scene
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

HELD_OUT_SPLITS = ("validation", "test")
OF_PROMPTS = 1  # their random numbers are not those of the captions


def scene_batch(
    split: str,
    seed: int,
    indices: list[int],
    *,
    max_objects: int,
    level: str = "long",
    prompt_share: float = 0.0,
    object_weight: float = 1.0,
    glyphs: Path | None = None,
) -> Batch:
    """Render the scenes with these indices; caption and prompt of a scene depend on (split, seed, index) alone as well.

    Prompts (`scenes.prompts`) take the place of a share of the captions, where the scene has one.
    """
    scenes = [sample_scene(split, seed, index, max_objects=max_objects) for index in indices]
    images = pictures(scenes, glyphs)
    captions = []
    for scene, index in zip(scenes, indices, strict=True):
        rng = np.random.default_rng([seed, index])
        prompt = training_prompt(scene, rng) if rng.random() < prompt_share else None
        captions.append(prompt or write_caption(scene, rng, level=level))
    weights = caption_weights(captions, object_weight)
    prompts = [
        terse_prompt(scene, np.random.default_rng([seed, index, OF_PROMPTS]))
        for scene, index in zip(scenes, indices, strict=True)
    ]
    return Batch(images, captions, [f"{split}-{seed}-{index}" for index in indices], weights, prompts=prompts)


def terse_prompt(scene: Scene, rng: np.random.Generator) -> str:
    """One that names every object of the scene and is not held out, of which a caption is the complete one; for scenes
    that no task has a prompt for, a telegraphic caption that leaves facts out."""
    return training_prompt(scene, rng) or write_caption(scene, rng, level="short", detail=0.5)


def caption_weights(captions: list[str], object_weight: float) -> Tensor:
    """[N, 1, 96, 96]: `object_weight` in the cells in which a caption puts an object, else 1.

    A weight that follows from the picture is a bias towards objects wherever the caption leaves them open: the mean of
    the possible pictures counts those with an object more. One that follows from the caption moves no minimum (ours).
    """
    cells = torch.ones(len(captions), 9)
    for row, caption in enumerate(captions):
        cells[row, list(stated_objects(caption))] = object_weight
    return cells.view(-1, 1, 3, 3).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


@checked
class ScenesData(L.LightningDataModule):
    """Procedural scenes (`uae_lightning.scenes.scene`).

    Args:
        batch_size: pictures per batch and device.
        validation_pictures: held-out pictures scored at every validation, always the same ones.
        validation_batch_size: pictures per validation batch and device.
        max_objects: objects per scene, 1 to 4.
        caption_level: "long", "short" or "tag": of the captions for decoder pre-training.
        prompt_share: share of them that are short prompts instead, so that the decoder does not forget those.
        object_weight: how many times as much a cell in which the caption puts an object counts in flow matching.
        seed: which of the endless streams to train on.
        validation_seed: the same for the held-out pictures; runs that share it can be compared.
        split: "validation" or "test": where the held-out pictures come from.
        glyphs: folder of other glyphs for the held-out pictures, laid out as scenes/glyphs with its glyphs.json: an art
            style that nobody was trained on.
    """

    def __init__(
        self,
        batch_size: Count = 8,
        validation_pictures: Count = 64,
        validation_batch_size: Count = 64,
        max_objects: Count = 3,
        caption_level: str = "long",
        prompt_share: Share = 0.0,
        object_weight: Positive = 1.0,
        seed: Seed = 0,
        validation_seed: Seed = 0,
        split: str = "validation",
        glyphs: str | None = None,
    ) -> None:
        super().__init__()
        if max_objects > len(OBJECT_COUNT_WEIGHTS):
            raise UsageError(
                f"data.init_args.max_objects must be at most {len(OBJECT_COUNT_WEIGHTS)}, got {max_objects}"
            )
        for name, value, known in (("caption_level", caption_level, LEVELS), ("split", split, HELD_OUT_SPLITS)):
            if value not in known:
                raise UsageError(f"data.init_args.{name} must be one of {', '.join(known)}, got {value!r}")
        if glyphs is not None and not (Path(glyphs) / "glyphs.json").is_file():
            raise UsageError(f"data.init_args.glyphs: {glyphs} is no folder with a glyphs.json, as scenes/glyphs is")
        self.glyphs = None if glyphs is None else Path(glyphs)
        self.batch_size, self.max_objects, self.seed = batch_size, max_objects, seed
        self.caption_level, self.prompt_share, self.object_weight = caption_level, prompt_share, object_weight
        self.validation_pictures, self.validation_batch_size = validation_pictures, validation_batch_size
        self.split, self.validation_seed = split, validation_seed
        self.first_batch = 0

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Stream(self, *self._rank()), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(_HeldOut(self, *self._rank()), batch_size=None)

    def scene(self, key: str) -> Scene:
        """The scene graph of a picture that a batch calls SPLIT-SEED-INDEX."""
        split, seed, index = key.rsplit("-", 2)
        return sample_scene(split, int(seed), int(index), max_objects=self.max_objects)

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    # A checkpoint holds how many batches were used up, so that a resumed run goes on with the next one.

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.trainer.fit_loop.epoch_loop.batch_progress.total.processed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first_batch = state["batches"]


class _Stream(IterableDataset):
    def __init__(self, data: ScenesData, rank: int, world: int) -> None:
        self.data, self.rank, self.world = data, rank, world

    def __iter__(self) -> Iterator[Batch]:
        data, batch = self.data, self.data.first_batch
        while True:
            first = (batch * self.world + self.rank) * data.batch_size
            yield scene_batch(
                "train",
                data.seed,
                list(range(first, first + data.batch_size)),
                max_objects=data.max_objects,
                level=data.caption_level,
                prompt_share=data.prompt_share,
                object_weight=data.object_weight,
            )
            batch += 1


class _HeldOut(Dataset):
    """The batches of one rank: every `world`-th of those that all ranks share, as many on each rank."""

    def __init__(self, data: ScenesData, rank: int, world: int) -> None:
        self.data = data
        edges = batch_edges(data.validation_pictures, data.validation_batch_size, world)
        self.batches = [range(first, last) for first, last in pairwise(edges)][rank::world]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> Batch:
        data = self.data
        of_batch = list(self.batches[batch])
        seed = data.validation_seed
        return scene_batch(data.split, seed, of_batch, max_objects=data.max_objects, glyphs=data.glyphs)


def batch_edges(pictures: int, size: int, world: int) -> list[int]:
    """Where batches of at most `size` begin and end, as many for each rank: in validation, too, ranks wait for others.

    Raises:
        ValueError: a rank would have no picture.
    """
    batches = -(-pictures // (size * world)) * world
    if pictures < batches:
        raise ValueError(
            f"data.init_args.validation_pictures ({pictures}) must be at least the number of ranks, and of batches "
            f"({batches}): raise it, or data.init_args.validation_batch_size"
        )
    if world == 1:
        return [min(batch * size, pictures) for batch in range(batches + 1)]
    return [pictures * batch // batches for batch in range(batches + 1)]
