"""README.md of an export: a model card whose code needs torch, transformers, diffusers and peft only.

Its text lies in templates/. The tests run that code as it stands in the written file, without this package, and compare
what it draws.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from uae_lightning import __version__

if TYPE_CHECKING:
    from uae_lightning.autoencoder import AutoEncoder
    from uae_lightning.exchange.folder import Origin

CONTENTS = {
    "settings.json": "prompts, sampling and captions, and where all of this comes from",
    "encoder": "the encoder, adapters merged (transformers)",
    "encoder_lora": "the encoder's adapter (peft)",
    "projector": "the MLP (`torch.nn.Sequential`)",
    "processor": "tokenizer and image processor (transformers)",
    "pipeline": "the decoder, adapters merged (diffusers: a `{pipeline}` without text encoders)",
    "codec": "a linear latent codec, for which diffusers has no class: three tensors for the code below",
    "decoder_lora": "the decoder's adapter (diffusers)",
    "comfyui_lora.safetensors": "the same for ComfyUI: put it into `models/loras`",
    "decoder.gguf": "the decoder once more, adapters merged, quantised",
    "base": "what the adapters are to be loaded on",
}
TEMPLATES = Path(__file__).with_name("templates")
OPTIONAL = ("image_encoder", "feature_extractor")  # diffusers need not be told that these are absent
NEGATIVE_PROMPT = 'condition(prompts["negative"])'
NULL_STATE = "torch.zeros(1, 1, {width}, dtype={dtype}, device=device)  # the learned null: one zero state"
MERGED_ENCODER = """\
encoder = {reader}.from_pretrained(root / "encoder", dtype={dtype})"""
BASE_ENCODER = """\
encoder = {reader}.from_pretrained("{base}", dtype={dtype})"""
ADAPTED_ENCODER = """
encoder = PeftModel.from_pretrained(encoder, root / "encoder_lora").merge_and_unload()"""


@dataclass(frozen=True)
class Facts:
    """What the card is written from."""

    folder: Path  # with all else written to it
    settings: dict[str, Any]
    model: AutoEncoder
    parts: dict[str, Origin]
    dtype: torch.dtype | None  # of all weights, where it was asked for
    quantized: list[str]  # parts that the run computed with quantised weights

    def kind(self, part: str) -> torch.dtype:
        return self.dtype or getattr(self.model, part).dtype

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.txt").read_text("utf-8")


def optional(name: str, **values: Any) -> str:
    """A template that only some families of decoders have."""
    return template(name).format(**values) if (TEMPLATES / f"{name}.txt").exists() else ""


def card(facts: Facts) -> str:
    decoder = facts.model.decoder
    texts = {name: text.format(pipeline=decoder.pipeline_class) for name, text in CONTENTS.items() if facts.has(name)}
    rows = [f"| `{name}` | {text} |" for name, text in texts.items()]
    adapters = [adapter(facts, part) for part in ("encoder", "decoder") if facts.has(f"{part}_lora")]
    head = template("head").format(
        run=facts.settings["origin"]["run"],
        contents="\n".join(rows),
        decoder=decoder.title,
        encoder=facts.model.encoder.title,
    )
    quantised = [in_gguf(facts)] if facts.has("decoder.gguf") else []
    return "\n".join([head, drawing(facts), captioning(facts), *adapters, *quantised, details(facts)])


def drawing(facts: Facts) -> str:
    layers = json.loads((facts.folder / "projector" / "config.json").read_text())["layers"]
    index = json.loads((facts.folder / "pipeline" / "model_index.json").read_text())
    encoder = loading(facts)
    return template("draw").format(
        encoder=encoder,
        peft="from peft import PeftModel\n" if "PeftModel" in encoder else "",
        layers=", ".join(f"nn.{layer}" for layer in layers),
        absent=json.dumps([name for name, kind in index.items() if kind == [None, None] and name not in OPTIONAL]),
        dtype=facts.kind("decoder"),
        pipeline=facts.model.decoder.pipeline_class,
        reader=facts.model.encoder.kind.__name__,
        more=optional(f"more_{facts.model.decoder.family}", dtype=facts.kind("decoder")),
        functions=functions(facts),
        exactness=exactness(facts),
    )


def loading(facts: Facts) -> str:
    """Lines that load the encoder."""
    reader = facts.model.encoder.kind.__name__
    if facts.has("encoder"):
        return MERGED_ENCODER.format(reader=reader, dtype=facts.kind("encoder"))
    line = BASE_ENCODER.format(reader=reader, base=facts.parts["encoder"].base, dtype=facts.kind("encoder"))
    return line + ADAPTED_ENCODER if facts.has("encoder_lora") else line


def functions(facts: Facts) -> str:
    """`noise`, `decoded` and `draw`."""
    decoder, dtype = facts.model.decoder, facts.kind("decoder")
    if facts.has("codec"):
        config = decoder.codec.model.config
        numbers = {"side": config.patch_size, "scaling": config.scaling_factor, "shift": config.shift_factor}
        decode = template("decode_linear").format(dtype=dtype, **numbers)
    else:
        decode = template(f"decode_{type(decoder.codec.model).__name__}").format(dtype=dtype)
    null = NULL_STATE.format(width=decoder.conditioning_size, dtype=dtype)
    without = null if facts.model.negative_prompt is None else NEGATIVE_PROMPT
    if velocity := optional(f"velocity_{decoder.family}", dtype=dtype):
        return template("noise") + decode + velocity + template("draw_by_euler").format(without=without)
    if facts.model.sampling.guidance == 1 and dtype == torch.float32:
        return template("noise") + decode + template("draw_with_pipeline")
    return template("noise") + decode + template("draw_step_by_step").format(dtype=dtype, without=without)


def exactness(facts: Facts) -> str:
    """How close the code comes to `uae generate`, and what keeps it from more."""
    reasons = []
    if facts.dtype and any(facts.dtype != getattr(facts.model, part).dtype for part in facts.parts):
        reasons.append(f"the weights were rounded to {str(facts.dtype).removeprefix('torch.')} for this export")
    if facts.quantized:
        reasons.append(f"the run computes with quantised weights ({' and '.join(facts.quantized)})")
    if not facts.has("encoder") and len(facts.parts["encoder"].history.rounds) > 1:
        reasons.append("the encoder's adapters are merged at once instead of round by round")
    wanted = "what `uae generate` draws with the weights of the run"
    if reasons:
        return f"This draws nearly {wanted}: {'; '.join(reasons)}."
    return f"On a CPU this draws {wanted}, bit for bit; where kernels round otherwise, a level of 255 apart."


def captioning(facts: Facts) -> str:
    if facts.model.encoder.squares_pictures:
        return template("caption_squares")
    if facts.model.encoder.model.config.vision_config.in_channels == 5:
        patches = 'with_places(seen["pixel_values"], seen["image_grid_thw"])'
        return template("caption").format(places=template("places"), patches=patches)
    return template("caption").format(places="", patches='seen["pixel_values"]')


def adapter(facts: Facts, part: str) -> str:
    source = facts.parts[part]
    names = [name for name, _ in source.history.rounds]
    full = source.history.trained_in_full
    decoder = facts.model.decoder
    return template(f"{part}_lora").format(
        kind=decoder.kind.__name__,
        reader=facts.model.encoder.kind.__name__,
        pipeline=decoder.pipeline_class,
        title=decoder.title,
        rank=source.history.adapter.rank,
        alpha=source.history.adapter.alpha,
        base=source.base,
        rounds=f": the rounds {', '.join(names)} stacked" if len(names) > 1 else "",
        note=f"That is the decoder as stage {full} left it, all weights trained: no public one fits.\n" if full else "",
        where=f'root / "{source.base}"' if source.copied_from else f'"{source.base}"',
        dtype=facts.kind(part),
    )


def in_gguf(facts: Facts) -> str:
    return template("gguf").format(kind=facts.model.decoder.kind.__name__, dtype=facts.kind("decoder"))


def details(facts: Facts) -> str:
    model, origin = facts.model, facts.settings["origin"]
    start = {
        part: ", then ".join([source.history.start, *(f"LoRA of stage {name}" for name, _ in source.history.rounds)])
        for part, source in facts.parts.items()
    }
    config = model.decoder.scheduler.config
    shift = "of the resolution" if config.use_dynamic_shifting else f"{config.shift:g}"
    return template("details").format(
        steps=model.sampling.steps,
        shift=f" (shift {shift}, spacing {model.decoder.sigma_spacing})",
        guidance=model.sampling.guidance,
        negative=repr(model.negative_prompt) if model.negative_prompt is not None else "none (one zero state)",
        shape=", ".join(map(str, model.decoder.latent_shape)),
        note=optional(f"note_{model.decoder.family}"),
        run=origin["run"],
        stages=", ".join(origin["stages"]),
        trained=origin["written"],
        version=origin["versions"].get("uae-lightning", "of unknown version"),
        here=__version__,
        **start,
    )
