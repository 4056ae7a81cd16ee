"""ColdStart: the gradient through sampler and codec is a real one, reaches every part, and trains what it should."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_stages as small
import torch
import yaml
from staged import staged
from torch import Tensor

from callbacks import RewardCallback
from uae_lightning.autoencoder import Captioning
from uae_lightning.cli import main
from uae_lightning.interfaces import Reward
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.stages.cold_start import ColdStart
from uae_lightning.types import Batch, Learn, RewardInput, RewardOutput, Sampling

ROOT = Path(__file__).parents[2]
STEPS = 3


class Closeness(Reward):
    """Smooth in the pixels, so that finite differences are sharp."""

    def forward(self, inputs: RewardInput) -> RewardOutput:
        total = 1 - (inputs.originals - inputs.reconstructions).square().mean((1, 2, 3))
        return RewardOutput(total, {"closeness": total})


@pytest.fixture
def make_cold(make_encoder, make_projector, make_decoder):
    def make(gradient_steps: int = STEPS, reward: Reward | None = None, **options) -> ColdStart:
        defaults = {
            "learn": Learn(encoder=small.SMALL, projector="all", decoder=small.SMALL),
            "captioning": Captioning(1.0, 10),
            "sampling": Sampling(STEPS),
            "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
            "gradient_steps": gradient_steps,
        }
        torch.manual_seed(0)  # adapters
        stage = staged(ColdStart, make_encoder(), make_projector(), make_decoder(), **(defaults | options))
        for name, parameter in stage.named_parameters():  # B starts at 0, where A has no gradient
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
        stage.score = RewardCallback(reward or Closeness(), micro_batch=3).score
        stage.log = lambda *_, **__: None
        return stage

    return make


@pytest.fixture
def batch() -> Batch:
    return next(iter(small.ScenesData(batch_size=2).train_dataloader()))


def trained(stage: ColdStart) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in stage.named_parameters() if parameter.requires_grad}


def gradients(stage: ColdStart, batch: Batch) -> dict[str, Tensor]:
    """Of one training step."""
    loss = stage.training_step(batch, 0)
    names, values = zip(*trained(stage).items(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, values), strict=True))


@pytest.mark.parametrize(("part", "size"), [("encoder", 3e-4), ("projector", 1e-2), ("decoder", 1e-2)])
def test_the_gradient_is_that_of_finite_differences(make_cold, batch, part: str, size: float):
    # red with the encoder's path cut (`into_encoder` left out of `draw`, or no_grad on AutoEncoder.embed), with
    # no_grad on a step, or with a loss that scales pixels in the forward pass alone
    stage = make_cold()
    found = {name: value for name, value in gradients(stage, batch).items() if name.startswith(f"autoencoder.{part}.")}
    norm = torch.stack([value.square().sum() for value in found.values()]).sum().sqrt()
    assert norm > 1e-5
    said = stage.autoencoder.write(batch.images, 1, stage.step_seed(0, 0))
    stage.autoencoder.write = lambda *_: said  # the words are given: they have no gradient
    losses = []
    for sign in (1, -2):  # along the gradient, there and back
        with torch.no_grad():
            for name, value in found.items():
                stage.get_parameter(name).add_(sign * size / norm * value)
        losses.append(stage.training_step(batch, 0).item())
    assert (losses[0] - losses[1]) / (2 * size) == pytest.approx(norm.item(), rel=0.02)


def test_with_all_steps_it_is_the_whole_gradient_bit_for_bit(make_cold, batch):
    # red with a bit that checkpointing changes, another noise than the first of the batch, or a step too many or few
    stage = make_cold(gradient_steps=STEPS, sampling=Sampling(STEPS, guidance=2.0), negative_prompt="red cat")
    found = gradients(stage, batch)
    model, stage.score = stage.autoencoder, RewardCallback(Closeness(), micro_batch=3).score
    texts = model.write(batch.images, 1, stage.step_seed(0, 0)).texts
    noise = torch.randn(2, *stage.decoder.latent_shape, generator=stage.generator(1))
    context = model.read(texts, into_encoder=True)
    latents = model.decoder.draw(context, noise, stage.sampling, model.unconditional(2))
    plain = 1 - (batch.images - model.decoder.decode_latents(latents)).square().mean((1, 2, 3))
    for name, value in zip(found, torch.autograd.grad(1 - plain.mean(), trained(stage).values()), strict=True):
        assert torch.equal(found[name], value), name


def test_fewer_steps_are_another_gradient_of_the_same_loss(make_cold, batch):
    # red if `gradient_steps` is not handed on, or the steps without gradient are left out of the drawing
    losses, found = [], []
    for steps in (1, STEPS):
        stage = make_cold(gradient_steps=steps)
        losses.append(stage.training_step(batch, 0).item())
        found.append(gradients(stage, batch))
    assert losses[0] == losses[1]
    for part in ("encoder", "projector", "decoder"):
        of_part = [name for name in found[0] if name.startswith(f"autoencoder.{part}.")]
        one, all_ = (torch.cat([values[name].flatten() for name in of_part]) for values in found)
        assert one.norm() > 0 and (one - all_).norm() > 0.1 * all_.norm()


def test_what_is_scored_is_what_is_drawn_afterwards(make_cold, batch):
    # red with pixels scaled by 1/255, as the authors' code has them, or captions read with the picture in view
    stage, seen = make_cold(gradient_steps=1), []
    score = stage.score
    stage.score = lambda inputs: seen.append(inputs) or score(inputs)
    stage.training_step(batch, 0)
    texts, model = seen[0].captions, stage.autoencoder
    noise = torch.randn(2, *stage.decoder.latent_shape, generator=stage.generator(1))
    assert torch.equal(seen[0].reconstructions, model.draw(model.read(texts), noise))
    assert torch.equal(seen[0].originals, batch.images) and batch.images.max() > 0.5


def test_prompts_are_drawn_and_said_to_be_such(make_cold, batch):
    # red if the encoder's texts stand in front, or the reward is not told which text is whose
    stage, seen = make_cold(gradient_steps=1, own_captions=0.5), []
    score = stage.score
    stage.score = lambda inputs: seen.append(inputs) or score(inputs)
    stage.training_step(batch, 0)
    written = stage.autoencoder.write(batch.images[:1], 1, stage.step_seed(0, 0)).texts
    assert seen[0].captions == [*written, batch.captions[1]] and seen[0].given.tolist() == [False, True]


def test_the_words_are_read_softly_where_it_is_asked_for_alone(make_cold):
    # red with gradients into the encoder in every stage, where JointRL's replay of stage 1 would train it too
    model = make_cold().autoencoder
    for asked in (False, True):
        states = model.read(["a red cat"], into_encoder=asked).states
        found = torch.autograd.grad(states.sum(), list(trained(model.encoder).values()), allow_unused=True)
        assert any(value is not None for value in found) is asked


def test_all_parts_and_nothing_else_are_trained(make_cold):
    # red if a frozen weight, the codec or the judge moves
    stage = make_cold(gradient_steps=2, reward=PixelSimilarity())
    del stage.log
    before = small.snapshot(stage)
    small.fit(stage, 2)
    changed = {name for name, tensor in small.snapshot(stage).items() if not torch.equal(tensor, before[name])}
    assert changed == trained(stage).keys()


def test_a_reward_without_a_gradient_is_refused(make_cold, batch):
    # red without the check: torch says that element 0 of tensors does not require grad
    class Threshold(Closeness):
        def forward(self, inputs: RewardInput) -> RewardOutput:
            total = (super().forward(inputs).total > 0.5).float()
            return RewardOutput(total, {"threshold": total})

    with pytest.raises(ValueError, match=r"learns by the gradient of the reward.*PerceptualGrid"):
        make_cold(reward=Threshold()).training_step(batch, 0)


def test_a_stage_without_a_reward_is_refused(make_cold):
    # red with `automatic_optimization` for `learns_from_reward` in on_train_batch_start
    stage = make_cold()
    stage.score = None
    with pytest.raises(ValueError, match=r"add callbacks\.RewardCallback"):
        small.fit(stage, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_steps": STEPS + 1}, "gradient_steps must not exceed the 3 steps of the sampler, got 4"),
        ({"gradient_steps": 0}, "gradient_steps must be a whole number from 1"),
        ({"condition_on": "frozen"}, "set model.autoencoder.condition_on to adapted"),
    ],
)
def test_wrong_settings_are_refused_before_training(make_cold, options, message):
    with pytest.raises(ValueError, match=message):
        make_cold(**options).on_fit_start()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.init_args.gradient_steps=4", "gradient_steps must not exceed the 3 steps"),
        ("model.autoencoder.condition_on=frozen", "condition_on to adapted"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(option: str, message: str, tmp_path, capsys):
    # red if `check_training` of stage_checks hands no `condition_on` on
    config = f"--config={ROOT / 'conf/scenes/cold_start.yaml'}"
    assert main(["fit", config, f"--{option}", f"--trainer.default_root_dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_it_runs_under_uae_run(parts_folder: Path, tmp_path: Path):
    # red if the weights of a part are not handed on
    options = {
        **{f"model.autoencoder.{part}.path": str(parts_folder / part) for part in ("encoder", "projector", "decoder")},
        "model.autoencoder.captioning.max_new_tokens": 6,
        "model.init_args.learning_rates": {"encoder": 1.0e-4},
        "data.init_args.batch_size": 2,
        "data.init_args.validation_pictures": 2,
        "data.init_args.validation_batch_size": 2,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
    }
    stage = {"name": "cold_start", "config": str(ROOT / "conf/scenes/cold_start.yaml"), "options": options}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"name": "cold", "stages": [stage]}))
    assert main(["run", f"--config={tmp_path / 'run.yaml'}", f"--output={tmp_path / 'run'}"]) == 0
    weights = {path.name for path in (tmp_path / "run/cold_start/weights").iterdir()}
    assert weights == {"encoder", "projector", "decoder"}
