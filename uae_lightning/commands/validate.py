"""`uae validate`: scores one stage's round trip on the held-out pictures, without training."""

from __future__ import annotations

from uae_lightning.run.stage_cli import run_stage

EXAMPLES = """\
    uae validate --config conf/scenes/encoder_rl.yaml
    uae validate --config runs/demo/encoder_rl/config.yaml --data.init_args.validation_pictures 32
"""


def main(args: list[str]) -> None:
    if "--help" in args or "-h" in args:
        print(EXAMPLES)
    run_stage(["validate", *args])
