"""YAMLs of version 0.1 are refused with the names that are right now."""

import importlib

import pytest
import yaml

from uae_lightning.cli import main
from uae_lightning.run.moved import CLASSES

STAGE = {
    "model": {"class_path": "uae_lightning.stages.encoder_rl.EncoderRL", "init_args": {"autoencoder": {}}},
    "data": {"class_path": "uae_lightning.scenes.data.ScenesData"},
    "trainer": {"max_steps": 1},
}  # fmt: skip
ENCODER = {"class_path": "uae_lightning.models.qwen_vl.QwenVLEncoder", "init_args": {"path": "x"}}


def with_encoder(options: dict) -> dict:
    parts = {"encoder": ENCODER | {"init_args": options}}
    return {"model": STAGE["model"] | {"init_args": {"autoencoder": parts}}}


def test_what_moved_is_where_it_is_said_to_be():
    # red with any new name misspelt
    for name in CLASSES.values():
        module, _, kind = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), kind), type)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"class_path": "uae_lightning.data.scenes_data.ScenesData"}}, "scenes.data.ScenesData now"),
        ({"model": STAGE["model"] | {"init_args": {"encoder": ENCODER}}}, "model.init_args.autoencoder.encoder now"),
        (with_encoder({"path": "x", "train": "lora"}), "model.init_args.learn.encoder: all, or the settings of a LoRA"),
        (with_encoder({"path": "x", "lora": {"rank": 4}}), "model.init_args.learn.encoder"),
    ],
    ids=["a class", "a part", "train", "lora"],
)  # fmt: skip
def test_the_error_has_the_new_name(change, words, tmp_path, capsys):
    # red without of_version_1 in `explain`
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(STAGE | change))
    assert main(["fit", f"--config={tmp_path / 'old.yaml'}"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("option", ["encoder.train=lora", "decoder.init_args.train=all", "encoder.lora.rank=3"])
def test_an_option_that_moved_is_named_on_the_command_line(option, capsys):
    # red without LEARNING in of_version_1
    assert main(["fit", "--config=conf/scenes/encoder_rl.yaml", f"--model.autoencoder.{option}"]) == 2
    assert f"model.init_args.learn.{option.split('.')[0]}: all" in capsys.readouterr().err


def test_a_run_of_version_1_is_refused(tmp_path, capsys):
    # red without the words in read_autoencoder
    old = STAGE | {"model": STAGE["model"] | {"init_args": {"encoder": ENCODER}}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    assert main(["generate", "a ball", f"--config={tmp_path / 'old.yaml'}", f"--output={tmp_path / 'a.png'}"]) == 2
    assert "version 0.1" in capsys.readouterr().err
