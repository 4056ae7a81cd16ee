"""`uae fit`: one stage alone."""

from __future__ import annotations

from uae_lightning.run.stage_cli import run_stage


def main(args: list[str]) -> None:
    run_stage(["fit", *args])
