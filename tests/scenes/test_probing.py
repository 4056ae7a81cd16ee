"""The linear probe: closed form, what counts as right, and the sources of features."""

from __future__ import annotations

import pytest
import torch

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.evaluation.suite import Subject
from uae_lightning.models.codecs import LinearCodec
from uae_lightning.models.mar import MARDecoder
from uae_lightning.scenes.data import ScenesData
from uae_lightning.scenes.probing import Probe, among_likeliest, facts_of, ridge
from uae_lightning.scenes.scene import IMAGE_SIZE, Scene, SceneObject


def test_ridge_reads_what_is_linear_and_nothing_else():
    # red if features are not centred, or the penalty is left out
    generator = torch.Generator().manual_seed(0)
    x = 5 + 3 * torch.randn(400, 6, generator=generator, dtype=torch.float64)
    way = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    holds = torch.nn.functional.one_hot(((x - 5) @ way).argmax(1), 3).bool()
    right = [float(among_likeliest(ridge(x[:300], holds[:300], x[300:], w), holds[300:]).mean()) for w in (1e-6, 1e9)]
    chance = float(among_likeliest(ridge(x[:300].roll(1, 0), holds[:300], x[300:], 1e-6), holds[300:]).mean())
    assert right[0] > 0.85 and right[1] < right[0] and chance < 0.6
    flat = ridge(x[:300], holds[:300], x[300:], 1e9)
    torch.testing.assert_close(flat, holds[:300].double().mean(0).expand(100, -1), atol=1e-6, rtol=0)


def test_as_many_values_are_looked_for_as_hold():
    # red if one likeliest value is enough, or all must be right
    found = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    holds = torch.tensor([[True, False, True], [False, True, False]])
    assert among_likeliest(found, holds).tolist() == [0.5, 0.0]


def test_facts_of_a_scene():
    # red if a fact counts objects where it asks whether there are some
    scene = Scene("meadow", (SceneObject("cat", "red", "small", 0), SceneObject("cat", "blue", "large", 4)))
    facts = facts_of(scene, 3)
    assert {name: sum(holds) for name, holds in facts.items()} == {
        "background": int(any(facts["background"])), "count": 1, "class": 1, "color": 2,
    }  # fmt: skip
    assert facts["count"] == [False, True, False]


@torch.no_grad()
def test_each_source_is_probed(parts_folder, make_encoder, make_projector, make_decoder):
    # red if a source is not looked at, or pictures that are judged are learnt from
    codec = LinearCodec(str(parts_folder / "decoder"), "vae")
    decoder = MARDecoder(None, IMAGE_SIZE, codec, conditioning_size=24, width=32, encoder_layers=1, decoder_layers=1)
    data = ScenesData(batch_size=16, validation_pictures=12, validation_batch_size=12)
    model = AutoEncoder(make_encoder(), make_projector(), decoder)
    items = Probe(["vision", "decoder", "latents"], pictures=40).measure(Subject(model, data, 12, 0))
    facts = ("background", "count", "class", "color")
    assert set(items) == {f"{source}_{fact}" for source in ("vision", "decoder", "latents") for fact in facts}
    assert all(len(values) == 12 and 0 <= min(values) and max(values) <= 1 for values in items.values())
    assert decoder.features(torch.zeros(2, *decoder.latent_shape)).shape == (2, 36, 32)
    model.decoder = make_decoder()
    with pytest.raises(ValueError, match="SD3Decoder has no features of pictures: leave `decoder` out"):
        Probe(["decoder"], pictures=16).measure(Subject(model, data, 12, 0))
    with pytest.raises(ValueError, match="sources must be some of vision, decoder, latents"):
        Probe(["text"])
