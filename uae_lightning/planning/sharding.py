"""Several devices: what of a stage lies on each.

ddp     Everything on each, and the gradients once more in the buckets in which they are exchanged.
fsdp    As `uae_lightning.parallel.sharding` does it: weights of blocks (but int8) and trained weights lie in N parts,
        gradients and optimiser state with them. Of the parts two blocks are whole at a time, the one at work and the
        next one, which is being gathered; while captions are generated, the encoder is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from uae_lightning.interfaces import Component
from uae_lightning.stages.common import Stage
from uae_lightning.stages.policy import PolicyStage

GATHERED, REDUCED, ROLLOUTS = "bytes gathered", "bytes reduced", "rollouts"  # in a phase's calls
AT_ONCE = 2  # blocks gathered at a time
HALVED = "bf16-mixed"  # fp32 weights are gathered in bfloat16


@dataclass(frozen=True)
class Devices:
    count: int = 1
    strategy: str = "one"  # one, ddp or fsdp


def devices_of(trainer) -> Devices:
    """From the `trainer` part of a stage's configuration; "auto" and -1 devices are those of this machine."""
    count = trainer.devices
    if isinstance(count, str) and count.lstrip("-").isdigit():
        count = int(count)
    if isinstance(count, list):
        count = len(count)
    elif isinstance(count, str):
        count = len(count.split(",")) if "," in count else -1
    if count == -1:
        count = max(1, torch.cuda.device_count())
    count *= trainer.num_nodes
    strategy = str(getattr(trainer.strategy, "class_path", trainer.strategy)).lower()
    sharded = "fsdp" in strategy or "modelparallel" in strategy or "shardedstrategy" in strategy
    return Devices(count, "one" if count == 1 else "fsdp" if sharded else "ddp")


@dataclass(frozen=True)
class Shares:
    """Bytes by which a device differs from one that has all of the stage."""

    saved_weights: int = 0
    saved_training: int = 0  # gradients, optimiser, average
    gathered: int = 0  # in all phases
    gathered_captions: int = 0  # while captions are generated
    buckets: int = 0

    def of(self, phase: str) -> int:
        more = max(self.gathered, self.gathered_captions) if phase in ("captions", "validation") else self.gathered
        return more + self.buckets - self.saved_weights - self.saved_training


def shares(stage: Stage, devices: Devices, training: int, gradients: int, precision: str) -> Shares:
    """Of a stage with `training` bytes of optimiser state and averages, and `gradients` bytes."""
    if devices.strategy == "one":
        return Shares()
    if devices.strategy == "ddp":
        return Shares(buckets=gradients)
    keep = 1 - 1 / devices.count
    halved = precision == HALVED
    parts = [sharded_tensors(part) for part in (stage.encoder, stage.projector, stage.decoder)]
    blocks = [gathered_size(block.parameters(), halved) for part in components(stage) for block in part.blocks()]
    return Shares(
        saved_weights=int(keep * sum(tensor.nbytes for part in parts for tensor in part)),
        saved_training=int(keep * training),
        gathered=AT_ONCE * max(blocks, default=0),
        gathered_captions=gathered_size(parts[0], halved),
    )


@dataclass(frozen=True)
class Exchange:
    """Bytes that a device receives in an optimiser step, as rings send them: (N-1)/N of what becomes whole.

    Rewards, log-probabilities and metrics are a few kilobytes, trained weights outside the blocks a few megabytes: both
    are left out.
    """

    weights: int = 0  # of blocks before each pass, forward and backward, and all of the encoder for a rollout
    gradients: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients


def exchange(stage: Stage, devices: Devices, calls: Counter, gradients: int, precision: str) -> Exchange:
    """Of a step that made these `calls` (`planning.blocks`), of a stage with `gradients` bytes."""
    keep = 1 - 1 / devices.count
    if devices.strategy == "ddp":  # an all-reduce is a reduction and a gathering
        steps = stage.updates_per_batch * stage.update_parts if isinstance(stage, PolicyStage) else 1
        return Exchange(gradients=int(2 * keep * gradients * steps))
    if devices.strategy == "one":
        return Exchange()
    encoder = gathered_size(sharded_tensors(stage.encoder), precision == HALVED)
    gathered = calls[GATHERED] + calls[ROLLOUTS] * encoder
    return Exchange(int(keep * gathered), int(keep * calls[REDUCED]))


def components(stage: Stage) -> list[Component]:
    return [stage.encoder, stage.projector, stage.decoder]


def sharded_tensors(part: Component) -> list[nn.Parameter]:
    """Parameters of blocks, but for int8, and trained ones wherever they are."""
    of_blocks = {id(p) for block in part.blocks() for p in block.parameters() if p.dtype != torch.int8}
    return [p for p in part.parameters() if id(p) in of_blocks or p.requires_grad]


def gathered_size(parameters, halved: bool) -> int:
    """Bytes of parameters that are whole."""
    kept = [p for p in parameters if p.dtype != torch.int8]
    return sum(p.numel() * 2 if halved and p.dtype == torch.float32 else p.nbytes for p in kept)
