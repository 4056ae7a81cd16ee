"""`uae fit`: one stage alone."""

from __future__ import annotations

from uae_lightning.run.stage_cli import run_stage

EXAMPLES = """\
    uae fit --config conf/scenes/encoder_rl.yaml
    uae fit --config conf/scenes/encoder_rl.yaml --trainer.max_steps 20 --trainer.default_root_dir runs/short
    uae fit --config conf/scenes/encoder_rl.yaml --resume                      goes on where it was stopped
    uae fit --config conf/scenes/encoder_rl.yaml --print_config > mine.yaml    all options with their values
"""


def main(args: list[str]) -> None:
    if "--help" in args or "-h" in args:
        print(EXAMPLES)
    run_stage(["fit", *args])
