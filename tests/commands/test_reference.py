"""`uae generate --reference`: what a picture shows, beside the text."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import IMAGE_SIZE, SCENES_PROMPTS
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "conf"))
from small_models import save_ip_adapter  # noqa: E402

from uae_lightning.cli import main
from uae_lightning.models.visual_decoder import VisualSD3Decoder
from uae_lightning.scenes.scene import render, sample_scene
from uae_lightning.usage import UsageError


@pytest.fixture
def stage_yaml(parts_folder, tmp_path):
    def write(kind: str, **options) -> str:
        decoder = {"resolution": IMAGE_SIZE, "sigma_spacing": "even", "path": str(parts_folder / "decoder")} | options
        parts = {
            "encoder": ("qwen_vl.QwenVLEncoder", {"path": str(parts_folder / "encoder"), **SCENES_PROMPTS}),
            "projector": ("projector.MLPProjector", {"path": str(parts_folder / "projector")}),
            "decoder": (kind, decoder),
        }
        found = {n: {"class_path": f"uae_lightning.models.{c}", "init_args": o} for n, (c, o) in parts.items()}
        file = tmp_path / f"{kind}.yaml"
        file.write_text(yaml.safe_dump({"model": {"init_args": {"autoencoder": found | {"sampling": {"steps": 1}}}}}))
        return str(file)

    return write


@pytest.fixture
def scene(tmp_path) -> str:
    file = tmp_path / "scene.png"
    Image.fromarray(render(sample_scene("test", 0, 0))).save(file)
    return str(file)


def drawn(config: str, output, *words: str) -> np.ndarray:
    assert main(["generate", "a red cat .", f"--config={config}", f"--output={output}", *words]) == 0
    return np.asarray(Image.open(output))


def test_the_picture_is_drawn_from(stage_yaml, parts_folder, scene, tmp_path):
    # red if the option does not reach the decoder
    decoder = VisualSD3Decoder(str(parts_folder / "decoder"), 192, resolution=IMAGE_SIZE)
    for layer in decoder.visual:
        layer.value.weight.data.normal_(std=1.0)
    decoder.save(tmp_path / "decoder")
    config = stage_yaml("visual_decoder.VisualSD3Decoder", visual_size=192, path=str(tmp_path / "decoder"))
    plain, seen = (drawn(config, tmp_path / "out.png", *words) for words in ([], ["--reference", scene]))
    assert plain.shape == seen.shape and (plain != seen).mean() > 0.1


def test_the_picture_is_drawn_from_by_a_published_adapter(stage_yaml, parts_folder, scene, tmp_path):
    # red if the features are those of the encoder's tower, or do not reach the adapter
    save_ip_adapter(tmp_path, parts_folder / "decoder", published=True)
    adapter = {"adapter": str(tmp_path), "vision": str(tmp_path / "siglip"), "adapter_scale": 1.0}
    config = stage_yaml("ip_adapter.IPAdapterSD3Decoder", **adapter)
    plain, seen = (drawn(config, tmp_path / "out.png", *words) for words in ([], ["--reference", scene]))
    assert plain.shape == seen.shape and (plain != seen).mean() > 0.1


def test_a_decoder_of_text_says_what_it_needs(stage_yaml, scene, tmp_path, capsys):
    # red if the reference is silently left unused, or the message names no remedy
    config = stage_yaml("sd3.SD3Decoder")
    assert (
        main(["generate", "a", f"--config={config}", f"--output={tmp_path / 'out.png'}", f"--reference={scene}"]) == 2
    )
    assert "--reference: SD3Decoder draws from text alone" in capsys.readouterr().err


def test_what_cannot_be_combined(scene, tmp_path):
    # red if candidates are drawn without the reference
    from uae_lightning.commands import generate

    with pytest.raises(UsageError, match="--reference draws a text once"):
        generate.parse(["a", "--reference", scene, "--verifier", "v.yaml", f"--output={tmp_path / 'out.png'}"])
