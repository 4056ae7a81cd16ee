"""Several objectives in one step: what each may weigh.

Symbols

    G   samples per prompt: a group
    N   samples; those of one prompt stand next to each other
    r_k [N], w_k   a reward (a part of the total), and its weight
    A_k [N]        its advantages, normalised within the groups

Sources

    GDPO   arXiv 2601.05242: rewards are normalised before they are added, where GRPO adds first. The sum of rewards
           follows the one that spreads most, and has equal values for different combinations.
    QLIP   arXiv 2502.05178: weights of losses from what each comes to when it is trained alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from uae_lightning.algorithms.advantages import group_advantages


def decoupled_advantages(
    parts: dict[str, Tensor], weights: dict[str, float], group_size: int, *, eps: float = 1e-4
) -> Tensor:
    """A = sum_k w_k A_k over its standard deviation in the batch, with A_k = (r_k - mean_group) / std_group (GDPO).

    The advantages of the batch are of one size whatever the weights: only their ratios count, and neither scale nor
    offset of a reward does. GDPO also takes off the mean of the batch, which is 0: that of each group is.

    Args:
        parts: name -> [N], finite; N is the global batch.
        weights: of the same names.
        group_size: G, at least 2.
        eps: is added to both standard deviations; to that of a group relative to the part's in the batch (ours; 1e-4 as
            it is in the code of GDPO would let the scale of a reward in again).

    Returns:
        [N] fp32, without gradient. A part adds exactly 0 to a group in which its values are equal.

    Raises:
        ValueError: parts and weights differ in their names or there are none, a weight is not finite, or as
            `advantages.group_advantages`.
    """
    if not parts or parts.keys() != weights.keys():
        raise ValueError(f"parts and weights need the same names, at least one: {sorted(parts)} and {sorted(weights)}")
    if bad := [name for name, weight in weights.items() if not math.isfinite(weight)]:
        raise ValueError(f"weights must be finite, that of {bad[0]!r} is {weights[bad[0]]}")
    advantages = {
        name: group_advantages(values, group_size, eps=eps * float(values.float().std()))
        for name, values in parts.items()
    }
    summed = torch.stack([weights[name] * advantages[name] for name in parts]).sum(0)
    return summed / (summed.std() + eps)


def inverse_final_loss(finals: dict[str, float]) -> dict[str, float]:
    """Weights under which losses that were trained alone, each to its final value, would end equal (QLIP).

    QLIP fixes the ratio a_i / a_j = final_j / final_i only; here the weights have the mean 1.

    Raises:
        ValueError: a final loss is not a positive number, or there is none.
    """
    return _inverse(finals, "final losses")


def inverse_gradient(norms: dict[str, float]) -> dict[str, float]:
    """Weights under which the gradients of losses, of these norms on what they share, are of one size.

    What QLIP names as the alternative and leaves for its price: a backward pass of each loss.

    Raises:
        ValueError: a norm is not a positive number, or there is none.
    """
    return _inverse(norms, "norms of gradients")


def _inverse(values: dict[str, float], what: str) -> dict[str, float]:
    """1 / value each, over the mean of these."""
    if not values or not all(0 < value < math.inf for value in values.values()):
        raise ValueError(f"{what} must be positive numbers, at least one: got {values}")
    inverse = {name: 1 / value for name, value in values.items()}
    mean = sum(inverse.values()) / len(inverse)
    return {name: value / mean for name, value in inverse.items()}
