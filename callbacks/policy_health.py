"""PolicyHealth: is the policy gradient still one? Logs the vital signs of an RL stage and stops where they fail."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from uae_lightning.ranges import Limit, checked

SHARE, STEPS = 0.8, 20  # warn where more than SHARE of the groups teach nothing, STEPS batches in a row


@checked
class PolicyHealth(L.Callback):
    """Logs every entry of `pl_module.health` as `policy/NAME`; does nothing for a stage without one.

    Where a stage has several policies, each has entries under its own name: `captions/first_log_ratio`.

    * `first_log_ratio`, the largest |new - old| log-probability at the first update of a rollout, is 0 but for
      rounding: sampling and replay are the same policy. Above `max_log_ratio` the run stops.
    * `sampler_log_ratio_mean`, where an engine writes the captions: how far its log-probabilities are from the trained
      policy's, which the loss corrects. Above `max_sampler_log_ratio` it serves something else, and the run stops.
    * `zero_variance_share`, the share of groups whose rewards are all equal and so have no gradient: one warning where
      it stays above 0.8 for 20 batches.
    * `skipped_groups`, how many were passed over for a NaN or infinite reward (`RewardCallback.skip_bad_rewards`).

    Args:
        max_log_ratio: of pictures it must stay well below the clip range; sampling and replay are the same arithmetic
            there. Captions are sampled token by token and replayed at a time: float32 differs by about 1e-5 (ours),
            bfloat16 by some 0.1 in the worst token of thousands.
        max_sampler_log_ratio: of a mean over tokens, in nats; ours, not measured at full size.

    Raises:
        FloatingPointError: `first_log_ratio` or `sampler_log_ratio_mean` is above its limit, or NaN.
    """

    def __init__(self, max_log_ratio: Limit = 1e-4, max_sampler_log_ratio: Limit = 0.5) -> None:
        self.max_log_ratio, self.max_sampler_log_ratio = max_log_ratio, max_sampler_log_ratio
        self.flat_steps, self.warned = 0, False  # batches in a row

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        health: dict[str, float] = getattr(pl_module, "health", {})
        if not health:
            return
        pl_module.log_dict({f"policy/{name}": float(value) for name, value in health.items()})
        for name, drift in health.items():
            if name.endswith("first_log_ratio") and not drift <= self.max_log_ratio:  # so that NaN stops too
                raise FloatingPointError(drift_message(drift, self.max_log_ratio))
            if name.endswith("sampler_log_ratio_mean") and not drift <= self.max_sampler_log_ratio:
                raise FloatingPointError(sampler_message(drift, self.max_sampler_log_ratio))
        flat = any(share > SHARE for name, share in health.items() if name.endswith("zero_variance_share"))
        self.flat_steps = self.flat_steps + 1 if flat else 0
        if self.flat_steps == STEPS and not self.warned:
            self.warned = True
            rank_zero_warn(
                f"for {STEPS} batches more than {SHARE:.0%} of the groups had equal rewards: they have no gradient and "
                "teach nothing. Raise the temperature or noise level, the group size, or use a finer reward"
            )


def sampler_message(drift: float, limit: float) -> str:
    return (
        f"the engine's captions come from another policy than the one that is trained: their log-probabilities are "
        f"{drift:.2e} apart in the mean (limit: PolicyHealth.max_sampler_log_ratio={limit:g}). Check that the server "
        "serves the weights that model.autoencoder.encoder.path names, those of an earlier stage merged, in a like "
        "precision"
    )


def drift_message(drift: float, limit: float) -> str:
    return (
        "sampling and replay have drifted apart: at the first update of a rollout the log-probability of a sample "
        f"changed by {drift:.2e} where the policy had not changed yet (limit: PolicyHealth.max_log_ratio={limit:g}). "
        "Every ratio of the policy gradient is wrong. Check that sampling and update use the same dtype and autocast, "
        "no dropout, the same train or eval mode (8-bit layers compute differently in the two), the same temperature, "
        "guidance and text mask, and that adapters are on in both. In bfloat16 a limit near 1e-2 is normal"
    )
