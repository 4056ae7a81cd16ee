"""The TensorBoard files of a stage, laid out so that the first screen tells how it goes.

`http://localhost:6006/#custom_scalars` shows `LAYOUT`, `#hparams` the settings beside the final figures, `#text` the
YAML, `#images` pictures with their captions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard.summary import hparams

LAYOUT = {  # section -> chart -> patterns of the curves in it, matched from their beginning
    "Reward": {
        "held-out reward": ["val/reward$"],
        "not rewarded, held-out: a second opinion": ["val/unrewarded"],
        "reward of the training batch": ["train/reward$"],
        "spread of the rewards in a batch: what an advantage is made of": ["train/reward_std"],
        "what the reward is made of": ["(val|train)/reward/.+"],
    },
    "Health": {
        "how far the policy has moved": ["policy/(.+/)?(approx_kl|kl_reference|clip_fraction)$"],
        "sampling and replay are the same policy: near 0": ["policy/(.+/)?first_log_ratio$"],
        "groups that teach nothing": ["policy/(.+/)?(zero_variance_share|skipped_groups)$"],
        "loss": ["train/loss"],
        "gradient norm before clipping": ["train/grad_norm"],
    },
    "Language": {
        "caption length in tokens": ["(val|policy)/(.+/)?caption_tokens$"],
        "entropy: a fall to 0 is a collapse": ["policy/(.+/)?entropy$"],
        "captions that are empty or cut": ["policy/(.+/)?(empty|cut)_captions$"],
        "repetition": ["(val|train)/reward/repetition$"],
    },
    "Images": {
        "drawings against originals, 1 is as they are": ["train/image/.+"],
        "size of the velocities: where it grows, pictures get harsh": ["policy/(.+/)?velocity_norm_ratio$"],
    },
    "Speed": {
        "pictures a second": ["throughput/images_per_second"],
        "share of the time by verb": ["time/.+"],
    },
}
FINAL = ("val/reward", "val/unrewarded", "val/caption_tokens", "throughput/images_per_second")  # beside the settings
OF_THE_TRAINER = ("max_steps", "precision", "accumulate_grad_batches", "strategy", "devices", "num_nodes")


class StageCurves(TensorBoardLogger):
    """Of a stage in `folder`, straight in it; its config.yaml comes along as text with the settings."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Without Lightning's `epoch`: stages count steps, and it stays 0."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], metrics: Any = None, step: int | None = None) -> None:
        """Settings, which also go to hparams.yaml; the figures beside them are the last of the curves `FINAL`."""
        params = dict(flat(dict(params)))
        self.hparams.update(params)
        writer = self.experiment._get_file_writer()
        for summary in hparams(params, dict.fromkeys(FINAL, 0.0)):
            writer.add_summary(summary)
        layout = {section: {name: ["Multiline", tags] for name, tags in of.items()} for section, of in LAYOUT.items()}
        self.experiment.add_custom_scalars(layout)
        config = Path(self.log_dir) / "config.yaml"
        if config.is_file():
            indented = config.read_text("utf-8").replace("\n", "\n    ")
            self.experiment.add_text("config.yaml", f"    {indented}", 0)
        self.experiment.flush()


def settings_of(config: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """What a stage's YAML sets, flat, for a table of runs: `model.group_size`, `data.batch_size` and so on."""
    trainer = {name: config.get("trainer", {}).get(name) for name in OF_THE_TRAINER}
    chosen = {"seed": config.get("seed_everything"), "trainer": trainer}
    return dict(flat({name: config.get(name, {}) for name in ("model", "data")} | chosen))


def flat(value: Any, name: str = ""):
    """(dotted name without `init_args`, value) of all that is set."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, name if key == "init_args" else f"{name}.{key}".lstrip("."))
    elif value is not None:
        yield name, value if isinstance(value, bool | int | float | str) else str(value)
