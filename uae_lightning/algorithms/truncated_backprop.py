"""Backpropagation through a sampler, truncated to its last K steps: DRaFT-K (Clark et al., arXiv 2309.17400).

    S           steps of the sampler, K of them with gradient
    t           the S + 1 levels between which they go, such as sigmas
    x           the state, [N, ...]

A loss of the last state has as its gradient, for a parameter theta of the steps,

    dL/dtheta  ~  sum over the last K steps s of  dL/dx_s . (partial x_s / partial theta),

the state before these steps being taken for a constant. With K = S it is the whole gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def unroll(step: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, levels: Tensor, last: int) -> Tensor:
    """The state after all steps x = step(x, t, next t); gradients flow through the `last` ones.

    Of each of these only the state before it is kept, and its inside computed again in the backward pass; all but the
    final one, whose inside the backward pass wants at once. Steps must draw no random numbers.

    Args:
        x: at the first level, [N, ...].
        levels: [S + 1].
        last: K, from 1 to S.

    Raises:
        ValueError: there are fewer steps than `last`, or none with gradient.
    """
    steps = len(levels) - 1
    if not 1 <= last <= steps:
        raise ValueError(f"gradients flow through 1 to {steps} steps, not through {last}")
    with torch.no_grad():
        for index in range(steps - last):
            x = step(x, levels[index], levels[index + 1])
    for index in range(steps - last, steps - 1):
        x = checkpoint(step, x, levels[index], levels[index + 1], use_reentrant=False, preserve_rng_state=False)
    return step(x, levels[-2], levels[-1])
