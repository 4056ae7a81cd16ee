"""What all stages share: an auto-encoder, an optimizer, and randomness that survives a restart.

On several devices every rank has pictures of its own; a step is that of one device with all of them (the global batch).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.interfaces import Decoder, Encoder, Projector
from uae_lightning.parallel.collectives import (
    RaisedTogether,
    average_gradients,
    rank,
    ranks,
    reduce_metrics,
)
from uae_lightning.parallel.sharding import shard
from uae_lightning.ranges import Limit, Positive, Seed, checked
from uae_lightning.stages.auxiliary import Auxiliary
from uae_lightning.types import Batch, Captions, Learn, RewardInput, RewardOutput, Sampling, ValidationOutput, Work

OVERFLOWS = 20  # in a row: the loss scale of float16 starts at 2^16 and is halved by each; below 1 it is not the reason
OF_AUXILIARIES = 1_000_000  # their randomness is for no other purpose


@checked
class Stage(L.LightningModule):
    """Base of the stages.

    Args:
        autoencoder: the parts.
        learn: what is trained of each part, such as {projector: all, decoder: {rank: 32, alpha: 64}}.
        optimizer: called with the trainable parameters.
        lr_scheduler: called with the optimizer, and stepped with it: of torch.optim.lr_scheduler, or
            `stages.schedules.WarmUp`; None: the rates stay as they are.
        max_grad_norm: gradients are clipped to it, those of float16 once their loss scale is taken out; infinity clips
            none.
        seed: of noise and captions.
        learning_rates: of components ("encoder", "projector", "decoder"); a component that is not named has the
            optimizer's.
        auxiliaries: further losses, each added to every gradient step with its weight.

    Raises:
        ValueError: a part cannot learn in that way, or not in this stage.
    """

    trained: tuple[str, ...] = ()  # components that can learn here, and whose weights this stage hands on
    latents_suffice = False  # of pictures: `uae_lightning.data.cached` has no others, `.buckets` those of any shape
    trains_from_prompts = False  # on `uae_lightning.data.prompts.PromptData`, where there are no pictures
    learns_from_reward = False  # and so needs callbacks.RewardCallback
    batches_seen: Tensor  # [] of the run so far, kept in checkpoints

    def __init__(
        self,
        autoencoder: AutoEncoder,
        learn: Learn = Learn(),  # noqa: B008  nobody writes to it
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: Limit = 1.0,
        seed: Seed = 0,
        learning_rates: dict[str, Positive] | None = None,
        auxiliaries: list[Auxiliary] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.learn = learn
        self._adapt(learn)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.max_grad_norm, self.seed = max_grad_norm, seed
        self.learning_rates, self.auxiliaries = learning_rates or {}, auxiliaries or []
        for auxiliary in self.auxiliaries:
            auxiliary.check(self)
        self.score: Callable[[RewardInput], RewardOutput] | None = None  # set by callbacks.RewardCallback
        self.timings: dict[str, float] = {}  # seconds by verb
        self.health: dict[str, float] = {}  # of the policy, read by callbacks.PolicyHealth
        self.grad_norm, self.overflows = 0.0, 0  # of the last step; steps in a row that float16 had no numbers for
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))
        self.strict_loading = False  # checkpoints hold what is trained; on_load_checkpoint is as strict about that

    def _adapt(self, learn: Learn) -> None:
        for name, part in self.autoencoder.parts.items():
            part.adapt(vars(learn)[name])
        if others := [name for name, how in vars(learn).items() if how is not None and name not in self.trained]:
            raise ValueError(
                f"{type(self).__name__} trains {' and '.join(self.trained)}: set model.init_args.learn.{others[0]} to "
                "null, or take another stage"
            )

    @property
    def encoder(self) -> Encoder | None:
        return self.autoencoder.encoder

    @property
    def projector(self) -> Projector:
        return self.autoencoder.projector

    @property
    def decoder(self) -> Decoder:
        return self.autoencoder.decoder

    @property
    def hands_on(self) -> tuple[str, ...]:
        """The parts whose weights this stage leaves."""
        return self.autoencoder.owners(self.trained)

    @property
    def captioning(self) -> Captioning:
        return self.autoencoder.captioning

    @property
    def sampling(self) -> Sampling:
        return self.autoencoder.sampling

    @property
    def condition_on(self) -> Literal["adapted", "frozen"]:
        return self.autoencoder.condition_on

    @staticmethod
    def check_training(options: Any) -> None:
        """Raises ValueError where options (attributes of a stage, or of its parsed `init_args`) train nothing together.

        It is asked before anything is loaded, too; commands that train nothing never ask.
        """

    @staticmethod
    def work(options: Any) -> Work:
        """What training spends on one picture of a batch, by the same options; of auxiliary losses they say it
        themselves."""
        raise NotImplementedError("the stage does not say what it spends: give its class a method `work`")

    def on_fit_start(self) -> None:
        self.check_training(self)

    def on_train_start(self) -> None:
        for auxiliary in self.auxiliaries:
            auxiliary.begin(self)

    def auxiliary_losses(self, batch: Batch, number: int = 0) -> Iterator[Tensor]:
        """Those of the optimiser step `number` on a batch, times their weights, in micro-batches."""
        for place, auxiliary in enumerate(self.auxiliaries):
            generator = torch.Generator().manual_seed(self.step_seed(OF_AUXILIARIES + number, place))
            total = torch.zeros((), device=self.device)
            for loss in auxiliary.losses(self, batch, generator):
                total += loss.detach()
                yield auxiliary.weight * loss
            self.log(f"train/{auxiliary.name}", total, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer | dict[str, Any]:  # type: ignore[override]
        optimizer = self.make_optimizer()
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError("lr_scheduler: ReduceLROnPlateau follows a figure, not the steps: take another one")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def make_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(
                f"{type(self).__name__} has nothing to train: set model.init_args.learn, such as "
                f"{{{self.trained[-1]}: {{rank: 32, alpha: 64}}}}, of {' or '.join(self.trained)}"
            )
        optimizer = self.optimizer(self.parameter_groups() if self.learning_rates else parameters)
        if type(optimizer).__module__.startswith("bitsandbytes") and isinstance(parameters[0], DTensor):
            raise ValueError(
                "bitsandbytes' optimizers cannot step sharded parameters: with --trainer.strategy fsdp use "
                "torch.optim.AdamW, whose state is sharded too, or keep the optimizer and train with ddp"
            )
        return optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One for each component that is trained, with its own learning rate where there is one.

        Raises:
            ValueError: a learning rate is of no component that is trained.
        """
        trained = {
            name: [parameter for parameter in part.parameters() if parameter.requires_grad]
            for name, part in self.autoencoder.parts.items()
        }
        trained = {name: parameters for name, parameters in trained.items() if parameters}
        if others := [name for name in self.learning_rates if name not in trained]:
            raise ValueError(
                f"learning_rates: {others[0]!r} is not trained by this {type(self).__name__}, which trains "
                f"{' and '.join(trained)}: leave it out of model.init_args.learning_rates, or set model.init_args.learn"
            )
        rates = {name: {"lr": rate} for name, rate in self.learning_rates.items()}
        return [{"params": parameters} | rates.get(name, {}) for name, parameters in trained.items()]

    def configure_model(self) -> None:
        """Under FSDP2 the parts are sharded over the devices."""
        if self.device_mesh is not None:
            for part in self.autoencoder.parts.values():
                shard(part, self.device_mesh["data_parallel"], self.trainer.precision)

    def validation_step(  # type: ignore[override]  # Lightning hands anything on to callbacks, but declares less
        self, batch: Batch, batch_idx: int
    ) -> ValidationOutput:
        captions, images = self.held_out_drawings(batch, self.validation_seed(batch_idx))
        inputs = RewardInput(batch.images, images, captions.texts, metadata=batch.metadata)
        return ValidationOutput(inputs, captions.lengths, batch.keys)

    def validation_seed(self, batch_idx: int) -> int:
        """The same in every validation, of every run."""
        return 1_000_000 + batch_idx * ranks() + rank()

    @torch.no_grad()
    def held_out_drawings(self, batch: Batch, seed: int) -> tuple[Captions, Tensor]:
        """The round trip of pictures; prompts that have none are drawn as they are."""
        if batch.has_images:
            return self.autoencoder.reconstruct(batch.images, seed)
        return self.autoencoder.reader.tokenize(batch.captions), self.autoencoder.generate(batch.captions, seed)

    # ------------------------------------------------------------------------------------------------ bookkeeping

    def step_seed(self, purpose: int, place: int = 0) -> int:
        """Of run, batch, purpose and place (a rank, a picture) alone: a resumed run draws what the first would have."""
        entropy = [self.seed, int(self.batches_seen), place, purpose]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def generator(self, purpose: int) -> torch.Generator:
        """The same on every rank: draw for the global batch and take `own_rows`, and the noise of a picture does not
        depend on how many ranks share the work."""
        return torch.Generator().manual_seed(self.step_seed(purpose))

    def generators(self, purpose: int, size: int) -> list[torch.Generator]:
        """For each of this rank's `size` pictures one of its own: neither micro-batches nor ranks change its noise."""
        first = rank() * size
        return [torch.Generator().manual_seed(self.step_seed(purpose, first + row)) for row in range(size)]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.score is None and self.learns_from_reward:
            raise ValueError("this stage learns from a reward: add callbacks.RewardCallback to trainer.callbacks")
        self.batches_seen += 1  # here, not at the end: checkpoints are written before a module's own end-of-batch hook

    @contextmanager
    def timed(self, verb: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[verb] = self.timings.get(verb, 0.0) + time.perf_counter() - start

    def optimizer_step_after_clipping(self) -> float:
        """One step of manual optimisation on the mean gradient of all ranks; returns its norm before clipping."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # `configure_optimizers` makes one
        average_gradients([p for p in self.parameters() if p.requires_grad])  # before the ranks look for overflows
        if not isinstance(optimizer, LightningOptimizer):  # in plans and benchmarks: no Trainer calls the hook below
            self.clip_to_norm()
        optimizer.step()
        optimizer.zero_grad()
        if self.lr_scheduler is not None and isinstance(optimizer, LightningOptimizer):
            self.lr_schedulers().step()  # type: ignore[union-attr]  # `configure_optimizers` makes one
        return self.grad_norm

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradients: Lightning calls it once it has taken the loss scale of float16 out of them.

        The GradScaler does not take a step on gradients that overflow in float16: it halves the scale and goes on.

        Raises:
            RaisedTogether: the gradients are NaN or infinite, and no loss scale is the reason.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # a fused optimizer, with which Lightning leaves it to the step
        self.clip_to_norm()
        overflow = not math.isfinite(self.grad_norm)
        self.overflows = self.overflows + 1 if overflow else 0
        if overflow and (scaler is None or self.overflows > OVERFLOWS):
            scale = f", {self.overflows} steps in a row, at a loss scale of {scaler.get_scale():g}" if scaler else ""
            raise RaisedTogether(
                f"the norm of the gradients is {self.grad_norm} at step {self.global_step}{scale}: it is not taken. "
                "Lower the lr, or compute in a wider type (trainer.precision, `dtype` of encoder and decoder)"
            )
        if scaler is not None:
            self.log("train/skipped_step", float(overflow))
            if overflow:
                rank_zero_warn(
                    f"step {self.global_step} is skipped: its gradients overflow in float16 at a loss scale of "
                    f"{scaler.get_scale():g}, which is halved. A few such steps are normal, the first ones above all"
                )
        if self.lr_scheduler is not None:
            self.log("train/lr", optimizer.param_groups[0]["lr"])
        if self.automatic_optimization:
            self.log("train/grad_norm", self.grad_norm)

    def clip_to_norm(self) -> None:
        """To `max_grad_norm`; `grad_norm` is the norm before."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.grad_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def backward_of_micro_batch(self, loss: Tensor) -> None:
        """`manual_backward`, but DDP leaves the gradients to `optimizer_step_after_clipping`: one exchange a step."""
        strategy = self.trainer.strategy
        with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext():
            self.manual_backward(loss)

    def reduced(self, metrics: dict[str, float]) -> dict[str, float]:
        """Over all ranks, so that every rank logs, and stops on, the same."""
        return reduce_metrics(metrics, self.device)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is trained, and nothing that the YAML's folders hold: a checkpoint of adapters is as small as they."""
        kept = self._trained_names() | {name for name, _ in self.named_buffers(recurse=False)}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.state_dict()
        batches = progress["total"]["processed"]  # without one that an error broke off
        checkpoint["state_dict"]["batches_seen"] = torch.tensor(batches)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if missing := sorted(self._trained_names() - checkpoint["state_dict"].keys()):
            raise ValueError(
                f"the checkpoint has no {missing[0]} ({len(missing)} trained weights are missing): it was written with "
                "other settings of `learn`; resume with those, or start the stage anew with --overwrite"
            )

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}
