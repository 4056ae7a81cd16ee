import torch

from uae_lightning.scenes.scene import Scene, SceneObject, pictures, sample_scene
from uae_lightning.scenes.templates import nearest_scenes

SCENES = [sample_scene("validation", 0, i, max_objects=4) for i in range(24)] + [Scene("night", ())]


def test_noisy_pictures_are_read_without_error():
    # red if the background is not found first, cells change places, or the picture is compared cell for wrong cell
    images = pictures(SCENES)
    noise = 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found, distances = nearest_scenes((images + noise).clamp(0, 1))
    assert found == SCENES
    assert 0.05 < distances.min() and distances.max() < 0.11


def test_the_distance_tells_a_smeared_drawing():
    # red if the distance is not a root, or the nearest is the farthest
    cat = SceneObject("cat", "red", "large", 4)
    there, gone = pictures([Scene("sand", (cat,)), Scene("sand", ())]).split(1)
    clean, half = nearest_scenes(torch.cat([there, (there + gone) / 2]))[1]
    assert clean < 1e-3
    assert 0.02 < half <= ((there - gone) / 2).square().mean().sqrt() + 1e-4
