"""A stage that trains in a blink: each part is one number, and a picture comes back scaled by all three of them."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.interfaces import Component, Reward
from uae_lightning.stages.common import Stage
from uae_lightning.types import Batch, Captions, RewardInput, RewardOutput, Sampling, ValidationOutput


class Part(Component):
    def __init__(self, path: str) -> None:
        super().__init__()
        if path == "broken":
            raise ValueError("broken part: choose another path")
        if path == "missing":
            raise FileNotFoundError("'missing' does not exist: correct the path")
        file = Path(path) / "value.json"
        self.value = nn.Parameter(torch.tensor(json.loads(file.read_text()) if file.exists() else 0.5))
        self.latent_shape, self.image_size = (3, 16, 16), 16

    def save(self, folder: Path) -> None:
        (folder / "value.json").write_text(json.dumps(self.value.item()))

    def evaluations(self, sampling: Sampling) -> int:
        return sampling.steps

    def decode_latents(self, latents: Tensor) -> Tensor:
        return latents


class TinyAutoEncoder(AutoEncoder):
    def __init__(
        self,
        encoder: Part,
        projector: Part,
        decoder: Part,
        sampling: Sampling = Sampling(),  # noqa: B008
    ) -> None:
        nn.Module.__init__(self)
        self.encoder, self.projector, self.decoder, self.sampling = encoder, projector, decoder, sampling
        self.captioning = Captioning()

    def round_trip(self, images: Tensor) -> Tensor:
        return images * self.encoder.value * self.projector.value * self.decoder.value

    def reconstruct(self, images: Tensor, seed: int = 0) -> tuple[Captions, Tensor]:
        tokens = torch.ones(len(images), self.sampling.steps)
        return Captions(["a caption"] * len(images), tokens, tokens > 0), self.round_trip(images)


class TinyStage(Stage):
    def __init__(
        self,
        autoencoder: AutoEncoder,
        learns: list[str] = ["decoder"],  # noqa: B006
        fails_at: int = -1,
    ) -> None:
        L.LightningModule.__init__(self)
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))
        self.autoencoder = autoencoder
        self.trained, self.fails_at, self.auxiliaries = tuple(learns), fails_at, []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.global_step == self.fails_at:
            raise FloatingPointError("the loss is NaN")
        loss = (self.autoencoder.round_trip(batch.images) - batch.images).square().mean()
        self.log("train/loss", loss)
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None: ...

    def on_train_batch_end(self, outputs, batch: Batch, batch_idx: int) -> None: ...

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None: ...

    def validation_step(self, batch: Batch, batch_idx: int) -> ValidationOutput:
        captions, images = self.autoencoder.reconstruct(batch.images)
        return ValidationOutput(RewardInput(batch.images, images, captions.texts), captions.lengths, batch.keys)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([getattr(self, name).value for name in self.trained], lr=0.1)


class OtherStage(TinyStage):
    """Another class with the same options."""


class TinyData(L.LightningDataModule):
    def __init__(self, pictures: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        images = 0.2 + 0.8 * torch.rand(pictures, 3, 16, 16, generator=generator)
        scale = torch.linspace(0.6, 1.0, pictures)[:, None, None, None]
        self.batch = Batch(images * scale, ["words"] * pictures, [f"scene-{i}" for i in range(pictures)])

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * 100, collate_fn=lambda batches: batches[0])

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.batch], collate_fn=lambda batches: batches[0])


class Closeness(Reward):
    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, inputs: RewardInput) -> RewardOutput:
        total = 1 - (inputs.originals - inputs.reconstructions).abs().pow(self.power).mean((1, 2, 3))
        return RewardOutput(total, {"closeness": total})


STAGE_YAML = """
seed_everything: 3
model:
  class_path: stand_ins.TinyStage
  init_args:
    autoencoder:
      class_path: stand_ins.TinyAutoEncoder
      init_args:
        encoder: {class_path: stand_ins.Part, init_args: {path: shipped}}
        projector: {class_path: stand_ins.Part, init_args: {path: shipped}}
        decoder: {class_path: stand_ins.Part, init_args: {path: shipped}}
data: {class_path: stand_ins.TinyData}
trainer:
  accelerator: cpu
  max_steps: 4
  val_check_interval: 2
  enable_progress_bar: false
  callbacks:
    - class_path: callbacks.RewardCallback
      init_args: {reward: {class_path: stand_ins.Closeness}, unrewarded: {class_path: stand_ins.Closeness, init_args: {power: 1.0}}}
    - class_path: callbacks.SampleGallery
    - class_path: callbacks.ComponentWeights
checkpoint: {every_n_train_steps: 1}
"""  # noqa: E501

RUN_YAML = """
name: tiny
stages:
  - {name: draw, config: stage.yaml, options: {model.init_args.learns: [projector, decoder]}}
  - {name: see, config: stage.yaml, options: {model.init_args.learns: [encoder], trainer.max_steps: 6}}
"""

EVALUATION_YAML = """
data: {class_path: stand_ins.TinyData}
suites:
  unified_bench:
    class_path: uae_lightning.evaluation.unified_bench.UnifiedBench
    init_args:
      score:
        class_path: uae_lightning.rewards.unified_score.UnifiedScore
        init_args: {backbones: {closeness: {class_path: stand_ins.Closeness}}}
  images: {class_path: uae_lightning.evaluation.image_health.ImageHealth}
"""


def write_confs(folder: Path) -> Path:
    """A run of two stages; returns its YAML."""
    (folder / "conf").mkdir()
    (folder / "conf" / "stage.yaml").write_text(STAGE_YAML)
    (folder / "conf" / "run.yaml").write_text(RUN_YAML)
    return folder / "conf" / "run.yaml"
