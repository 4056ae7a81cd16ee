"""Log-probabilities of sampled tokens, and the entropy of the distribution they came from.

    ..    any leading shape, usually N = P * G captions (P prompts, G samples each)
    T     tokens
    V     size of the vocabulary
    z     logits                              [.., T, V]
    tau   temperature: the policy is softmax(z / tau), in sampling and in training alike

Captions are sampled at tau = 1 (UAE, arXiv 2509.09666); if not, GRPO's ratio (arXiv 2402.03300 eq. 3) is that of the
tempered distribution, since this is the one that was sampled.
"""

from typing import Any

import torch
from torch import Tensor


def gather_logprobs(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log softmax(z / tau) at the given tokens: z_y / tau - logsumexp(z / tau).

    Only the gathered logits and their normaliser are kept, not a table of V log-probabilities per token.

    Args:
        logits: [.., T, V]; position t must be the prediction of token t (the caller shifts).
        tokens: [.., T] integer; padding may be any id from 0 to V - 1 (mask its log-probability later).
        temperature: tau, positive.

    Returns:
        [.., T] fp32.

    Raises:
        ValueError: the shapes do not belong together, or the temperature is not positive.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"logits {list(logits.shape)} must be shaped as tokens {list(tokens.shape)} plus a vocabulary")
    scaled = _scale(logits, temperature)
    chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(dim=-1)


def logprobs_and_entropy(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`gather_logprobs` and `entropy` of the same logits, whose fp32 copy, where one is made, they share."""
    scaled = _scale(logits, temperature)
    return gather_logprobs(scaled, tokens), entropy(scaled)


def entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of softmax(z / tau), -sum_v p_v log p_v, as a sum of terms that are not negative.

    With e_v = exp((z_v - max z) / tau) and S their sum it is log S - sum_v e_v log e_v / S. The usual logsumexp - sum_v
    p_v z_v / tau is a difference of large numbers (5e-4 off at a vocabulary of 151,936), and `softmax` adds up in an
    order that loses digits. One tensor of the size of the logits is made, and thrown away; the gradient makes others.

    Args:
        logits: [.., T, V]; -inf marks a forbidden token.
        temperature: tau, positive.

    Returns:
        [.., T] fp32, from 0 (certain) to log V (uniform).

    Raises:
        ValueError: the temperature is not positive.
    """
    return _Entropy.apply(_scale(logits, temperature))


class _Entropy(torch.autograd.Function):
    """H [.., T] of z / tau [.., T, V], with dH / dz_v = -p_v (log p_v + H) / tau."""

    @staticmethod
    def forward(ctx: Any, scaled: Tensor) -> Tensor:
        e = (scaled - scaled.amax(dim=-1, keepdim=True)).exp_()
        total = e.sum(dim=-1)
        result = total.log() + torch.special.entr(e, out=e).sum(dim=-1) / total  # entr(0) = 0
        ctx.save_for_backward(scaled, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        scaled, result = ctx.saved_tensors
        p = scaled.softmax(dim=-1)
        return gradient.unsqueeze(-1) * (torch.special.entr(p) - p * result.unsqueeze(-1))


def _scale(logits: Tensor, temperature: float) -> Tensor:
    """z / tau in fp32; the logits themselves, uncopied, if they are fp32 and tau is 1."""
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature
