"""The released layout, built small as demo.py of PKU-YuanGroup/UAE loads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import LATENT_SHAPE
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from uae_lightning.exchange.release import import_release
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.sd3 import ATTENTION_PROJECTIONS

Adapted = tuple[nn.Module, nn.Module]  # the released models with peft around them, as demo.py has them


def sharded(state: dict[str, Tensor], folder: Path, shards: int = 3) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(shards):
        part = {name: state[name].clone().contiguous() for name in list(state)[i::shards]}
        save_file(part, folder / f"model-{i + 1:05}-of-{shards:05}.safetensors")


def tremble(module: nn.Module, *kinds: str) -> None:
    for name, parameter in module.named_parameters():
        if any(kind in name for kind in kinds):
            parameter.data += 0.05 * torch.randn_like(parameter)


@pytest.fixture(scope="module")
def released(parts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, *Adapted]:
    """The folder, and the models in it with their LoRA applied by peft."""
    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(1)
    llm = Qwen2_5_VLForConditionalGeneration.from_pretrained(parts_folder / "encoder")
    llm.projector = nn.Sequential(nn.Linear(192, 32), nn.GELU(), nn.Linear(32, 24))
    llm.save_pretrained(folder / "llm")
    shutil.copytree(parts_folder / "encoder", folder / "llm_processor", ignore=shutil.ignore_patterns("*.safetensors"))
    lora = LoraConfig(r=32, lora_alpha=64, init_lora_weights="gaussian", target_modules="all-linear")
    llm.model = get_peft_model(llm.model, lora)
    tremble(llm, "lora_B", "input_layernorm", "projector")  # the release holds all of the model, trained or not
    sharded({k: v for k, v in llm.state_dict().items() if k != "lm_head.weight"}, folder / "llm_lora")

    dit = SD3Transformer2DModel.from_pretrained(parts_folder / "decoder" / "transformer")
    dit.save_pretrained(folder / "dit")
    lora = LoraConfig(r=4, lora_alpha=12, target_modules=ATTENTION_PROJECTIONS, rank_pattern={"attn.to_q": 2})
    dit = get_peft_model(dit, lora)
    tremble(dit, "lora_B")
    dit.save_pretrained(folder / "dit_lora")

    for part in ("vae", "scheduler"):
        shutil.copytree(parts_folder / "decoder" / part, folder / "SD3" / part)
    save_file({"pooled": torch.randn(1, 8)}, folder / "SD3" / "pooled.safetensors")
    return folder, llm.eval(), dit.eval()


@pytest.fixture(scope="module")
def imported(released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("imported") / "uae"
    import_release(released[0], target)
    return target


@pytest.fixture
def copied(released, tmp_path: Path) -> Path:
    """A release to spoil."""
    return shutil.copytree(released[0], tmp_path / "release")


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, encoder: QwenVLEncoder) -> Tensor:
    return model(**encoder.prompt_inputs(images)).logits


@torch.no_grad()
def velocity(dit: nn.Module, pooled: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, states = torch.randn(2, *LATENT_SHAPE, generator=generator), torch.randn(2, 5, 24, generator=generator)
    return dit(x, states, pooled.expand(2, -1), torch.tensor([900.0, 300.0])).sample


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
