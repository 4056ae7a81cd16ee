"""The policy-gradient loss, element by element; the caller reduces. `clipped_surrogate` serves both kinds of policy:

    tokens of a caption            logp [N, T]    T tokens, right-padded; the mask tells which are real
    denoising steps of an image    logp [N, S]    S steps of the SDE (see flow_sde)

Symbols

    N     = P * G samples (P prompts, G samples each)
    y_i   caption i, |y_i| its length in tokens
    r     = pi(y) / pi_old(y) = exp(logp - old_logp), probability ratio
    A     advantage

On policy r is 1, and all objectives here have one gradient, that of -A log pi; they differ in what becomes of it as the
policy leaves the one that sampled: from the second optimiser step on a rollout on.

Sources

    PPO's clipping   Schulman et al., arXiv 1707.06347, eq. 7
    GRPO             DeepSeekMath, arXiv 2402.03300, eq. 3 and 4
    Dr. GRPO         arXiv 2503.20783
    DAPO             arXiv 2503.14476, section 3.1 (clip_high above clip_low) and 3.3 (token-level loss)
    GSPO             arXiv 2507.18071: one ratio for a whole sequence
    CISPO            MiniMax-M1, arXiv 2506.13585: clipped importance weights
    SAPO             arXiv 2511.20347: a soft gate in place of the clip
    k3               J. Schulman, "Approximating KL divergence", 2020
"""

import random
from typing import Literal

import torch
from torch import Tensor

LossNormalization = Literal["grpo", "dr_grpo", "dapo"]
Importance = Literal["token", "sequence"]

LOG_RATIO_LIMIT = 20.0  # exp(20) = 5e8 is still finite in fp32, squares included; sane ratios are near 1


def clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    *,
    clip_low: float,
    clip_high: float,
    importance: Importance = "token",
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) for every element (arXiv 2402.03300 eq. 3 without its KL).

    Args:
        logp: [N, T] log-probabilities under the policy in training (the only input that gets a gradient).
        old_logp: [N, T] log-probabilities under the policy that sampled.
        advantages: [N], one per sample, or [N, T].
        mask: [N, T] bool, True where an element counts; None: all count.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far the ratio may rise above 1.
        importance: "token", every element has its own ratio; "sequence", all of a sample have their geometric mean,
            exp(mean log r) (GSPO, whose clip ranges are hundreds of times narrower). Weighted as "grpo" has it this is
            GSPO's loss.

    Returns:
        The loss [N, T] fp32, not reduced, exactly 0 in value and gradient where the mask is False, whatever is there
        (NaN included). And detached scalars over the mask: ratio_mean, ratio_max, clip_fraction (elements whose
        gradient the clip cut off), approx_kl (k3 estimate of KL(pi_old || pi)), log_ratio_abs_max (0 on policy); the
        last two are of single elements in any case.

    Raises:
        ValueError: shapes that do not belong together, a negative clip range, or unknown `importance`.
    """
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low and clip_high must not be negative, got {clip_low} and {clip_high}")
    if importance not in ("token", "sequence"):
        raise ValueError(f"importance must be 'token' or 'sequence', got {importance!r}")
    log_ratio, advantages, mask = _compared(logp, old_logp, advantages, mask)
    ratio = _exp(log_ratio if importance == "token" else _mean_of_sequence(log_ratio, mask))
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).masked_fill(~mask, 0.0)
    cut_off = clipped * advantages < ratio * advantages
    return loss, _ratio_metrics(log_ratio, ratio, mask) | {"clip_fraction": _share(cut_off, mask)}


def cispo(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor | None, *, limit: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r, limit) A log pi, where the weight min(r, limit) is a constant (arXiv 2506.13585).

    No token loses its gradient, however far it has moved: its weight is clipped, not its loss. The paper's limit is
    1 + epsilon_high; a lower one it writes down as well and does not use.

    Args:
        logp, old_logp, advantages, mask: as in `clipped_surrogate`.
        limit: of the importance weights, at least 1.

    Returns:
        As `clipped_surrogate`; clip_fraction are the weights that were clipped. The value of the loss means nothing.

    Raises:
        ValueError: shapes that do not belong together, or a limit below 1.
    """
    if not limit >= 1:
        raise ValueError(f"limit must be at least 1, the weight on policy, got {limit}")
    log_ratio, advantages, mask = _compared(logp, old_logp, advantages, mask)
    ratio = _exp(log_ratio.detach())
    loss = -ratio.clamp(max=limit) * advantages * logp.float().masked_fill(~mask, 0.0)
    return loss, _ratio_metrics(log_ratio, ratio, mask) | {"clip_fraction": _share(ratio > limit, mask)}


def soft_gate(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor | None, *, positive: float, negative: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-(4 / tau) sigmoid(tau (r - 1)) A for every element (SAPO, arXiv 2511.20347).

    Its gradient is that of -r A times 4 p (1 - p), where p is the sigmoid: 1 on policy, falling to 0 on both sides of
    it, faster where the temperature tau is higher.

    Args:
        logp, old_logp, advantages, mask: as in `clipped_surrogate`.
        positive, negative: tau, above 0, where the advantage is positive and where it is not.

    Returns:
        As `clipped_surrogate`, with `gate`, the mean of 4 p (1 - p), in place of clip_fraction.

    Raises:
        ValueError: shapes that do not belong together, or a temperature that is not positive.
    """
    if not (positive > 0 and negative > 0):
        raise ValueError(f"positive and negative must be above 0, got {positive} and {negative}")
    log_ratio, advantages, mask = _compared(logp, old_logp, advantages, mask)
    ratio = _exp(log_ratio)
    temperature = torch.where(advantages > 0, positive, negative)
    p = torch.sigmoid(temperature * (ratio - 1))
    loss = -(4 / temperature * p * advantages).masked_fill(~mask, 0.0)
    return loss, _ratio_metrics(log_ratio, ratio, mask) | {"gate": _share(4 * p * (1 - p), mask)}


def _compared(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """log r [N, T], 0 where the mask is False; advantages [N, 1] or [N, T]; the mask [N, T]."""
    if logp.shape != old_logp.shape:
        raise ValueError(f"logp {list(logp.shape)} and old_logp {list(old_logp.shape)} must have the same shape")
    if mask is not None and (mask.shape != logp.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool {list(logp.shape)}, got {mask.dtype} {list(mask.shape)}")
    if advantages.shape not in (logp.shape, logp.shape[:1]):
        raise ValueError(f"advantages must be [N] or as logp {list(logp.shape)}, got {list(advantages.shape)}")
    if advantages.ndim < logp.ndim:
        advantages = advantages.unsqueeze(-1)  # [N, 1]: every token or step of a sample shares its advantage
    if mask is None:
        mask = torch.ones_like(logp, dtype=torch.bool)
    # Masked before exp: masked after it, an overflow in the padding has a finite loss but the gradient 0 * inf = NaN.
    return (logp.float() - old_logp.detach().float()).masked_fill(~mask, 0.0), advantages.detach().float(), mask


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _mean_of_sequence(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """[N, T], the mean over each row's elements at each of them; 0 where the mask is False."""
    mean = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio).masked_fill(~mask, 0.0)


@torch.no_grad()
def _ratio_metrics(log_ratio: Tensor, ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Scalars over the mask. Masked elements stand at ratio 1; an empty mask gives those of an unchanged policy."""
    highest = ratio.masked_fill(~mask, -torch.inf).amax()
    return {
        "ratio_mean": 1 + _share(ratio - 1, mask),
        "ratio_max": torch.where(mask.any(), highest, torch.ones_like(highest)),
        "approx_kl": _share(_k3(log_ratio), mask),
        "log_ratio_abs_max": log_ratio.abs().amax(),
    }


@torch.no_grad()
def _share(values: Tensor, mask: Tensor) -> Tensor:
    """[] mean of [N, T] over the mask, 0 where that is empty."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


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
