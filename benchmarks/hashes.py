"""Which hash of a picture survives what happens to pictures, and tells those apart that show something else?

    python -m benchmarks.hashes

Codes of `prepare.semantic_hash` by several networks, fitted on training scenes, and the DCT hash of
`prepare.near_duplicates` as control. Of each test scene a changed copy, and a scene with one wrong fact: a hash is good
where the first is nearer than the second (AUC), and where few wrong ones lie within the bits that keep 95% of the
copies. Hardware: one core, two minutes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.dual_stream import dual_stream
from uae_lightning.prepare.near_duplicates import perceptual_hash
from uae_lightning.prepare.semantic_hash import SemanticHash, embedded
from uae_lightning.rewards.clip_similarity import ClipSimilarity
from uae_lightning.rewards.feature_maps import EfficientNetMaps
from uae_lightning.rewards.layered_similarity import LayeredSimilarity, Level
from uae_lightning.rewards.perceptual_grid import PooledEfficientNet
from uae_lightning.scenes.detector_features import DetectorFeatures
from uae_lightning.scenes.faults import FAULTS, faulty_scenes
from uae_lightning.scenes.scene import Scene, render, sample_scene

FITTED, SCENES = 1024, 192
PLACES, BY_PLACE = 9, ("scene_detector", "efficientnet_lite0, 3 x 3")  # judges whose embedding is by place


def noisy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture) + rng.normal(0, 8, (picture.height, picture.width, 3))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def moved(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """By two pixels, the border repeated."""
    pixels = np.pad(np.asarray(picture), ((2, 0), (2, 0), (0, 0)), mode="edge")
    return Image.fromarray(pixels[: picture.height, : picture.width])


def brighter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * 1.1).clip(0, 255).astype(np.uint8))


def resized(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Down to 64 px and back."""
    return picture.resize((64, 64), Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)


CHANGES: dict[str, Callable] = {"noise": noisy, "2 px": moved, "brightness": brighter, "64 px": resized}


def drawn(scene: Scene) -> Image.Image:
    return Image.fromarray(render(scene))


def faulty(scene: Scene, rng: np.random.Generator) -> Scene:
    """With one wrong fact, all kinds that it can have being as likely."""
    kinds = [found for kind in FAULTS if (found := faulty_scenes(scene, kind))]
    options = kinds[rng.integers(len(kinds))]
    return options[rng.integers(len(options))]


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b).astype(int)


def auc(near: np.ndarray, far: np.ndarray) -> float:
    """How often a copy is nearer than a scene with a wrong fact; ties count half."""
    pairs = near[:, None] - far[None]
    return float(((pairs < 0) + 0.5 * (pairs == 0)).mean())


def main() -> None:
    judges = {
        "scenes_clip": ClipSimilarity("shipped:scenes/clip"),
        "efficientnet_lite0": PooledEfficientNet(),
        "scene_detector": DetectorFeatures(),
        "efficientnet_lite0, 3 x 3": LayeredSimilarity(EfficientNetMaps(), {"deep": Level([-2])}, cells=3),
    }
    training = [drawn(sample_scene("train", 7, index)) for index in range(FITTED)]
    hashes: dict[str, Callable] = {"dct (control)": perceptual_hash}
    embeddings = {name: embedded(judge, training) for name, judge in judges.items()}
    hashes |= {name: SemanticHash.fit(judges[name], found) for name, found in embeddings.items()}
    for name, judge, found in ((name, judges[name], embeddings[name]) for name in BY_PLACE):
        mean = found.mean(0)
        hashes[f"{name}, dual stream"] = SemanticHash(judge, mean, dual_stream(found - mean, PLACES))
    scenes = [sample_scene("test", 0, index) for index in range(SCENES)]
    pictures = [drawn(scene) for scene in scenes]
    rng = np.random.default_rng(0)
    wrong = [drawn(faulty(scene, rng)) for scene in scenes]
    print("| hash | change | bits, copy | bits, wrong fact | AUC | wrong ones within the bits of 95% of copies |")
    print("|---|---|---|---|---|---|")
    for name, hash_of in hashes.items():
        codes, far = (np.array([hash_of(picture) for picture in of], np.uint64) for of in (pictures, wrong))
        far = distances(codes, far)
        for change, function in CHANGES.items():
            copies = np.array([hash_of(function(picture, rng)) for picture in pictures], np.uint64)
            near = distances(codes, copies)
            taken = (far <= np.quantile(near, 0.95)).mean()
            print(f"| {name} | {change} | {near.mean():.1f} | {far.mean():.1f} | {auc(near, far):.3f} | {taken:.2f} |")


if __name__ == "__main__":
    main()
