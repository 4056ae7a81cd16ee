"""What a stage asks of its parts. Stages know these classes only; YAML swaps any of them by `class_path`."""

from uae_lightning.interfaces.component import Component
from uae_lightning.interfaces.decoder import Codec, Decoder, FlowDecoder, LearningCodec
from uae_lightning.interfaces.encoder import CodeEncoder, DrawingEncoder, Encoder, Engine, ServedEncoder
from uae_lightning.interfaces.projector import Bridge, Projector
from uae_lightning.interfaces.reward import Reward

__all__ = [
    "Bridge", "CodeEncoder", "Codec", "Component", "Decoder", "DrawingEncoder", "Encoder", "Engine", "FlowDecoder",
    "LearningCodec", "Projector", "Reward", "ServedEncoder",
]  # fmt: skip
