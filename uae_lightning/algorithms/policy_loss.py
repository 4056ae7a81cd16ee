"""The clipped policy-gradient loss, element by element; the caller reduces. It serves both kinds of policy:

    tokens of a caption            logp [N, T]    T tokens, right-padded; the mask tells which are real
    denoising steps of an image    logp [N, S]    S steps of the SDE (see flow_sde)

Symbols

    N     = P * G samples (P prompts, G samples each)
    y_i   caption i, |y_i| its length in tokens
    r     = pi(y) / pi_old(y) = exp(logp - old_logp), probability ratio
    A     advantage

Sources

    PPO's clipping   Schulman et al., arXiv 1707.06347, eq. 7
    GRPO             DeepSeekMath, arXiv 2402.03300, eq. 3 and 4
    Dr. GRPO         arXiv 2503.20783
    DAPO             arXiv 2503.14476, section 3.1 (clip_high above clip_low) and 3.3 (token-level loss)
    k3               J. Schulman, "Approximating KL divergence", 2020
"""

import random
from typing import Literal

import torch
from torch import Tensor

LossNormalization = Literal["grpo", "dr_grpo", "dapo"]

LOG_RATIO_LIMIT = 20.0  # exp(20) = 5e8 is still finite in fp32, squares included; sane ratios are near 1


def clipped_surrogate(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor | None, *, clip_low: float, clip_high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) for every element (arXiv 2402.03300 eq. 3 without its KL).

    Args:
        logp: [N, T] log-probabilities under the policy in training (the only input that gets a gradient).
        old_logp: [N, T] log-probabilities under the policy that sampled.
        advantages: [N], one per sample, or [N, T].
        mask: [N, T] bool, True where an element counts; None: all count.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far the ratio may rise above 1.

    Returns:
        The loss [N, T] fp32, not reduced, exactly 0 in value and gradient where the mask is False, whatever is there
        (NaN included). And detached scalars over the mask: ratio_mean, ratio_max, clip_fraction (elements whose
        gradient the clip cut off), approx_kl (k3 estimate of KL(pi_old || pi)), log_ratio_abs_max (0 on policy).

    Raises:
        ValueError: shapes that do not belong together, or a negative clip range.
    """
    if logp.shape != old_logp.shape:
        raise ValueError(f"logp {list(logp.shape)} and old_logp {list(old_logp.shape)} must have the same shape")
    if mask is not None and (mask.shape != logp.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool {list(logp.shape)}, got {mask.dtype} {list(mask.shape)}")
    if advantages.shape not in (logp.shape, logp.shape[:1]):
        raise ValueError(f"advantages must be [N] or as logp {list(logp.shape)}, got {list(advantages.shape)}")
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low and clip_high must not be negative, got {clip_low} and {clip_high}")
    if advantages.ndim < logp.ndim:
        advantages = advantages.unsqueeze(-1)  # [N, 1]: every token or step of a sample shares its advantage
    advantages = advantages.detach().float()
    if mask is None:
        mask = torch.ones_like(logp, dtype=torch.bool)

    # Masked before exp: masked after it, an overflow in the padding has a finite loss but the gradient 0 * inf = NaN.
    log_ratio = (logp.float() - old_logp.detach().float()).masked_fill(~mask, 0.0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).masked_fill(~mask, 0.0)
    return loss, _ratio_metrics(log_ratio, ratio, clipped, advantages, mask)


@torch.no_grad()
def _ratio_metrics(
    log_ratio: Tensor, ratio: Tensor, clipped: Tensor, advantages: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """Scalars over the mask. Masked elements stand at ratio 1; an empty mask gives those of an unchanged policy."""
    count = mask.sum().clamp(min=1)
    cut_off = (clipped * advantages < ratio * advantages) & mask
    highest = ratio.masked_fill(~mask, -torch.inf).amax()
    return {
        "ratio_mean": 1 + (ratio - 1).sum() / count,
        "ratio_max": torch.where(mask.any(), highest, torch.ones_like(highest)),
        "clip_fraction": cut_off.sum() / count,
        "approx_kl": _k3(log_ratio).sum() / count,
        "log_ratio_abs_max": log_ratio.abs().amax(),
    }


def kl_k3(logp: Tensor, ref_logp: Tensor, mask: Tensor | None = None) -> Tensor:
    """Schulman's k3 estimate of KL(pi || pi_ref) from samples of pi: q - log q - 1 with q = pi_ref / pi.

    Unbiased on policy, never negative, 0 where the two agree (arXiv 2402.03300 eq. 4).

    Args:
        logp: [N, T] under the policy, with gradient.
        ref_logp: [N, T] under the reference, taken as a constant.
        mask: [N, T] bool or None; where False the value and the gradient are exactly 0.

    Returns:
        [N, T] fp32, not reduced.

    Raises:
        ValueError: the shapes differ.
    """
    if logp.shape != ref_logp.shape or (mask is not None and mask.shape != logp.shape):
        raise ValueError(f"logp {list(logp.shape)}, ref_logp {list(ref_logp.shape)} and mask must have the same shape")
    log_ratio = ref_logp.detach().float() - logp.float()
    return _k3(log_ratio if mask is None else log_ratio.masked_fill(~mask, 0.0))


def _k3(log_ratio: Tensor) -> Tensor:
    log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(log_ratio) - log_ratio  # expm1: exp(x) - 1 loses every digit of a small x


def token_weights(
    mask: Tensor,
    normalization: LossNormalization,
    *,
    max_length: int | None = None,
    total_sequences: float | None = None,
    total_tokens: float | None = None,
) -> Tensor:
    """Weights that turn element-wise losses into the loss: ``(per_element * token_weights(mask, ...)).sum()``.

    A micro-batch that is told the totals of the whole batch adds up with the others to exactly the loss of the whole
    batch. (Where gradients are averaged over devices, pass the totals over all devices divided by their number.)

    Args:
        mask: [N, T] bool, True at real tokens (or trained steps).
        normalization:
            ``"grpo"``     1 / |y_i|, then the mean over sequences: a token of a long caption weighs less.
            ``"dr_grpo"``  1 / max_length, a constant, then the mean over sequences: a token always weighs the same.
            ``"dapo"``     1 / tokens in the batch: every token of this batch weighs the same.
        max_length: the constant of "dr_grpo": the limit on generated tokens.
        total_sequences: sequences in the whole batch ("grpo", "dr_grpo"); None: those of this mask.
        total_tokens: tokens in the whole batch ("dapo"); None: those of this mask.

    Returns:
        [N, T] fp32, 0 where the mask is False. A sequence without tokens gets no weight but is counted.

    Raises:
        ValueError: unknown `normalization`, or "dr_grpo" without a positive `max_length`.
    """
    weights = mask.float()
    sequences = mask.shape[0] if total_sequences is None else total_sequences
    if normalization == "grpo":
        lengths = weights.sum(dim=1, keepdim=True).clamp(min=1)  # [N, 1]
        return weights / lengths / sequences
    if normalization == "dr_grpo":
        if max_length is None or max_length < 1:
            raise ValueError(f"normalization 'dr_grpo' needs max_length, at least 1, to divide by; got {max_length}")
        return weights / max_length / sequences
    if normalization == "dapo":
        return weights / (weights.sum().clamp(min=1) if total_tokens is None else max(total_tokens, 1))
    raise ValueError(f"normalization must be 'grpo', 'dr_grpo' or 'dapo', got {normalization!r}")


def disjoint_parts(batches: int, parts: int, seed: int) -> list[list[int]]:
    """Which micro-batches each optimiser step of a pass over a rollout is taken on: dealt at random, each in order.

    Flow-GRPO takes 2 steps on an epoch's samples, which it shuffles (train_sd3.py, 9745241 of 2025-11-04); MixGRPO one
    for every 3 of 12. Whole micro-batches are dealt here, so that replay repeats the arithmetic of sampling.

    Raises:
        ValueError: `parts` does not divide `batches`.
    """
    if batches % parts:
        raise ValueError(f"{parts} parts need a number of micro-batches that they divide, got {batches}")
    order = random.Random(seed).sample(range(batches), batches)
    return [sorted(order[part::parts]) for part in range(parts)]
