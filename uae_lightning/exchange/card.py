"""README.md of an export: a model card whose code needs torch, transformers, diffusers and peft only.

The tests run that code as it stands in the written file, without this package, and compare what it draws.
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

HEAD = """\
# {run}: a UAE auto-encoder

Qwen2.5-VL reads a text, or captions a picture; an MLP projects its hidden states; SD3 draws from them. They were
trained to bring a picture through its caption unharmed (UAE, arXiv 2509.09666) with uae-lightning. Nothing below needs
that package: torch, transformers, diffusers and, for the adapters, peft are enough.

| | |
|---|---|
{contents}
"""
CONTENTS = {
    "settings.json": "prompts, sampling and captions, and where all of this comes from",
    "encoder": "the encoder, adapters merged (transformers)",
    "encoder_lora": "the encoder's adapter (peft)",
    "projector": "the MLP (`torch.nn.Sequential`)",
    "processor": "tokenizer and image processor (transformers)",
    "pipeline": "the decoder, adapters merged (diffusers: a `StableDiffusion3Pipeline` without text encoders)",
    "codec": "a linear latent codec, for which diffusers has no class: three tensors for the code below",
    "decoder_lora": "the decoder's adapter (diffusers)",
    "comfyui_lora.safetensors": "the same for ComfyUI: put it into `models/loras`",
    "base": "what the adapters are to be loaded on",
}
OPTIONAL = ("image_encoder", "feature_extractor")  # diffusers need not be told that these are absent
DRAW = """\
## A picture from a text

```python
import json
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
{peft}from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

torch.set_grad_enabled(False)
root = Path(".")  # this folder; from a hub: Path(huggingface_hub.snapshot_download("NAME"))
device = "cpu"  # on "cuda" the last bits differ
settings = json.loads((root / "settings.json").read_text())
prompts, sampling = settings["prompts"], settings["sampling"]

tokenizer = AutoTokenizer.from_pretrained(root / "processor")
{encoder}
encoder = encoder.to(device).eval()
projector = nn.Sequential({layers})
projector.load_state_dict(load_file(root / "projector" / "model.safetensors"))
projector = projector.to(device)
absent = dict.fromkeys(
    {absent}
)
pipe = StableDiffusion3Pipeline.from_pretrained(root / "pipeline", dtype={dtype}, **absent).to(device)
pipe.scheduler.set_shift(1.0)  # the sigmas in settings.json are shifted already
pooled = load_file(root / "pipeline" / "pooled.safetensors")["pooled"].to(device, {dtype})


def condition(text):
    inputs = tokenizer(prompts["condition"].replace("{{prompt}}", text), return_tensors="pt").to(device)
    return projector(encoder.model(**inputs).last_hidden_state.float()).to({dtype})


{functions}
draw("a large red ball in the center", seed=0).save("picture.png")
```

{exactness}
"""
CAPTION = """\
## A caption of a picture

```python
from PIL import Image

image_processor = AutoImageProcessor.from_pretrained(root / "processor")
{places}

def caption(picture):
    seen = image_processor(picture.convert("RGB"), return_tensors="pt").to(device)
    count = int(seen["image_grid_thw"].prod()) // image_processor.merge_size**2
    text = prompts["caption"].replace(prompts["image_token"], prompts["image_token"] * count)
    inputs = tokenizer(text, return_tensors="pt").to(device)
    is_image = (inputs["input_ids"] == encoder.config.image_token_id).long()
    tokens = encoder.generate(
        **inputs,
        mm_token_type_ids=is_image,
        pixel_values={patches}.to(encoder.dtype),
        image_grid_thw=seen["image_grid_thw"],
        do_sample=False,
        repetition_penalty=1.0,  # Qwen's own setting is not what was trained
        max_new_tokens=settings["captions"]["max_new_tokens"],
        suppress_tokens=settings["captions"]["suppress_tokens"],
        eos_token_id=settings["captions"]["end_tokens"],
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


print(caption(Image.open("picture.png")))
```

Pictures larger than `max_pixels` are scaled down by the image processor. In training, captions were sampled with the
temperature in settings.json; this is the likeliest one instead.
"""
PLACES = """\


def with_places(patches, grid):
    \"\"\"This small vision tower sees five channels: where a pixel lies goes with its color.\"\"\"
    side, merge, (_, rows, cols) = image_processor.patch_size, image_processor.merge_size, grid[0].tolist()
    axes = torch.linspace(-1, 1, rows * side), torch.linspace(-1, 1, cols * side)
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    places = places.reshape(2, rows // merge, merge, side, cols // merge, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
    return torch.cat([patches, places.reshape(rows * cols, -1).to(patches)], 1)
"""
NOISE = """\
def noise(seed):
    return torch.randn(1, *sampling["latent_shape"], generator=torch.Generator().manual_seed(seed)).to(device)


"""
WITH_PIPELINE = """\
def draw(text, seed=0):
    latents = pipe(
        prompt_embeds=condition(text),
        pooled_prompt_embeds=pooled,
        latents=noise(seed),
        sigmas=sampling["sigmas"],
        guidance_scale=1.0,
        output_type="latent",
    ).images
    return decoded(latents)

"""
STEP_BY_STEP = """\
def velocity(latents, t, states):
    latents = latents.to({dtype})
    return pipe.transformer(latents, states, pooled, t.expand(1)).sample.float()


def draw(text, seed=0, guidance=sampling["guidance"]):
    latents, states = noise(seed), condition(text)
    without = {without}
    pipe.scheduler.set_timesteps(sigmas=sampling["sigmas"], device=device)
    for t in pipe.scheduler.timesteps:  # one after the other: the two differ in length, and there is no padding
        step, other = velocity(latents, t, states), velocity(latents, t, without)
        latents = pipe.scheduler.step(other + guidance * (step - other), t, latents).prev_sample
    return decoded(latents)

"""
NEGATIVE_PROMPT = 'condition(prompts["negative"])'
NULL_STATE = "torch.zeros(1, 1, {width}, dtype={dtype}, device=device)  # the learned null: one zero state"
DECODE_KL = """\
def decoded(latents):
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(latents.to({dtype})).sample.float())[0]


"""
DECODE_LINEAR = """\
def decoded(latents):
    codec, side = load_file(root / "codec" / "model.safetensors", device), {side}
    latents = (latents / {scaling} + {shift}).to({dtype})
    rows = codec["components"].T @ (latents.flatten(2) / codec["scale"][:, None]) + codec["mean"][:, None]
    size = latents.shape[2] * side, latents.shape[3] * side
    return pipe.image_processor.postprocess(nn.functional.fold(rows, size, side, stride=side).float())[0]


"""
MERGED_ENCODER = """\
encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(root / "encoder", dtype={dtype})"""
BASE_ENCODER = """\
encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained("{base}", dtype={dtype})"""
ADAPTED_ENCODER = """
encoder = PeftModel.from_pretrained(encoder, root / "encoder_lora").merge_and_unload()"""
ENCODER_LORA = """\
## The encoder's adapter

Rank {rank}, alpha {alpha:g}, on `{base}`{rounds}.

```python
from peft import PeftModel

base = Qwen2_5_VLForConditionalGeneration.from_pretrained({where}, dtype={dtype})
adapted = PeftModel.from_pretrained(base, root / "encoder_lora")
```
"""
DECODER_LORA = """\
## The decoder's adapter

Rank {rank}, alpha {alpha:g}, on `{base}`{rounds}.
{note}
```python
from diffusers import SD3Transformer2DModel

transformer = SD3Transformer2DModel.from_pretrained(
    {where}, subfolder="transformer", dtype={dtype}
)
transformer.load_lora_adapter(root / "decoder_lora", weight_name="pytorch_lora_weights.safetensors")
```

A `StableDiffusion3Pipeline` takes it by `load_lora_weights`, with the same two arguments. An adapter alone does not
turn SD3 into this model: the decoder expects the projected states of the encoder above, not those of its text encoders.
"""
DETAILS = """\
## Settings and origin

* {steps} Euler steps at the sigmas in settings.json{shift}, guidance {guidance:g}, negative prompt: {negative}.
* Noise is drawn on the CPU by `torch.randn(1, {shape}, generator=torch.Generator().manual_seed(seed))`.
* The pooled text embedding is that of the empty prompt, `pipeline/pooled.safetensors`, in both branches of guidance.
* Texts are read in the template "condition", pictures are captioned with "caption" (settings.json, `prompts`).
* Encoder: {encoder}.
* Decoder: {decoder}.
* Run `{run}`, stages {stages}; trained {trained} with uae-lightning {version}, exported with {here}. All
  versions and the git revision are in settings.json.
* The licences of the base models hold for what was made of them.
"""


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


def card(facts: Facts) -> str:
    rows = [f"| `{name}` | {text} |" for name, text in CONTENTS.items() if facts.has(name)]
    adapters = [adapter(facts, part, text) for part, text in (("encoder", ENCODER_LORA), ("decoder", DECODER_LORA))]
    head = HEAD.format(run=facts.settings["origin"]["run"], contents="\n".join(rows))
    return "\n".join([head, drawing(facts), captioning(facts), *filter(None, adapters), details(facts)])


def drawing(facts: Facts) -> str:
    layers = json.loads((facts.folder / "projector" / "config.json").read_text())["layers"]
    index = json.loads((facts.folder / "pipeline" / "model_index.json").read_text())
    encoder = loading(facts)
    return DRAW.format(
        encoder=encoder,
        peft="from peft import PeftModel\n" if "PeftModel" in encoder else "",
        layers=", ".join(f"nn.{layer}" for layer in layers),
        absent=json.dumps([name for name, kind in index.items() if kind == [None, None] and name not in OPTIONAL]),
        dtype=facts.kind("decoder"),
        functions=functions(facts),
        exactness=exactness(facts),
    )


def loading(facts: Facts) -> str:
    """Lines that load the encoder."""
    if facts.has("encoder"):
        return MERGED_ENCODER.format(dtype=facts.kind("encoder"))
    line = BASE_ENCODER.format(base=facts.parts["encoder"].base, dtype=facts.kind("encoder"))
    return line + ADAPTED_ENCODER if facts.has("encoder_lora") else line


def functions(facts: Facts) -> str:
    """`noise`, `decoded` and `draw`."""
    decoder, dtype = facts.model.decoder, facts.kind("decoder")
    if facts.has("codec"):
        config = decoder.codec.model.config
        numbers = {"side": config.patch_size, "scaling": config.scaling_factor, "shift": config.shift_factor}
        decode = DECODE_LINEAR.format(dtype=dtype, **numbers)
    else:
        decode = DECODE_KL.format(dtype=dtype)
    if facts.model.sampling.guidance == 1 and dtype == torch.float32:
        return NOISE + decode + WITH_PIPELINE
    null = NULL_STATE.format(width=decoder.conditioning_size, dtype=dtype)
    without = null if facts.model.negative_prompt is None else NEGATIVE_PROMPT
    return NOISE + decode + STEP_BY_STEP.format(dtype=dtype, without=without)


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
    return f"On a CPU this draws {wanted}, bit for bit."


def captioning(facts: Facts) -> str:
    if facts.model.encoder.model.config.vision_config.in_channels == 5:
        patches = 'with_places(seen["pixel_values"], seen["image_grid_thw"])'
        return CAPTION.format(places=PLACES, patches=patches)
    return CAPTION.format(places="", patches='seen["pixel_values"]')


def adapter(facts: Facts, part: str, text: str) -> str | None:
    source = facts.parts[part]
    if not facts.has(f"{part}_lora"):
        return None
    names = [name for name, _ in source.history.rounds]
    full = source.history.trained_in_full
    return text.format(
        rank=source.history.adapter.rank,
        alpha=source.history.adapter.alpha,
        base=source.base,
        rounds=f": the rounds {', '.join(names)} stacked" if len(names) > 1 else "",
        note=f"That is the decoder as stage {full} left it, all weights trained: no public one fits.\n" if full else "",
        where=f'root / "{source.base}"' if source.copied_from else f'"{source.base}"',
        dtype=facts.kind(part),
    )


def details(facts: Facts) -> str:
    model, origin = facts.model, facts.settings["origin"]
    start = {
        part: ", then ".join([source.history.start, *(f"LoRA of stage {name}" for name, _ in source.history.rounds)])
        for part, source in facts.parts.items()
    }
    shift = model.decoder.scheduler.config.shift
    return DETAILS.format(
        steps=model.sampling.steps,
        shift=f" (shift {shift:g}, spacing {model.decoder.sigma_spacing})",
        guidance=model.sampling.guidance,
        negative=repr(model.negative_prompt) if model.negative_prompt is not None else "none (one zero state)",
        shape=", ".join(map(str, model.decoder.latent_shape)),
        run=origin["run"],
        stages=", ".join(origin["stages"]),
        trained=origin["written"],
        version=origin["versions"].get("uae-lightning", "of unknown version"),
        here=__version__,
        **start,
    )
