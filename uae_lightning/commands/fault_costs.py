"""`uae fault-costs`: what a stage's reward forgives, before anything is trained on it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uae_lightning.ranges import Count, Seed
from uae_lightning.usage import Parser, UsageError

if TYPE_CHECKING:
    from lightning import LightningDataModule
    from torch import Tensor

    from uae_lightning.interfaces import Reward

DESCRIPTION = """\
Plants one fault in each held-out picture of a stage's data and prints what its reward takes off, in full and at half
strength. In photographs a part of the picture is painted over (missing), copied elsewhere (added), moved (place) or
recolored; in scenes it is one object.

    uae fault-costs --config conf/scenes/decoder_rl.yaml
    uae fault-costs --config conf/real/decoder_rl.yaml --data.init_args.validation_path data/held_out

A reward should take off much for what matters, and as much for something missing as for something added, faint as well
as in full ("missing : added" near 1): reinforcement learning finds whatever comes cheaper. All other options are those
of `uae fit`.
"""


def main(args: list[str]) -> None:
    options, fit_options = parse(args)
    reward, data = load(fit_options)
    reward = reward.held_out()

    from uae_lightning.evaluation.fault_costs import costs_markdown, fault_costs
    from uae_lightning.evaluation.photograph_faults import photograph_cases
    from uae_lightning.scenes.data import ScenesData
    from uae_lightning.scenes.fault_costs import scene_cases

    scenes = isinstance(data, ScenesData)
    if scenes:
        costs = fault_costs(reward, scene_cases(options.pictures, options.seed))
    else:
        costs = fault_costs(reward, photograph_cases(held_out(data, options.pictures), options.seed))
    count = len(next(iter(costs.values()))[1.0])
    print(f"{reward.title()}, {count} {'scenes' if scenes else 'pictures'}; mean of what is taken off:\n")
    print(costs_markdown(costs), end="")


def parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and those that `uae fit` would read."""
    usage = "uae fault-costs --config YAML ... [options]"
    parser = Parser(prog="uae fault-costs", usage=usage, description=DESCRIPTION)
    parser.add_argument("--pictures", type=Count, default=96, metavar="N", help="at most; default: %(default)s")
    parser.add_argument("--seed", type=Seed, default=0, help="of the faults; default: %(default)s")
    options, rest = parser.parse_known_args(args)
    if not any(word.split("=")[0] in ("--config", "-c") for word in rest):
        parser.error("name the YAML of a stage with --config")
    return options, rest


def load(fit_options: list[str]) -> tuple[Reward, LightningDataModule]:
    """The reward and the data of a stage; no model is loaded."""
    import torch
    from jsonargparse import Namespace

    from uae_lightning.run.evaluation import build_reward
    from uae_lightning.run.stage_cli import errors_explained, parse_stage, quiet

    quiet()
    cli = parse_stage(["fit", *fit_options])
    config = cli.config.fit
    with errors_explained():
        data = cli._parser("fit").instantiate(Namespace(data=config.data)).data
    reward = build_reward(config)
    if reward is None:
        raise UsageError("the YAML names no reward: give trainer.callbacks a callbacks.RewardCallback")
    return reward.to("cuda" if torch.cuda.is_available() else "cpu"), data


def held_out(data: LightningDataModule, count: int) -> Iterator[Tensor]:
    """Pictures [N, 3, H, W] of the data, `count` at most."""
    for batch in data.val_dataloader():
        if not batch.has_images:
            raise UsageError("faults are planted in pictures, and the stage's data are prompts: name pictures in data")
        yield batch.images[:count]
        count -= len(batch.images)
        if count <= 0:
            return
