"""A release, imported and compared with peft."""

from __future__ import annotations

import re
import shutil

import pytest
import small_release
import torch
from conftest import LATENT_SHAPE, SCENES_PROMPTS
from diffusers import SD3Transformer2DModel
from peft import PeftModel
from safetensors.torch import load_file
from small_release import close, logits, sharded, velocity
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, Qwen2_5_VLForConditionalGeneration

from uae_lightning.exchange import release_weights
from uae_lightning.exchange.release import import_release
from uae_lightning.exchange.release_weights import plain_name, qwen_name
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.qwen_vl import QwenVLEncoder
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.scenes.scene import IMAGE_SIZE
from uae_lightning.types import Conditioning

released, imported, copied = small_release.released, small_release.imported, small_release.copied


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
