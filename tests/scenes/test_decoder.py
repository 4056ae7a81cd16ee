import numpy as np
import pytest
import torch

from uae_lightning.scenes.bootstrap import decoder as bootstrap
from uae_lightning.scenes.bootstrap.drawing import compare, drawing_figures
from uae_lightning.scenes.captions import parse_caption
from uae_lightning.scenes.prompts import is_held_out
from uae_lightning.scenes.scene import IMAGE_SIZE, Scene, SceneObject, pictures, sample_scene

CAT, BUS = SceneObject("cat", "red", "large", 0), SceneObject("bus", "blue", "small", 4)


def test_captions_of_the_web_are_often_true_and_never_held_out_prompts():
    # red if the wrong text is returned whatever it is, or `misremembered` is left out
    agree = []
    for index in range(600):
        scene = sample_scene("train", 0, index)
        caption = bootstrap.web_caption(scene, np.random.default_rng(index))
        assert not (caption.startswith("a picture of a ") and is_held_out(caption))
        names = {item.name for item in parse_caption(caption).objects}
        agree.append(names <= {item.name for item in scene.objects})
    assert 0.75 < np.mean(agree) < 0.97


@pytest.fixture(scope="module")
def task(parts_folder, tmp_path_factory):
    from uae_lightning.models.projector import MLPProjector
    from uae_lightning.models.sd3 import SD3Decoder
    from uae_lightning.scenes.bootstrap.captioner import scenes_encoder

    decoder = SD3Decoder(str(parts_folder / "decoder"), IMAGE_SIZE, sigma_spacing="even")
    projector = MLPProjector(str(parts_folder / "projector"))
    encoder = scenes_encoder(str(parts_folder / "encoder"))
    return bootstrap._DecoderTask(encoder, projector, decoder, 12, 0, tmp_path_factory.mktemp("work"))


def test_the_loss_is_a_function_of_the_step(task):
    # red if rng has no step, or the noise is drawn without `generator`
    with torch.no_grad():
        first, again, other = (task.loss(step)["flow"].item() for step in (3, 3, 4))
    assert first == again != other


def test_unconditional_samples_are_weighted_evenly(task, monkeypatch):
    # red if `.where(kept` goes: what is dropped must not tell where the objects are
    seen = []
    monkeypatch.setattr(bootstrap, "DROPPED_CONDITIONS", 1.0)
    monkeypatch.setattr(bootstrap, "weighted_mean", lambda error, weights: seen.append(weights) or error.mean())
    with torch.no_grad():
        task.loss(0)
    assert len(seen) == bootstrap.PARTS and all((weights == 1).all() for weights in seen)


def test_what_is_drawn_is_compared_cell_by_cell():
    # red if added objects are those that are missing, or the color is asked of objects that are not there
    drawn = [Scene("sand", (CAT, SceneObject("car", "blue", "large", 4), SceneObject("dog", "red", "small", 8)))]
    figures = compare(drawn, [Scene("sand", (CAT, BUS, SceneObject("cup", "red", "small", 5)))])
    assert figures == {
        "present": 0.667, "added": 1.0, "class": 0.5, "color": 1.0, "size": 0.5, "background": 1.0
    }  # fmt: skip


def test_figures_of_a_perfect_painter():
    # red if prompts and pictures are not of the same order, or guidance is not passed on
    asked = []

    def sample(captions, guidance):
        asked.append(guidance)
        scenes = [Scene(f.background or "sand", tuple(SceneObject(o.name, o.color or "red", o.size or "large", at)
                  for o in f.objects for at in [cell_of(o)])) for f in map(parse_caption, captions)]  # fmt: skip
        return pictures(scenes)

    figures = drawing_figures(sample, scenes=8, prompts=12)
    assert asked == [1.0, 1.0, 2.0, 2.0]
    assert figures["guidance 1"]["present"] == figures["guidance 2"]["color"] == 1.0
    assert figures["guidance 1"]["added"] == 0.0 and figures["guidance 1"]["single_object"] == 1.0


def cell_of(fact):
    from uae_lightning.scenes.scene import POSITIONS

    return POSITIONS.index(fact.position)
