"""Data for which one rank has to wait."""

from __future__ import annotations

import time

import torch.distributed as dist
from stand_ins import TinyData
from torch.utils.data import DataLoader

from uae_lightning.types import Batch


class LateData(TinyData):
    """The pictures of TinyData; one rank waits that many seconds for each of its batches."""

    def __init__(self, rank: int, seconds: float) -> None:
        super().__init__()
        self.rank, self.seconds = rank, seconds

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * 100, collate_fn=self.wait)

    def wait(self, batches: list[Batch]) -> Batch:
        time.sleep(self.seconds * (dist.get_rank() == self.rank))
        return batches[0]
