"""Encoders that are no Qwen2.5-VL against what transformers computes with the same small random model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "conf"))
import small_encoders  # noqa: E402

from uae_lightning.algorithms.token_logprobs import gather_logprobs  # noqa: E402
from uae_lightning.models.intern_vl import InternVLEncoder  # noqa: E402
from uae_lightning.models.qwen3_5 import Qwen35Encoder  # noqa: E402
from uae_lightning.models.qwen3_vl import Qwen3VLEncoder  # noqa: E402
from uae_lightning.types import Captions, LoRA  # noqa: E402

FAMILIES = {
    "qwen3_vl": (Qwen3VLEncoder, small_encoders.save_qwen3_vl, hf.Qwen3VLForConditionalGeneration),
    "qwen3_5": (Qwen35Encoder, small_encoders.save_qwen3_5, hf.Qwen3_5ForConditionalGeneration),
    "intern_vl": (InternVLEncoder, small_encoders.save_intern_vl, hf.InternVLForConditionalGeneration),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(family)
    FAMILIES[family][1](folder)
    return folder


@pytest.fixture
def encoder(family, folder):
    return FAMILIES[family][0](str(folder), caption_prompt="describe the picture")


@pytest.fixture
def pictures(family) -> Tensor:
    """[3, 3, H, W]: of that size the model does not scale them."""
    size = (56, 56) if family == "intern_vl" else (64, 96)
    levels = torch.randint(256, (3, 3, *size), generator=torch.Generator().manual_seed(0))
    return levels.float() / 255


def generated(encoder, pictures: Tensor, length: int = 6) -> tuple[Captions, Tensor]:
    """Greedy captions by `generate` of transformers, and the logits [N, T, V] they come from."""
    inputs = encoder.prompt_inputs(pictures)
    out = encoder.model.generate(
        **inputs, do_sample=False, max_new_tokens=length, min_new_tokens=length, output_logits=True,
        return_dict_in_generate=True, suppress_tokens=encoder.never_sampled,
    )  # fmt: skip
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    return Captions([""] * len(tokens), tokens, torch.ones_like(tokens, dtype=torch.bool)), torch.stack(out.logits, 1)


def test_patches_and_prompt_are_those_of_the_processor(family, encoder, pictures):
    # red with another order in the reshape, mean or side of the patches, or one image token too few
    pil = [Image.fromarray((p.permute(1, 2, 0) * 255).round().byte().numpy()) for p in pictures]
    wanted = encoder.preprocessor(pil, return_tensors="pt")
    inputs = encoder.prompt_inputs(pictures)
    torch.testing.assert_close(inputs["pixel_values"], wanted["pixel_values"].float(), atol=1e-5, rtol=1e-5)
    if family != "intern_vl":
        assert torch.equal(inputs["image_grid_thw"], wanted["image_grid_thw"])
        count = int(wanted["image_grid_thw"][0].prod()) // encoder.preprocessor.merge_size**2
    else:
        count = 4
        text = encoder.tokenizer.decode(inputs["input_ids"][0])
        assert "".join(text.split()).count("<img>" + 4 * "<IMG_CONTEXT>" + "</img>") == 1
    assert (inputs["input_ids"] == encoder.model.config.image_token_id).sum(1).tolist() == [count] * 3


def test_logprobs_are_those_of_generate(encoder, pictures):
    # red without the features for the first layers, with positions off by one, or the prompt's last state left out
    captions, raw = generated(encoder, pictures)
    raw[..., encoder.never_sampled] = -torch.inf
    with torch.no_grad():
        replayed, entropy = encoder.token_logprobs(pictures, captions, temperature=1.0)
        cached = encoder.token_logits(encoder.see(pictures)[torch.tensor([1, 2])], Captions(
            [""] * 2, captions.tokens[1:], captions.mask[1:]
        ))  # fmt: skip
    torch.testing.assert_close(replayed, gather_logprobs(raw, captions.tokens), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gather_logprobs(cached, captions.tokens[1:]), replayed[1:], atol=1e-4, rtol=1e-4)
    assert (entropy > 0).all()


def test_captions_are_those_of_generate(encoder, pictures):
    # red with positions of generated tokens that do not go on from the picture's
    captions, _ = generated(encoder, pictures)
    own = encoder.generate(pictures, samples=1, temperature=0.0, max_new_tokens=6, seed=0)
    for row, mask, wanted in zip(own.tokens, own.mask, captions.tokens, strict=True):
        assert row[mask].tolist() == wanted[: mask.sum()].tolist()
    sampled = encoder.generate(pictures, samples=2, temperature=1.0, max_new_tokens=6, seed=1)
    with torch.no_grad():
        logp, _ = encoder.token_logprobs(pictures, sampled, temperature=1.0)
    torch.testing.assert_close(logp[sampled.mask], sampled.logp[sampled.mask], atol=1e-4, rtol=1e-4)


def test_texts_are_read_alone_as_transformers_reads_them(encoder):
    # red with padding on the left or not masked, or a role that the chat template drops
    texts = ["red cat", "the background is sand . there is one object ."]
    states, mask = encoder.embed(texts)
    for text, row, kept in zip(texts, states, mask, strict=True):
        inputs = encoder.tokenizer(encoder.generate_prompt(text), return_tensors="pt")
        with torch.no_grad():
            wanted = encoder.model.model(**inputs).last_hidden_state[0]
        torch.testing.assert_close(row[kept], wanted, atol=1e-5, rtol=1e-4)
    assert "red cat" in encoder.generate_prompt("red cat")


def test_lora_is_learned_saved_and_read_by_transformers_and_peft(family, folder, encoder, pictures, tmp_path):
    # red with targets in the vision tower, or an update that is not merged
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    kind, _, library = FAMILIES[family]
    captions, _ = generated(encoder, pictures)
    adapted = kind(str(folder), caption_prompt="describe the picture", checkpoint_activations=True)
    adapted.adapt(LoRA(rank=4, alpha=8))
    adapted.token_logprobs(pictures, captions, temperature=1.0)[0].sum().backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name and "language_model" in name for name in trained)
    assert all(p.grad is not None for p in trained.values())
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        start, changed = (e.token_logits(pictures, captions) for e in (encoder, adapted))
        assert not torch.allclose(changed, start, atol=1e-2)
        with adapted.reference():
            torch.testing.assert_close(adapted.token_logits(pictures, captions), start)
        adapted.save(tmp_path)
        again = kind(str(tmp_path), caption_prompt="describe the picture")
        torch.testing.assert_close(again.token_logits(pictures, captions), changed, atol=1e-4, rtol=1e-4)
        inputs = {"input_ids": captions.tokens}
        merged = library.from_pretrained(tmp_path)(**inputs).logits
        targets = sorted({name.split(".lora_")[0].removeprefix("model.") for name in trained})
        foreign = get_peft_model(library.from_pretrained(folder), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        state = {f"base_model.model.{k}": v for k, v in load_file(tmp_path / "adapter_model.safetensors").items()}
        assert not set_peft_model_state_dict(foreign, state).unexpected_keys
        torch.testing.assert_close(foreign.eval()(**inputs).logits, merged, atol=1e-4, rtol=1e-4)


def test_a_block_of_the_tower_is_seen_by_place(encoder, family, pictures):
    # red if patches are merged in another order than the tower merges them, or a class token is counted as a place
    seen, block = encoder.see_block(pictures, len(encoder.vision_blocks()) - 1)
    assert block.shape == (*seen.features.shape[:2], encoder.block_width(1))
    model = encoder.model.model
    merged = model.multi_modal_projector(block) if family == "intern_vl" else model.visual.merger(block.view(-1, 32))
    torch.testing.assert_close(merged.view_as(seen.features), seen.features, atol=1e-5, rtol=1e-5)
