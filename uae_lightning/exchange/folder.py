"""What `uae export` writes, piece by piece."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import nn

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.exchange import lora
from uae_lightning.exchange.card import Facts, card
from uae_lightning.exchange.gguf_file import write_gguf
from uae_lightning.exchange.push import head
from uae_lightning.models.adapters import to_dtype
from uae_lightning.models.diffusers_decoder import DiffusersDecoder
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.weight_files import seal
from uae_lightning.paths import HUB_ID, SHIPPED, resolve
from uae_lightning.run import folder as run_folder
from uae_lightning.run.loading import last_config, load_autoencoder, read_autoencoder
from uae_lightning.run.masking import masked
from uae_lightning.run.provenance import versions

CODECS = {  # decoder -> codecs that its pipeline in diffusers holds, or the card has code for
    "SD3Decoder": ("KLCodec", "LinearCodec"),
    "SanaDecoder": ("DCCodec",),
    "Flux2Decoder": ("Flux2Codec",),
    "ZImageDecoder": ("KLCodec",),
    "QwenImageDecoder": ("QwenImageCodec",),
}
CLASSES = {
    "encoder": ("QwenVLEncoder", "Qwen3VLEncoder", "Qwen35Encoder", "InternVLEncoder"),
    "projector": ("MLPProjector",),
    "decoder": (*CODECS,),
}
AS_THEY_ARE = {  # nothing rounded to 4 bits, no compiled blocks
    "encoder.quantization": "none",
    "decoder.quantization": "none",
    "decoder.compile": "false",
}


def write_export(folder: Path, options) -> None:
    """Fills an empty `folder`; `options` are those of the command line.

    Raises:
        FileNotFoundError: it is no run, or weights that its YAML names are missing.
        ValueError: the run has parts of other classes, or an adapter that does not fit its YAML.
    """
    run, stages = options.weights, run_folder.stages_of(options.weights)
    config = last_config(run, stages)
    check_classes(config)
    parts = {part: origin(run, stages, part) for part in ("encoder", "decoder")}
    given = {f"sampling.{name}": getattr(options, name) for name in ("steps", "guidance")}
    model = load_autoencoder(None, run, AS_THEY_ARE | {key: v for key, v in given.items() if v is not None})
    dtype = to_dtype(options.dtype) if options.dtype else None
    for part, source in parts.items():
        write_adapter(folder, part, source, model.decoder, dtype)
    write_projector(folder / "projector", model.projector, dtype)
    write_processor(folder / "processor", model.encoder)
    write_pipeline(folder / "pipeline", model.decoder, dtype)
    if options.gguf:
        print("writing decoder.gguf", flush=True)
        write_gguf(folder / "decoder.gguf", model.decoder.transformer, options.gguf, model.decoder.family)
    if options.merged or not parts["encoder"].on_hub:
        print("writing encoder/", flush=True)
        model.encoder.save(folder / "encoder", dtype)
    settings = masked(settings_of(model)) | {"origin": described(run, stages, parts)}
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))
    quantized = [part for part in parts if lora.part_settings(config, part).get("quantization", "none") != "none"]
    facts = Facts(folder, settings, model, parts, dtype, quantized)
    (folder / "README.md").write_text(head(facts, options.license, stages) + card(facts))
    seal(folder)


def check_classes(config: Path) -> None:
    parts = read_autoencoder(config, {})["init_args"]
    if parts.get("encoder") is None:
        raise ValueError(
            f"{config} trains from a cache, without the encoder that an export needs: let a stage with an encoder "
            "follow, such as the RL stages, or train with model.autoencoder.encoder given"
        )
    for part, wanted in CLASSES.items():
        lora.part_settings(config, part)  # says where there is none
        if (name := class_name(parts[part])) not in wanted:
            raise ValueError(
                f"{config}: the {part} is a {name}; `uae export` knows the formats of {', '.join(wanted)} only"
            )
    known = CODECS[class_name(parts["decoder"])]
    if codec := lora.part_settings(config, "decoder").get("codec"):
        if (name := class_name(codec)) not in known:
            raise ValueError(
                f"{config}: the codec is a {name}; of this decoder `uae export` knows the formats of "
                f"{', '.join(known)} only"
            )


def class_name(part: dict[str, Any]) -> str:
    return str(part.get("class_path")).split(".")[-1]


# ------------------------------------------------------------------------------------------------ adapters


@dataclass(frozen=True)
class Origin:
    """What a part of the run consists of: weights to be had elsewhere, and an adapter on them."""

    base: str  # hub id or folder, for adapter_config.json and the model card; "base/PART" is inside the export
    copied_from: Path | None  # what has to be in `base/PART`
    on_hub: bool
    history: lora.History


def origin(run: Path, stages: list[Path], part: str) -> Origin:
    history = lora.history(run, stages, part)
    if history.trained_in_full or history.base.startswith(SHIPPED):
        return Origin(f"base/{part}", resolve(history.base), False, history)
    on_hub = not Path(history.base).expanduser().exists() and HUB_ID.fullmatch(history.base) is not None
    return Origin(history.base, None, on_hub, history)


def write_adapter(
    folder: Path, part: str, source: Origin, decoder: DiffusersDecoder, dtype: torch.dtype | None
) -> None:
    """`encoder_lora` or `decoder_lora`, and the base they need; nothing where no adapter was trained."""
    if source.history.adapter is None:
        return
    print(f"writing {part}_lora/", flush=True)
    adapter = lora.cast(source.history.adapter, dtype)
    if part == "encoder":
        lora.save_peft(adapter, source.base, folder / "encoder_lora")
    else:
        decoder.save_adapter(adapter.state(""), adapter.config(source.base).to_dict(), folder / "decoder_lora")
        if decoder.comfyui:
            lora.save_comfyui(adapter, folder / "comfyui_lora.safetensors")
    if source.copied_from:
        inner = "transformer" if part == "decoder" else ""
        shutil.copytree(source.copied_from / inner, folder / "base" / part / inner)
        forget_paths(folder / "base" / part)


# ------------------------------------------------------------------------------------------------ models


def write_projector(folder: Path, projector: MLPProjector, dtype: torch.dtype | None) -> None:
    """Weights of the `torch.nn.Sequential` that `layers_of` names in config.json."""
    folder.mkdir()
    plain = nn.Sequential(*(layer for layer in projector.layers if not isinstance(layer, nn.Identity)))
    state = {name: tensor.detach().cpu().to(dtype or tensor.dtype) for name, tensor in plain.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = projector.config | {"layers": layers_of(projector)}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def layers_of(projector: MLPProjector) -> list[str]:
    """As one writes them: "LayerNorm(192)", "Linear(192, 512)", "GELU()", "Linear(512, 128)"."""
    sizes = [projector.config[name] for name in ("input_size", "hidden_size", "output_size")]
    norm = [f"LayerNorm({sizes[0]})"] if projector.config["normalize"] else []
    return [*norm, f"Linear({sizes[0]}, {sizes[1]})", "GELU()", f"Linear({sizes[1]}, {sizes[2]})"]


def write_processor(folder: Path, encoder: QwenVLEncoder) -> None:
    """Tokenizer, and an image processor that scales pictures as the encoder was trained to see them."""
    encoder.tokenizer.save_pretrained(folder)
    encoder.exported_preprocessor().save_pretrained(folder)


def write_pipeline(folder: Path, decoder: DiffusersDecoder, dtype: torch.dtype | None) -> None:
    """Folder of the decoder's standard pipeline, its text encoders absent; no code of ours comes with it.

    Its own loop stacks both branches of guidance into one batch and so needs texts of one length, often without a mask;
    the branch without a text is one zero state here. The model card therefore runs the branches one after the other.
    diffusers has no class for the linear codec of the scenes: its three tensors lie in `codec/`, for the card's code.
    """
    print("writing pipeline/", flush=True)
    codec = decoder.codec.model
    for model in (decoder.transformer, codec):
        nn.Module.to(model, dtype)  # the library's own `to` warns of rounding
    pipeline = decoder.pipeline()
    diffusers.logging.set_verbosity_error()  # it warns of each part that is absent
    pipeline.save_pretrained(folder)
    decoder.save_more(folder)
    if pipeline.vae is None:
        beside = folder.with_name("codec")
        beside.mkdir()
        save_file(codec.state_dict(), beside / "model.safetensors", {"format": "pt"})
        shapes = {name: codec.config[name] for name in ("patch_size", "scaling_factor", "shift_factor")}
        (beside / "config.json").write_text(json.dumps(shapes, indent=1))
    forget_paths(folder)


def forget_paths(folder: Path) -> None:
    """diffusers notes the folder that weights were read from, which says nothing to others."""
    for file in [*folder.glob("*.json"), *folder.glob("*/config.json")]:
        content = json.loads(file.read_text())
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------ settings


def settings_of(model: AutoEncoder) -> dict[str, Any]:
    """What foreign code has to know to do as `uae generate` and the training do."""
    encoder, decoder, sampling = model.encoder, model.decoder, model.sampling
    return {
        "prompts": {
            "condition": template(encoder),
            "caption": encoder.prompt,
            "image_token": encoder.tokenizer.convert_ids_to_tokens(encoder.model.config.image_token_id),
            "negative": model.negative_prompt,
        },
        "sampling": {
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "sigmas": decoder.schedule(sampling.steps)[:-1].tolist(),
            "latent_shape": list(decoder.latent_shape),
        },
        "captions": {
            "max_pixels": encoder.max_pixels,
            "max_new_tokens": model.captioning.max_new_tokens,
            "temperature_in_training": model.captioning.temperature,
            "suppress_tokens": encoder.never_sampled,
            "end_tokens": encoder.ends,
        },
    }


def template(encoder: QwenVLEncoder) -> str:
    """The text that the encoder reads for a prompt, which stands as it is in place of "{prompt}"."""
    text = encoder.generate_prompt("{prompt}")
    if text.count("{prompt}") != 1:
        raise ValueError("the encoder's chat template does not keep a text as it is: its prompts cannot be exported")
    return text


def described(run: Path, stages: list[Path], parts: dict[str, Origin]) -> dict[str, Any]:
    record = run_folder.read_json(run / "run.json", "name")
    return {
        "run": record["name"],
        "stages": [stage.name for stage in stages],
        "written": record.get("written", "at an unknown time"),
        "git": (record.get("git") or {}).get("revision"),
        "versions": record.get("versions", {}),
        "exported_with": versions(),
        "started_from": {part: source.history.start for part, source in parts.items()},
        "rounds": {
            part: {name: {"rank": a.rank, "alpha": a.alpha} for name, a in source.history.rounds}
            for part, source in parts.items()
        },
    }
