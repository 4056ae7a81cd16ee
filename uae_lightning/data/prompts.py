"""Text prompts without pictures as a LightningDataModule: what a decoder draws for a reward that needs no original."""

from __future__ import annotations

import functools

import torch
from torch.utils.data import DataLoader

from uae_lightning.data import held_out
from uae_lightning.data.prompt_files import PromptRow, Prompts, open_prompts
from uae_lightning.data.skipped import Tally
from uae_lightning.data.streams import Reader, StreamedData
from uae_lightning.ranges import Count, Seed, checked
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

MAX_PROMPT_WORDS = 300


@checked
class PromptData(StreamedData):
    """Prompts for DecoderRL and DecoderMatching, which draw each as it is (the encoder reads, and writes nothing), and
    for RewriteRL, which draws what the encoder makes of them.

    Training is an endless stream, different on every rank, each prompt once per epoch, resumable at any batch:
    `streams.StreamedData`. Held-out prompts are those of smallest hash (of `validation_path`, or else of `path`); what
    has the same text is never trained on.

    Args:
        path: a .txt with a prompt in each line (Flow-GRPO's sets for OCR and PickScore), a .jsonl (GenEval's, of which
            each row reaches the reward as `metadata`), a .parquet, or a folder of .txt files with a prompt each
            (DPG-Bench's); or several of them.
        batch_size: prompts per batch and device.
        validation_path: where the held-out prompts come from instead, in any of the forms of `path`.
        validation_pictures: how many prompts are held out, each of which is drawn once; no fewer than there are ranks.
        validation_batch_size: prompts per validation batch and device, about: batches are made equal.
        prompt_column: name of the prompt in a JSONL or parquet.
        max_prompt_words: longer prompts are refused: a batch is as wide as its longest text.
        seed: of the order.

    Raises:
        UsageError, FileNotFoundError: an option is wrong, or the file holds no prompts.
    """

    def __init__(
        self,
        path: str | list[str],
        batch_size: Count = 8,
        validation_path: str | list[str] | None = None,
        validation_pictures: Count = 64,
        validation_batch_size: Count = 8,
        prompt_column: str = "prompt",
        max_prompt_words: Count = MAX_PROMPT_WORDS,
        seed: Seed = 0,
    ) -> None:
        super().__init__(batch_size, shuffle_buffer=1, max_skipped=0.0, num_workers=0, seed=seed)
        self.path, self.validation_path = path, validation_path
        self.validation_pictures, self.validation_batch_size = validation_pictures, validation_batch_size
        self.prompt_column, self.max_prompt_words = prompt_column, max_prompt_words

    # ------------------------------------------------------------------------------------------------ what there is

    @property
    def source(self) -> Prompts:
        """Those to train on."""
        return self.split[0]

    @property
    def held_out(self) -> list[PromptRow]:
        return self.split[1]

    @functools.cached_property
    def split(self) -> tuple[Prompts, list[PromptRow]]:
        everything = open_prompts(self.path, self.prompt_column, self.max_prompt_words)
        others = everything
        if self.validation_path is not None:
            others = open_prompts(self.validation_path, self.prompt_column, self.max_prompt_words, "validation_path")
        different = Prompts(others.name, list({prompt.text: prompt for prompt in others.prompts}.values()))
        if len(different) < self.validation_pictures:
            raise UsageError(
                f"{others.name} has {len(different)} different prompts, fewer than data.init_args.validation_pictures "
                f"({self.validation_pictures}): lower it"
            )
        chosen = list(different.by_hash(self.validation_pictures))
        texts = {prompt.text for prompt in chosen}
        left = [prompt for prompt in everything.prompts if prompt.text not in texts]
        if not left:
            raise UsageError(
                f"holding out data.init_args.validation_pictures ({self.validation_pictures}) of the prompts of "
                f"{everything.name} leaves none to train on: lower it, or name others with "
                "data.init_args.validation_path"
            )
        return Prompts(everything.name, left), chosen

    # ------------------------------------------------------------------------------------------------ hooks

    def setup(self, stage: str) -> None:
        super().setup(stage)
        module = self.trainer.lightning_module
        if not module.trains_from_prompts:
            raise UsageError(
                f"{type(module).__name__} needs pictures, and data.class_path PromptData has none: set it to "
                "uae_lightning.data.image_text.ImageTextData, or model.class_path to "
                "uae_lightning.stages.decoder_rl.DecoderRL, which draws prompts"
            )

    def val_dataloader(self) -> DataLoader:
        rank, world = self.rank_and_world()
        batches = held_out.equal_batches(self.held_out, world, self.validation_batch_size)[rank]
        return held_out.loader(batches, as_batch, self.num_workers)

    def reader(self) -> PromptReader:
        return PromptReader()


class PromptReader(Reader):
    """All that is in the source is trained on."""

    def __call__(self, prompt: PromptRow, seed: list[int], tally: Tally) -> PromptRow:
        tally.kept += 1
        return prompt

    def batch(self, read: list[PromptRow]) -> Batch:
        return as_batch(read)


def as_batch(prompts: list[PromptRow]) -> Batch:
    texts = [prompt.text for prompt in prompts]
    rows = [prompt.metadata for prompt in prompts]
    metadata = None if all(row is None for row in rows) else [row or {} for row in rows]
    return Batch(torch.empty(len(prompts), 3, 0, 0), texts, texts, metadata=metadata)
