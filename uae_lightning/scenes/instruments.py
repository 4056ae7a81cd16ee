"""How far a judge of pictures can be trusted: does it notice a wrong fact, and does it overlook what is no fault?

Reconstructions are never crisp. So the truth comes worn, through the decoder's codec and with faint noise, and competes
with crisp pictures that have exactly one wrong fact: a judge that prefers clean pictures to true ones is found out.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import lightning as L
import numpy as np
import torch
from torch import Tensor

from uae_lightning.algorithms.digest import digest_of
from uae_lightning.evaluation.intervals import OVERALL
from uae_lightning.evaluation.statistics import Figures, Items, Statistic
from uae_lightning.evaluation.suite import Group, Subject, Suite
from uae_lightning.evaluation.unified_bench import UnifiedBench, floor, scores
from uae_lightning.interfaces import Reward
from uae_lightning.models.patch_codec import PatchCodec
from uae_lightning.paths import resolve
from uae_lightning.scenes.captions import write_caption
from uae_lightning.scenes.faults import FAULTS, faulty_scenes, with_fault
from uae_lightning.scenes.geneval import SceneGenEval, instrument_accuracy
from uae_lightning.scenes.perception import perception, without_scenes
from uae_lightning.scenes.scene import Scene, pictures, sample_scene

SAME = "same"
FAULTY_SCENES = 64  # on which a backbone is checked, with nine faults each
NOISE = 0.02  # standard deviation, of pictures in [0, 1]


class Instruments(Suite):
    """How often the judges of the other suites are right where the truth is known: on renderings, with and without a
    planted fault.

    geneval/TASK: the detector on prompts and scenes that fulfil them or not.
    parser: share of the facts it finds in captions that state all of them.
    backbones/NAME/FAULT: how often a worn picture of the true scene scores above a crisp one with a wrong fact.
    floor/NAME: no accuracy, but the score of unrelated pictures: where the scale of each backbone begins.
    """

    about = "how often the judges themselves are right"

    def missing(self, data: L.LightningDataModule) -> str | None:
        return without_scenes(data)

    def measure(self, subject: Subject) -> Items:
        batches = subject.held_out()
        scenes = [subject.data.scene(key) for batch in batches for key in batch.keys]
        writers = [np.random.default_rng([subject.seed, row]) for row in range(len(scenes))]
        captions = [write_caption(scene, rng) for scene, rng in zip(scenes, writers, strict=True)]
        items = {"parser": perception(captions, scenes)[OVERALL]}
        originals = torch.cat([batch.images for batch in batches])
        suites = subject.suites.values()
        detectors = {digest_of(one.detector): one.detector for one in suites if isinstance(one, SceneGenEval)}
        for detector in detectors.values():  # several suites may have the same one
            right = instrument_accuracy(detector, subject.drawings, subject.seed)
            items |= {f"geneval/{task}": values for task, values in right.items()}
        for suite in suites:
            if isinstance(suite, UnifiedBench):
                for name, backbone in suite.backbones.items():
                    ranked = fault_ranking(backbone, count=FAULTY_SCENES, seed=subject.seed)
                    items |= {f"backbones/{name}/{fault}": values for fault, values in ranked.items()}
                unrelated = floor(originals, suite.backbones)
                items |= {f"floor/{name}": values for name, values in unrelated.items()}
        return items

    def statistics(self, items: Items) -> dict[str, Statistic]:
        """Of the tasks of GenEval, and of the faults of each backbone, the plain mean as well."""
        groups: dict[str, list[str]] = defaultdict(list)
        for name in items:
            group, slash, _ = name.rpartition("/")
            if slash and group != "floor":
                groups[f"{group}/{OVERALL}"].append(name)
        overall = {group: Statistic(tuple(names), "tasks") for group, names in groups.items()}
        return {name: Statistic((name,)) for name, values in items.items() if len(values) > 1} | overall

    def groups(self, figures: Figures) -> list[Group]:
        return []


def fault_ranking(judge: Reward, *, count: int = 64, seed: int = 0) -> dict[str, list[float]]:
    """1 where the true scene, worn, scores above a crisp one with this fault, else 0: fault -> a value per scene."""
    found = fault_scores(judge, count=count, seed=seed)
    same = found.pop(SAME)
    return {kind: [float(true > faulty) for true, faulty in zip(same, found[kind], strict=True)] for kind in found}


def fault_scores(judge: Reward, *, count: int = 64, seed: int = 0) -> dict[str, list[float]]:
    """Scores of validation scenes against themselves, worn ("same"), and against a crisp copy with each fault.

    Args:
        count: scenes; each of them can have every fault of `scenes.faults`.
        seed: of scenes, faults and noise.
    """
    scenes = list(itertools.islice(_scenes(seed), count))
    rng = np.random.default_rng(seed)
    originals = pictures(scenes)
    faulty = {kind: pictures([with_fault(scene, kind, rng) for scene in scenes]) for kind in FAULTS}
    candidates = {SAME: worn(originals, seed)} | faulty
    # One call, those of a scene side by side: judges that embed pictures then embed each original once.
    side_by_side = torch.stack(list(candidates.values()), 1).flatten(0, 1)
    found = scores(judge, originals.repeat_interleave(len(candidates), 0), side_by_side).view(count, -1)
    return dict(zip(candidates, found.T.tolist(), strict=True))


@torch.no_grad()
def worn(images: Tensor, seed: int) -> Tensor:
    """[N, 3, H, W] in [0, 1] as the best reconstruction would be: through the latent codec, and with faint noise."""
    codec = PatchCodec.from_pretrained(resolve("shipped:scenes/decoder/vae"))
    decoded = codec.decode(codec.encode(2 * images - 1)) / 2 + 0.5
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (decoded + NOISE * noise).clamp(0, 1)


def _scenes(seed: int) -> Iterator[Scene]:
    """Scenes of the validation split that can have every fault, in the order of the stream."""
    stream = (sample_scene("validation", seed, index) for index in itertools.count())
    return (scene for scene in stream if all(faulty_scenes(scene, kind) for kind in FAULTS))
