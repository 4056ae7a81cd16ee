"""One backbone that reads and draws: small random Janus against transformers, and its stages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GenerationConfig

sys.path.append(str(Path(__file__).parents[1] / "conf"))
import small_encoders  # noqa: E402

from uae_lightning.algorithms import flow  # noqa: E402
from uae_lightning.autoencoder import Captioning, OneBackbone  # noqa: E402
from uae_lightning.models.janus import JanusEncoder, padded_on_the_left  # noqa: E402
from uae_lightning.stages.decoder_pretrain import DecoderPretrain  # noqa: E402
from uae_lightning.stages.encoder_rl import EncoderRL  # noqa: E402
from uae_lightning.types import Batch, Conditioning, Learn, LoRA, RewardOutput, Sampling  # noqa: E402

TEXTS = ["a large red cat in the center", "a dog"]
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("janus")
    small_encoders.save_janus(folder)
    return folder


def one_backbone(folder: Path, **options) -> OneBackbone:
    encoder = JanusEncoder(str(folder), caption_prompt="describe the picture", caption_system="", generate_system="")
    return OneBackbone(encoder, Captioning(1.0, 5), **{"sampling": Sampling(1, 3.0)} | options)


@pytest.fixture
def model(folder) -> OneBackbone:
    return one_backbone(folder)


@pytest.fixture
def pictures() -> Tensor:
    levels = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return levels.float() / 255


# ------------------------------------------------------------------------------------------------ as transformers


def test_captions_are_those_of_transformers(model, pictures):
    # red with another place of the picture in the prompt, other positions, or pictures normalized otherwise
    encoder = model.encoder
    inputs = encoder.prompt_inputs(pictures)
    ours = encoder.generate(pictures, samples=1, temperature=0.0, max_new_tokens=5, seed=0)
    theirs = encoder.model.generate(
        **inputs, do_sample=False, max_new_tokens=5, suppress_tokens=encoder.never_sampled, pad_token_id=encoder.pad
    )[:, inputs["input_ids"].shape[1] :]
    length = theirs.shape[1]
    torch.testing.assert_close(ours.tokens[:, :length][ours.mask[:, :length]], theirs[ours.mask[:, :length]])
    logp, _ = encoder.token_logprobs(pictures, ours, temperature=1.0)
    assert logp.shape == ours.tokens.shape and logp.isfinite().all()


@pytest.mark.parametrize("guidance", [1.5, 5.0])  # at 1 transformers' own loop breaks off
def test_codes_have_the_chances_that_transformers_draws_them_by(model, guidance):
    # red with another prefix, other positions, words in the guidance branch, or the text's head in place of the codes'
    encoder, decoder, token = model.encoder, model.decoder, model.encoder.tokenizer.convert_tokens_to_ids
    read = model.read(TEXTS[:1])
    prompt = encoder.tokenizer(encoder.generate_prompt(TEXTS[0]) + "<begin_of_image>", return_tensors="pt")
    how = GenerationConfig(
        do_sample=True, guidance_scale=guidance, max_length=100, pad_token_id=encoder.pad, bos_token_id=token("<bos>")
    )
    how.generation_kwargs = {"boi_token_id": token("<begin_of_image>")}
    torch.manual_seed(5)
    codes = encoder.model.generate(**prompt, generation_mode="image", generation_config=how)
    with torch.no_grad():
        found = decoder.scores(read, codes)
        without = decoder.scores(Conditioning(encoder.nothing(read.mask), read.mask), codes)
    chances = flow.guide(found, without, guidance).softmax(-1)
    torch.manual_seed(5)
    again = torch.cat([torch.multinomial(one, 1) for one in chances.unbind(1)], 1)
    assert torch.equal(again, codes) and len(codes.unique()) > 2
    pixels = decoder.decode_latents(decoder.codec.latents_of(codes))
    wanted = encoder.model.decode_image_tokens(codes).permute(0, 3, 1, 2)
    torch.testing.assert_close(pixels, (wanted / 2 + 0.5).clamp(0, 1))


def test_a_picture_is_a_function_of_its_noise_and_its_text(model):
    # red if chances are not cumulated alike in drawing and scoring, padding reaches the picture, or a cache is shared
    decoder, noise = model.decoder, model.noise(2, seed=3)
    both = model.read(TEXTS)
    drawn = model.draw_latents(both, noise)
    assert torch.equal(drawn, model.draw_latents(both, noise))
    alone = model.draw_latents(model.read(TEXTS[1:]), noise[1:])
    torch.testing.assert_close(drawn[1:], alone)
    assert not torch.equal(drawn, model.draw_latents(both, model.noise(2, seed=4)))
    model.sampling = Sampling(1, 1.0)
    codes = decoder.codec.codes_of(model.draw_latents(both, noise))
    with torch.no_grad():
        cumulated = decoder.scores(both, codes).softmax(-1).cumsum(-1)
    at = torch.distributions.Normal(0.0, 1.0).cdf(noise[:, 0].flatten(1))
    assert torch.equal((cumulated < at[..., None]).sum(-1), codes)
    assert model.decoder.evaluations(Sampling(1, 3.0)) == 32


def test_left_and_right():
    # red if columns are rolled the other way
    states, mask = torch.arange(1.0, 7).view(2, 3, 1), torch.tensor([[True, True, False], [True] * 3])
    found, there = padded_on_the_left(Conditioning(states, mask))
    assert found[0, 1:, 0].tolist() == [1, 2] and there[0].tolist() == [False, True, True]
    assert found[1, :, 0].tolist() == [4, 5, 6]


def test_dropped_texts_become_prompts_without_words(model, pictures):
    # red if a zero state stands where padding should
    decoder, read = model.decoder, model.read(TEXTS)
    dropped = read.drop(torch.tensor([False, True]))
    found = decoder.without_dropped(dropped)
    assert torch.equal(found.states[0], read.states[0]) and found.mask[1].all()
    torch.testing.assert_close(found.states[1:], model.encoder.nothing(found.mask[1:]))


# ------------------------------------------------------------------------------------------------ weights, once


def test_weights_have_one_name_and_one_owner(model):
    # red if a view registers the backbone, or a stage hands it on twice
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder"}
    assert not [*model.decoder.parameters(), *model.projector.parameters()]
    assert model.owners(("projector", "decoder")) == ("encoder",) == model.owners(("encoder",))


def data(pictures: Tensor) -> DataLoader:
    batch = Batch(pictures[:2], TEXTS, ["a", "b"])
    return DataLoader([batch] * 8, batch_size=None)


def pretraining(folder: Path, **options) -> DecoderPretrain:
    torch.manual_seed(0)  # adapters are drawn from it
    learn = Learn(decoder=LoRA(4, 8))
    optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)  # noqa: E731
    return DecoderPretrain(one_backbone(folder), learn=learn, optimizer=optimizer, **options)


def trainer(steps: int, **options) -> L.Trainer:
    return L.Trainer(max_steps=steps, max_epochs=-1, limit_val_batches=0, accelerator="cpu", **QUIET | options)


def test_stage_1_lowers_the_cross_entropy_and_resumes(folder, pictures, tmp_path):
    # red if the loss is of other codes than the picture's, adapters are lost in a checkpoint, or drawn anew
    stage = pretraining(folder)
    losses = []
    stage.log = lambda name, value, **options: losses.append(value.item()) if name == "train/loss" else None
    whole = trainer(6)
    whole.fit(stage, data(pictures))
    assert losses[-1] < losses[0] and 1.5 < losses[0] < 20
    trained = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name and ".language_model." in name for name in trained)
    first = trainer(3)
    first.fit(pretraining(folder), data(pictures))
    first.save_checkpoint(tmp_path / "half.ckpt")
    assert all(name in trained or "." not in name for name in torch.load(tmp_path / "half.ckpt")["state_dict"])
    again = pretraining(folder)
    trainer(6).fit(again, data(pictures), ckpt_path=tmp_path / "half.ckpt")
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, dict(stage.named_parameters())[name])


def test_both_stages_hand_on_one_backbone(folder, pictures, tmp_path):
    # red if what is handed on is not what was trained, in reading or in drawing, or encoder RL moves anything else
    stage = pretraining(folder)
    trainer(2).fit(stage, data(pictures))
    (name,) = stage.hands_on
    getattr(stage, name).hand_on(tmp_path / "weights" / name)
    files = load_file(tmp_path / "weights/encoder/adapter_model.safetensors")
    assert files and json.loads((tmp_path / "weights/encoder/base.json").read_text())["base"].endswith(folder.name)
    again, noise = one_backbone(tmp_path / "weights/encoder"), stage.autoencoder.noise(2, 1)
    with torch.no_grad():
        read = stage.autoencoder.read(TEXTS)
        codes = stage.decoder.codec.codes_of(stage.autoencoder.draw_latents(read, noise))
        torch.testing.assert_close(
            again.decoder.scores(read, codes), stage.decoder.scores(read, codes), atol=1e-4, rtol=0
        )
    rl = EncoderRL(
        again, learn=Learn(encoder=LoRA(4, 8)), group_size=2, micro_batch=2, kl_beta=1e-3,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )  # fmt: skip
    rl.score = lambda inputs: RewardOutput((found := inputs.reconstructions.mean((1, 2, 3))), {"light": found})
    before = {name: parameter.detach().clone() for name, parameter in rl.named_parameters()}
    trainer(2).fit(rl, data(pictures))
    moved = {name for name, parameter in rl.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved and all("lora_" in name for name in moved) and rl.hands_on == ("encoder",)


def test_condition_on_frozen_draws_without_adapters(folder):
    # red if drawing goes through the adapters that encoder RL trains
    model = one_backbone(folder, condition_on="frozen")
    model.encoder.adapt(LoRA(4, 8))
    read, noise = model.read(TEXTS), model.noise(2, 1)
    before = model.draw_latents(read, noise)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data.normal_(std=1.0)
    assert torch.equal(model.draw_latents(read, noise), before)
    model.condition_on = "adapted"
    assert not torch.equal(model.draw_latents(read, noise), before)


def test_what_one_backbone_cannot(folder):
    # red if both halves are adapted, the second on top of the first, or a stage regresses on codes
    lora = LoRA(4, 8)
    with pytest.raises(ValueError, match="one backbone, which learns once"):
        model = one_backbone(folder)
        model.encoder.adapt(lora)
        model.decoder.adapt(lora)
    with pytest.raises(ValueError, match="set model.init_args.learn.projector to null"):
        DecoderPretrain(one_backbone(folder), learn=Learn(projector="all"))
    model = one_backbone(folder)
    with pytest.raises(ValueError, match="there is nothing to regress on"):
        noise = model.noise(2, 0)
        model.decoder.regression(noise, model.read(TEXTS), noise, torch.ones(2))
