import shutil

import numpy as np
import pytest
import torch
from conftest import SCENES_PROMPTS
from PIL import Image
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

from uae_lightning.algorithms.token_logprobs import entropy, gather_logprobs
from uae_lightning.types import Captions, LoRA


def test_patches_are_those_of_the_image_processor(make_encoder, images):
    # red if `merge` and `side` are swapped in the reshape, or mean and std in the normalisation
    encoder = make_encoder()
    pil = [Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in images]
    wanted = encoder.preprocessor(pil, return_tensors="pt")
    patches, grid = encoder.patchify(images)
    assert torch.equal(grid, wanted["image_grid_thw"])
    colours = patches.unflatten(1, (5, -1))[:, :3].flatten(1)  # two more channels hold the place
    torch.testing.assert_close(colours, wanted["pixel_values"].float(), atol=1e-5, rtol=1e-5)


def test_resized_patches_are_those_of_the_image_processor(make_encoder):
    # red if `patchify` resizes by `interpolate`, which cuts overshoot off only once: 20 levels here
    encoder = make_encoder()
    images = torch.randint(2, (1, 1, 90, 90), generator=torch.Generator().manual_seed(0)).expand(1, 3, 90, 90).float()
    pil = Image.fromarray((images[0].permute(1, 2, 0) * 255).byte().numpy())
    wanted = encoder.preprocessor(pil, return_tensors="pt")["pixel_values"]
    patches, _ = encoder.patchify(images)
    colors = patches.unflatten(1, (5, -1))[:, :3].flatten(1)
    assert (colors - wanted).abs().max() * max(encoder.preprocessor.image_std) < 1.5 / 255


def test_teacher_forced_logprobs_are_those_of_generation(make_encoder, images):
    # red if positions are off by one, or the prompt's last logit is left out
    encoder = make_encoder()
    inputs = encoder.prompt_inputs(images)
    out = encoder.model.generate(
        **inputs, do_sample=False, max_new_tokens=6, min_new_tokens=6, output_logits=True, return_dict_in_generate=True,
        suppress_tokens=encoder.never_sampled,
    )  # fmt: skip
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    captions = Captions([""] * 4, tokens, torch.ones_like(tokens, dtype=torch.bool))
    with torch.no_grad():
        replayed = gather_logprobs(encoder.token_logits(images, captions), tokens)
    raw = torch.stack(out.logits, 1)
    raw[..., encoder.never_sampled] = -torch.inf
    generated = gather_logprobs(raw, tokens)
    torch.testing.assert_close(replayed, generated, atol=1e-4, rtol=1e-4)


def test_padding_after_a_caption_changes_nothing(make_encoder, images):
    # red if the attention mask leaves out `mask`
    encoder = make_encoder()
    tokens = torch.randint(10, 90, (4, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(8).expand(4, 8) < torch.tensor([[8], [5], [3], [1]])
    with torch.no_grad():
        clean = encoder.token_logits(images, Captions([""] * 4, tokens.where(mask, 0), mask))
        dirty = encoder.token_logits(images, Captions([""] * 4, tokens.where(mask, 33), mask))
    assert torch.equal(clean[mask], dirty[mask])


def test_generation_repeats_and_leaves_the_global_random_state(make_encoder, images):
    # red if the seed is not set, or the state not forked
    encoder = make_encoder()
    before = torch.get_rng_state()
    options = {"samples": 2, "temperature": 1.0, "max_new_tokens": 12}
    first, again = (encoder.generate(images, seed=1, **options) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.tokens, again.tokens) and len(first.texts) == 8
    assert not torch.equal(first.tokens, encoder.generate(images, seed=2, **options).tokens)


def test_mask_ends_with_the_first_end_of_text(make_encoder, images):
    # red if `ended == 1` is left out of the mask
    encoder = make_encoder()
    captions = encoder.generate(images, samples=8, temperature=3.0, max_new_tokens=60, seed=0)
    for tokens, mask in zip(captions.tokens, captions.mask, strict=True):
        kept = tokens[mask].tolist()
        assert not set(encoder.ends) & set(kept[:-1])
        assert len(kept) == 60 or kept[-1] in encoder.ends
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_states_of_a_caption_do_not_depend_on_its_neighbours(make_encoder):
    # red if padding is on the left, or not masked
    encoder = make_encoder()
    together, mask = encoder.embed(["red cat", "the background is sand . there is one object ."])
    alone, _ = encoder.embed(["red cat"])
    torch.testing.assert_close(together[0, mask[0]], alone[0], atol=1e-5, rtol=1e-5)


def test_template_is_generate_and_has_no_unknown_words(make_encoder):
    encoder = make_encoder()
    prompt = encoder.generate_prompt("red cat")
    assert "generate" in prompt and prompt.endswith("assistant\n")
    assert encoder.tokenizer.unk_token_id not in encoder.tokenizer(prompt)["input_ids"]


def test_lora_is_on_the_text_decoder_alone_and_reference_is_the_start(make_encoder, images):
    # red if TEXT_LINEARS matches the vision tower, or `reference` does not switch adapters off
    encoder, plain = make_encoder(LoRA(rank=4, alpha=8)), make_encoder()
    names = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert names and all("language_model" in name and "lora_" in name for name in names)
    torch.nn.init.normal_(encoder.model.model.language_model.layers[0].mlp.up_proj.lora_B["default"].weight)
    changed, start = encoder.embed(["red cat"])[0], plain.embed(["red cat"])[0]
    assert not torch.allclose(changed, start, atol=1e-3)
    with encoder.reference():
        assert torch.equal(encoder.embed(["red cat"])[0], start)
    assert torch.equal(encoder.embed(["red cat"])[0], changed)


def test_saved_encoder_has_the_adapters_merged_and_loads_in_transformers(make_encoder, images, tmp_path):
    # red if `MergedState` forgets the update
    encoder = make_encoder(LoRA(rank=4, alpha=8))
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    encoder.save(tmp_path)
    states = encoder.embed(["red cat"])[0]
    again = type(encoder)(str(tmp_path), generate_system="", caption_system="", caption_prompt="describe the picture")
    torch.testing.assert_close(again.embed(["red cat"])[0], states, atol=1e-4, rtol=1e-4)
    Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_placeholders_of_pictures_are_never_sampled(make_encoder, images):
    # red if `suppress_tokens` is left out: a random policy samples one in about fifty tokens
    captions = make_encoder().generate(images, samples=8, temperature=5.0, max_new_tokens=30, seed=0)
    encoder = make_encoder()
    assert not torch.isin(captions.tokens[captions.mask], torch.tensor(encoder.never_sampled)).any()
    with torch.no_grad():
        logits = encoder.token_logits(images.repeat_interleave(8, 0), captions)
    assert logits.softmax(-1)[..., encoder.never_sampled].max() == 0


def test_missing_folder_is_named():
    from uae_lightning.models.qwen_vl import QwenVLEncoder

    with pytest.raises(FileNotFoundError, match="nowhere"):
        QwenVLEncoder("nowhere/at/all")


def test_numpy_is_not_seeded_by_generation(make_encoder, images):
    state = np.random.get_state()[1].copy()
    make_encoder().generate(images, samples=1, temperature=1.0, max_new_tokens=2, seed=0)
    assert (np.random.get_state()[1] == state).all()


def test_captions_are_sampled_from_the_policy_alone(parts_folder, make_encoder, images, tmp_path):
    # red if the model keeps the generation_config of its folder, or `save` forgets it
    shutil.copytree(parts_folder / "encoder", tmp_path / "encoder")
    penalty = GenerationConfig(do_sample=True, repetition_penalty=5.0, min_p=0.5)
    penalty.save_pretrained(tmp_path / "encoder")
    options = {"samples": 2, "temperature": 1.0, "max_new_tokens": 20, "seed": 0}
    plain, other = make_encoder(), type(make_encoder())(str(tmp_path / "encoder"), **SCENES_PROMPTS)
    assert torch.equal(plain.generate(images, **options).tokens, other.generate(images, **options).tokens)
    other.save(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").repetition_penalty == 5.0


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_captions_are_those_of_transformers_generate(make_encoder, images, temperature):
    # red if `position + index` is off by one, `index_select` of the cache keeps other rows than `running`, or the noise
    # is drawn for the running rows only; its first token comes from the prompt that is read once per picture
    encoder, samples = make_encoder(), 24
    inputs = encoder.prompt_inputs(images)
    sampling = {"do_sample": True, "temperature": temperature, "num_return_sequences": samples}
    torch.manual_seed(5)
    with torch.no_grad():
        sequences = encoder.model.generate(
            **inputs, **(sampling if temperature else {"do_sample": False}), top_k=0, max_new_tokens=40,
            suppress_tokens=encoder.never_sampled, eos_token_id=encoder.ends, pad_token_id=encoder.pad,
        )[:, inputs["input_ids"].shape[1] :]  # fmt: skip
    if temperature == 0:
        sequences = sequences.repeat_interleave(samples, 0)
    captions = encoder.generate(images, samples=samples, temperature=temperature, max_new_tokens=40, seed=5)
    assert torch.equal(captions.tokens, sequences)
    assert temperature == 0 or len(set(captions.lengths.tolist())) > 5  # some have left the batch before others


def whole_sequences(encoder, images, captions):
    """Logits of the captions as transformers' documentation has it: prompt, picture and caption in one sequence."""
    copies = len(captions.tokens) // len(images)
    inputs = encoder.prompt_inputs(images.repeat_interleave(copies, 0))
    length = captions.tokens.shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], captions.tokens], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], captions.mask.long()], 1)
    inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, length))
    encoder.model.model.rope_deltas = None
    logits = encoder.model(**inputs, use_cache=False).logits[:, -length - 1 : -1]
    never = torch.tensor(encoder.never_sampled)
    return logits.index_fill(-1, never, torch.finfo(logits.dtype).min)


@pytest.mark.parametrize("light", [False, True])
def test_a_prompt_that_is_read_once_changes_neither_values_nor_gradients(make_encoder, images, light, monkeypatch):
    # red if `position` is off by one, `copies` are not next to each other, the prompt's keys are detached, or
    # FixedPrefix keeps what it is given (with activation checkpointing a block is run again in the backward pass)
    tokens = torch.randint(10, 90, (8, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9).expand(8, 9) < torch.tensor([9, 7, 5, 9, 1, 2, 8, 3])[:, None]
    captions = Captions([""] * 8, tokens, mask)
    results = []
    for path in ("whole", "shared"):
        torch.manual_seed(0)
        encoder = make_encoder(LoRA(rank=4), checkpoint_activations=light)
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        if path == "whole":
            logp = gather_logprobs(whole_sequences(encoder, images, captions), tokens, temperature=0.8)
        else:
            if light:
                monkeypatch.setattr("uae_lightning.models.qwen_vl.LOGITS", 1000)  # chunks of a few tokens
            logp, entropies = encoder.token_logprobs(images, captions, temperature=0.8)
            wanted = entropy(encoder.token_logits(images, captions).detach(), temperature=0.8)
            torch.testing.assert_close(entropies, wanted, atol=1e-5, rtol=1e-5)
            assert entropies.requires_grad
        (logp * mask).sum().backward()
        results.append((logp.detach()[mask], {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}))
    (whole, of_whole), (shared, of_shared) = results
    torch.testing.assert_close(shared, whole, atol=1e-4, rtol=1e-4)
    for name, gradient in of_whole.items():
        assert (of_shared[name] - gradient).norm() < 1e-3 * gradient.norm(), name


def test_captions_that_fit_no_picture_are_refused(make_encoder, images):
    # red if `divmod` is replaced by `//`
    tokens = torch.full((5, 3), 10)
    with pytest.raises(ValueError, match="5 captions.*4 pictures"):
        make_encoder().token_logits(images, Captions([""] * 5, tokens, tokens > 0))


def test_what_it_saves_does_not_depend_on_what_it_has_read(make_encoder, tmp_path):
    # red without no_padding in save: tokenizer.json would hold how the last texts were padded
    encoder = make_encoder()
    encoder.save(tmp_path / "fresh")
    encoder.embed(["a large red ball", "a ball"])
    encoder.save(tmp_path / "used")
    files = [(tmp_path / folder / "tokenizer.json").read_bytes() for folder in ("fresh", "used")]
    assert files[0] == files[1] and b'"padding": null' in files[0]
