"""This project's stages in benchmarks: built from a YAML, run without a Trainer, compared with other loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from uae_lightning.stages.common import Stage

LEARNS = {"lora": "--model.learn.decoder.rank=32", "all": "--model.learn.decoder=all"}  # options of a stage
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}  # of relative differences


def build_stage(config: Path, *overrides: str) -> Stage:
    """The stage of a YAML with options of the command line, without data, trainer or reward."""
    from jsonargparse import Namespace

    from uae_lightning.run.stage_cli import parse_stage, quiet

    quiet()
    cli = parse_stage(["fit", f"--config={config}", *overrides])
    return cli._parser("fit").instantiate_classes(Namespace(model=cli.config.fit.model)).model


def without_trainer(stage: Stage) -> dict[str, float]:
    """Lets the stage's own steps run without a Trainer; what it logs appears in the returned dictionary."""
    optimizer, logged = stage.configure_optimizers(), {}
    stage.optimizers = lambda: optimizer
    stage.backward_of_micro_batch = lambda loss: loss.backward()
    stage.log = lambda name, value, **_: logged.update({name: float(torch.as_tensor(value).detach())})
    return logged


def disturb(stage: Stage, size: float) -> None:
    """Adds noise to what is trained: a LoRA that starts at zero has neither a KL nor gradients of its first factor."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in stage.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)


def counted_modules(stage: Stage) -> dict[str, nn.Module]:
    return {"decoder": stage.decoder.transformer, "encoder": stage.encoder.model.model.language_model}


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def check_equal(settings: str, found: dict[str, float], dtype: str) -> None:
    """Print what was found.

    Raises:
        ValueError: a difference is above its tolerance.
    """
    tolerance = TOLERANCE[dtype]
    print(f"relative differences, {settings} (tolerance {tolerance:.0e}):")
    print("  " + ", ".join(f"{what} {value:.1e}" for what, value in found.items()), flush=True)
    if wrong := [what for what, value in found.items() if not value <= tolerance]:
        raise ValueError(f"the two loops differ in {' and '.join(wrong)}, {settings}: timings would mean nothing")


@contextmanager
def gradients_kept(stage: Stage) -> Iterator[list[Tensor]]:
    """Collects the gradients of what happens inside."""
    stage.zero_grad()
    gradients: list[Tensor] = []
    yield gradients
    gradients += [p.grad.clone() for p in stage.parameters() if p.requires_grad]
    stage.zero_grad()
