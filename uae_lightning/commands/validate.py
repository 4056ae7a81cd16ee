"""`uae validate`: scores one stage's round trip on the held-out pictures, without training."""

from __future__ import annotations

from uae_lightning.run.stage_cli import run_stage


def main(args: list[str]) -> None:
    run_stage(["validate", *args])
