"""What a network still has in common with the one it was, element by element; the caller reduces.

    N T   captions and their tokens      V   vocabulary      N L D   states of texts

Sources

    FOSTER   arXiv 2204.04662: distillation that is balanced between frequent and rare classes
    weights  arXiv 1901.05555 ("effective number of samples")
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def forward_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(p_ref || p) of the distributions softmax(reference), softmax(logits) [N, T, V], over the whole vocabulary.

    Returns:
        [N, T] fp32, 0 where the two agree; the gradient is that of `logits` alone.
    """
    logp, known = logits.float().log_softmax(-1), reference.detach().float().log_softmax(-1)
    p_ref = known.exp()
    return (p_ref * (known - logp)).masked_fill(p_ref == 0, 0.0).sum(-1)  # a logit may be -inf


def state_distance(states: Tensor, reference: Tensor) -> Tensor:
    """|s / |s| - r / |r||^2 of states [N, L, D], in [0, 4]: [N, L] fp32; `reference` is taken as a constant."""
    return 2 - 2 * F.cosine_similarity(states.float(), reference.detach().float(), dim=-1)


def rarity_weights(counts: Tensor, balance: float) -> Tensor:
    """(1 - b) / (1 - b^n) for what occurs n times: 1 for n = 1, down to 1 - b for what is frequent.

    FOSTER multiplies the teacher's probabilities by such weights, so that rare classes become likelier than they were.
    Here they are meant for the places where a caption has that token (ours): the student is to be the teacher itself.

    Args:
        counts: [V] integer; 0 is taken for 1.
        balance: b in [0, 1); 0 weighs all alike, close to 1 the weight is 1 / n.

    Returns:
        [V] fp32.
    """
    return ((1 - balance) / (1 - balance ** counts.clamp(min=1).double())).float()
