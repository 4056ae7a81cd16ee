"""RewardCallback: the one place where rewards are computed, for all three stages, in training and in validation."""

from __future__ import annotations

import json
import math
import os
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from uae_lightning.evaluation.image_health import compared, statistics
from uae_lightning.files import replacing
from uae_lightning.interfaces import Reward
from uae_lightning.parallel.collectives import RaisedTogether, gathered, mean_over_ranks, ranks
from uae_lightning.ranges import Count, checked
from uae_lightning.rewards.vision_features import EmbeddingSimilarity
from uae_lightning.run.folder import parse_rows
from uae_lightning.types import Batch, RewardInput, RewardOutput, ValidationOutput
from uae_lightning.usage import UsageError


@checked
class RewardCallback(L.Callback):
    """Owns the frozen reward models, gives the stage `score`, and logs what the reward says and what it does not.

    A callback is no part of the LightningModule: reward models never reach an optimiser or a checkpoint.

    Every validation, that of step 0 before training included (`num_sanity_val_steps: -1`), appends a row to
    `<default_root_dir>/validation.jsonl`: step (of the optimiser), keys, reward_name, reward, parts, unrewarded_name,
    unrewarded, unrewarded_parts and caption_tokens, a value per picture. The pictures are the same in every row:
    rows can be compared picture by picture.

    Args:
        reward: what the run maximises.
        unrewarded: what it does not: a second opinion on validation pictures.
        micro_batch: pictures scored at a time.
        skip_bad_rewards: a NaN or infinite reward in training passes its group over (it has no advantage; the KL, where
            there is one, still holds), is warned of and counted in `policy/skipped_groups`; False ends the run with a
            checkpoint of the last whole batch, unless the reward says that it may be passed over (`on_failure` of
            those that are asked over a network). In validation it always ends the run: pictures are compared one by
            one.
    """

    def __init__(
        self,
        reward: Reward,
        unrewarded: Reward | None = None,
        micro_batch: Count = 64,
        skip_bad_rewards: bool = False,
    ) -> None:
        self.reward, self.unrewarded, self.micro_batch = reward, unrewarded, micro_batch
        self.skip_bad_rewards = skip_bad_rewards
        self.last: RewardOutput | None = None  # of the training step under way
        self.image_figures: dict[str, Tensor] = {}
        self.records: list[dict[str, Any]] = []  # one per validation batch
        self.held_out = math.nan  # mean reward of the last validation, the same on all ranks
        self.kept: int | None = -1  # the last step whose earlier row counts; None once later ones are cut

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for reward in filter(None, (self.reward, self.unrewarded)):
            reward.to(trainer.strategy.root_device).eval().requires_grad_(False)
        pl_module.score = self.score
        self.kept = -1

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.kept = checkpoint["global_step"]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pl_module.score = None

    def check_originals(self, batch: Batch) -> None:
        """Raises UsageError where a reward compares with originals that the data do not have."""
        if batch.has_images or batch.latents is not None:  # of a cache, which are decoded
            return
        for option, reward in (("reward", self.reward), ("unrewarded", self.unrewarded)):
            if reward is not None and reward.needs_originals:
                raise UsageError(
                    f"{option} of callbacks.RewardCallback: {type(reward).__name__} compares with the original, and "
                    "prompts have none: give a reward that judges pictures by their text, such as "
                    "uae_lightning.rewards.clip_score.ClipScore, or data with pictures"
                )

    # ------------------------------------------------------------------------------------------------ training

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, _: int) -> None:
        self.check_originals(batch)

    def score(self, inputs: RewardInput) -> RewardOutput:
        """The reward of N reconstructions, for a stage's training step; it is logged when the step ends.

        It has a gradient where the reconstructions have one and the reward gives one.

        Raises:
            ValueError: originals, reconstructions or captions differ in number or size, or what the reward gives is
                not a `RewardOutput` of a value per picture.
            RaisedTogether: a value is NaN or infinite, on any rank, and `skip_bad_rewards` is False.
        """
        scores = evaluate(self.reward, inputs, self.micro_batch)
        if bad := not_finite(self.reward, scores):
            if not (self.skip_bad_rewards or self.reward.skips_failures):
                raise RaisedTogether(bad + remedy(self.reward))
            rank_zero_warn(f"{bad}; their groups are skipped")
        self.last = RewardOutput(scores.total.detach(), {name: part.detach() for name, part in scores.parts.items()})
        drawn = inputs.reconstructions.detach()
        self.image_figures = image_figures(inputs.originals, drawn)
        return scores

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.last is None:
            return
        total = finite(gathered(self.last.total))  # of all ranks: what is logged here is the same on each
        values = {"train/reward_std": total.std(unbiased=False)}
        values |= {f"train/reward/{name}": finite(gathered(part)).mean() for name, part in self.last.parts.items()}
        values |= {f"train/{name}": figure for name, figure in self.image_figures.items()}
        pl_module.log("train/reward", total.mean(), prog_bar=True)
        pl_module.log_dict(values)
        self.last = None

    # ------------------------------------------------------------------------------------------------ validation

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.records = []
        self._remember_originals(True)  # they are the same in every validation

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, *_) -> None:
        self.check_originals(batch)  # before anything is drawn: the first validation comes before training

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remember_originals(False)

    def _remember_originals(self, remember: bool) -> None:
        for reward in filter(None, (self.reward, self.unrewarded)):
            for judge in reward.modules():
                if isinstance(judge, EmbeddingSimilarity):
                    judge.remembers = remember

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: ValidationOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        rewarded = self._judged(self.reward.held_out(), outputs.inputs)
        record = {"keys": outputs.keys, "reward": rewarded.total.tolist(), "parts": _lists(rewarded.parts)}
        if self.unrewarded is not None:
            other = self._judged(self.unrewarded, outputs.inputs)
            record |= {"unrewarded": other.total.tolist(), "unrewarded_parts": _lists(other.parts)}
        self.records.append(record | {"caption_tokens": outputs.caption_tokens.tolist()})

    def _judged(self, reward: Reward, inputs: RewardInput) -> RewardOutput:
        output = evaluate(reward, inputs, self.micro_batch)
        if bad := not_finite(reward, output):
            raise RaisedTogether(f"in validation, {bad}{remedy(reward)}")
        return output

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row = _once(_joined(_gathered(self.records)))
        means = {f"val/{name}": _mean(row[name]) for name in ("unrewarded", "caption_tokens") if name in row}
        means |= {f"val/reward/{name}": _mean(values) for name, values in row["parts"].items()}
        means |= {f"val/unrewarded/{name}": _mean(v) for name, v in row.get("unrewarded_parts", {}).items()}
        reward = self.held_out = _mean(row["reward"])
        if trainer.sanity_checking:  # self.log is silent here, and this is step 0 of every curve
            for logger in trainer.loggers:
                logger.log_metrics(means | {"val/reward": reward}, step=trainer.global_step)
        else:  # every rank has the gathered values: nothing to reduce
            pl_module.log("val/reward", reward, prog_bar=True)
            pl_module.log_dict(means)
        if trainer.is_global_zero and trainer.state.fn == "fit":
            names = {"reward_name": type(self.reward.held_out()).__name__}
            if self.unrewarded is not None:
                names["unrewarded_name"] = type(self.unrewarded).__name__
            row = {"step": trainer.global_step} | names | row
            path = Path(trainer.default_root_dir) / "validation.jsonl"
            if self.kept is not None:
                cut_rows(path, min(self.kept + 1, trainer.global_step))
                self.kept = None
            append_row(path, row)


def evaluate(reward: Reward, inputs: RewardInput, micro_batch: int) -> RewardOutput:
    """`reward` of N pictures, `micro_batch` at a time; raises ValueError as `RewardCallback.score` says."""
    originals, reconstructions, captions = inputs.originals, inputs.reconstructions, inputs.captions
    sized = originals.shape == reconstructions.shape or (not originals.numel() and not reward.needs_originals)
    if not sized or not len(captions) == len(originals) == len(reconstructions):
        raise ValueError(
            f"a reward compares pictures of one size, with a caption each: originals {tuple(originals.shape)}, "
            f"reconstructions {tuple(reconstructions.shape)}, {len(captions)} captions; "
            "the size of data and the decoder's image size must agree"
        )
    outputs = []
    for start in range(0, len(captions), micro_batch):
        rows = slice(start, start + micro_batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and reconstructions.requires_grad):
            output = reward(inputs[rows])
        if wrong := fault(output, len(captions[rows])):
            raise ValueError(
                f"{type(reward).__name__} {wrong}; a reward's forward returns RewardOutput(total, parts) of "
                "uae_lightning.types, where total and each of the named parts are tensors [N] of a number per picture"
            )
        outputs.append(output)
    total = torch.cat([output.total for output in outputs]).float()
    parts = {name: torch.cat([output.parts[name] for output in outputs]).float() for name in outputs[0].parts}
    return RewardOutput(total, parts, outputs[0].weights)


def fault(output: Any, size: int) -> str:
    """What is wrong with a reward's output for that many pictures; "" where nothing is."""
    if not isinstance(output, RewardOutput):
        return f"returned {type(output).__name__}"
    parts = output.parts if isinstance(output.parts, dict) else {}
    for name, values in {"total": output.total, **parts}.items():
        if not isinstance(values, Tensor):
            return f"gave {type(values).__name__} as {name!r}"
        if values.shape != (size,):
            return f"must give one value per picture: {name!r} has shape {tuple(values.shape)} for {size}"
    if unknown := [name for name in output.weights or {} if name not in parts]:
        return f"weighs {unknown[0]!r}, which is none of its parts"
    return "" if parts else "named no parts (a reward that has none is one, itself)"


REMEDY = (
    "; training on it ruins the weights. Look at the pictures (gallery/): if they are broken, lower the learning rate "
    "or max_grad_norm; if they are fine, the reward's own precision is too low (use float32), or their groups can be "
    "passed over: skip_bad_rewards: true in the init_args of callbacks.RewardCallback"
)


def remedy(reward: Reward) -> str:
    """What to do where it was not the pictures' fault, or where nobody knows."""
    if why := reward.failure():
        return f" ({why}): once that is mended, go on with --resume"
    return REMEDY


def not_finite(reward: Reward, output: RewardOutput) -> str:
    """Which value is NaN or infinite, and for how many of all ranks' pictures; "" where none is."""
    values = torch.stack([output.total, *output.parts.values()])  # [1 + parts, N]
    bad = (~values.isfinite()).sum(1)
    *counts, size = gathered(torch.cat([bad, bad.new_tensor([len(output.total)])])[None]).sum(0)
    for name, count in zip(["total", *output.parts], counts, strict=True):
        if int(count):
            return f"{type(reward).__name__}: {name!r} is NaN or infinite for {int(count)} of {int(size)} pictures"
    return ""


def image_figures(originals: Tensor, drawn: Tensor) -> dict[str, Tensor]:
    """What no reward asks for, by what it is logged as: image/NAME over that of the originals, drawn/NAME as it is
    where there are none."""

    def mean(values: Tensor) -> Tensor:
        return mean_over_ranks(values.mean())

    if originals.numel():
        return {f"image/{name}": ratio for name, ratio in compared(originals, drawn, mean).items()}
    return {f"drawn/{name}": value for name, value in statistics(drawn, mean).items()}


def finite(values: Tensor) -> Tensor:
    return values[values.isfinite()]


def cut_rows(path: Path, step: int) -> None:
    """Leaves the rows of earlier steps; later ones, and half a line, are of a process that was killed."""
    rows = [row for row in parse_rows(path) if row["step"] < step] if path.exists() else []
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """On disk when it returns: a checkpoint written after it can count on it."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _gathered(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of all ranks: of their first batches in order of rank, then of their second ones, and so on."""
    if ranks() == 1:
        return records
    everyone: list[list] = [[] for _ in range(ranks())]
    dist.all_gather_object(everyone, records)
    return [record for batches in zip_longest(*everyone) for record in batches if record]


def _joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Records of batches -> one record: lists one after the other, dicts key by key."""
    first = records[0]
    return {
        name: _joined([record[name] for record in records])
        if isinstance(first[name], dict)
        else [value for record in records for value in record[name]]
        for name in first
    }


def _once(record: dict[str, Any]) -> dict[str, Any]:
    """Every picture once: data that are not shared out among the ranks come from each of them."""
    keys = record["keys"]
    rows = [row for row, key in enumerate(keys) if ranks() == 1 or keys.index(key) == row]
    return _taken(record, rows)


def _taken(record: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {
        name: _taken(values, rows) if isinstance(values, dict) else [values[row] for row in rows]
        for name, values in record.items()
    }


def _lists(parts: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in parts.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
