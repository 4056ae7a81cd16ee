"""The plan of one stage: parameters, bytes and FLOPs per device, and whether a card holds it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from uae_lightning.autoencoder import OneBackbone
from uae_lightning.data.prompts import MAX_PROMPT_WORDS, PromptData
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.vision_codes import VisionCodes
from uae_lightning.planning.integers import Numbers
from uae_lightning.planning.meter import Meter, Phase
from uae_lightning.planning.sharding import Devices, Exchange, Shares, devices_of, exchange, shares
from uae_lightning.planning.step import Setting, Step
from uae_lightning.planning.text import FullLength, give_text
from uae_lightning.planning.weightless import build, give_fake_tensors
from uae_lightning.rewards.clip_score import ClipScore
from uae_lightning.stages.common import Stage
from uae_lightning.stages.policy import PolicyStage
from uae_lightning.usage import UsageError

GB = 10**9  # a card of "24 GB" reports 22.5 to 24 GiB, which is 24.1 to 25.7 of these
# The CUDA context, the kernels that are loaded and cuBLAS' workspaces: outside of what the allocator counts.
CONTEXT = 600 * 10**6
# Share of the peak that the caching allocator holds but cannot give out: its blocks have other sizes.
FRAGMENTATION = 0.05


@dataclass
class Part:
    """One component: encoder, projector, transformer, VAE, or a judge."""

    name: str
    parameters: int
    trainable: int
    bytes: dict[str, int]  # of weights and buffers, by dtype


@dataclass
class StagePlan:
    """Bytes are those of one device."""

    name: str
    kind: str
    devices: Devices
    parts: list[Part]
    weights: int
    gradients: int
    optimizer: int
    average: int  # of callbacks.EMA
    activations: int  # in the update, with what the rollout left: see `rollout`
    kv_cache: int
    latents: int  # kept from sampling to update
    logits: int  # of a micro-batch
    rollout: int  # latents, pictures, conditioning and captions alive when the update begins
    phases: dict[str, Phase]
    exchange: Exchange
    gpu: bool
    card: float | None = None  # GB
    rate: float | None = None  # FLOP/s
    link: float | None = None  # bytes that a device receives in a second

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name].peak)

    @property
    def peak(self) -> int:
        return self.phases[self.peak_phase].peak

    @property
    def allowance(self) -> int:
        return int(CONTEXT + FRAGMENTATION * self.peak) if self.gpu else 0

    @property
    def needed(self) -> int:
        return self.peak + self.allowance

    @property
    def fits(self) -> bool | None:
        return None if self.card is None else self.needed <= self.card * GB

    @property
    def flops(self) -> int:
        """Of an optimiser step."""
        return sum(phase.flops for name, phase in self.phases.items() if name != "validation")

    @property
    def seconds(self) -> float | None:
        """Of an optimiser step at `rate`."""
        return None if self.rate is None else self.flops / self.rate

    @property
    def calls(self) -> Counter:
        return calls_of_step(self.phases)

    @property
    def seconds_exchanging(self) -> float | None:
        """Of an optimiser step at `link`, if nothing is computed meanwhile."""
        return None if self.link is None else self.exchange.total / self.link


def plan_stage(name: str, cli: Any) -> StagePlan:
    """The plan of what `stage_cli.parse_stage` returned; it takes seconds, and no memory for weights.

    Raises:
        UsageError: the data does not say how many pictures are in a batch, or the encoder is none that can be planned.
        FileNotFoundError: the architecture of a model is not to be had.
    """
    stage, judges = build(cli)
    config = cli.config.fit
    return plan_built(name, stage, judges, setting_of(config), prompts_of(config), devices_of(config.trainer))


def plan_built(
    name: str,
    stage: Stage,
    judges: L.Callback | None,
    setting: Setting,
    prompts: dict[str, str],
    devices: Devices = Devices(),  # noqa: B008  frozen
) -> StagePlan:
    """The same of a stage that is built, on the meta device or with weights; it is of no use afterwards."""
    policies = list(stage.policies.values()) if isinstance(stage, PolicyStage) else []
    meter = Meter(copies=policies[0].group_size if policies else 1)
    judging = [judge for judge in (judges and judges.reward, judges and judges.unrewarded) if judge is not None]
    if not isinstance(stage.encoder, QwenVLEncoder | VisionCodes):
        raise UsageError(f"uae plan knows QwenVLEncoder and VisionCodes, not {type(stage.encoder).__name__}")
    if isinstance(stage.autoencoder, OneBackbone):
        raise UsageError("uae plan knows no backbone that draws code by code: leave the stages of OneBackbone out")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, meter, Numbers():
        with meter.phase("loading"):
            for module in (stage, *judging):
                give_fake_tensors(module, mode, meter)
            for judge in judging:
                judge.eval().requires_grad_(False)
        give_text(stage.encoder.vision if isinstance(stage.encoder, VisionCodes) else stage.encoder, prompts)
        for scorer in {inner for judge in judging for inner in judge.modules() if isinstance(inner, ClipScore)}:
            scorer.tokenizer = FullLength()
        for reader in {inner for judge in judging for inner in judge.modules() if isinstance(inner, QwenVLEncoder)}:
            give_text(reader, {})
        step = Step(stage, judges, meter, setting)
        step.run()
    del meter.phases["loading"]
    return result(name, stage, judging, step, setting, devices)


def prompts_of(config: Any) -> dict[str, str]:
    """What the YAML says of the encoder's prompts.

    Raises:
        UsageError: there is no encoder.
    """
    encoder = config.model.init_args.autoencoder.init_args.encoder
    if encoder is None:
        raise UsageError(
            "uae plan plans stages with an encoder, and the stage's YAML has null: leave no_encoder.yaml out; what the "
            "encoder takes is then counted too"
        )
    options = encoder.init_args
    options = options.vision.init_args if "vision" in options else options  # of VisionCodes
    return {name: options[name] for name in ("caption_system", "caption_prompt", "generate_system")}


def setting_of(config: Any) -> Setting:
    options = config.data.get("init_args") or {}
    if "batch_size" not in options:
        raise UsageError(f"uae plan reads data.init_args.batch_size, which {config.data.class_path} does not have")
    trainer = config.trainer
    return Setting(
        pictures=options["batch_size"],
        validation_pictures=options.get("validation_batch_size", options["batch_size"]),
        accumulate=trainer.accumulate_grad_batches,
        precision=str(trainer.precision or "32-true"),
        gpu=trainer.accelerator != "cpu",
        average=any(callback.class_path.endswith(".EMA") for callback in trainer.callbacks or []),
        prompt_words=prompt_words(config.data),
    )


def prompt_words(data: Any) -> int | None:
    """The most that a prompt has; None where there are pictures."""
    module, _, name = data.class_path.rpartition(".")
    drawn_from_prompts = issubclass(getattr(sys.modules[module], name), PromptData)
    return (data.get("init_args") or {}).get("max_prompt_words", MAX_PROMPT_WORDS) if drawn_from_prompts else None


def result(
    name: str, stage: Stage, judging: list[nn.Module], step: Step, setting: Setting, devices: Devices
) -> StagePlan:
    gradients = sum(parameter.nbytes for parameter in step.trained)
    optimizer, average = step.kept["optimizer"], step.kept.get("average", 0)
    share = shares(stage, devices, optimizer + average, gradients, setting.precision)
    phases = {name: on_device(phase, name, share, gradients, devices) for name, phase in step.meter.phases.items()}
    parts = parts_of(stage, judging)
    per_device = devices.count if devices.strategy == "fsdp" else 1
    rollout = step.kept.get("rollout", 0)
    return StagePlan(
        name=name,
        kind=type(stage).__name__,
        devices=devices,
        parts=parts,
        weights=step.kept["weights"] - share.saved_weights,
        gradients=gradients // per_device,
        optimizer=optimizer // per_device,
        average=average // per_device,
        activations=step.meter.phases["update"].peak - step.resting - gradients - rollout,
        kv_cache=step.generation.cache_bytes,
        latents=step.kept.get("latents", setting.pictures * 4 * prod(stage.decoder.latent_shape)),
        logits=step.head.largest,
        rollout=rollout,
        phases=phases,
        exchange=exchange(stage, devices, calls_of_step(phases), gradients, setting.precision),
        gpu=setting.gpu,
    )


def calls_of_step(phases: dict[str, Phase]) -> Counter:
    return sum((phase.calls for name, phase in phases.items() if name != "validation"), Counter())


def on_device(phase: Phase, name: str, share: Shares, gradients: int, devices: Devices) -> Phase:
    saved = gradients - gradients // devices.count if devices.strategy == "fsdp" and name in WITH_GRADIENTS else 0
    return Phase(phase.peak + share.of(name) - saved, phase.flops, phase.calls)


WITH_GRADIENTS = ("update", "auxiliaries", "optimizer")


def parts_of(stage: Stage, judging: list[nn.Module]) -> list[Part]:
    modules = {"encoder": stage.encoder, "projector": stage.projector}
    children = dict(stage.decoder.named_children())
    modules |= children if children else {"decoder": stage.decoder}
    modules |= dict(zip(("reward", "unrewarded"), judging, strict=False))
    return [part_of(name, module) for name, module in modules.items()]


def part_of(name: str, module: nn.Module) -> Part:
    parameters = list(module.parameters())
    sizes: Counter = Counter()
    for tensor in {id(tensor): tensor for tensor in [*parameters, *module.buffers()]}.values():
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return Part(name, sum(map(weights_in, parameters)), trainable, dict(sizes))


def weights_in(parameter: Tensor) -> int:
    """Weights that a parameter stands for: a byte of NF4 holds two."""
    return getattr(parameter, "stands_for", parameter.numel())
