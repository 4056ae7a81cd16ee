"""Decoder RL without likelihoods: flow matching on the decoder's own pictures, weighted by how good they were.

No stochastic sampler is needed, any solver will do, and what is kept of a rollout is its clean latents.

Symbols

    N     samples; each has a clean latent x0 [C, h, w], a sigma in (0, 1] and a noise
    v     velocity of the policy in training at (1 - sigma) x0 + sigma noise        [N, C, h, w]
    v_old the same of the policy that sampled
    u     noise - x0, what flow matching asks for                                   [N, C, h, w]
    A     advantage [N]
    r     optimality: how likely a sample counts as good, in [0, 1]                 [N]

Sources

    DiffusionNFT                  arXiv 2509.16117; its code, NVlabs/DiffusionNFT 24af555 of 2025-09-22
    Advantage Weighted Matching   arXiv 2509.25050
"""

from __future__ import annotations

from torch import Tensor


def optimality(advantages: Tensor, limit: float) -> Tensor:
    """r [N] = 1/2 + A / (2 limit), A clipped to [-limit, limit] (DiffusionNFT)."""
    return 0.5 + advantages.clamp(-limit, limit) / (2 * limit)


def policy_decay(step: int, *, flat: int, rate: float, limit: float) -> float:
    """Share that the policy that samples keeps of itself: 0 for `flat` steps, then rate a step, up to limit."""
    return min(max(step - flat, 0) * rate, limit)


def nft_loss(
    velocity: Tensor,
    old_velocity: Tensor,
    target: Tensor,
    sigma: Tensor,
    good: Tensor,
    *,
    strength: float,
    limit: float,
) -> Tensor:
    """[N] (limit / b) (r |v+ - u|^2 + (1 - r) |v- - u|^2),  v+ = (1 - b) v_old + b v,  v- = (1 + b) v_old - b v.

    The negative branch is implicit: what the policy should move away from is its own mirror image about v_old. The
    squares are of the predicted x0, divided by their mean size as a constant, so that no sigma drowns the others.

    The factor is that of the published code, to which its KL weights belong. With it the gradient where v is v_old is
    that of flow matching times the clipped advantage, whatever strength and limit are.

    Args:
        velocity: v, with gradient.
        old_velocity: v_old, taken as a constant.
        target: u.
        sigma: [N].
        good: r [N] in [0, 1].
        strength: b, above 0.
        limit: of `optimality`.
    """
    old = old_velocity.detach()
    step = strength * (velocity - old)
    positive, negative = (_x0_error(old + way * step, target, sigma) for way in (1, -1))
    return limit / strength * (good * positive + (1 - good) * negative)


def _x0_error(velocity: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """[N] mean square of the error in x0, in units of its mean size."""
    error = sigma.view(-1, 1, 1, 1) * (velocity - target)
    size = error.detach().abs().mean((1, 2, 3)).clamp(min=1e-5)
    return error.square().mean((1, 2, 3)) / size


def matching_logp(velocity: Tensor, target: Tensor) -> Tensor:
    """[N] -|v - u|^2, a mean over latents: what takes the place of log p(x0) in the policy gradient (AWM)."""
    return -(velocity - target).square().mean((1, 2, 3))
