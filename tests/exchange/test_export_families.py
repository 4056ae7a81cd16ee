"""Exports of decoders that are no SD3 and encoders that are no Qwen2.5-VL: the code of their cards works without us."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import DECODERS, KINDS, write_run

from uae_lightning.cli import main
from uae_lightning.models.intern_vl import InternVLEncoder
from uae_lightning.models.qwen3_5 import Qwen35Encoder
from uae_lightning.models.qwen3_vl import Qwen3VLEncoder
from uae_lightning.models.qwen_vl import QwenVLEncoder

sys.path.insert(0, str(Path(__file__).parents[1] / "conf"))
import small_decoders  # noqa: E402
import small_encoders  # noqa: E402
from small_models import HIDDEN, save_qwen  # noqa: E402

FOREIGN = Path(__file__).with_name("foreign.py")
PROMPT = "a small blue star on the left"  # of foreign.py
READ_BY = {  # decoder -> the encoder of its run
    "sana": ("intern_vl", InternVLEncoder),
    "flux2": ("qwen3_vl", Qwen3VLEncoder),
    "z_image": ("qwen3_5", Qwen35Encoder),
    "qwen_image": ("qwen", QwenVLEncoder),
}
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run of each family: projector and LoRA of the decoder, a LoRA of the encoder, two more of the decoder."""
    place = tmp_path_factory.mktemp("place")
    torch.manual_seed(1)
    save_qwen(place / "small" / "qwen")
    for encoder in ("qwen3_vl", "qwen3_5", "intern_vl"):
        getattr(small_encoders, f"save_{encoder}")(place / "small" / encoder)
    stages = {"draw": {"projector": "all", "decoder": LORA}, "see": {"encoder": LORA}, "again": {"decoder": LORA}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, kind in DECODERS.items():
            getattr(small_decoders, f"save_{name}")(place / "small" / name)
            kinds = KINDS | {"decoder": kind, "encoder": READ_BY[name][1]}
            start = {
                "encoder": {"path": f"small/{READ_BY[name][0]}"},
                "projector": {"input_size": HIDDEN, "hidden_size": 16, "output_size": small_decoders.WIDTH},
                "decoder": {"path": f"small/{name}", "resolution": 64},
            }
            sampling = {
                "sampling": {"steps": 2, "guidance": 3.0},
                "captioning": {"max_new_tokens": 4, "temperature": 0.0},
            }
            write_run(place / name, start, stages, kinds, negative_prompt="ugly", **sampling)
    return place


@pytest.fixture(scope="module")
def exports(place, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "picture.png")
    found = {name: folder / name for name in DECODERS}
    for name in DECODERS:
        assert main(["export", f"--weights={place / name}", f"--to={found[name]}"]) == 0
        shutil.copytree(place / "small", found[name] / "small")  # where the code is run, the bases are there
    command = [sys.executable, "-I", str(FOREIGN), str(folder / "picture.png"), *map(str, found.values())]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return found


@pytest.mark.parametrize("name", DECODERS)
def test_foreign_code_draws_what_generate_draws(name, exports, place, tmp_path):
    # red with `step - other` turned round in a template, latents scaled otherwise, another time or layout of tokens
    file = tmp_path / "drawn.png"
    assert main(["generate", PROMPT, f"--weights={place / name}", "--seed=3", f"--output={file}"]) == 0
    wanted, drawn = (np.asarray(Image.open(path)).astype(int) for path in (file, exports[name] / "drawn.png"))
    assert wanted.std() > 10 and np.abs(wanted - drawn).max() <= 1  # levels of 255: kernels may round otherwise there


@pytest.mark.parametrize("name", DECODERS)
def test_base_and_adapter_are_the_trained_model(name, exports):
    # red with the last round alone, or names that diffusers' loader of the family does not find
    found = json.loads((exports[name] / "foreign.json").read_text())
    to_merged, base_to_merged = found["decoder"]
    assert to_merged < 1e-4 and base_to_merged > 1e-3 and found["pipeline"] < 1e-4
    assert not (exports[name] / "comfyui_lora.safetensors").exists()  # its names there are another matter
    assert DECODERS[name].title in (exports[name] / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name, (encoder, _) in READ_BY.items() if encoder != "qwen"])
def test_foreign_code_captions_as_the_encoder_does(name, exports, place):
    # red with a class of another generation in the card, or the grid of patches that InternVL has not
    export, run, kind = exports[name], place / name, READ_BY[name][1]
    assert kind.kind.__name__ in (export / "README.md").read_text()
    found = json.loads((export / "foreign.json").read_text())
    encoder = kind(str(run / "see" / "weights" / "encoder"))
    said = encoder.generate(torch.zeros(1, 3, 64, 64), samples=1, temperature=0.0, max_new_tokens=4, seed=0)
    to_merged, base_to_merged = found["encoder"]
    assert found["caption"] == said.texts[0] and to_merged < 1e-4 < base_to_merged
