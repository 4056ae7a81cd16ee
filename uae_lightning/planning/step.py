"""One optimiser step of a stage by its own code, and one validation batch, under a meter.

What repeats is run once and then multiplied; where it is not the only one, it meets the gradients of an earlier pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from uae_lightning.models.vision_codes import VisionCodes
from uae_lightning.planning.blocks import repeated_blocks, run_one_of_equal_blocks
from uae_lightning.planning.codes import CodesGeneration
from uae_lightning.planning.generation import Generation
from uae_lightning.planning.meter import Meter
from uae_lightning.planning.optimizer import make_optimizer
from uae_lightning.planning.precision import autocast
from uae_lightning.planning.sharding import HALVED, gathered_size
from uae_lightning.planning.shortcuts import Shortcut
from uae_lightning.planning.text import caption
from uae_lightning.policies.flow_grpo import FlowGRPO, PictureActs
from uae_lightning.stages.common import Stage
from uae_lightning.stages.memory_replay import Replay
from uae_lightning.stages.policy import PolicyStage, Rollout
from uae_lightning.types import Batch

TOKENS_PER_WORD = 1.4  # of English prose, estimated
PROMPT = 24  # tokens of a terse prompt, estimated; those of GenEval have about ten
PHASES = {"rollout": "pictures", "score": "reward", "update": "update"}  # verb of `Stage.timed` -> phase


@dataclass(frozen=True)
class Setting:
    """What the YAML says beside the model.

    Args:
        pictures: per batch and device.
        validation_pictures: per validation batch.
        accumulate: batches per optimiser step where Lightning steps the optimiser.
        precision: `trainer.precision`.
        gpu: planned for a GPU, where optimisers work on all tensors at a time.
        average: the EMA callback keeps a copy of what is trained.
        prompt_words: of the longest prompts, where there are no pictures; None: there are some.
    """

    pictures: int
    validation_pictures: int
    accumulate: int = 1
    precision: str = "32-true"
    gpu: bool = True
    average: bool = False
    prompt_words: int | None = None


class Step:
    """A stage whose tensors are fake, wired to a meter; `run` takes one step."""

    def __init__(self, stage: Stage, judges: L.Callback | None, meter: Meter, setting: Setting) -> None:
        self.stage, self.judges, self.meter, self.setting = stage, judges, meter, setting
        self.policies = list(stage.policies.values()) if isinstance(stage, PolicyStage) else []
        self.trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        generation = CodesGeneration if isinstance(stage.encoder, VisionCodes) else Generation
        self.generation = generation(stage.encoder, meter)
        stage.encoder.generate = self.generation
        halved = setting.precision == HALVED
        for part in (stage.encoder, stage.decoder):
            run_one_of_equal_blocks(meter, part.blocks(), lambda block: gathered_size(block.parameters(), halved))
        self.head = Shortcut(meter, stage.encoder, "head")
        for owner, name, verb in [
            (stage.encoder, "embed", "texts read"),
            (stage.encoder, "token_logprobs", "captions scored"),
            (stage.decoder, stage.decoder.network, "velocities"),
            (stage.decoder, "encode_images", "pictures encoded"),
            (stage.decoder, "decode_latents", "pictures decoded"),
        ]:
            Shortcut(meter, owner, name, verb)
        for policy in self.policies:
            if isinstance(policy, FlowGRPO):
                Shortcut(meter, policy, "sample_trajectory", adapted=stage)
        self.kept = {"weights": meter.alive}  # bytes by what they are for
        self.optimizer: torch.optim.Optimizer | None = None
        self._wire()

    def _wire(self) -> None:
        """In place of what a Trainer would give the stage."""
        stage = self.stage
        stage._device = torch.device("cpu")  # built on the meta device
        stage._trainer = SimpleNamespace(strategy=None, global_rank=0, world_size=1, global_step=0, training=True)
        stage.log = stage.log_dict = lambda *args, **options: None
        stage.manual_backward = lambda loss: loss.backward()
        stage.optimizers = lambda: self.optimizer
        stage.timed = lambda verb: self.meter.phase(PHASES.get(verb, verb))
        stage.optimizer_step_after_clipping = self._in_phase("optimizer", stage.optimizer_step_after_clipping)
        if isinstance(stage, PolicyStage):
            update = stage.update
            stage.update = lambda rollout, *advantages: self._updated(update, rollout, advantages)
        if self.judges is not None:
            for judge in filter(None, (self.judges.reward, self.judges.unrewarded)):
                run_one_of_equal_blocks(self.meter, repeated_blocks(judge))
            Shortcut(self.meter, self.judges.reward, "forward", "pictures judged")
            stage.score = self.judges.score

    def _in_phase(self, name: str, function: Callable) -> Callable:
        def inside(*args: Any) -> Any:
            with self.meter.phase(name):
                return function(*args)

        return inside

    # ------------------------------------------------------------------------------------------------ what is run

    def run(self) -> None:
        """Optimiser state, then one step, then a validation batch."""
        self._weigh("optimizer", self._make_optimizer)
        if self.setting.average:
            self._weigh("average", self._make_average)
        side = self.stage.decoder.image_size
        self._weigh("memory", lambda: self._remember(side))
        batch = self._batch(self.setting.pictures, side)
        with self.meter.phase("update" if self.stage.automatic_optimization else "pictures"):
            self._automatic(batch) if self.stage.automatic_optimization else self._manual(batch)
        del batch
        with self.meter.phase("validation"):
            self._validate(self._batch(self.setting.validation_pictures, side))

    def _weigh(self, name: str, make: Callable) -> None:
        before = self.meter.alive
        make()
        self.kept[name] = self.meter.alive - before

    def _make_optimizer(self) -> None:
        self.optimizer = make_optimizer(self.stage, gpu=self.setting.gpu)

    def _make_average(self) -> None:
        self.average = [torch.empty_like(parameter, dtype=torch.float32) for parameter in self.trained]

    def _remember(self, side: int) -> None:
        """A batch of a replay's memory stands for all: what is kept of them is a few megabytes. It is made once, so
        that no step is charged for it."""
        for replay in self.stage.auxiliaries:
            if isinstance(replay, Replay):
                pictures = getattr(replay.data, "batch_size", self.setting.pictures)
                replay.pictures = lambda pictures=pictures: [self._pictures(pictures, side)]
                with self.meter.phase("memory"):
                    replay.begin(self.stage)
        for phase in ("memory", "captions"):
            self.meter.phases.pop(phase, None)
        self.generation.cache_bytes = 0

    def _batch(self, pictures: int, side: int) -> Batch:
        if (words := self.setting.prompt_words) is not None:
            texts = [caption(int(TOKENS_PER_WORD * words), row) for row in range(pictures)]
            return Batch(torch.empty(pictures, 3, 0, 0), texts, texts)
        return self._pictures(pictures, side)

    def _pictures(self, pictures: int, side: int) -> Batch:
        texts = [caption(self.stage.captioning.max_new_tokens, row) for row in range(pictures)]
        keys, prompts = [str(index) for index in range(pictures)], [caption(PROMPT, row) for row in range(pictures)]
        return Batch(torch.empty(pictures, 3, side, side), texts, keys, prompts=prompts)

    def _manual(self, batch: Batch) -> None:
        with autocast(self.setting.precision, gpu=self.setting.gpu):
            self.stage.training_step(batch, 0)

    def _automatic(self, batch: Batch) -> None:
        if self.setting.accumulate > 1:
            self._make_gradients()
        with autocast(self.setting.precision, gpu=self.setting.gpu):
            loss = self.stage.training_step(batch, 0)
            self.stage.manual_backward(loss)
        del loss
        for phase in self.meter.phases:  # of the batches that an optimiser step is made of
            self._multiply(phase, self.setting.accumulate)
        self.stage.optimizer_step_after_clipping()

    def _validate(self, batch: Batch) -> None:
        with torch.no_grad(), autocast(self.setting.precision, gpu=self.setting.gpu):
            outputs = self.stage.validation_step(batch, 0)
        if self.judges is not None:
            self.judges.on_validation_batch_end(None, self.stage, outputs, batch, 0)

    # ------------------------------------------------------------------------------------------------ shortening

    def _updated(self, update: Callable, rollout: Rollout, advantages: tuple[Tensor, ...]) -> None:
        """Of a stage with one policy the first pass of an update stands for all of them."""
        self.kept["rollout"] = self.meter.alive - self.resting
        for acts in rollout.acts:
            if isinstance(acts, PictureActs):
                kept = [states for states in vars(acts.trajectory).values() if states is not None]
                self.kept["latents"] = sum(states.nbytes for states in kept)
        if len(self.policies) > 1:
            return update(rollout, *advantages)
        if self.stage.auxiliaries:
            self._auxiliaries(rollout.batch)
        (policy,), (acts,), size = self.policies, rollout.acts, len(advantages[0])
        micro_batches, passes = policy.micro_batches, -(-size // policy.micro_batch) * policy.passes(acts)
        if passes > 1:
            self._make_gradients()
        first = {"micro_batches": lambda rows: micro_batches(rows)[:1], "passes": lambda acts: 1}
        once = {"updates_per_batch": 1, "update_parts": 1, "auxiliaries": []}
        with replaced(policy, first), replaced(self.stage, once):
            update(rollout, *advantages)
        self._multiply("update", passes * self.stage.updates_per_batch)
        return None

    def _auxiliaries(self, batch: Batch) -> None:
        """Their passes, which meet the gradients of the policy's."""
        self._make_gradients()
        with self.meter.phase("auxiliaries"):
            for number in range(self.stage.updates_per_batch * self.stage.update_parts):
                for loss in self.stage.auxiliary_losses(batch, number):
                    self.stage.backward_of_micro_batch(loss)
        self.stage.zero_grad()

    @property
    def resting(self) -> int:
        """Bytes alive between two steps."""
        return sum(self.kept.get(name, 0) for name in ("weights", "optimizer", "average", "memory"))

    def _make_gradients(self) -> None:
        for parameter in self.trained:
            parameter.grad = torch.empty_like(parameter)

    def _multiply(self, phase: str, passes: int) -> None:
        measured = self.meter.phases[phase]
        measured.flops *= passes
        for verb in measured.calls:
            measured.calls[verb] *= passes


@contextmanager
def replaced(owner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Attributes of `owner` for the time being."""
    before = {name: owner.__dict__.get(name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            delattr(owner, name) if value is None else setattr(owner, name, value)
