"""Stage 1 for an encoder whose language is a codebook: codes, projector and decoder learn to draw pictures together.

The captions of the data are not read: each picture is its own caption.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uae_lightning.autoencoder import AutoEncoder
from uae_lightning.interfaces import CodeEncoder
from uae_lightning.ranges import Natural, NonNegative, checked
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.types import Batch, Conditioning


@checked
class CodebookPretrain(DecoderPretrain):
    """Flow matching on the codes of the batch's own pictures, and the loss of the codebook.

    Args:
        autoencoder: with a `CodeEncoder`.
        codebook_weight: of the codebook's loss.
        seeding_steps: in which codes that nothing is near to are given away (`Quantizer.seed`).
        **options: of `DecoderPretrain`.

    Raises:
        ValueError: the encoder has no codebook.
    """

    trained = ("encoder", "projector", "decoder")
    latents_suffice = False
    use: Tensor  # [V] of the codes of late, kept in checkpoints

    def __init__(
        self,
        autoencoder: AutoEncoder,
        codebook_weight: NonNegative = 1.0,
        seeding_steps: Natural = 100,
        **options,
    ) -> None:
        super().__init__(autoencoder, **options)
        self.codebook_weight, self.seeding_steps = codebook_weight, seeding_steps
        self.register_buffer("use", torch.zeros(self.coder.codes))

    @property
    def coder(self) -> CodeEncoder:
        return self.autoencoder.reader.by_codes()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.global_step < self.seeding_steps:
            self.coder.seed(batch.images, self.use)
        codes, states, mask, loss = self.coder.quantize(batch.images)
        used = torch.zeros_like(self.use).index_fill(0, codes.flatten(), 1.0).sum()
        self.log_dict({"train/codebook": loss, "codes/in_batch": used}, sync_dist=True)
        conditioning = Conditioning(self.projector(states), mask)
        return self.step_loss(batch, conditioning) + self.codebook_weight * loss
