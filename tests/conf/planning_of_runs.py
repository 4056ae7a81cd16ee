"""Plans the stages of a run, in a process of its own: plans of full-size models leave gigabytes behind."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

from uae_lightning.planning.stage_plan import plan_stage
from uae_lightning.run import spec as run_spec
from uae_lightning.run.stage_cli import parse_stage, quiet


@functools.cache
def parser():
    """That of `uae fit`, made once: making it is what takes the time."""
    return parse_stage(["fit", "--config=conf/real/encoder_rl.yaml"])._parser("fit")


@functools.cache
def plans() -> dict[str, int]:
    """Bytes needed by what they depend on; runs share stages."""
    return {}


def needed(run: Path, overlays: tuple[str, ...]) -> dict[str, int]:
    """Bytes that each stage of a run, or that one stage, needs, by its name."""
    quiet()
    result = {}
    for stage in run_spec.read_run_or_stage(run, overlays).stages:
        settings = parser().parse_args(run_spec.fit_args(stage, [], Path("unused"), {})[1:])
        key = json.dumps([settings.model.as_dict(), settings.data.as_dict(), str(settings.trainer)], default=str)
        if key not in plans():
            cli = SimpleNamespace(config=SimpleNamespace(fit=settings), _parser=lambda _: parser())
            plans()[key] = plan_stage(stage.name, cli).needed
        result[stage.name] = plans()[key]
    return result
