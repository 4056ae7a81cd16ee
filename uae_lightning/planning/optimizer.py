"""An optimiser with the state it has from its second step on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uae_lightning.stages.common import Stage

SAMPLE = 2**16  # parameters of a tensor on which an optimiser is tried out; its state per parameter is then constant


def make_optimizer(stage: Stage, *, gpu: bool) -> torch.optim.Optimizer:
    """The stage's optimiser, its state allocated.

    Those of torch are stepped on the fake parameters themselves. bitsandbytes computes on real memory only: its state
    is measured on small real tensors, and its step, which needs no temporaries, left out.
    """
    optimizer = stage.make_optimizer()
    if type(optimizer).__module__.startswith("bitsandbytes"):
        return _Stepless(optimizer, stage.optimizer)
    if gpu:
        for group in optimizer.param_groups:  # the default of a GPU: all tensors at a time, with temporaries of each
            if group.get("foreach", 0) is None and not group.get("fused"):
                group["foreach"] = True
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


class _Stepless:
    """State of the right size, and `zero_grad`."""

    def __init__(self, optimizer: torch.optim.Optimizer, make) -> None:
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        sizes = [state_bytes(make, parameter) for parameter in self.parameters]
        self.state = [torch.empty(size, dtype=torch.uint8) for size in sizes]

    def step(self) -> None: ...

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def state_bytes(make, parameter: Tensor) -> int:
    """Bytes of state that the optimiser `make([parameter])` keeps, found by a step on a tensor of up to 2^16."""
    count = parameter.numel()
    sample = min(count, SAMPLE)
    with torch._C._DisableTorchDispatch():
        real = nn.Parameter(torch.zeros(sample, dtype=parameter.dtype))
        real.grad = torch.zeros_like(real)
        optimizer = make([real])
        optimizer.step()
        tables = ("qmap1", "qmap2")  # of bitsandbytes: one for all parameters
        state = [v for k, v in optimizer.state[real].items() if isinstance(v, Tensor) and k not in tables]
    return sum(tensor.nbytes for tensor in state) * count // sample
