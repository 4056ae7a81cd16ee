import pytest
import torch
import torch.nn.functional as F

from uae_lightning.scenes.detector_features import DetectorFeatures
from uae_lightning.scenes.instruments import scores
from uae_lightning.scenes.scene import Scene, SceneObject, pictures

CAT, BUS = ("cat", "red", "large"), ("bus", "blue", "large")


@pytest.fixture(scope="module")
def judge():
    return DetectorFeatures()


def scene(first, second):
    return Scene("sand", (SceneObject(*first, 0), SceneObject(*second, 5)))


def test_features_are_those_that_the_detector_reads(judge, images):
    # red if `- 1` goes
    seen = []
    hook = judge.detector.trunk.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        judge.detector(images)
        hook.remove()
        torch.testing.assert_close(judge.embed(images), F.normalize(seen[0].flatten(1), dim=1))


def test_it_knows_who_stands_where(judge):
    # red if the features are pooled: .mean((2, 3)) in place of .flatten(1)
    true, swapped, other = pictures([scene(CAT, BUS), scene(BUS, CAT), scene(CAT, CAT)]).split(1)
    assert scores(judge, true, true).item() == pytest.approx(1)
    assert scores(judge, true, swapped).item() < 0.9
    assert scores(judge, true, swapped).item() < scores(judge, true, other).item() < 0.97
