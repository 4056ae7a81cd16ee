"""The released layout, built small as demo.py of PKU-YuanGroup/UAE loads it, imported and compared with peft."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import LATENT_SHAPE, SCENES_PROMPTS
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, Qwen2_5_VLForConditionalGeneration

from uae_lightning.cli import main
from uae_lightning.exchange import release, release_weights
from uae_lightning.exchange.release import import_release
from uae_lightning.exchange.release_weights import plain_name, qwen_name
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.sd3 import ATTENTION_PROJECTIONS, SD3Decoder
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import Conditioning

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


# ------------------------------------------------------------------------------------------------ what comes out


def test_encoder_is_the_released_one_under_peft(released, imported, images):
    # red without `self.state |= update`, or with rank and alpha of RELEASED_LORA swapped
    encoder = QwenVLEncoder(str(imported / "encoder"), **SCENES_PROMPTS)
    _, llm, _ = released
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(imported / "encoder")
    wanted = logits(llm, images, encoder)
    close(logits(encoder.model, images, encoder), wanted)
    close(logits(plain, images, encoder), wanted)
    start = Qwen2_5_VLForConditionalGeneration.from_pretrained(released[0] / "llm")
    assert (logits(start, images, encoder) - wanted).abs().max() > 0.1  # the LoRA matters


def test_projector_is_the_one_beside_the_adapter(released, imported):
    # red with 0 and 2 swapped in read_llm, or with the projector of `llm` taken in place of that of `llm_lora`
    states = torch.randn(2, 5, 192)
    close(MLPProjector(str(imported / "projector"))(states), released[1].projector(states))


def test_decoder_is_the_released_one_under_peft(released, imported):
    # red without rank_pattern in lora_config, or with a scheduler or pooled embedding that is not of the base
    _, _, dit = released
    decoder = SD3Decoder(str(imported / "decoder"), resolution=IMAGE_SIZE)
    pooled = load_file(released[0] / "SD3" / "pooled.safetensors")["pooled"]
    assert torch.equal(decoder.pooled, pooled) and decoder.scheduler.config.shift == 3.0
    wanted = velocity(dit, pooled)
    plain = SD3Transformer2DModel.from_pretrained(imported / "decoder" / "transformer")
    close(velocity(plain, pooled), wanted)
    x, states = torch.randn(1, *LATENT_SHAPE), torch.randn(1, 5, 24)
    with torch.no_grad():
        got = decoder.velocity(x, torch.tensor([0.5]), Conditioning(states, torch.ones(1, 5, dtype=torch.bool)))
        close(got, dit(x, states, pooled, torch.tensor([500.0])).sample)


def test_without_lora_the_models_are_those_before_rl(released, copied, tmp_path, images, imported):
    # red with `adapter is None` for `is not None`; and the adapters kept beside the merged ones are whole
    for adapter in ("llm_lora", "dit_lora"):
        shutil.rmtree(copied / adapter)
    import_release(copied, tmp_path / "sft", lora=False)
    assert not (tmp_path / "sft" / "adapters").exists()
    encoder = QwenVLEncoder(str(tmp_path / "sft" / "encoder"), **SCENES_PROMPTS)
    start = Qwen2_5_VLForConditionalGeneration.from_pretrained(copied / "llm")
    assert torch.equal(logits(encoder.model, images, encoder), logits(start, images, encoder))

    pooled = torch.ones(1, 8)
    dit = SD3Transformer2DModel.from_pretrained(tmp_path / "sft" / "decoder" / "transformer")
    close(
        velocity(PeftModel.from_pretrained(dit, imported / "adapters" / "decoder"), pooled),
        velocity(released[2], pooled),
    )
    names = {name for name, _ in released[1].named_parameters() if "lora_" in name}
    model = PeftModel.from_pretrained(start, imported / "adapters" / "encoder")
    kept = {qwen_name(name): value for name, value in model.named_parameters() if "lora_" in name}
    wanted = {qwen_name(name): value for name, value in released[1].named_parameters() if name in names}
    assert kept.keys() == wanted.keys() and all(torch.equal(kept[name], wanted[name]) for name in wanted)


# ------------------------------------------------------------------------------------------------ forms it can have


def up_to_451(name: str) -> str:
    """transformers up to 4.51: the vision tower beside `model`, the text model without a name of its own."""
    name = name.replace("model.base_model.model.language_model.", "model.base_model.model.")
    return name.replace("model.base_model.model.visual.", "visual.")


def saved_by_453(name: str) -> str:
    """save_pretrained of 4.52 and later undoes its renaming wherever in the name it finds it."""
    return re.sub(r"model\.visual", "visual", name).replace("model.language_model", "model")


@pytest.mark.parametrize("rename", [up_to_451, saved_by_453])
def test_names_of_every_transformers_find_their_layer(rename, released, copied, imported, tmp_path):
    # red without the second `(model\.)?` of plain_name, or without the line about `visual` in qwen_name
    shutil.rmtree(copied / "llm_lora")
    state = {rename(name): value for name, value in released[1].state_dict().items() if name != "lm_head.weight"}
    sharded(state, copied / "llm_lora", shards=1)
    import_release(copied, tmp_path / "uae")
    got, wanted = (load_file(folder / "encoder" / "model.safetensors") for folder in (tmp_path / "uae", imported))
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("base_model.model.layers.3.mlp.up_proj.lora_A.weight", "model.layers.3.mlp.up_proj.lora_A.weight"),
        ("base_model.model.model.language_model.norm.weight", "model.norm.weight"),
        ("base_model.model.visual.blocks.0.attn.qkv.lora_B.default.weight", "visual.blocks.0.attn.qkv.lora_B.weight"),
        ("model.base_model.model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("projector.0.weight", "projector.0.weight"),
    ],
)
def test_names(key, name):
    # red with `^` left out of the last expression
    assert qwen_name(key) == name


def test_decoder_names():
    key = "base_model.model.transformer_blocks.1.attn.to_out.0.base_layer.weight"
    assert plain_name(key) == "transformer_blocks.1.attn.to_out.0.weight"


def test_adapter_folder_of_peft_as_llm_lora(released, copied, imported, tmp_path):
    # red if its adapter_config.json is not read
    shutil.rmtree(copied / "llm_lora")
    released[1].model.save_pretrained(copied / "llm_lora")
    config = copied / "llm_lora" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 64', '"lora_alpha": 128'))
    import_release(copied, tmp_path / "uae")
    name = "model.layers.0.mlp.up_proj.weight"
    start, once, twice = (
        load_file(folder / "model.safetensors")[name]
        for folder in (copied / "llm", imported / "encoder", tmp_path / "uae" / "encoder")
    )
    close(twice - start, 2 * (once - start))


def test_shards_dtype_and_bin_files(released, copied, imported, tmp_path, monkeypatch):
    # red with the index under another name, with `.bin` files left out, or with the update added after the rounding
    monkeypatch.setattr(release_weights, "SHARD", "500KB")
    state = load_file(copied / "llm" / "model.safetensors")
    torch.save(state, copied / "llm" / "pytorch_model.bin")
    (copied / "llm" / "model.safetensors").unlink()
    import_release(copied, tmp_path / "uae", dtype=torch.bfloat16)
    assert len(list((tmp_path / "uae" / "encoder").glob("model-*.safetensors"))) > 2
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "uae" / "encoder")
    assert model.dtype == torch.bfloat16 and model.config.dtype == torch.bfloat16
    wanted = Qwen2_5_VLForConditionalGeneration.from_pretrained(imported / "encoder", dtype=torch.float32).state_dict()
    assert all(torch.equal(value, wanted[name].bfloat16()) for name, value in model.state_dict().items())
    assert MLPProjector(str(tmp_path / "uae" / "projector")).layers[1].weight.dtype is torch.float32  # as it computes


def test_pooled_embedding_comes_from_the_clip_text_encoders(copied, tmp_path):
    # red with the text encoders in the other order
    (copied / "SD3").rename(tmp_path / "base")
    (tmp_path / "base" / "pooled.safetensors").unlink()
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.json").write_text('{"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}')
    (words / "merges.txt").write_text("#version: 0.2\n")
    wanted = []
    for i, size in ((0, 3), (1, 5)):
        config = CLIPTextConfig(
            vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            projection_dim=size, max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
        model = CLIPTextModelWithProjection(config).eval()
        suffix = "_2" if i else ""
        model.save_pretrained(tmp_path / "base" / f"text_encoder{suffix}")
        tokenizer = CLIPTokenizer.from_pretrained(words, model_max_length=8)
        tokenizer.save_pretrained(tmp_path / "base" / f"tokenizer{suffix}")
        with torch.no_grad():
            wanted.append(model(torch.tensor([[1] + [2] * 7])).text_embeds)
    import_release(copied, tmp_path / "uae", base=tmp_path / "base", lora=False)
    close(load_file(tmp_path / "uae" / "decoder" / "pooled.safetensors")["pooled"], torch.cat(wanted, 1))


# ------------------------------------------------------------------------------------------------ what is refused


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
