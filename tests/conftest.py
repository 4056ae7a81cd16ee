"""Small models of the real classes with random weights, built once per test session."""

from __future__ import annotations

import os
import threading
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported: no test asks the hub

import uae_lightning  # noqa: F401, I001  before diffusers, which imports bitsandbytes (uae_lightning.models.no_hub_kernels)
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from own_folder import documented, newcomer  # noqa: F401  fixtures
from tqdm import tqdm
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from uae_lightning.interfaces import Component
from uae_lightning.models.patch_codec import PatchCodec
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.scenes.bootstrap.captioner import PATCH, PROMPT, build_model, build_tokenizer
from uae_lightning.scenes.scene import IMAGE_SIZE, pictures
from uae_lightning.scenes.scene import sample_scene
from uae_lightning.types import Learning

torch.set_num_threads(1)
tqdm.set_lock(threading.RLock())  # its own is shared with forks: one killed while it draws would keep it for ever

SLOW = (  # files, and folders, whose tests train in processes of their own; the slowest first
    "run/test_resume.py", "docs/test_notebooks.py", "run/test_kills.py", "run/test_disk.py", "run/test_stopping.py",
    "distributed",
)  # fmt: skip
SCENES_PROMPTS = {"caption_system": "", "caption_prompt": PROMPT, "generate_system": "", "max_pixels": IMAGE_SIZE**2}
SIDE = IMAGE_SIZE // PATCH  # of the latents
LATENT_SHAPE = (8, SIDE, SIDE)  # of the decoder below


@pytest.hookimpl(trylast=True)  # after pytest has put tests that share a fixture beside each other
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several workers each begins with slow tests: one that begins last keeps all others waiting."""
    if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))) > 1:
        items[:] = slow_first(items, workers)


def slow_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Slow tests at the head of each worker's part, dealt in turn. `--dist worksteal` cuts the list into these parts,
    and idle workers take from the tail of another's."""
    places = [Path(__file__).parent / name for name in SLOW]
    slow = [item for place in places for item in items if place in (item.path, *item.path.parents)]
    known, ordered = set(map(id, slow)), list[pytest.Item]()
    others = [item for item in items if id(item) not in known]
    for worker in range(workers):
        size, mine = (len(items) - len(ordered)) // (workers - worker), slow[worker::workers]
        taken = max(0, size - len(mine))
        ordered, others = [*ordered, *mine, *others[:taken]], others[taken:]
    return ordered


@pytest.fixture(scope="session")
def parts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`encoder/`, `projector/` and `decoder/` that the classes of `uae_lightning.models` start from."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    size = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": IMAGE_SIZE**2}
    processor = Qwen2VLImageProcessorPil(patch_size=PATCH, temporal_patch_size=1, merge_size=2, size=size)
    processor.save_pretrained(folder / "encoder")
    transformer = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=1, in_channels=LATENT_SHAPE[0], out_channels=LATENT_SHAPE[0], num_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24, caption_projection_dim=32,
        pooled_projection_dim=8, pos_embed_max_size=SIDE, qk_norm="rms_norm",
    )  # fmt: skip
    for parameter in transformer.parameters():  # SD3 starts some at zero, where nothing reaches the output
        torch.nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(folder / "decoder" / "transformer")
    codec = PatchCodec(patch_size=PATCH, latent_channels=LATENT_SHAPE[0])
    codec.fit(2 * pictures([sample_scene("train", 0, i) for i in range(64)]) - 1)
    codec.save_pretrained(folder / "decoder" / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "decoder" / "scheduler")
    MLPProjector(None, 192, 32, 24, normalize=True).save(folder / "projector")
    return folder


@pytest.fixture
def make_encoder(parts_folder: Path):
    def make(learning: Learning = None, **options) -> QwenVLEncoder:
        return adapted(QwenVLEncoder(str(parts_folder / "encoder"), **SCENES_PROMPTS, **options), learning)

    return make


@pytest.fixture
def make_decoder(parts_folder: Path):
    def make(learning: Learning = None, **options) -> SD3Decoder:
        decoder = SD3Decoder(str(parts_folder / "decoder"), resolution=IMAGE_SIZE, sigma_spacing="even", **options)
        return adapted(decoder, learning)

    return make


def adapted(part: Component, learning: Learning) -> Component:
    """For tests of a part alone; a stage adapts its own."""
    if learning is not None:
        part.adapt(learning)
    return part


@pytest.fixture
def make_projector(parts_folder: Path):
    return lambda: MLPProjector(str(parts_folder / "projector"))


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """[4, 3, 96, 96] held-out scenes."""
    return pictures([sample_scene("validation", 0, i) for i in range(4)])
