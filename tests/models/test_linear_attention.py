"""Qwen3.5's states, and what padding, groups and rows that leave must not do to them; see test_encoder_families too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "conf"))
import small_encoders  # noqa: E402

from uae_lightning.algorithms.token_logprobs import gather_logprobs  # noqa: E402
from uae_lightning.models.qwen3_5 import Qwen35Encoder  # noqa: E402
from uae_lightning.types import Captions, LoRA  # noqa: E402

PROMPTS = ["red cat", "the background is sand . there is one object .", "bus"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen3_5")
    small_encoders.save_qwen3_5(folder)
    return folder


def encoder_of(folder: Path, **options) -> Qwen35Encoder:
    return Qwen35Encoder(str(folder), caption_prompt="describe the picture", **options)


def never(encoder: Qwen35Encoder, logits: Tensor) -> Tensor:
    return logits.index_fill(-1, torch.tensor(encoder.never_sampled), torch.finfo(logits.dtype).min)


def by_transformers(encoder: Qwen35Encoder, asked, captions: Captions, temperature: float) -> list[Tensor]:
    """Log-probabilities of each caption behind its prompt, alone and without padding, in one pass of the model."""
    rows, copies = [], len(captions.tokens) // len(asked)
    for row, (tokens, kept) in enumerate(zip(captions.tokens, captions.mask, strict=True)):
        prompt = asked.tokens[row // copies][asked.mask[row // copies]]
        whole = torch.cat([prompt, tokens[kept]])[None]
        logits = encoder.model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1]
        rows.append(gather_logprobs(never(encoder, logits), tokens[kept], temperature=temperature))
    return rows


def test_sampled_captions_of_prompts_of_several_lengths_are_those_of_transformers(folder):
    # red with prompts padded on the right, positions that count padding, or rows that leave without their states
    encoder = encoder_of(folder)
    encoder.ends += range(20, 40)  # so that captions end, which makes them leave the batch
    batch = encoder.rewrite(PROMPTS, samples=6, temperature=1.5, max_new_tokens=30, seed=3)
    assert len(set(batch.lengths.tolist())) > 6
    with torch.no_grad():
        wanted = by_transformers(encoder, encoder.ask(PROMPTS), batch, 1.5)
    for logp, kept, alone in zip(batch.logp, batch.mask, wanted, strict=True):
        torch.testing.assert_close(logp[kept], alone, atol=1e-4, rtol=1e-4)


def test_greedy_captions_are_those_of_generate_whatever_stands_beside(folder):
    # red if padding of a shorter prompt enters the state, or the convolution sees it
    encoder = encoder_of(folder)
    together = encoder.rewrite(PROMPTS, samples=1, temperature=0.0, max_new_tokens=12, seed=0)
    asked = encoder.ask(PROMPTS)
    padded = encoder.model.generate(
        input_ids=asked.tokens, attention_mask=asked.mask.long(), do_sample=False, max_new_tokens=12,
        eos_token_id=encoder.ends, pad_token_id=encoder.pad, suppress_tokens=encoder.never_sampled,
    )[:, asked.tokens.shape[1] :]  # fmt: skip
    for row, prompt in enumerate(PROMPTS):
        alone = encoder.rewrite([prompt], samples=1, temperature=0.0, max_new_tokens=12, seed=0)
        said = together.tokens[row][together.mask[row]]
        assert said.tolist() == alone.tokens[0][alone.mask[0]].tolist() == padded[row][: len(said)].tolist()


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_prompt_that_is_read_once_changes_neither_values_nor_gradients(folder, light, length):
    # red if states are detached, the copies do not stand side by side, or what is scored is written into the prefix:
    # activation checkpointing runs a block again, and a single token goes another way than several
    tokens = torch.randint(10, 90, (4, length), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(length).expand(4, -1) < torch.tensor([9, 7, 1, 3])[:, None]
    captions, results = Captions([""] * 4, tokens, mask), []
    for path in ("alone", "shared"):
        torch.manual_seed(1)  # of the adapters
        encoder = encoder_of(folder, checkpoint_activations=light)
        encoder.adapt(LoRA(rank=4))
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        asked = encoder.ask(PROMPTS[:2])
        if path == "alone":
            logp = torch.cat(by_transformers(encoder, asked, captions, 0.8))
        else:
            logp = encoder.token_logprobs(asked, captions, temperature=0.8)[0][mask]
        logp.sum().backward()
        results.append((logp.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}))
    (alone, of_alone), (shared, of_shared) = results
    torch.testing.assert_close(shared, alone, atol=1e-4, rtol=1e-4)
    for name, gradient in of_alone.items():
        assert (of_shared[name] - gradient).norm() < 1e-3 * gradient.norm() + 1e-6, name


def test_adapters_are_on_the_projections_of_linear_attention(folder):
    # red with the targets of Qwen3-VL, or with the two projections that give a number per head
    encoder = encoder_of(folder)
    encoder.adapt(LoRA(rank=4))
    adapted = {
        name.split(".lora_")[0].split(".layers.")[1] for name, p in encoder.named_parameters() if "lora_" in name
    }
    linear, full = ({name[2:] for name in adapted if name.startswith(f"{layer}.")} for layer in (0, 3))
    assert linear == {f"linear_attn.{n}" for n in ("in_proj_qkv", "in_proj_z", "out_proj")} | {
        f"mlp.{n}_proj" for n in ("gate", "up", "down")
    }
    assert full == {f"self_attn.{n}_proj" for n in "qkvo"} | {f"mlp.{n}_proj" for n in ("gate", "up", "down")}


def test_it_is_told_not_to_think(folder):
    # red without chat_options: captions would be thoughts, which the template opens
    encoder = encoder_of(folder)
    for text in (encoder.prompt, encoder.generate_prompt("red cat")):
        assert text.endswith("<think>\n\n</think>\n\n")


def test_what_predicts_further_tokens_is_left_unread(folder, tmp_path):
    # red if tensors that no module of the class has were an error: the hub's files have those of multi-token prediction
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"mtp.fc.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors", {"format": "pt"})
    texts = ["red cat"]
    assert torch.equal(encoder_of(tmp_path).embed(texts)[0], encoder_of(folder).embed(texts)[0])
