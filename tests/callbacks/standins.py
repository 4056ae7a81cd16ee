"""A stage small enough to train in milliseconds, a reward to go with it, and a trainer for both."""

import json
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from uae_lightning.interfaces import Projector, Reward
from uae_lightning.parallel.checkpoint_io import AtomicCheckpointIO
from uae_lightning.types import Batch, RewardInput, RewardOutput, ValidationOutput


class Pictures(IterableDataset):
    """Batches of 4 pictures; None is endless."""

    def __init__(self, batches: int | None = None) -> None:
        self.batches = batches

    def __iter__(self):
        index = 0
        while index != self.batches:
            images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(index))
            yield Batch(images, [""] * 4, [f"{index}-{i}" for i in range(4)])
            index += 1


class Tint(Projector):
    """One trainable colour matrix, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(3) * 0.5)
            self.mix.bias.zero_()

    def forward(self, states):
        return self.mix(states)

    def save(self, folder: Path) -> None:
        torch.save(self.state_dict(), folder / "model.pt")


class TinyStage(L.LightningModule):
    """Learns to hand pictures through. The training data are a function of the step, as those of real stages are."""

    trained = ("projector",)

    @property
    def hands_on(self) -> tuple[str, ...]:
        return self.trained

    def __init__(self) -> None:
        super().__init__()
        self.projector, self.score = Tint(), None

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def reconstruct(self, images):
        return self.projector(images.movedim(1, -1)).movedim(-1, 1).clamp(0, 1)

    def training_step(self, batch, batch_idx):
        images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(100 + self.global_step))
        if self.score is not None:
            self.score(RewardInput(images, self.reconstruct(images), batch.captions))
        return (self.reconstruct(images) - images).square().mean()

    def validation_step(self, batch, batch_idx):
        captions = [f"caption of {key}" for key in batch.keys]
        inputs = RewardInput(batch.images, self.reconstruct(batch.images), captions)
        return ValidationOutput(inputs, torch.full((len(captions),), 3), batch.keys)

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


class Closeness(Reward):
    """1 - mean difference; `broken` makes some of it NaN."""

    def __init__(self, scale: float = 1.0, broken: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(scale))
        self.broken, self.sizes = broken, []

    def forward(self, inputs):
        self.sizes.append(len(inputs.captions))
        total = self.weight * (1 - (inputs.originals - inputs.reconstructions).abs().mean((1, 2, 3)))
        if self.broken:
            total = torch.cat([total[:1] * torch.nan, total[1:]])
        return RewardOutput(total, {"closeness": total, "half": total / 2})


def fit(folder: Path, *callbacks, steps: int = 4, stage=None, resume: Path | None = None, **options):
    """Train a stage, validating every 2 steps and saving at every step; returns it and its trainer."""
    torch.manual_seed(0)
    stage = stage or TinyStage()
    saver = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    validation = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": -1}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory|The dirpath has changed")
        trainer = L.Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            max_steps=steps,
            log_every_n_steps=1,
            callbacks=[*callbacks, saver],
            plugins=[AtomicCheckpointIO()],
            **{**quiet, **validation, **options},
        )
        trainer.fit(stage, *(DataLoader(Pictures(n), batch_size=None) for n in (None, 2)), ckpt_path=resume)
    return stage, trainer


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
