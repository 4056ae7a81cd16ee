"""From features to codes of a finite codebook, and back to vectors a decoder can be conditioned on.

N features of pictures' places   E their width   V codes   D width of the vectors
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uae_lightning.ranges import Count, Positive, checked

MEMORY, UNUSED = 0.9, 0.01  # uses are forgotten by that factor a step; a code of fewer counts as unused
COMMITMENT = 0.25  # of VQ-VAE (arXiv 1711.00937), VQRAE's beta


class Quantizer(nn.Module, ABC):
    """A codebook; `input_size` E, `output_size` D and `size` V are set by `build`, once the features are known."""

    input_size: int
    output_size: int
    size: int

    @abstractmethod
    def resize(self, codes: int) -> None:
        """Before `build`: V is that of a codebook that was saved."""

    @abstractmethod
    def build(self, width: int) -> None:
        """Makes the weights, for features of that width."""

    @abstractmethod
    def scores(self, features: Tensor) -> Tensor:
        """[..., E] -> [..., V]; the best code has the highest. Differences are log-odds at temperature 1."""

    @abstractmethod
    def vectors(self, codes: Tensor) -> Tensor:
        """Codes [...] -> [..., D]."""

    @abstractmethod
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [..., E] -> codes [...], their vectors [..., D] with gradients, and a loss [] of the codebook."""

    def seed(self, features: Tensor, use: Tensor) -> None:  # noqa: B027
        """Gives codes that nothing is near to features [N, E] that are far from all codes; a codebook that cannot
        collapse does nothing.

        Args:
            use: [V] how often each code was used of late, brought up to date in place; all zero at first.
        """


@checked
class SimVQ(Quantizer):
    """Vector quantization with a codebook C W (SimVQ, arXiv 2411.02038; VQRAE, arXiv 2511.23386): one matrix W for all
    codes, so that a step moves used and unused codes alike.

    There C is drawn at random and frozen. A small codebook then covers features badly: here `seed` puts far features in
    the place of unused codes first, and C is trained with W (ours).

    Args:
        codes: V.
    """

    def __init__(self, codes: Count = 1024) -> None:
        super().__init__()
        self.resize(codes)

    def resize(self, codes: int) -> None:
        self.size = int(codes)

    def build(self, width: int) -> None:
        self.input_size = self.output_size = width
        self.codebook = nn.Parameter(torch.randn(self.size, width) / width**0.5)
        self.transform = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.transform.weight)

    def scores(self, features: Tensor) -> Tensor:
        """Minus the squared distances, never in half precision: near codes would be taken for each other."""
        with torch.autocast(features.device.type, enabled=False):
            table = self.transform(self.codebook)
            squares = features.square().sum(-1, keepdim=True) + table.square().sum(-1)
            return 2 * features @ table.T - squares

    def vectors(self, codes: Tensor) -> Tensor:
        return self.transform(F.embedding(codes, self.codebook))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.scores(features).argmax(-1)
        chosen = self.vectors(codes)
        pull = F.mse_loss(chosen, features.detach()) + COMMITMENT * F.mse_loss(chosen.detach(), features)
        # straight through for features that learn; the codes learn by what is drawn from them, too
        return codes, chosen + features - features.detach(), pull

    @torch.no_grad()
    def seed(self, features: Tensor, use: Tensor) -> None:
        """The feature that is farthest from all codes takes the least used one, and so on; at the first call all codes
        are free. A quarter of the features at most move a code in one call."""
        best, codes = self.scores(features).max(-1)
        begun = (use.sum() > 0).to(use)
        use.mul_(MEMORY).index_add_(0, codes, begun.expand(len(codes)))
        distances, least = -best, 1e-4 * features.square().sum(-1).mean()
        for _ in range(min(self.size, max(1, len(features) // 4))):
            far, code = distances.argmax(), use.argmin()
            moves = (use[code] < UNUSED) & (distances[far] > least)
            wanted = torch.linalg.solve(self.transform.weight, features[far])
            self.codebook[code] = wanted.where(moves, self.codebook[code])
            use[code] = use[code] + moves
            distances = distances.minimum((features - features[far]).square().sum(-1).where(moves, distances))


@checked
class BSQ(Quantizer):
    """Binary spherical quantization (arXiv 2406.07548, as QLIP has it): a linear layer to `bits` numbers, length 1, and
    their signs; the codebook is the corners of a cube, and no code is learnt. V is 2 to the number of bits.

    The loss is the mean entropy of a bit less the entropy of the mean bit: features should be sure, and bits even.

    Args:
        bits: of a code, at most 16.
        entropy_weight: of that loss.
    """

    def __init__(self, bits: Count = 10, entropy_weight: Positive = 0.1) -> None:
        super().__init__()
        if bits > 16:
            raise ValueError(f"bits of BSQ must be at most 16, whose 65,536 codes are all scored; got {bits}")
        self.entropy_weight = float(entropy_weight)
        self.resize(2 ** int(bits))

    def resize(self, codes: int) -> None:
        self.bits, self.size = codes.bit_length() - 1, codes

    def build(self, width: int) -> None:
        self.input_size = self.output_size = width
        self.down, self.up = nn.Linear(width, self.bits), nn.Linear(self.bits, width)
        places = torch.arange(self.bits)
        corners = (torch.arange(self.size)[:, None] >> places & 1) * 2.0 - 1
        self.register_buffer("corners", corners / self.bits**0.5, persistent=False)
        self.register_buffer("places", 2**places, persistent=False)

    def on_sphere(self, features: Tensor) -> Tensor:
        return F.normalize(self.down(F.layer_norm(features, features.shape[-1:])), dim=-1)

    def scores(self, features: Tensor) -> Tensor:
        """Cosines, times the number of bits."""
        return self.bits * self.on_sphere(features) @ self.corners.T

    def vectors(self, codes: Tensor) -> Tensor:
        return self.up(F.embedding(codes, self.corners))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.on_sphere(features)
        signs = (found > 0).to(found) * 2 - 1
        codes = ((found > 0).long() * self.places).sum(-1)
        corner = found + (signs / self.bits**0.5 - found).detach()  # straight through
        sure = torch.sigmoid(2 * self.bits**0.5 * found).flatten(0, -2)  # of each bit being 1
        loss = binary_entropy(sure).mean() - binary_entropy(sure.mean(0)).mean()
        return codes, self.up(corner), self.entropy_weight * loss


def binary_entropy(p: Tensor) -> Tensor:
    """In nats, element by element."""
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())
