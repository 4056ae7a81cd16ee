"""What crosses beside or in place of text, at full size without weights and in two steps of small models."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import planning_of_runs
import pytest
import small_encoders
from small_decoders import save_sana
from small_models import HIDDEN, TEXT, save_ip_adapter, save_models, save_pictures

from uae_lightning.planning.stage_plan import GB
from uae_lightning.run.stage_cli import run_stage

CONF = Path(__file__).parents[2] / "conf" / "real"
STAGES = ["codebook_pretrain", "bridge_pretrain", "codec_pretrain"]


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_planned_at_full_size(stage):
    # red if the plan meets text where there are codes, or the stage does not fit its card
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        needed = pool.submit(planning_of_runs.needed, CONF / f"{stage}.yaml", ()).result()
    assert 5 * GB < needed[stage] < 24 * GB


def test_two_levels_are_planned_at_full_size(tmp_path):
    # red if the plan has one word for a place, or the projector of the YAML is not as wide as both levels
    configs = [str(CONF / name) for name in ("codebook_pretrain.yaml", "codebook_pretrain_levels.yaml")]
    (tmp_path / "run.yaml").write_text(json.dumps({"name": "run", "stages": [{"name": "levels", "config": configs}]}))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        needed = pool.submit(planning_of_runs.needed, tmp_path / "run.yaml", ()).result()
    assert 5 * GB < needed["levels"] < 24 * GB


def test_masked_autoregression_is_planned_at_full_size():
    # red if the plan asks for velocities of the whole picture, or a stage does not fit its card
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        needed = pool.submit(planning_of_runs.needed, CONF / "run_mar.yaml", ()).result()
    assert {*needed} == {"decoder_pretrain", "encoder_rl"} and all(5 * GB < one < 24 * GB for one in needed.values())


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    save_models(folder)
    save_sana(folder / "sana")
    save_pictures(folder / "pictures", 4, seed=0)
    save_pictures(folder / "held_out", 2, seed=1)
    return folder


def options(small: Path, place: Path) -> dict[str, object]:
    reward = {"reward": {"class_path": "uae_lightning.rewards.pixel_similarity.PixelSimilarity"}}
    callbacks = [
        {"class_path": "callbacks.RewardCallback", "init_args": reward},
        {"class_path": "callbacks.ComponentWeights"},
    ]
    return {
        "model.autoencoder.projector.input_size": HIDDEN,
        "model.autoencoder.projector.output_size": TEXT,
        "model.autoencoder.decoder.path": small / "sd3",
        "model.autoencoder.decoder.dtype": "float32",
        "model.autoencoder.decoder.resolution": 64,
        "data.init_args.path": small / "pictures",
        "data.init_args.validation_path": small / "held_out",
        "data.init_args.resolution": 64,
        "data.init_args.batch_size": 2,
        "data.init_args.validation_pictures": 2,
        "data.init_args.num_workers": 0,
        "trainer.precision": "32-true",
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.accumulate_grad_batches": 1,
        "trainer.val_check_interval": 2,
        "trainer.callbacks": json.dumps(callbacks),
        "trainer.default_root_dir": place,
    }


def check(module, place: Path) -> None:
    rows = [json.loads(line) for line in (place / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2]
    assert {path.name for path in (place / "weights").iterdir()} == set(module.hands_on)
    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert len(module.optimizers(use_pl_optimizer=False).state) == len(trainable)  # each one had a gradient


def test_two_steps_with_a_bridge(small, tmp_path):
    # red if bridge or channel are not handed on, or one of their weights has no gradient
    more = {
        "model.autoencoder.encoder.path": small / "qwen",
        "model.autoencoder.encoder.dtype": "float32",
        "model.autoencoder.encoder.max_pixels": 3136,
        "model.autoencoder.captioning.max_new_tokens": 8,
        "model.autoencoder.projector.visual_size": HIDDEN,
        "model.autoencoder.projector.places": 4,
        "model.autoencoder.projector.width": 32,
        "model.autoencoder.decoder.visual_size": HIDDEN,
    }
    words = [f"--{key}={value}" for key, value in (options(small, tmp_path) | more).items()]
    module = run_stage(["fit", f"--config={CONF / 'bridge_pretrain.yaml'}", *words]).model
    check(module, tmp_path)
    assert (tmp_path / "weights" / "projector" / "bridge.safetensors").exists()
    assert (tmp_path / "weights" / "decoder" / "visual.safetensors").exists()


def test_two_steps_beside_an_ip_adapter(small, tmp_path):
    # red if the adapter learns, or what it adds to the decoder is in the way of a LoRA or of its file
    (tmp_path / "adapter").mkdir()
    save_ip_adapter(tmp_path / "adapter", small / "sd3")
    more = {
        "model.autoencoder.encoder.path": small / "qwen",
        "model.autoencoder.encoder.dtype": "float32",
        "model.autoencoder.encoder.quantization": "none",
        "model.autoencoder.encoder.max_pixels": 3136,
        "model.autoencoder.captioning.max_new_tokens": 8,
        "model.autoencoder.decoder.quantization": "none",
        "model.autoencoder.decoder.adapter": tmp_path / "adapter",
        "model.autoencoder.decoder.vision": tmp_path / "adapter" / "siglip",
    }
    words = [f"--{key}={value}" for key, value in (options(small, tmp_path / "run") | more).items()]
    module = run_stage(["fit", f"--config={CONF / 'ip_adapter.yaml'}", *words]).model
    check(module, tmp_path / "run")
    assert not any(parameter.requires_grad for parameter in module.decoder.adapter.parameters())
    assert {file.name for file in (tmp_path / "run/weights/decoder").iterdir()} >= {"base.json", "adapter_config.json"}


def test_two_steps_on_codes(small, tmp_path):
    # red if what is trained is not handed on, or a weight of the codebook has no gradient
    more = {
        "model.autoencoder.encoder.vision.path": small / "qwen",
        "model.autoencoder.encoder.vision.dtype": "float32",
        "model.autoencoder.encoder.quantizer.codes": 16,
        "model.autoencoder.encoder.places": 4,
    }
    words = [f"--{key}={value}" for key, value in (options(small, tmp_path) | more).items()]
    module = run_stage(["fit", f"--config={CONF / 'codebook_pretrain.yaml'}", *words]).model
    check(module, tmp_path)
    saved = json.loads((tmp_path / "weights" / "encoder" / "config.json").read_text())
    assert saved == {"quantizer": "SimVQ", "codes": 16, "width": HIDDEN, "places": 4}


def test_two_steps_on_two_levels_of_codes(small, tmp_path):
    # red if the second level is not handed on, or a weight of its codebook has no gradient
    more = {
        "model.autoencoder.encoder.vision.path": small / "qwen",
        "model.autoencoder.encoder.vision.dtype": "float32",
        "model.autoencoder.encoder.quantizer.codes": 16,
        "model.autoencoder.encoder.detail.layer": 0,
        "model.autoencoder.encoder.detail.quantizer.bits": 3,
        "model.autoencoder.encoder.places": 4,
        "model.autoencoder.projector.input_size": HIDDEN + 4 * HIDDEN,
    }
    configs = [f"--config={CONF / name}.yaml" for name in ("codebook_pretrain", "codebook_pretrain_levels")]
    words = [f"--{key}={value}" for key, value in (options(small, tmp_path) | more).items()]
    check(run_stage(["fit", *configs, *words]).model, tmp_path)
    saved = json.loads((tmp_path / "weights" / "encoder" / "config.json").read_text())
    assert saved["detail"] == {"layer": 0, "quantizer": "BSQ", "codes": 8, "width": 4 * HIDDEN}


ENCODER = {
    "model.autoencoder.encoder.dtype": "float32",
    "model.autoencoder.encoder.quantization": "none",
    "model.autoencoder.encoder.max_pixels": 3136,
    "model.autoencoder.captioning.max_new_tokens": 8,
}


def test_two_steps_of_a_codec(small, tmp_path):
    # red if the codec is not handed on in the decoder's folder, or one of its weights has no gradient
    more = ENCODER | {
        "model.autoencoder.encoder.path": small / "qwen",
        "model.autoencoder.decoder.codec.base.path": small / "sd3",
        "model.autoencoder.decoder.codec.base.dtype": "float32",
        "model.autoencoder.decoder.codec.width": 8,
        "model.autoencoder.decoder.codec.layers": 1,
        "model.init_args.perceptual.init_args.model": small / "clip",
    }
    words = [f"--{key}={value}" for key, value in (options(small, tmp_path) | more).items()]
    module = run_stage(["fit", f"--config={CONF / 'codec_pretrain.yaml'}", *words]).model
    check(module, tmp_path)
    assert (tmp_path / "weights" / "decoder" / "vae" / "unet" / "config.json").exists()


def test_two_steps_of_masked_autoregression(small, tmp_path):
    # red if the codec's latents are not what is drawn, or a weight has no gradient
    more = ENCODER | {
        "model.init_args.learn.decoder": "all",
        "model.autoencoder.encoder.path": small / "qwen",
        "model.autoencoder.decoder.codec.path": small / "sana",
        "model.autoencoder.decoder.codec.dtype": "float32",
        "model.autoencoder.decoder.conditioning_size": TEXT,
        "model.autoencoder.decoder.width": 32,
        "model.autoencoder.decoder.encoder_layers": 1,
        "model.autoencoder.decoder.decoder_layers": 1,
        "model.autoencoder.decoder.heads": 2,
        "model.autoencoder.decoder.head_width": 32,
        "model.autoencoder.decoder.head_layers": 1,
        "model.autoencoder.sampling.steps": 3,
        "data.init_args.require_captions": "false",
        "model.init_args.condition_dropout": 0.5,
        "model.init_args.optimizer": "torch.optim.AdamW",
    }
    given = options(small, tmp_path) | more
    for name in ("path", "dtype"):
        del given[f"model.autoencoder.decoder.{name}"]
    configs = [f"--config={CONF / name}" for name in ("decoder_pretrain.yaml", "mar.yaml")]
    check(run_stage(["fit", *configs, *(f"--{key}={value}" for key, value in given.items())]).model, tmp_path)


def test_two_steps_of_one_backbone(small, tmp_path):
    # red if a stage hands it on under two names, or the next one cannot start from it
    small_encoders.save_janus(small / "janus")
    path = small / "janus"
    for stage, more in {"decoder_pretrain": ["precondition_outputs=false"], "encoder_rl": ["micro_batch=4"]}.items():
        place = tmp_path / stage
        given = options(small, place) | {
            "model.autoencoder.encoder.path": path,
            "model.autoencoder.encoder.dtype": "float32",
            "model.autoencoder.captioning.max_new_tokens": 8,
            "data.init_args.resolution": 32,
            "data.init_args.require_captions": str(stage == "decoder_pretrain").lower(),
            "model.init_args.optimizer": "torch.optim.AdamW",
        }
        given = {k: v for k, v in given.items() if ".decoder." not in k and ".projector." not in k}
        configs = [f"--config={CONF / name}.yaml" for name in (stage, "janus")]
        words = [f"--{key}={value}" for key, value in given.items()] + [f"--model.init_args.{one}" for one in more]
        check(run_stage(["fit", *configs, *words]).model, place)
        path = place / "weights" / "encoder"
        assert (path / "base.json").exists()
