"""What is said of a release that is not whole, and of a disk that is full; the command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import small_release
import torch
from safetensors.torch import load_file, save_file

from uae_lightning.cli import main
from uae_lightning.exchange import release, release_weights
from uae_lightning.exchange.release import import_release

released, copied = small_release.released, small_release.copied


def spoil_tensor(file: Path, change) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file)


def first_shard(folder: Path, name: str) -> Path:
    return next(file for file in folder.glob("*.safetensors") if name in load_file(file))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


UP = "model.base_model.model.language_model.layers.0.mlp.up_proj"
SPOILED = {
    "several parts": (
        lambda at: [shutil.rmtree(at / part) for part in ("llm_lora", "SD3")],
        ["llm_lora", "--no-lora", "SD3", "--base"],
    ),
    "no tokenizer": (lambda at: shutil.rmtree(at / "llm_processor"), ["tokenizer_config.json", "Qwen/Qwen2.5-VL-3B"]),
    "another tokenizer": (
        lambda at: (at / "llm_processor" / "chat_template.jinja").write_text("{{ messages }}"),
        ["llm_processor", "no place for pictures"],
    ),
    "no whole base": (
        lambda at: (at / "SD3" / "pooled.safetensors").unlink(),
        ["text_encoder/config.json", "tokenizer_2", "--base"],
    ),
    "a shard": (
        lambda at: (at / "llm_lora" / "model-00002-of-00003.safetensors").unlink(),
        ["llm_lora lacks model-00002-of-00003.safetensors"],
    ),
    "half a shard": (
        lambda at: cut_short(at / "llm_lora" / "model-00002-of-00003.safetensors"),
        ["model-00002-of-00003.safetensors", "download it again"],
    ),
    "no weights": (
        lambda at: (at / "dit" / "diffusion_pytorch_model.safetensors").unlink(),
        ["dit holds no weights"],
    ),
    "a missing tensor": (
        lambda at: spoil_tensor(at / "llm" / "model.safetensors", lambda s: s.pop("projector.2.bias")) or
        [spoil_tensor(file, lambda s: s.pop("projector.2.bias", None)) for file in (at / "llm_lora").glob("*.saf*")],
        ["llm holds projector.0.bias", "projector.2.bias"],
    ),
    "no LoRA": (
        lambda at: [
            spoil_tensor(file, lambda s: [s.pop(k) for k in list(s) if "lora_" in k])
            for file in (at / "llm_lora").glob("*.safetensors")
        ],
        ["llm_lora holds no LoRA", "--no-lora"],
    ),
    "a layer that is not there": (
        lambda at: spoil_tensor(
            first_shard(at / "llm_lora", f"{UP}.lora_A.default.weight"),
            lambda s: s.update({f"{UP.replace('.0.', '.9.')}.lora_A.default.weight": torch.ones(32, 192)}),
        ),
        ["llm_lora adapts layers", "model.layers.9.mlp.up_proj"],
    ),
    "half a LoRA": (
        lambda at: spoil_tensor(
            first_shard(at / "llm_lora", f"{UP}.lora_B.default.weight"), lambda s: s.pop(f"{UP}.lora_B.default.weight")
        ),
        ["tensors are missing", "model.layers.0.mlp.up_proj.lora_B.weight"],
    ),
    "an unknown tensor": (
        lambda at: spoil_tensor(at / "dit_lora" / "adapter_model.safetensors", lambda s: s.update(odd=torch.ones(1))),
        ["dit_lora", "no place in SD3Transformer2DModel", "odd"],
    ),
    "another shape": (
        lambda at: spoil_tensor(
            at / "dit" / "diffusion_pytorch_model.safetensors", lambda s: s.update({"proj_out.bias": torch.ones(3)})
        ),
        ["dit", "proj_out.bias is [3] and not [8]", "config.json"],
    ),
    "another rank": (
        lambda at: [
            spoil_tensor(
                file,
                lambda s: s.update({k: v[:8].clone() for k, v in s.items() if "lora_A" in k}),
            )
            for file in (at / "llm_lora").glob("*.safetensors")
        ],
        ["rank 8 and not 32", "adapter_config.json"],
    ),
    "another projector": (
        lambda at: spoil_tensor(
            first_shard(at / "llm_lora", "projector.2.weight"),
            lambda s: s.update({"projector.2.weight": torch.ones(20, 32)}),
        ) or spoil_tensor(
            first_shard(at / "llm_lora", "projector.2.bias"), lambda s: s.update({"projector.2.bias": torch.ones(20)})
        ),
        ["what the projector gives", "20 and 24 do not fit"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_what_does_not_fit_is_named_and_nothing_is_left(case, copied, tmp_path):
    # red without the check of that case
    spoil, words = SPOILED[case]
    spoil(copied)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        import_release(copied, tmp_path / "uae")
    assert all(word in str(error.value) for word in words), error.value
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_killed_import_is_cleared_and_a_failed_one_leaves_nothing(released, tmp_path, monkeypatch):
    # red without `remove` before mkdir in checkpoint_io.making_folder, or with `swap` before the yield
    left = tmp_path / "uae.uae-partial" / "encoder"
    left.mkdir(parents=True)
    (left / "model-00001-of-00009.safetensors").write_bytes(b"half")
    import_release(released[0], tmp_path / "uae", lora=False)
    assert not (tmp_path / "uae.uae-partial").exists()
    assert not list((tmp_path / "uae").rglob("*-of-00009*"))

    def full(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(release_weights, "save_file", full)
    with pytest.raises(ValueError, match="other cannot be written: no space"):
        import_release(released[0], tmp_path / "other", lora=False)
    assert [path.name for path in tmp_path.iterdir()] == ["uae"]


def test_a_full_disk_is_seen_before(released, tmp_path, monkeypatch):
    # red with `>` for `<`
    monkeypatch.setattr(release.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ValueError, match="GB"):
        import_release(released[0], tmp_path / "uae", lora=False)


def test_command(released, tmp_path, capsys):
    # red with --from and --to swapped
    target = str(tmp_path / "uae")
    assert main(["import-release", "--from", str(released[0]), "--to", target]) == 0
    said = capsys.readouterr().out
    assert f"model.autoencoder.encoder.path: {target}/encoder" in said and "merged: LoRA of" in said
    for args, words in (
        (["--from", str(released[0]), "--to", target], "exists"),
        (["--to", target], "--from"),
        (["--from", str(tmp_path / "none"), "--to", f"{target}2"], "none"),
    ):
        assert main(["import-release", *args]) in (1, 2)
        assert words in capsys.readouterr().err
