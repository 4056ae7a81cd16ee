"""What watches and serves a stage from outside, one concern per file.

Order in `trainer.callbacks`: EMA first, ComponentWeights after it (checked); the rest as you like. Lightning itself
puts ModelCheckpoint last, so that a checkpoint holds what the others did at the same hook.
"""

from callbacks.component_weights import ComponentWeights
from callbacks.ema import EMA
from callbacks.final_validation import FinalValidation
from callbacks.policy_health import PolicyHealth
from callbacks.progress import StepProgressBar
from callbacks.resumed import CurvesOnce, StageClock
from callbacks.reward import RewardCallback
from callbacks.sample_gallery import SampleGallery
from callbacks.stage_checkpoint import StageCheckpoint
from callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "ComponentWeights",
    "CurvesOnce",
    "FinalValidation",
    "PolicyHealth",
    "RewardCallback",
    "SampleGallery",
    "StageCheckpoint",
    "StageClock",
    "StepProgressBar",
    "Throughput",
]
