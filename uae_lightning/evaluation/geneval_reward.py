"""GenEvalReward: GenEval's scorer as a reward, for prompts whose file says what they ask for.

It is what Flow-GRPO (arXiv 2505.05470) trains SD3.5 on, with prompts of the same templates that are not GenEval's own.
Whoever trains on it must not measure with the same detector.
"""

from __future__ import annotations

from typing import Literal

import torch

from uae_lightning.evaluation.geneval import Prompt, certain, check, prompt_of, score, share
from uae_lightning.evaluation.object_detectors import ObjectDetector
from uae_lightning.paths import weightless
from uae_lightning.rewards.vision_features import FrozenReward
from uae_lightning.types import RewardInput, RewardOutput


class GenEvalReward(FrozenReward):
    """Whether a detector finds in the pictures what their prompts ask for.

    Parts, each [N]: share (of what is asked, in [0, 1]), fulfilled (1 where all of it is there, else 0).

    Args:
        detector: of the objects that prompts ask for.
        total: the part that is maximised. "share" tells a picture with one of two objects from one with none, as
            Flow-GRPO's graded rewards do; "fulfilled" is GenEval's own figure.

    Raises:
        ValueError: prompts come without metadata, or it is not in GenEval's format, or the detector does not know what
            they ask for.
    """

    needs_originals = False

    def __init__(self, detector: ObjectDetector, total: Literal["share", "fulfilled"] = "share") -> None:
        super().__init__()
        self.detector, self.total = detector, total
        self.planned = weightless()  # how many objects there are decides what is computed: a plan counts weights alone
        self.freeze()

    def forward(self, inputs: RewardInput) -> RewardOutput:
        if self.planned:
            nothing = torch.zeros(len(inputs.captions), device=inputs.reconstructions.device)
            return RewardOutput(nothing, {"share": nothing, "fulfilled": nothing})
        wanted = wanted_of(inputs)
        check(self.detector, wanted)
        pairs = list(zip(wanted, certain(self.detector, wanted, inputs.reconstructions), strict=True))
        device = inputs.reconstructions.device
        parts = {
            "share": torch.tensor([share(prompt, found) for prompt, found in pairs], device=device),
            "fulfilled": torch.tensor([float(score(prompt, found)) for prompt, found in pairs], device=device),
        }
        return RewardOutput(parts[self.total], parts)


def wanted_of(inputs: RewardInput) -> list[Prompt]:
    """What each prompt asks for, by its metadata."""
    try:
        return [prompt_of(row) for row in inputs.metadata or [{} for _ in inputs.captions]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"GenEvalReward reads what a prompt asks for beside it, in GenEval's format ({type(error).__name__}: "
            f'{error}): give data.init_args.path of PromptData a .jsonl with rows {{"tag": ..., "include": [{{"class": '
            '..., "count": ...}, ...], "prompt": ...}'
        ) from error
