"""Noise levels of the samplers of diffusers' flow models: their scheduler_config.json, and the sigmas by it.

Schedulers are read into `FlowMatchEulerDiscreteScheduler`; each of its settings is obeyed or refused by name.
`DPMSolverMultistepScheduler` in its flow form (the release of SANA) has the same levels by `flow_shift`: RL needs the
Euler steps of the same ODE.
"""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from uae_lightning.algorithms import flow
from uae_lightning.models.loading import read_object

Spacing = Literal["sd3", "even"]
EULER, DPM_SOLVER = FlowMatchEulerDiscreteScheduler.__name__, "DPMSolverMultistepScheduler"
STATIC = {"shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"}
DYNAMIC = STATIC | {"use_dynamic_shifting", "shift_terminal"}  # for pictures of another size, other levels


def load_scheduler(folder: Path, obeyed: set[str] = STATIC) -> FlowMatchEulerDiscreteScheduler:
    """Settings that are not `obeyed` and would change the noise levels are refused.

    Raises:
        FileNotFoundError: there is no scheduler_config.json.
        ValueError: it asks for another class, or for what is not computed here.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no scheduler in {folder}: {file} is missing, copy it from the model")
    settings = read_object(file)
    name = settings.pop("_class_name", EULER)
    if name == DPM_SOLVER and settings.get("use_flow_sigmas") and settings.get("prediction_type") == "flow_prediction":
        settings = {"shift": settings.get("flow_shift", 1.0)}
    elif name != EULER:
        raise ValueError(
            f"{file}: {name} is not known here, only {EULER}, and {DPM_SOLVER} with use_flow_sigmas and "
            "prediction_type flow_prediction"
        )
    defaults = {key: field.default for key, field in signature(FlowMatchEulerDiscreteScheduler).parameters.items()}
    others = {key: value for key, value in settings.items() if key not in obeyed and not key.startswith("_")}
    if refused := {key: value for key, value in others.items() if key not in defaults or value != defaults[key]}:
        listed = ", ".join(f"{key}: {json.dumps(value)}" for key, value in refused.items())
        raise ValueError(f"{file} asks for {listed}, which is not computed here: remove it, and set `shift` instead")
    kept = {"shift": defaults["shift"]} | {key: value for key, value in settings.items() if key in obeyed}
    check_numbers(file, kept)
    return FlowMatchEulerDiscreteScheduler(**(kept if obeyed is DYNAMIC else {"shift": kept["shift"]}))


def check_numbers(file: Path, settings: dict[str, Any]) -> None:
    shift = settings["shift"]
    if not isinstance(shift, int | float) or not 0 < shift < float("inf"):
        raise ValueError(f"{file}: shift must be a positive number, got {json.dumps(shift)}")
    if settings.get("use_dynamic_shifting") and settings.get("time_shift_type", "exponential") != "exponential":
        raise ValueError(f"{file}: time_shift_type must be exponential, got {json.dumps(settings['time_shift_type'])}")


def schedule(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, spacing: Spacing, shift: float) -> Tensor:
    """[steps + 1] sigmas from 1 down to 0: spaced, shifted, and stretched to end at `shift_terminal` where that is set.

    The last is that of diffusers: 1 - sigma is scaled so that the last step begins at that level.
    """
    if spacing == "sd3":
        return flow.sigma_schedule(steps, shift=shift)
    levels = flow.shift_sigma(torch.linspace(1.0, 1 / steps, steps), shift)
    last = scheduler.config.shift_terminal
    if last and steps > 1:
        levels = 1 - (1 - levels) * ((1 - last) / (1 - levels[-1]))
    return torch.cat([levels.clamp(max=1.0), torch.zeros(1)])  # rounding may leave the first above 1


def linear_in_tokens(tokens: int, config: Any) -> float:
    """mu, the logarithm of the shift: on a line through (base_image_seq_len, base_shift) and (max_image_seq_len,
    max_shift), as the pipelines of FLUX.1, Qwen-Image and Z-Image have it."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)
