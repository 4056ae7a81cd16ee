"""Weights that are damaged, incomplete, of another model or unreadable for others are never trained on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from uae_lightning.models import loading
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.models.weight_files import SUMS, seal, verify
from uae_lightning.scenes.scene import IMAGE_SIZE


def decoder_of(folder: Path) -> SD3Decoder:
    return SD3Decoder(str(folder / "decoder"), IMAGE_SIZE)


FILES = {
    "encoder/model.safetensors": lambda folder: QwenVLEncoder(str(folder / "encoder"), caption_system=""),
    "projector/model.safetensors": lambda folder: MLPProjector(str(folder / "projector")),
    "decoder/transformer/diffusion_pytorch_model.safetensors": decoder_of,
    "decoder/vae/diffusion_pytorch_model.safetensors": decoder_of,
    "decoder/pooled.safetensors": decoder_of,
}
WEIGHTS = [name for name in FILES if "pooled" not in name]


@pytest.fixture(scope="module")
def saved(parts_folder, tmp_path_factory) -> Path:
    """All parts as `save` writes them, under a umask that lets the group read."""
    folder, before = tmp_path_factory.mktemp("saved"), os.umask(0o027)
    try:
        for part, read in (("encoder", 0), ("projector", 1), ("decoder", 2)):
            list(FILES.values())[read](parts_folder).save(folder / part)
    finally:
        os.umask(before)
    return folder


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "copied")


def change(file: Path, edit) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})
    for sums in file.parents[0].glob(SUMS), file.parents[1].glob(SUMS):
        for path in sums:
            path.unlink()


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found(copied, name):
    # red if `verify` goes from a constructor, or looks at another part of SHA256SUMS
    FILES[name](copied)
    file = copied / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is not what was written there.*delete .*{SUMS}"):
        FILES[name](copied)
    next(copied.glob(f"{name.split('/')[0]}/{SUMS}")).unlink()  # as a foreign folder: there is nothing to compare with
    FILES[name](copied)


def test_files_are_those_of_sha256sum_and_as_readable_as_the_umask_says(saved):
    # red if `copymode` goes (safetensors writes 0600), or a file is left out
    for part in ("encoder", "projector", "decoder"):
        done = subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=saved / part, capture_output=True, text=True)
        files = [file for file in (saved / part).rglob("*.safetensors")]
        assert done.returncode == 0 and done.stdout.count(": OK") == len(files) > 0
        assert {file.stat().st_mode & 0o777 for file in files} == {0o640}


def test_saving_again_seals_again(tmp_path):
    # red if an old list stays, or keeps its mode
    for value in (1.0, 2.0):
        save_file({"a": torch.tensor([value])}, tmp_path / "model.safetensors")
        (tmp_path / SUMS).touch(0o600)
        seal(tmp_path)
        verify(tmp_path)
    before = os.umask(0)
    os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~before


@pytest.mark.parametrize("name", WEIGHTS)
def test_tensors_that_are_missing_or_of_another_shape_are_named(copied, name):
    # red if `check_tensors` looks at one of its two keys alone
    tensors = sorted(load_file(copied / name))
    lost = next((key for key in tensors if "blocks" in key or "layers" in key), tensors[0])
    change(copied / name, lambda state: state.update({lost: state[lost][:1].clone()}))
    with pytest.raises(ValueError, match=f"{(copied / name).parent}.*{lost.removeprefix('model.')}"):
        FILES[name](copied)
    change(copied / name, lambda state: state.pop(lost))
    with pytest.raises(ValueError, match=f"{(copied / name).parent}.*{lost.removeprefix('model.')}"):
        FILES[name](copied)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("size", [0, 6, 300])
def test_files_that_are_cut_are_named(copied, name, size):
    # red if SafetensorError is not caught
    change(copied / name, lambda state: None)
    (copied / name).write_bytes((copied / name).read_bytes()[:size])
    with pytest.raises((ValueError, FileNotFoundError), match=f"{(copied / name).parent}"):
        FILES[name](copied)


@pytest.mark.parametrize("tensors", [{}, {"pooled": torch.zeros(1, 7)}, None])
def test_a_pooled_embedding_that_is_none_is_named(copied, tensors):
    # red if an error of `load_file`, or another shape, is passed on
    file = copied / "decoder" / "pooled.safetensors"
    (file.parent / SUMS).unlink()
    save_file(tensors, file) if tensors is not None else file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{file} holds no pooled embedding of 8 numbers.*delete"):
        decoder_of(copied)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("encoder/tokenizer.json", b"\xff\xfe\x00"),
        ("encoder/tokenizer_config.json", b'{"pad_token": '),
        ("encoder/generation_config.json", b"null"),
        ("encoder/generation_config.json", b"["),  # transformers goes on without it, and captions end elsewhere
        ("encoder/preprocessor_config.json", b"[" * 100_000),
        ("encoder/preprocessor_config.json", b"{}"),
        ("encoder/chat_template.jinja", b""),
        ("encoder/chat_template.jinja", b"{% "),
        ("projector/config.json", b"[" * 100_000),
        ("decoder/scheduler/scheduler_config.json", b"[" * 100_000),
    ],
)
def test_texts_that_are_damaged_are_named(copied, name, content):
    # red without `check_texts`, `reading`, `_check_text` or RecursionError in `read_object`
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{(copied / name).parent}.*copy") as error:
        FILES[next(file for file in FILES if file.startswith(name.split("/")[0]))](copied)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("part", ["encoder", "projector", "decoder"])
@pytest.mark.parametrize("content", [b"", b"\x00", b"no such thing\n", b"0" * 64 + b"  lost.safetensors\n"])
def test_a_list_of_sums_that_is_damaged_is_no_list(copied, part, content):
    # red where a line that is not understood, or a file that is not there, is passed over
    (copied / part / SUMS).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{copied / part / SUMS}.*copy the folder again"):
        FILES[next(file for file in FILES if file.startswith(part))](copied)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("config", ['{"model_type": "bert", "_class_name": "BertModel"}', "{}", "[]", "{"])
def test_a_folder_of_another_model_is_refused_before_it_is_built(copied, name, config, monkeypatch):
    # red without `check_kind`: a bert's config builds a Qwen2.5-VL of 7B
    folder = (copied / name).parent

    def verify(sealed: Path, part: str = "") -> None:
        assert folder not in (sealed / part, (sealed / part).parent), "its weights are read"

    monkeypatch.setattr(loading, "verify", verify)
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match=f"{folder}.*"):
        FILES[name](copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting: true"),
        ({"shift_terminal": 0.02}, "shift_terminal: 0.02"),
        ({"use_karras_sigmas": True, "num_train_timesteps": 500}, "num_train_timesteps: 500"),
        ({"invented": 1}, "invented: 1"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "FlowMatchHeunDiscreteScheduler is not known"),
        ({"shift": 0}, "shift must be a positive number, got 0"),
        ({"shift": "3"}, "shift must be a positive number"),
    ],
)
def test_settings_of_the_scheduler_are_obeyed_or_refused(copied, change, message):
    # red if a key is left out of the check, or of OBEYED what SD3.5's own file has
    file = copied / "decoder" / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"shift": 5, "base_shift": 0.1, "time_shift_type": "linear"}))
    assert decoder_of(copied).scheduler.config.shift == 5
    file.write_text(json.dumps(settings | change))
    with pytest.raises(ValueError, match=f"{file}.*{message}"):
        decoder_of(copied)
