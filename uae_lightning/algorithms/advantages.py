"""From rewards to advantages: how much better than its siblings was each sample?

Symbols

    P   prompts (a prompt is a picture to caption, or a caption to draw)
    G   samples per prompt: a group
    N   = P * G samples; the samples of one prompt stand next to each other

    r_i   reward of sample i
    A_i   advantage of sample i

Sources

    GRPO      DeepSeekMath, arXiv 2402.03300, section 4.1.2
    Dr. GRPO  arXiv 2503.20783
    Pref-GRPO arXiv 2508.20751: win rates
    Flow-GRPO arXiv 2505.05470, and its code, where the standard deviation is that of the whole batch
"""

from typing import Literal

import torch
from torch import Tensor

AdvantageScale = Literal["group_std", "batch_std", "none"]


def group_advantages(
    rewards: Tensor, group_size: int, *, scale: AdvantageScale = "group_std", eps: float = 1e-4
) -> Tensor:
    """Centre rewards on the mean of their group, then scale them.

    Args:
        rewards: [P*G], the G samples of a prompt side by side.
        group_size: G, at least 2.
        scale: what the centred reward is divided by.
            ``"group_std"``  std of the group + eps, unbiased (divides by G - 1) as in TRL; the paper only says "std".
                             A lone winner in a group of four gets 1.50 (a biased std would give it 1.73).
            ``"batch_std"``  std of all rewards given + eps, biased: the Flow-GRPO code. Groups that differ little then
                             weigh little. On several devices, gather the rewards first if the batch means all of them.
            ``"none"``       nothing: Dr. GRPO, against the bias towards prompts with a small std. The lone winner
                             gets 0.75.
        eps: added to the std.

    Returns:
        [P*G] fp32, without gradient. A group of equal rewards gets exactly 0, whatever the rounding of its mean.

    Raises:
        ValueError: `group_size` is below 2 or does not divide the rewards, a reward is not finite, or unknown `scale`.
    """
    groups = _as_groups(rewards, group_size)  # [P, G]
    if not torch.isfinite(groups).all():
        bad = (~torch.isfinite(groups)).flatten().nonzero().flatten().tolist()
        raise ValueError(f"rewards must be finite, but samples {bad[:8]} of {groups.numel()} are not: check the reward")

    centred = groups - groups.mean(dim=1, keepdim=True)
    if scale == "group_std":
        advantages = centred / (groups.std(dim=1, keepdim=True) + eps)
    elif scale == "batch_std":
        advantages = centred / (groups.std(correction=0) + eps)
    elif scale == "none":
        advantages = centred
    else:
        raise ValueError(f"scale must be 'group_std', 'batch_std' or 'none', got {scale!r}")

    # The mean of equal numbers need not be that number in fp32; over a std of 0 + eps the difference would be a signal.
    return advantages.masked_fill(_all_equal(groups), 0.0).flatten()


def win_rates(rewards: Tensor, group_size: int) -> Tensor:
    """How many of its siblings does each sample beat? What stays of a reward that is trusted to say which of two is
    better, and not by how much: differences too small to mean anything, and outliers, weigh like all others.
    (Pref-GRPO, arXiv 2508.20751, asks a judge about each pair; here the reward's own values are compared.)

    Args:
        rewards: [P*G], finite.
        group_size: G, at least 2.

    Returns:
        [P*G] fp32 in [0, 1], without gradient: the share of the G - 1 others with a lower reward, equal ones by half.
        The mean of each group is 1/2.

    Raises:
        ValueError: `group_size` is below 2 or does not divide the rewards.
    """
    groups = _as_groups(rewards, group_size)
    lower = (groups[:, :, None] > groups[:, None, :]).float().sum(2)
    equal = (groups[:, :, None] == groups[:, None, :]).float().sum(2) - 1  # without itself
    return ((lower + equal / 2) / (group_size - 1)).flatten()


def zero_variance_share(rewards: Tensor, group_size: int) -> Tensor:
    """Share of groups whose rewards are all equal, and which therefore teach nothing.

    Args:
        rewards: [P*G].
        group_size: G, at least 2.

    Returns:
        [] fp32 in [0, 1].

    Raises:
        ValueError: `group_size` is below 2 or does not divide the rewards.
    """
    return _all_equal(_as_groups(rewards, group_size)).float().mean()


def _as_groups(rewards: Tensor, group_size: int) -> Tensor:
    """[P*G] -> [P, G] fp32, detached."""
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2 to compare samples with each other, got {group_size}")
    if rewards.ndim != 1 or rewards.numel() == 0:
        raise ValueError(f"rewards must be a non-empty vector [P*G], got shape {list(rewards.shape)}")
    if rewards.numel() % group_size:
        raise ValueError(f"group_size {group_size} does not divide the {rewards.numel()} rewards: pass whole groups")
    return rewards.detach().float().view(-1, group_size)


def _all_equal(groups: Tensor) -> Tensor:
    """[P, G] -> [P, 1] bool."""
    return groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)
