"""Who reads what: an endless sequence of units dealt to streams in turn, with a state that can be saved and redealt."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

Place = tuple[int, int, int]  # of a stream: turns it has finished, samples it has used of the unit of the next turn,
# and where batches are put together by the window, those it has used of the window that begins there


class Deal:
    """Units 0, 1, 2, ... (pictures or shards of epoch 0, then of epoch 1, ...) dealt like cards to `streams` streams.

    A stream is one dataloader worker of one rank. Turn t of stream k is card k + t * streams. Cards are the units that
    an earlier deal, to another number of streams, left over (`pending`), and then all units from `start` on.

    Args:
        streams: number of them.
        parts: into how many units each shard is split (see `parts_for`); fixed for the whole run.
        pending: (unit, samples of it that were used) of what is left over.
        start: the first unit behind those.
        places: where each stream stands.
    """

    def __init__(
        self,
        streams: int,
        parts: int = 1,
        pending: list[tuple[int, int]] | None = None,
        start: int = 0,
        places: list[Place] | None = None,
    ) -> None:
        self.streams, self.parts, self.pending, self.start = streams, parts, list(pending or []), start
        self.places: list[Place] = [(*place, 0)[:3] for place in places or [(0, 0)] * streams]  # checkpoints had pairs

    def card(self, number: int) -> tuple[int, int]:
        """(unit, samples of it that an earlier deal used)."""
        behind = number - len(self.pending)
        return self.pending[number] if behind < 0 else (self.start + behind, 0)

    def turns(self, stream: int) -> Iterator[tuple[int, int, int]]:
        """(turn, unit, samples of it to pass over), endless, from the place of the stream on."""
        turn, used, _ = self.places[stream]
        while True:
            unit, before = self.card(stream + turn * self.streams)
            yield turn, unit, max(used, before)
            turn, used = turn + 1, 0

    def redealt(self, streams: int) -> Deal:
        """The same units, less those that were used, for another number of streams: none lost, none repeated."""
        if streams == self.streams:
            return self
        behind = max(stream + turn * self.streams for stream, (turn, *_) in enumerate(self.places)) + 1
        left = []
        for stream, (turn, used, _) in enumerate(self.places):
            for number in range(stream + turn * self.streams, behind, self.streams):
                unit, before = self.card(number)
                left.append((number, (unit, max(used, before))))
                used = 0
        pending = [card for _, card in sorted(left)] + self.pending[behind:]
        return Deal(streams, self.parts, pending, max(self.start, self.card(behind)[0]), None)

    def state_dict(self) -> dict[str, Any]:
        """The arguments that make the same deal again; later turns leave it as it is."""
        return vars(self) | {"places": list(self.places)}


def parts_for(shards: int, streams: int) -> int:
    """Into how many parts each shard is split, so that every stream has one of its own in every epoch."""
    return -(-streams // shards)


def shuffled_unit(unit: int, count: int, seed: int) -> int:
    """Which of the `count` units of an epoch comes at place `unit` of the endless sequence."""
    epoch, place = divmod(unit, count)
    return int(_permutation(seed, epoch, count)[place])


@functools.lru_cache(maxsize=2)  # a stream may cross from one epoch to the next and back when it is dealt anew
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def shuffled_blocks(items: Iterator[Any], size: int, seed: list[int], first: int = 0) -> Iterator[Any]:
    """Items shuffled within blocks of `size`: what a resumed stream can repeat, unlike a rolling buffer.

    `first` is the block that the items begin with.
    """
    for number in itertools.count(first):
        block = list(itertools.islice(items, size))
        if not block:
            return
        for place in np.random.default_rng([*seed, number]).permutation(len(block)):
            yield block[place]
