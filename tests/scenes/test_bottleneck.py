import numpy as np
import pytest
import torch

from uae_lightning.autoencoder import AutoEncoder, Captioning
from uae_lightning.evaluation.suite import Subject
from uae_lightning.rewards.pixel_similarity import PixelSimilarity
from uae_lightning.scenes.bottleneck import WAYS, Bottleneck, scene_of, through_codec
from uae_lightning.scenes.captions import parse_caption, write_caption
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.scene import pictures, sample_scene
from uae_lightning.types import Captions, Sampling


def test_a_complete_caption_leaves_nothing_open():
    # red if cells are taken in the order of the caption alone, or objects are not put in raster order
    for index in range(60):
        scene = sample_scene("validation", 0, index, max_objects=4)
        caption = write_caption(scene, np.random.default_rng(index))
        assert scene_of(parse_caption(caption), np.random.default_rng(0)) == scene


def test_what_a_caption_leaves_open_is_drawn_at_random():
    # red if the first of the names is taken, or an object without a place takes the cell of one that has it
    facts = parse_caption("red cat , car center")
    scenes = [scene_of(facts, np.random.default_rng(seed)) for seed in range(40)]
    cats, cars = zip(*(sorted(scene.objects, key=lambda item: item.name)[::-1] for scene in scenes), strict=True)
    assert {cat.color for cat in cats} == {"red"} and {car.position for car in cars} == {"center"}
    assert len({cat.cell for cat in cats}) == 8 and len({car.color for car in cars}) > 4
    assert {car.size for car in cars} == {"large", "small"} and len({scene.background for scene in scenes}) > 4
    crowd = parse_caption(" , ".join(["cat center"] * 12))
    assert len({item.cell for item in scene_of(crowd, np.random.default_rng(0)).objects}) == 9


class Prompter(AutoEncoder):
    """Says what is true of every second picture; draws gray, and white where it is guided."""

    def write(self, images, samples=1, seed=0):
        first = [sample_scene("test", 0, index) for index in range(len(images))]
        texts = [
            write_caption(scene, np.random.default_rng(0)) if index % 2 else "red cat"
            for index, scene in enumerate(first)
        ]
        return Captions(texts, torch.ones(len(texts), 1), torch.ones(len(texts), 1) > 0)

    def draw(self, conditioning, noise):
        return torch.full((len(noise), 3, 96, 96), 0.5 if self.sampling.guidance == 1 else 1.0)


@pytest.fixture
def subject(make_encoder, make_projector, make_decoder):
    settings = {"captioning": Captioning(1.0, 8), "sampling": Sampling(2, 1.0)}
    model = Prompter(make_encoder(), make_projector(), make_decoder(), **settings).eval()
    data = ScenesData(validation_pictures=6, validation_batch_size=6, split="test")
    return Subject(model, data, samples=6, drawings=0)


def test_each_way_is_judged_for_itself(subject):
    # red if pictures of two ways change places, or sampling stays with care
    suite = Bottleneck(PixelSimilarity(), Sampling(1, 3.0))
    ways = suite.ways(subject)
    assert list(ways) == list(WAYS) and all(images.shape == (6, 3, 96, 96) for images in ways.values())
    assert ways["drawn"].unique().tolist() == ways["true_captions"].unique().tolist() == [0.5]
    assert ways["true_captions_with_care"].unique().tolist() == [1.0] and subject.model.sampling.guidance == 1
    scenes = [sample_scene("test", 0, index) for index in range(6)]
    assert [torch.equal(a, b) for a, b in zip(ways["rendered"], pictures(scenes), strict=True)] == [False, True] * 3

    items = suite.measure(subject)
    assert list(items) == [f"{way}_{name}" for way in WAYS for name in ("reward", "facts")]
    assert items["rendered_facts"][1::2] == [1.0] * 3 and max(items["rendered_facts"][::2]) < 1
    assert np.mean(items["codec_reward"]) > np.mean(items["drawn_reward"])
    assert set(suite.figures(items)) == set(items)
    rows = [row.figure for group in suite.groups(suite.figures(items)) for row in group.rows]
    assert sorted(rows) == sorted(items)


def test_the_codec_is_that_of_the_decoder(subject):
    # red if latents are sampled, or scaled on one way only
    found = through_codec(subject)
    originals = torch.cat([batch.images for batch in subject.held_out()])
    assert (found - originals).abs().mean() < 0.2
    assert torch.equal(found, through_codec(subject))
