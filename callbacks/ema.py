"""EMA: validation and the end of training use an average of the trainable weights.

Lightning's own `WeightAveraging` (2.6.6) builds `torch.optim.swa_utils.AveragedModel`, whose constructor is
`deepcopy(model)` of the whole LightningModule: with a frozen 3B encoder and an 8B decoder that is a second copy of
both, in memory and in every checkpoint. Here only what is trained is averaged.
"""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from uae_lightning.ranges import Count, ShareBelow1, checked


@checked
class EMA(L.Callback):
    """Exponential moving average of the trainable parameters, in float32 copies.

        average <- d * average + (1 - d) * parameter,   d = min(decay, (1 + t) / (10 + t)) after step t, from 0

    The warm-up of d counts optimiser steps and not updates, as in Flow-GRPO's code (ema.py of yifan123/flow_grpo,
    ac4c86e, 2025-07-18; its updates come a step earlier): with `every: 8` it reaches .9 after 80 steps.

    When which weights are in the module:

    * training: the raw ones; on_train_batch_end updates the average, before ModelCheckpoint (always last) saves.
    * validation: the average, from on_validation_start to on_validation_end (not before the first update: step 0 is the
      stage's start). ModelCheckpoint.on_validation_end runs later and finds the raw weights back.
    * from on_fit_end on: the average, also where a resumed run had no step left (Lightning then skips on_train_end).
      List ComponentWeights after this callback.

    Whenever a checkpoint is saved, it holds the raw weights (in `state_dict`) and the average (in this callback's
    state), so that a resumed run continues bit for bit.

    Args:
        decay: the limit of d.
        every: optimiser steps between updates; several steps within one batch count, but give one update.
    """

    def __init__(self, decay: ShareBelow1 = 0.998, every: Count = 1) -> None:
        self.decay, self.every = decay, every
        self.last_step = 0  # optimiser steps at the last update
        self.average: dict[str, Tensor] = {}
        self.raw: dict[str, Tensor] = {}  # set aside while the average is in the module

    # ------------------------------------------------------------------------------------------------ averaging

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # not earlier: only now every strategy has placed the weights and restored a checkpoint
        trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        if not self.average:
            self.average = {name: p.detach().float().clone() for name, p in trained.items()}
        if self.average.keys() != trained.keys():
            raise ValueError(
                f"the checkpoint's EMA does not fit the trainable parameters: {self._difference(trained)}; resume with "
                "the options that wrote it, or start the stage without --ckpt_path"
            )
        self.average = {name: self.average[name].to(p.device) for name, p in trained.items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step - self.last_step < self.every:
            return
        parameters = dict(pl_module.named_parameters())
        decay = min(self.decay, trainer.global_step / (9 + trainer.global_step))  # t = global_step - 1
        for name, average in self.average.items():
            average.lerp_(parameters[name].detach().float(), 1 - decay)
        self.last_step = trainer.global_step

    # ------------------------------------------------------------------------------------------------ swapping

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._use_average(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = dict(pl_module.named_parameters())
        for name, raw in self.raw.items():
            parameters[name].data.copy_(raw)
        self.raw = {}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._use_average(pl_module)

    def _use_average(self, pl_module: L.LightningModule) -> None:
        if not self.last_step:
            return
        parameters = dict(pl_module.named_parameters())
        self.raw = {name: parameters[name].detach().clone() for name in self.average}
        for name, average in self.average.items():
            parameters[name].data.copy_(average)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # saved while the average is in the module (an exception during validation, or after the fit)
        checkpoint["state_dict"].update(self.raw)

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_step, self.average = state_dict["last_step"], state_dict["average"]

    def _difference(self, trained: dict[str, Tensor]) -> str:
        missing, extra = sorted(trained.keys() - self.average.keys()), sorted(self.average.keys() - trained.keys())
        return f"{len(missing)} are not in it {missing[:3]}, {len(extra)} are no longer trained {extra[:3]}"
