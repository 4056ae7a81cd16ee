"""What is asked of a projector."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from torch import Tensor

from uae_lightning.interfaces.component import Component
from uae_lightning.types import Conditioning


class Projector(Component):
    """Encoder states [N, L, hidden_size] -> conditioning states [N, L, D]."""

    input_size: int  # hidden_size of the encoder it fits
    output_size: int  # conditioning_size of the decoder it fits
    entered_by_call = True

    @abstractmethod
    def forward(self, states: Tensor) -> Tensor: ...

    def conditioning(self, states: Tensor, mask: Tensor) -> Conditioning:
        """What the decoder is given of texts that were read as states [N, L, hidden_size]."""
        return Conditioning(self(states), mask)

    def by_bridge(self) -> Bridge:
        """The projector, for who needs one that predicts visual features; a ValueError where it does not."""
        raise ValueError(
            f"{type(self).__name__} predicts no visual features: give model.autoencoder.projector a subclass of "
            "uae_lightning.interfaces.Bridge, such as uae_lightning.models.bridge.VisualBridge, or take another stage"
        )


class Bridge(Projector):
    """A projector that also predicts, from the states of a text alone, visual features of what it describes: nothing of
    a picture can pass beside the text."""

    def by_bridge(self) -> Bridge:
        return self

    @abstractmethod
    def predict(self, states: Tensor, mask: Tensor) -> Tensor:
        """Visual features [N, K, E] by states [N, L, hidden_size]; without gradient."""

    @abstractmethod
    def bridge_loss(self, states: Tensor, mask: Tensor, visual: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """[N] of the prediction of `visual` [N, K, E], with noise [N, K, E] and levels sigma [N] in (0, 1) where it
        learns to generate."""

    def conditioning(self, states: Tensor, mask: Tensor) -> Conditioning:
        return replace(super().conditioning(states, mask), visual=self.predict(states, mask))
