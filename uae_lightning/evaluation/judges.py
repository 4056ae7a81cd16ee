"""How far a judge of pictures can be trusted: does it notice a wrong fact, and does it overlook what is no fault?

Reconstructions are never crisp. So the truth comes worn, through the decoder's codec and with faint noise, and competes
with crisp pictures that have exactly one wrong fact: a judge that prefers clean pictures to true ones is found out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from uae_lightning.data.faults import FAULTS, faulty_scenes, with_fault
from uae_lightning.data.scenes import Scene, render, sample_scene
from uae_lightning.interfaces import Reward
from uae_lightning.models.patch_codec import PatchCodec
from uae_lightning.paths import resolve
from uae_lightning.types import RewardInput

SAME = "same"
NOISE = 0.02  # standard deviation, of pictures in [0, 1]


@torch.no_grad()
def scores(judge: Reward, originals: Tensor, reconstructions: Tensor) -> Tensor:
    """[N, 3, H, W] twice -> [N] float64 on the CPU, wherever the judge and the pictures are."""
    device = next(itertools.chain(judge.parameters(), judge.buffers()), originals).device
    pairs = RewardInput(originals.to(device), reconstructions.to(device), [""] * len(originals))
    return judge(pairs).total.double().cpu()


def fault_ranking(judge: Reward, *, count: int = 64, seed: int = 0) -> dict[str, list[float]]:
    """1 where the true scene, worn, scores above a crisp one with this fault, else 0: fault -> a value per scene."""
    found = fault_scores(judge, count=count, seed=seed)
    same = found.pop(SAME)
    return {kind: [float(true > faulty) for true, faulty in zip(same, found[kind], strict=True)] for kind in found}


def fault_scores(judge: Reward, *, count: int = 64, seed: int = 0) -> dict[str, list[float]]:
    """Scores of validation scenes against themselves, worn ("same"), and against a crisp copy with each fault.

    Args:
        count: scenes; each of them can have every fault of `data.faults`.
        seed: of scenes, faults and noise.
    """
    scenes = list(itertools.islice(_scenes(seed), count))
    rng = np.random.default_rng(seed)
    originals = _pictures(scenes)
    faulty = {kind: _pictures([with_fault(scene, kind, rng) for scene in scenes]) for kind in FAULTS}
    candidates = {SAME: worn(originals, seed)} | faulty
    # One call, those of a scene side by side: judges that embed pictures then embed each original once.
    side_by_side = torch.stack(list(candidates.values()), 1).flatten(0, 1)
    found = scores(judge, originals.repeat_interleave(len(candidates), 0), side_by_side).view(count, -1)
    return dict(zip(candidates, found.T.tolist(), strict=True))


@torch.no_grad()
def worn(images: Tensor, seed: int) -> Tensor:
    """[N, 3, H, W] in [0, 1] as the best reconstruction would be: through the latent codec, and with faint noise."""
    codec = PatchCodec.from_pretrained(resolve("shipped:scenes/decoder/vae"))
    decoded = codec.decode(codec.encode(2 * images - 1).latent_dist.mode()).sample / 2 + 0.5
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (decoded + NOISE * noise).clamp(0, 1)


def _scenes(seed: int) -> Iterator[Scene]:
    """Scenes of the validation split that can have every fault, in the order of the stream."""
    stream = (sample_scene("validation", seed, index) for index in itertools.count())
    return (scene for scene in stream if all(faulty_scenes(scene, kind) for kind in FAULTS))


def _pictures(scenes: list[Scene]) -> Tensor:
    """[N, 3, 96, 96] in [0, 1]."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2).float() / 255
