"""Visual features beside the text: the channel of the decoder, the bridge that predicts them, and their stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import IMAGE_SIZE
from staged import staged

from uae_lightning.autoencoder import Captioning
from uae_lightning.evaluation.suite import RoundTrip, Subject
from uae_lightning.evaluation.visual_channel import WAYS, VisualChannel
from uae_lightning.models.bridge import VisualBridge
from uae_lightning.models.projector import MLPProjector
from uae_lightning.models.sd3 import SD3Decoder
from uae_lightning.models.visual_decoder import FILE, VisualSD3Decoder
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.bridge_pretrain import BridgePretrain
from uae_lightning.types import Batch, Conditioning, Learn, Sampling

WIDTH, PLACES = 192, 9
TEXTS = ["a red cat at the center .", "two blue dogs , the background is sand .", "a bus .", "a small tree ."]
ALL = Learn(projector="all", decoder="all")


@pytest.fixture
def make_visual(parts_folder):
    def make(path: object = None, learnt: bool = True, **options) -> VisualSD3Decoder:
        folder = str(path or parts_folder / "decoder")
        options = {"resolution": IMAGE_SIZE, "sigma_spacing": "even", "visual_size": WIDTH} | options
        torch.manual_seed(0)
        decoder = VisualSD3Decoder(folder, **options)
        if learnt:
            with torch.no_grad():
                for layer in decoder.visual:
                    layer.value.weight.normal_(std=0.1)
        return decoder

    return make


@pytest.fixture
def make_bridge(parts_folder):
    def make(path: object = None, **options) -> VisualBridge:
        torch.manual_seed(0)
        shape = {"visual_size": WIDTH, "places": PLACES, "width": 32, "layers": 1}
        return VisualBridge(str(path or parts_folder / "projector"), **(shape | options))

    return make


def inputs(visual: bool = True) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    x, states = torch.randn(3, 8, 6, 6, generator=generator), torch.randn(3, 5, 24, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [3], [2]])
    features = torch.randn(3, PLACES, WIDTH, generator=generator) if visual else None
    return x, torch.tensor([0.2, 0.5, 0.9]), Conditioning(states, mask, features)


def test_scale_0_is_the_picture_of_the_text_alone_to_the_bit(make_visual, make_decoder):
    # red if anything of the features, or of the other processor, reaches the picture at scale 0
    x, sigma, conditioning = inputs()
    with torch.no_grad():
        plain = make_decoder().velocity(x, sigma, replace(conditioning, visual=None))
        assert torch.equal(make_visual(visual_scale=0.0).velocity(x, sigma, conditioning), plain)
        assert torch.equal(make_visual().velocity(x, sigma, replace(conditioning, visual=None)), plain)
        assert torch.equal(make_visual(learnt=False).velocity(x, sigma, conditioning), plain)  # values begin at zero
        seen = make_visual().velocity(x, sigma, conditioning)
        assert (seen - plain).abs().max() > 1e-3


def test_dropped_rows_are_the_unconditional_branch(make_visual):
    # red with a bias in the layers for features: guidance would be away from something else
    decoder, (x, sigma, conditioning) = make_visual(), inputs()
    with torch.no_grad():
        dropped = decoder.velocity(x, sigma, conditioning.drop(torch.tensor([False, True, True])))
        torch.testing.assert_close(dropped[1:], decoder.velocity(x, sigma, None)[1:])
        torch.testing.assert_close(dropped[0], decoder.velocity(x, sigma, conditioning)[0])


def test_features_are_those_of_their_own_row_where_activations_are_computed_again(make_visual):
    # red if the blocks look the features up when they are checkpointed: those of the last call would be used
    grads = []
    for checkpointed in (False, True):
        decoder, (x, sigma, conditioning) = make_visual(checkpoint_activations=checkpointed), inputs()
        decoder.adapt("all")
        decoder.train()
        velocities = [decoder.velocity(x[row], sigma[row], conditioning[row]) for row in (slice(0, 1), slice(1, 3))]
        sum(v.square().sum() for v in velocities).backward()
        grads.append(decoder.visual[0].value.weight.grad)
    torch.testing.assert_close(*grads)


def test_only_the_layers_for_features_learn_and_they_are_saved(make_visual, tmp_path):
    # red if the transformer learns, or a saved decoder is one for text alone again
    decoder = make_visual()
    decoder.adapt("all")
    assert {n.split(".")[0] for n, p in decoder.named_parameters() if p.requires_grad} == {"visual"}
    decoder.save(tmp_path)
    again, (x, sigma, conditioning) = make_visual(tmp_path, learnt=False), inputs()
    with torch.no_grad():
        assert torch.equal(*(one.velocity(x, sigma, conditioning) for one in (decoder, again)))
        plain = SD3Decoder(str(tmp_path), resolution=IMAGE_SIZE, sigma_spacing="even")  # still one of diffusers' layout
        plain.velocity(x, sigma, conditioning)
    with pytest.raises(ValueError, match=f"{FILE} holds no whole layers.*visual_size"):
        make_visual(tmp_path, visual_size=7)
    whole = make_visual(keep_transformer=False)
    whole.adapt("all")
    assert all(p.requires_grad for p in whole.transformer.parameters())


@pytest.mark.parametrize(
    ("objective", "steps", "rate", "most"), [("regression", 150, 3e-3, 0.05), ("flow", 500, 1e-2, 1.5)]
)
def test_the_bridge_learns_the_features_of_texts(objective, steps, rate, most, make_bridge, make_encoder):
    # red if the loss is of another target than what is predicted, or padding is looked at
    bridge, encoder = make_bridge(objective=objective), make_encoder()
    bridge.adapt("all")
    states, mask = encoder.embed(TEXTS[:2])
    target = torch.randn(2, PLACES, WIDTH, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW([p for p in bridge.parameters() if p.requires_grad], lr=rate)
    generator = torch.Generator().manual_seed(4)
    for _ in range(steps):
        optimizer.zero_grad()
        noise, sigma = torch.randn(target.shape, generator=generator), torch.rand(2, generator=generator)
        bridge.bridge_loss(states, mask, target, noise, sigma).mean().backward()
        optimizer.step()
    found = bridge.conditioning(states, mask)
    assert (found.visual - target).square().mean() < most  # noise is 2 away; each kind of CPU ends elsewhere
    alone = bridge.predict(states[:1, : mask[0].sum()], mask[:1, : mask[0].sum()])
    torch.testing.assert_close(alone[0], found.visual[0], atol=1e-4, rtol=1e-3)
    assert not found.visual.requires_grad and found.states.shape == (*mask.shape, 24)


def test_a_bridge_reads_text_as_the_projector_it_began_from_and_comes_back(make_bridge, make_projector, tmp_path):
    # red if the text's layers learn, or a file of either is written over the other
    bridge, states = make_bridge(), torch.randn(2, 4, WIDTH)
    bridge.adapt("all")
    assert torch.equal(bridge(states), make_projector()(states))
    assert {n.split(".")[0] for n, p in bridge.named_parameters() if p.requires_grad} == {"bridge"}
    bridge.save(tmp_path)
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(make_bridge(tmp_path).predict(states, mask), bridge.predict(states, mask))
    assert torch.equal(MLPProjector(str(tmp_path))(states), bridge(states))  # who knows no bridge reads the text
    with pytest.raises(ValueError, match="of another bridge"):
        make_bridge(tmp_path, places=4)


@pytest.fixture
def make_stage(make_encoder, make_bridge, make_visual):
    def make(**options) -> BridgePretrain:
        parts = {"projector": make_bridge(), "decoder": make_visual(learnt=False)} | options.pop("parts", {})
        sampled = {"captioning": Captioning(0.0, 8), "sampling": Sampling(2)}
        options = {"learn": ALL, "sigma_distribution": "uniform"} | sampled | options
        stage = staged(BridgePretrain, make_encoder(), *parts.values(), **options)
        stage.log = lambda *args, **kwargs: None
        return stage

    return make


@pytest.mark.parametrize("true_share", [0.0, 1.0])
def test_bridge_and_channel_learn_and_nothing_else(true_share, make_stage, images):
    # red if the flow loss pulls at the bridge, or one of both is left without a gradient
    stage = make_stage(true_share=true_share, bridge_weight=0.0)
    stage.training_step(Batch(images, TEXTS, list("abcd")), 0).backward()
    moved = {n for n, p in stage.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.split(".")[2] for name in moved} == {"visual"}
    stage = make_stage(true_share=true_share)
    stage.training_step(Batch(images, TEXTS, list("abcd")), 0).backward()
    learnt = {n for n, p in stage.named_parameters() if p.grad is not None}
    assert learnt == {n for n, p in stage.named_parameters() if p.requires_grad}


def test_features_alone_are_drawn_from(make_stage, images):
    # red if the text stays, or the features go with it
    def loss(captions: list[str], pictures: torch.Tensor) -> float:
        stage = make_stage(
            true_share=1.0, text_dropout=1.0, bridge_weight=0.0, feature_noise=0.0, condition_dropout=0.0
        )
        with torch.no_grad():
            for layer in stage.decoder.visual:
                layer.value.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(7))
            latents = stage.decoder.encode_images(images)
        return stage.training_step(Batch(pictures, captions, list("abcd"), latents=latents), 0).item()

    assert loss(TEXTS, images) == loss(TEXTS[::-1], images) != loss(TEXTS, images.flip(0))


def test_a_reference_changes_what_is_drawn_and_text_alone_refuses_it(make_stage, make_decoder, images):
    # red if the reference is not looked at, or a decoder of text draws as if there was none
    model = make_stage().autoencoder
    with torch.no_grad():
        for layer in model.decoder.visual:
            layer.value.weight.normal_(std=0.1)
    drawn = [model.generate(TEXTS[:1], 0, images[row][None]) for row in (0, 1)]
    assert not torch.equal(*drawn) and torch.equal(drawn[0], model.generate(TEXTS[:1], 0, images[:1]))
    model.decoder = make_decoder()
    with pytest.raises(ValueError, match="SD3Decoder draws from text alone: a reference picture needs"):
        model.generate(TEXTS[:1], 0, images[:1])


def test_parts_that_cannot_are_refused(make_stage, make_projector, make_decoder):
    # red if the stage trains a channel that nobody reads, or that nobody fills
    with pytest.raises(ValueError, match="MLPProjector predicts no visual features"):
        make_stage(parts={"projector": make_projector()})
    with pytest.raises(ValueError, match="SD3Decoder draws from text alone"):
        make_stage(parts={"decoder": make_decoder()})


def test_the_suite_draws_the_same_captions_in_every_way(make_stage):
    # red if a way gets the features of another, or other noise
    model = make_stage().autoencoder
    subject = Subject(model, ScenesData(split="test", validation_pictures=5, validation_batch_size=3), 5, 1)
    with torch.no_grad():
        items = VisualChannel({"pixels": PixelSimilarity()}).measure(subject)
        assert items.keys() == {f"{way}_pixels" for way in WAYS}
        assert len({tuple(values) for values in items.values()}) == 1  # the layers have learnt nothing yet
        for layer in model.decoder.visual:
            layer.value.weight.normal_(std=0.1)
        items = VisualChannel({"pixels": PixelSimilarity()}).measure(subject)
    assert len({tuple(values) for values in items.values()}) == 4
    trip: RoundTrip = subject.round_trip
    assert len(items["true_pixels"]) == len(trip.keys) == 5
