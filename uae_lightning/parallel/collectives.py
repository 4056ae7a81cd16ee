"""What the ranks exchange during a step, one collective each.

R   ranks      The global batch is the batches of ranks 0, 1, ... R - 1 one after the other.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

MAXIMA = ("max", "first_log_ratio")  # endings of metrics of which the largest of all ranks is meant, not the mean


class RaisedTogether(FloatingPointError):
    """An error that every rank raises at the same place: they can still exchange tensors, and write a checkpoint."""


def ranks() -> int:
    """R, 1 where no process group has been formed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if ranks() > 1 else 0


def barrier() -> None:
    if ranks() > 1:
        dist.barrier()


def gathered(own: Tensor) -> Tensor:
    """[N, ...] of each rank, all of one shape -> [R * N, ...] of the global batch, on every rank."""
    if ranks() == 1:
        return own
    everyone = [torch.empty_like(own) for _ in range(ranks())]
    dist.all_gather(everyone, own.contiguous())
    return torch.cat(everyone)


def own_rows(everyone: Tensor) -> Tensor:
    """[R * N, ...] of the global batch -> the [N, ...] of this rank."""
    return everyone.chunk(ranks())[rank()]


def mean_over_ranks(own: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, without gradient."""
    if ranks() == 1:
        return own.detach()
    mean = own.detach() / ranks()
    dist.all_reduce(mean)
    return mean


def reduce_metrics(metrics: dict[str, float], device: torch.device) -> dict[str, float]:
    """Means over the ranks, largest values for names that end in one of MAXIMA; the same names on every rank."""
    if ranks() == 1:
        return metrics
    everyone = gathered(torch.tensor([list(metrics.values())], dtype=torch.float32, device=device))  # [R, metrics]
    reduced = zip(metrics, everyone.mean(0).tolist(), everyone.amax(0).tolist(), strict=True)
    return {name: largest if name.endswith(MAXIMA) else mean for name, mean, largest in reduced}


@torch.no_grad()
def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Each gradient becomes the mean over the ranks. Those of sharded parameters are: FSDP2 averages in backward."""
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if ranks() == 1 or not gradients:
        return
    mean = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, average in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(average.view_as(gradient))
