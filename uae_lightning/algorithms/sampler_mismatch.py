"""Captions that another engine sampled: the same weights by other kernels are another policy.

    pi_sampler   what drew the tokens: vLLM, in the precision it serves
    pi_old       the policy in training before its first update on the rollout, which replays them

The clipped ratio pi / pi_old takes the tokens for samples of pi_old. Weighing each token by pi_old / pi_sampler makes
them that; cutting the weight off at C keeps one token that the sampler found far less likely from being all of it.

Source: truncated importance sampling, Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training", https://fengyao.notion.site/off-policy-rl; in TRL it is `token_truncate`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uae_lightning.algorithms.policy_loss import LOG_RATIO_LIMIT


@torch.no_grad()
def truncated_importance(
    old_logp: Tensor, sampler_logp: Tensor, mask: Tensor, *, limit: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """min(pi_old / pi_sampler, C) for each token: what its loss is multiplied by.

    Args:
        old_logp: [N, T] log-probabilities under the policy in training, before its first update.
        sampler_logp: [N, T] those with which the tokens were drawn.
        mask: [N, T] bool, True at sampled tokens.
        limit: C, at least 1, the weight where the two agree.

    Returns:
        The weights [N, T] fp32, exactly 1 where the two agree to the bit and where the mask is False, whatever is there
        (NaN included). And scalars over the mask: sampler_log_ratio_mean and sampler_log_ratio_max of |log ratio|,
        sampler_truncated, the share of tokens whose weight was cut off; all 0 for an empty mask.

    Raises:
        ValueError: shapes that do not belong together, or a limit below 1.
    """
    if old_logp.shape != sampler_logp.shape or mask.shape != old_logp.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"old_logp {list(old_logp.shape)}, sampler_logp {list(sampler_logp.shape)} and mask {list(mask.shape)} "
            "must have the same shape, and the mask be bool"
        )
    if not limit >= 1:
        raise ValueError(f"limit must be at least 1, the weight where both agree, got {limit}")
    log_ratio = (old_logp.float() - sampler_logp.float()).masked_fill(~mask, 0.0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    tokens = mask.sum().clamp(min=1)
    return ratio.clamp(max=limit), {
        "sampler_log_ratio_mean": log_ratio.abs().sum() / tokens,
        "sampler_log_ratio_max": log_ratio.abs().amax(),
        "sampler_truncated": (ratio > limit).sum() / tokens,
    }
