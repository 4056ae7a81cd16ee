"""What a stage costs, by its own account (`Stage.work`), before anything is loaded."""

from __future__ import annotations

import functools
import importlib
import inspect
from types import SimpleNamespace
from typing import Any

from uae_lightning.run.compiled import StageRun
from uae_lightning.run.spec import StageSpec, overlaid, read_stage_yaml
from uae_lightning.stages.common import Stage
from uae_lightning.types import Sampling
from uae_lightning.usage import UsageError

# Seconds of one core, all else that a stage does included (2 cores of an EPYC with AVX2, fp32). They only order the
# jobs and feed the estimates; a study corrects them by what its own jobs take.
SECONDS_PER_FORWARD = 0.017
SECONDS_PER_CAPTION_WRITTEN = 0.1
SECONDS_PER_CAPTION_TRAINED = 0.065


def decoder_forwards(stage: StageSpec) -> int:
    """Forward passes of the decoder, counted by picture as in `types.Work`, that a stage spends on training (not on
    validation).

    Raises:
        UsageError: the stage does not say what it spends, or its YAML or options are wrong.
    """
    return spent(stage)[0]


def seconds_estimate(stage: StageSpec) -> float:
    """On one core."""
    forwards, written, trained = spent(stage)
    return (
        SECONDS_PER_FORWARD * forwards + SECONDS_PER_CAPTION_WRITTEN * written + SECONDS_PER_CAPTION_TRAINED * trained
    )


def spent(stage: StageSpec) -> tuple[int, int, int]:
    """Decoder forwards, captions written and captions trained of a whole stage."""
    try:
        return of_settings(settings_of(stage))
    except NotImplementedError as error:
        raise UsageError(f"stage {stage.name} ({stage.config}): {error}") from error
    except UsageError:
        raise
    except (ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError) as error:  # unchecked
        StageRun(stage).check()  # says what is wrong, which takes seconds
        raise UsageError(f"stage {stage.name} ({stage.config}): its cost cannot be counted ({error!r})") from error


def of_settings(settings: dict[str, Any]) -> tuple[int, int, int]:
    stage, args = of_class(settings["model"]["class_path"]), settings["model"]["init_args"]
    steps, pictures = int(settings["trainer"]["max_steps"]), int(settings["data"]["init_args"]["batch_size"])
    parts = args["autoencoder"]  # a stage has its settings as attributes of its own
    sampling = Sampling(**parts.get("sampling", {}))
    options = SimpleNamespace(**parsed(args), sampling=sampling, captioning=parts.get("captioning"))
    work = stage.work(options)
    batches = -(-steps // (args.get("updates_per_batch", 1) * args.get("update_parts", 1)))
    auxiliaries = sum(of_class(one["class_path"]).decoder_forwards for one in args["auxiliaries"] or [])
    forwards = pictures * (batches * work.decoder_forwards + steps * auxiliaries)
    return forwards, pictures * batches * work.captions_written, pictures * batches * work.captions_trained


def settings_of(stage: StageSpec) -> dict[str, Any]:
    """A stage's YAML with its options, and the defaults of its class, but unchecked: parsing takes seconds."""
    configs = map(read_stage_yaml, (stage.config, *stage.overlays))
    settings = functools.reduce(overlaid, configs)
    for key, value in stage.options.items():
        *path, last = key.replace("model.autoencoder.", "model.init_args.autoencoder.").split(".")
        functools.reduce(lambda inner, part: inner.setdefault(part, {}), path, settings)[last] = value
    kind = of_class(settings["model"]["class_path"])
    lineage = [one for one in reversed(kind.__mro__) if issubclass(one, Stage)]
    settings["model"]["init_args"] = defaults(*lineage) | settings["model"]["init_args"]
    return settings


def parsed(value: Any) -> Any:
    """As a parser would give it, without its checks: what names a class has the defaults of that class."""
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {key: parsed(inner) for key, inner in value.items()}
    args = defaults(of_class(value["class_path"])) | value.get("init_args", {})
    return SimpleNamespace(class_path=value["class_path"], init_args=SimpleNamespace(**parsed(args)))


def defaults(*classes: type) -> dict[str, Any]:
    return {key: one.default for of in classes for key, one in inspect.signature(of).parameters.items()}


def of_class(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)
