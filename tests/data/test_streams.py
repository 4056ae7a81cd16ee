"""Who reads what, and where a resumed run goes on; test_cached.py has the same of a cache."""

import json
import pickle
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from own_pictures import data_for, everything, numbers, take, used, write_folder, write_shards

from uae_lightning.data import streams
from uae_lightning.data.dealing import Deal
from uae_lightning.data.image_text import ImageTextData
from uae_lightning.types import Batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(folder, tmp_path_factory.mktemp("shards"))


# ---------------------------------------------------------------------------------------------------- who reads what


def first_epoch(data: ImageTextData, batches: int) -> list[int]:
    """The pictures of epoch 0 among those of the first batches, which hold one each."""
    read, deal = numbers(take(data, batches)), data._deal
    units = [deal.card(stream + turn * deal.streams)[0] for stream, (turn, *_) in data._reports]
    return [number for number, unit in zip(read, units, strict=True) if unit < len(data.source) * deal.parts]


@pytest.mark.parametrize("form", ["folder", "shards"])
@pytest.mark.parametrize("world, workers", [(1, 0), (2, 2)])
def test_ranks_and_workers_share_an_epoch(form: str, world: int, workers: int, request: pytest.FixtureRequest):
    # red if `rank * workers` or `worker` is left out of the streams, or the held-out pictures are those of the rank
    path = request.getfixturevalue(form)
    datas = [data_for(path, rank=rank, world=world, num_workers=workers, batch_size=1) for rank in range(world)]
    read = [first_epoch(data, 40) for data in datas]
    assert sorted(number for numbers in read for number in numbers) == everything(data_for(path))
    assert all(read)


def test_streams_share_a_shard_where_there_are_fewer_shards_than_streams(shards: Path):
    # red if parts_for rounds down, or `parts` is not handed to read()
    options = {"validation_path": str(shards / "01.tar"), "batch_size": 1, "world": 3}
    read = [first_epoch(data_for(f"{shards}/0{{0,2}}.tar", rank=rank, **options), 10) for rank in range(3)]
    assert sorted(map(len, read)) == [4, 4, 8] and sorted(sum(read, [])) == [*range(8), *range(16, 24)]


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_epochs_differ_and_are_the_same_in_every_run(form: str, request: pytest.FixtureRequest):
    # red if the epoch, or the seed, is left out of the permutation
    path = request.getfixturevalue(form)
    first = numbers(take(data_for(path), 36))
    assert first == numbers(take(data_for(path), 36))
    assert sorted(first[:36]) == sorted(first[36:]) == everything(data_for(path))
    assert first[:36] != first[36:] and first[:36] != sorted(first[:36])
    assert numbers(take(data_for(path, seed=1), 18)) != first[:36]


def test_within_a_shard_samples_are_shuffled_in_blocks(shards: Path):
    # red if blocks of a unit share the permutation of the first
    one = shards / "00.tar"
    alone = numbers(take(data_for(one, shuffle_buffer=1, validation_path=str(shards / "01.tar")), 4))
    assert alone == list(range(8))
    blocks = [
        numbers(take(data_for(one, shuffle_buffer=4, validation_path=str(shards / "01.tar"), seed=s), 4))
        for s in range(9)
    ]
    assert all(sorted(order[:4]) == [0, 1, 2, 3] for order in blocks)
    assert any([n + 4 for n in order[:4]] != order[4:] for order in blocks) and any(order != alone for order in blocks)


# ---------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("form", ["folder", "shards"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_exactly(form: str, workers: int, request: pytest.FixtureRequest):
    # red if reports are settled when they are handed out instead of when they are used, or `used` starts at 0
    path = request.getfixturevalue(form)
    wanted = take(data_for(path, num_workers=workers, shuffle_buffer=3, random_crop=True), 24)
    stopped = data_for(path, num_workers=workers, shuffle_buffer=3, random_crop=True)
    stream = iter(stopped.train_dataloader())
    for _ in range(15):
        next(stream)
    used(stopped, 13)  # two were read ahead
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = data_for(path, num_workers=workers, shuffle_buffer=3, random_crop=True)
    resumed.load_state_dict(state)
    used(resumed, 13)
    assert resumed.state_dict()["deal"]["places"] == [tuple(place) for place in state["deal"]["places"]]
    got = take(resumed, 11)
    assert [batch.keys for batch in got] == [batch.keys for batch in wanted[13:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(got, wanted[13:], strict=True))
    used(resumed, 15)  # iterated again, as after a reload of dataloaders
    assert take(resumed, 3)[0].keys == wanted[15].keys


def gathering(everyone: list[list[tuple[int, int]]]) -> SimpleNamespace:
    """torch.distributed as far as state_dict needs it."""

    def all_gather_object(target: list, mine: list) -> None:
        assert mine in everyone
        target[:] = everyone

    yes, count = lambda: True, len(everyone)
    names = {"is_available": yes, "is_initialized": yes, "get_world_size": lambda: count}
    return SimpleNamespace(all_gather_object=all_gather_object, **names)


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_with_another_number_of_ranks_nothing_is_lost_or_repeated(form: str, request, monkeypatch):
    # red if a redealt stream forgets what was used of a unit, or `start` is one off
    path = request.getfixturevalue(form)
    old = [data_for(path, rank=rank, world=2, num_workers=2) for rank in range(2)]
    batches = [take(data, 6) for data in old]
    for data in old:
        used(data, 6)
        data._settle()
    monkeypatch.setattr(streams, "dist", gathering([data._deal.places for data in old]))
    states = [data.state_dict() for data in old]
    monkeypatch.undo()
    assert states[0] == states[1]
    new = data_for(path)
    new.load_state_dict(states[0])
    used(new, 6)
    seen = numbers(batches[0]) + numbers(batches[1])
    rest = numbers(take(new, 6))
    assert len(set(seen)) == 24 and sorted(seen + rest) == everything(new)
    assert new.state_dict()["deal"]["streams"] == 1


def test_dealing_anew_loses_and_repeats_no_unit():
    # red if `behind` is one less, or `pending[behind:]` is left out
    rng = np.random.default_rng(0)
    for _ in range(50):
        deal, dealt = Deal(int(rng.integers(1, 5))), []
        for count in rng.integers(1, 5, size=4).tolist():
            for stream in range(deal.streams):
                turns = deal.turns(stream)
                for _ in range(int(rng.integers(0, 5))):
                    turn, unit, before = next(turns)
                    dealt += [(unit, sample) for sample in range(before, 4)]
                    deal.places[stream] = (turn + 1, 0, 0)
                turn, unit, before = next(turns)
                if before < 2:
                    dealt += [(unit, sample) for sample in range(before, 2)]
                    deal.places[stream] = (turn, 2, 0)
            deal = Deal(**deal.state_dict()).redealt(count)
        last = max(unit for unit, _ in dealt) + 1
        dealt += [(unit, s) for stream in range(deal.streams) for unit, s in _ahead(deal, stream, last)]
        assert sorted(dealt) == [(unit, sample) for unit in range(last) for sample in range(4)]


def _ahead(deal: Deal, stream: int, last: int):
    for _, unit, before in islice(deal.turns(stream), 200):
        if unit < last:
            yield from ((unit, sample) for sample in range(before, 4))


class Recorder(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.keys: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int):
        self.keys += batch.keys
        return self.weight * batch.images.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


def fit(folder: Path, root: Path, steps: int, **options) -> list[str]:
    module = Recorder()
    checkpoint = L.pytorch.callbacks.ModelCheckpoint(root, filename="last", every_n_train_steps=1, save_top_k=1)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, callbacks=[checkpoint], default_root_dir=root,
        enable_progress_bar=False, enable_model_summary=False, val_check_interval=3, check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )  # fmt: skip
    data = ImageTextData(str(folder), resolution=8, batch_size=2, validation_pictures=4, num_workers=1)
    trainer.fit(module, data, weights_only=True, **options)
    return module.keys


def test_lightning_resumes_it_in_the_middle_of_an_epoch(folder: Path, tmp_path: Path):
    # red if load_state_dict does nothing, or setup() comes after it
    straight = fit(folder, tmp_path / "straight", 8)
    stopped = fit(folder, tmp_path / "stopped", 5)
    resumed = fit(folder, tmp_path / "stopped", 8, ckpt_path=tmp_path / "stopped/last.ckpt")
    assert stopped + resumed == straight and len(straight) == len(set(straight)) == 16


def test_workers_can_be_started_without_forking(folder: Path):
    # red if the stream holds the data module, and with it the trainer: `spawn` and `forkserver` send it by pickle
    data, kept = data_for(folder), []
    data.trainer.callback = lambda: None  # cannot be pickled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "DataLoader", lambda stream, **_: kept.append(pickle.loads(pickle.dumps(stream))) or [])
        list(data.training_batches())
    assert next(iter(kept[0])).batch.keys == take(data_for(folder), 1)[0].keys
