"""A learned hash in place of ITQ: what all places of a picture share goes into the code, what differs beside it.

Dual-stream knowledge-preserving hashing (arXiv 2310.08009) hashes videos: one stream makes the code of all frames, the
other keeps a real vector of each frame, and code and vector together must give the frame back, so that detail need not
go into the code. Here the places of a picture take the place of frames. Of its knowledge, pairs are kept: neighbors by
the embedding have like codes, other pictures unlike ones.

N pictures   E = D x P width of the embedding, features of D numbers at P places (the place counts fastest)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uae_lightning.prepare.semantic_hash import BITS, itq

STEPS, BATCH, RATE = 300, 256, 3e-4  # rate and batch: theirs
PAIRS = 0.9  # weight of the pairs beside the reconstruction: theirs
NEIGHBORS = 5  # of a picture


class DualStream(nn.Module):
    """Both streams, and what gives features back."""

    def __init__(self, projection: Tensor, width: int) -> None:
        super().__init__()
        self.hash = nn.Parameter(projection.clone())  # [E, BITS]
        self.place, self.back = nn.Linear(width, BITS), nn.Linear(BITS, width)

    def codes(self, centered: Tensor) -> Tensor:
        """[N, E] -> [N, BITS] of -1 and 1, straight through within [-1, 1]."""
        found = (centered @ self.hash).clamp(-1, 1)
        return found + (found.sign() - found).detach()

    def forward(self, centered: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """Codes [N, BITS], and the mean squared error [] of the features from code and place."""
        features = centered.unflatten(1, (-1, places)).transpose(1, 2)  # [N, P, D]
        codes = self.codes(centered)
        return codes, F.mse_loss(self.back(codes[:, None] + self.place(features)), features)


def dual_stream(centered: Tensor, places: int, seed: int = 0) -> Tensor:
    """The projection [E, BITS] that `SemanticHash` takes, of centered embeddings [N, E]; it begins with that of ITQ.

    Raises:
        ValueError: as `itq`.
    """
    centered = centered / centered.std()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DualStream(itq(centered), centered.shape[1] // places)
    near = neighbors(centered)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        rows = torch.randint(len(centered), (min(BATCH, len(centered)),), generator=generator)
        which = torch.randint(near.shape[1], (len(rows),), generator=generator)
        codes, error = model(centered[rows], places)
        like = (codes * model.codes(centered[near[rows, which]])).mean(1)
        unlike = (codes * codes.roll(1, 0)).mean(1)
        pairs = (1 - like).square().mean() + unlike.square().mean()  # of others the codes share half of the bits
        optimizer.zero_grad()
        (error + PAIRS * pairs).backward()
        optimizer.step()
    return model.hash.detach()


def neighbors(centered: Tensor) -> Tensor:
    """[N, NEIGHBORS] by cosine."""
    directions = F.normalize(centered, dim=1)
    likeness = directions @ directions.T
    likeness.fill_diagonal_(-2)
    return likeness.topk(min(NEIGHBORS, len(centered) - 1), dim=1).indices
