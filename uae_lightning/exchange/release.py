"""`uae import-release`: the checkpoint that the authors of UAE released -> folders that the classes here start from.

The layout, as read in the authors' code (PKU-YuanGroup/UAE: README.md, demo.py, uae/models/modeling_longcontext.py).
The weights themselves were not at hand: what that code does not tell of them is checked when they are read.

llm        config and weights of a Qwen2.5-VL-3B with two more layers, `projector.0` and `projector.2`: the bridge
llm_lora   not an adapter of peft: model-0000N-of-00003.safetensors, the state dict that `llm` has once its `.model` is
           wrapped by peft; rank 32, alpha 64 and "all-linear" stand in demo.py alone. It is loaded over `llm`, so that
           what is no LoRA replaces the tensors there.
dit        config and weights of SD3Transformer2DModel (SD3.5-large)
dit_lora   an adapter folder of peft: adapter_config.json and its weights
beside     tokenizer and image processor of Qwen2.5-VL-3B-Instruct (`llm_processor`); VAE, scheduler and CLIP text
           encoders of SD3.5-large (`SD3`)

The authors load `llm_lora` with strict=False: a name that does not fit is passed over in silence, and transformers has
renamed the layers of Qwen2.5-VL since (4.52). Here the names of either generation find their layer, and a tensor that
finds none is an error.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from uae_lightning.exchange.release_weights import Part, listed, plain_name, qwen_name, written_dtype
from uae_lightning.files import making_folder
from uae_lightning.models import sd3
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.weight_files import seal
from uae_lightning.paths import resolve
from uae_lightning.usage import UsageError

TEXT_FILES = (  # of tokenizer and image processor, in the forms that transformers has written them
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", "chat_template.jinja", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip
TEXT_REMEDY = "copy tokenizer and preprocessor_config.json of Qwen/Qwen2.5-VL-3B-Instruct to llm_processor in --from"
BASE_FILES = [pattern for pattern in sd3.FILES if not pattern.startswith("transformer")]
RELEASE_FILES = ["llm*/*", "dit*/*", *(f"SD3*/{pattern}" for pattern in BASE_FILES)]


def import_release(
    source: str | Path,
    target: Path,
    *,
    base: str | Path | None = None,
    lora: bool = True,
    dtype: torch.dtype | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write `target/encoder`, `target/projector` and `target/decoder`: all of them, or nothing.

    Args:
        source: folder or hub id that holds the released parts, named as `uae import-release --help` lists them.
        target: a folder that does not exist yet; until all is written it is named `TARGET.uae-partial`.
        base: folder or hub id of SD3.5, where `source/SD3` does not hold it.
        lora: merge `llm_lora` and `dit_lora`, and keep them also in `target/adapters`; False leaves them unread.
        dtype: of all weights; None keeps that of each tensor. Merging is done in float32.
        report: is called with a line of progress now and then.

    Raises:
        FileNotFoundError: a part of the release is missing, or files of it.
        ValueError: the files are damaged, do not fit their configs or one another, or the disk is full.
        UsageError: `target` exists.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"--to {target} exists: name a folder that is to be made, or remove it first")
    release = find_release(source, base, lora)
    llm, projector = read_llm(release, dtype)
    dit = Part(SD3Transformer2DModel, release.dit, release.dit_lora, plain_name, dtype)
    dit.check()
    check_sizes(release, projector, llm, dit)
    check_disk(target, [*llm.state.values(), *dit.state.values()], dtype)
    with making_folder(target) as folder:
        encoder, transformer = folder / "encoder", folder / "decoder" / "transformer"
        llm.model.config.save_pretrained(encoder)
        dit.model.save_config(transformer)
        copy_text(release, encoder, llm.model.config.image_token_id)  # quick; a wrong tokenizer shows before hours pass
        copy_base(release, folder / "decoder", dit.model.config.pooled_projection_dim)
        projector.save(folder / "projector", dtype)
        llm.write(encoder, "model", report)
        dit.write(transformer, "diffusion_pytorch_model", report)
        for part in ("encoder", "decoder"):
            seal(folder / part)
        if lora:
            llm.write_adapter(folder / "adapters" / "encoder")
            dit.write_adapter(folder / "adapters" / "decoder")
            seal(folder / "adapters")
            report(f"merged: LoRA of {len(llm.layers)} layers of the encoder, {len(dit.layers)} of the decoder")


# ------------------------------------------------------------------------------------------------ finding


@dataclass
class Release:
    llm: Path
    processor: Path
    dit: Path
    base: Path
    llm_lora: Path | None
    dit_lora: Path | None


def find_release(source: str | Path, base: str | Path | None, lora: bool) -> Release:
    """Where each part lies; all that are missing are named at once."""
    source = resolve(source, RELEASE_FILES)
    missing = []

    def find(names: tuple[str, ...], needs: str, remedy: str = "download it from the authors' release") -> Path | None:
        for name in names:
            if (source / name / needs).exists():
                return source / name
        missing.append(f"{Path(names[0], needs)} ({remedy})")

    llm = find(("llm", "llm_model"), "config.json")
    dit = find(("dit",), "config.json")
    skip = "download it from the authors' release, or leave the adapters out with --no-lora"
    llm_lora = find(("llm_lora",), "", skip) if lora else None
    dit_lora = find(("dit_lora",), "adapter_config.json", skip) if lora else None
    processor = find(
        ("llm_processor", "llm_model_preprocessor", "llm", "llm_model"),
        "tokenizer_config.json",
        TEXT_REMEDY,
    )
    if base is None:
        base = find(("SD3", "SD3_model"), "vae", "or name the folder of Stable Diffusion 3.5 Large with --base")
    if missing:
        raise FileNotFoundError(f"--from {source} lacks " + "; ".join(missing))
    base = resolve(base, BASE_FILES)
    check_base(base)
    return Release(llm, processor, dit, base, llm_lora, dit_lora)


def check_base(base: Path) -> None:
    needed = ["vae/config.json", "scheduler/scheduler_config.json"]
    if not (base / "pooled.safetensors").exists():
        needed += [f"{encoder}/config.json" for encoder in sd3.TEXT_ENCODERS] + [*sd3.TEXT_ENCODERS.values()]
    missing = [name for name in needed if not (base / name).exists()]
    if missing:
        raise FileNotFoundError(f"{base} is no whole Stable Diffusion 3.5: it lacks {listed(missing)}; see --base")


# ------------------------------------------------------------------------------------------------ checking


def read_llm(release: Release, dtype: torch.dtype | None) -> tuple[Part, MLPProjector]:
    """The encoder, and the projector that lies among its weights."""
    llm = Part(Qwen2_5_VLForConditionalGeneration, release.llm, release.llm_lora, qwen_name, dtype)
    bridge = {name: llm.state.pop(name) for name in list(llm.state) if name.startswith("projector.")}
    layers = {"projector.0.": "layers.1.", "projector.2.": "layers.3."}  # Linear, GELU, Linear here and there
    wanted = {f"{layer}{kind}" for layer in layers for kind in ("weight", "bias")}
    if bridge.keys() != wanted:
        raise ValueError(
            f"{release.llm} holds {listed(bridge) or 'no projector'} and not {listed(wanted)}: these are not the "
            "weights that the authors of UAE released as `llm`"
        )
    hidden_size, input_size = bridge["projector.0.weight"].shape
    with torch.device("meta"):
        projector = MLPProjector(None, input_size, hidden_size, len(bridge["projector.2.weight"]))
    state = {here + kind: bridge[there + kind] for there, here in layers.items() for kind in ("weight", "bias")}
    projector.load_state_dict(state, assign=True)
    llm.check()
    llm.model.config.architectures = [Qwen2_5_VLForConditionalGeneration.__name__]  # theirs is a class of their own
    return llm, projector


def check_sizes(release: Release, projector: MLPProjector, llm: Part, dit: Part) -> None:
    channels = json.loads((release.base / "vae" / "config.json").read_text())["latent_channels"]
    for what, left, right in (
        (f"{release.llm}: states, and what the projector takes", llm.model.config.text_config.hidden_size,
         projector.input_size),
        (f"what the projector gives, and what {release.dit} takes", projector.output_size,
         dit.model.config.joint_attention_dim),
        (f"latent channels of {release.base}/vae, and of {release.dit}", channels, dit.model.config.in_channels),
    ):  # fmt: skip
        if left != right:
            raise ValueError(f"{what}: {left} and {right} do not fit; the folders are not of one release")


# ------------------------------------------------------------------------------------------------ writing


def copy_text(release: Release, folder: Path, image_token: int) -> None:
    """Tokenizer and image processor.

    Raises:
        ValueError: they are not those of Qwen2.5-VL.
    """
    for source, names in ((release.processor, TEXT_FILES), (release.llm, ("generation_config.json",))):
        for name in names:
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
    try:
        Qwen2VLImageProcessorPil.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
        fits = tokenizer.convert_ids_to_tokens(image_token) in prompt
    except (OSError, ValueError, TypeError) as error:  # what transformers raises for missing files
        raise ValueError(f"{release.processor}: {error}; {TEXT_REMEDY}") from error
    if not fits:
        raise ValueError(f"{release.processor}: its chat template has no place for pictures; {TEXT_REMEDY}")


def copy_base(release: Release, folder: Path, pooled_size: int) -> None:
    for part in ("vae", "scheduler"):
        shutil.copytree(release.base / part, folder / part)
    pooled = sd3.empty_prompt_embedding(release.base, pooled_size)
    if pooled.shape != (1, pooled_size):
        raise ValueError(f"{release.base}: pooled embedding {list(pooled.shape)}, {release.dit} takes {pooled_size}")
    save_file({"pooled": pooled}, folder / "pooled.safetensors")


def check_disk(target: Path, tensors: list[Tensor], dtype: torch.dtype | None) -> None:
    needed = sum(tensor.numel() * written_dtype(tensor, dtype).itemsize for tensor in tensors)
    place = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(f"--to {target} needs {needed / 1e9:.0f} GB, {place} has {free / 1e9:.0f}: name another disk")
