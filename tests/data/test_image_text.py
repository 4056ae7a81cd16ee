import io
import json
import tarfile
import threading
import tracemalloc
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from uae_lightning.data import image_text
from uae_lightning.data.dealing import Deal
from uae_lightning.data.image_text import ImageTextData, equal_batches, image_bytes, read_caption
from uae_lightning.data.scenes import render, sample_scene
from uae_lightning.data.skipped import SkippedFiles, Tally
from uae_lightning.data.sources import Columns, open_source
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

PICTURES = 40


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render(sample_scene("train", 0, index))).save(file, "PNG")
    return file.getvalue()


def name(index: int) -> str:
    return f"{'deep/er' if index % 3 else 'flat'}/{index:03d}.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(PICTURES):
        path = folder / name(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index))
        path.with_suffix(".txt").write_text(f"picture {index}\n")
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in 5 shards of 8."""
    target = tmp_path_factory.mktemp("shards")
    for shard in range(5):
        with tarfile.open(target / f"{shard:02d}.tar", "w") as tar:
            for index in range(8 * shard, 8 * shard + 8):
                for suffix in (".png", ".txt"):
                    tar.add((folder / name(index)).with_suffix(suffix), f"{index:03d}{suffix}")
    return target


def data_for(path: Path | str, *, rank: int = 0, world: int = 1, **options) -> ImageTextData:
    """On a rank, as the trainer sees it; `used` below is what the trainer has used up."""
    options = {"resolution": 8, "batch_size": 2, "validation_pictures": 4, "num_workers": 0} | options
    data = ImageTextData(str(path), **options)
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
    root = options.get("validation_path") or path
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world,
        default_root_dir=f"{root}.out",
        fit_loop=SimpleNamespace(epoch_loop=progress),
    )
    return data


def used(data: ImageTextData, batches: int) -> None:
    data.trainer.fit_loop.epoch_loop.batch_progress.total.processed = batches


def numbers(batches: list[Batch]) -> list[int]:
    """Which pictures: the number in the file's name."""
    return [int(Path(key).name[:3]) for batch in batches for key in batch.keys]


def take(data: ImageTextData, batches: int) -> list[Batch]:
    return list(islice(iter(data.train_dataloader()), batches))


def held_out(data: ImageTextData) -> list[int]:
    return numbers(list(data.val_dataloader()))


def everything(data: ImageTextData) -> list[int]:
    return sorted(set(range(PICTURES)) - set(held_out(data)))


# ---------------------------------------------------------------------------------------------------- what is read


def test_a_batch_holds_pictures_captions_and_keys(folder: Path):
    # red if / 255 becomes / 256, or the caption is read from another picture's file
    batch = take(data_for(folder, resolution=64), 1)[0]
    for image, caption, key in zip(batch.images, batch.captions, batch.keys, strict=True):
        index = int(Path(key).name[:3])
        assert key == name(index) and caption == f"picture {index}"
        scene = torch.from_numpy(render(sample_scene("train", 0, index))).permute(2, 0, 1) / 255
        assert torch.equal(image, scene)


def jsonl(folder: Path, rows: list, file: str = "rows.jsonl") -> Path:
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / file


def test_every_form_gives_the_same_pictures_and_captions(folder: Path, shards: Path, tmp_path: Path):
    # red if seek() starts one byte late, or "txt" is misspelt in _caption
    datasets = pytest.importorskip("datasets")
    rows = [{"image": str(folder / name(i)), "caption": f"picture {i}"} for i in range(PICTURES)]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    forms = (jsonl(tmp_path, rows), shards, f"{shards}/{{00..04}}.tar", f"{shards}/*.tar", tmp_path / "saved")
    expected = {f"picture {i}": png(i) for i in range(PICTURES)}
    for path in (folder, *forms):
        source = open_source(str(path), Columns())
        samples = [sample for unit in range(len(source)) for sample in source.read(unit)]
        assert {read_caption(sample.caption): image_bytes(sample) for sample in samples} == expected
        assert len(samples) == len({sample.key for sample in samples}) == PICTURES
        assert len(take(data_for(path), 1)[0].images) == 2


def test_shards_of_webdatasets_own_writer(folder: Path, tmp_path: Path):
    # red if the folder is left out of the stem, or the .json is not looked into
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar.gz")) as writer:
        for index in range(6):
            writer.write({"__key__": f"x/{index}", "png": png(index), "json": {"caption": f"picture {index}"}})
    source = open_source(str(tmp_path / "a.tar.gz"), Columns())
    samples = list(source.read(0))
    assert [sample.key for sample in samples] == [f"a.tar.gz/x/{i}" for i in range(6)]
    assert [(sample.image, sample.caption) for sample in samples] == [(png(i), f"picture {i}") for i in range(6)]


def test_shards_over_http_are_read_by_workers(shards: Path):
    # red if ATTEMPTS is 0
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        data = ImageTextData(url + "/{00..04}.tar", resolution=8, validation_pictures=4, num_workers=2, batch_size=2)
        assert len(set(numbers(take(data, 16)))) > 20
        with pytest.raises(UsageError, match="05.tar cannot be read"):
            take(ImageTextData(url + "/{03..05}.tar", resolution=8, validation_pictures=4, num_workers=0), 20)
        server.shutdown()


def test_a_broken_connection_is_taken_up_again(shards: Path, monkeypatch: pytest.MonkeyPatch):
    # red if `done` is not passed over the second time
    from uae_lightning.data import sources

    whole, broken = sources._read_tar, []

    def breaks_once(url: str, column: str):
        for number, sample in enumerate(whole(url, column)):
            if number == 5 and not broken:
                broken.append(url)
                raise ConnectionResetError("lost")
            yield sample

    monkeypatch.setattr(sources, "_read_tar", breaks_once)
    monkeypatch.setattr(sources.time, "sleep", lambda seconds: None)
    keys = [sample.key for sample in open_source(str(shards / "00.tar"), Columns()).read(0)]
    assert broken and keys == [f"00.tar/{index:03d}" for index in range(8)]


def test_memory_does_not_grow_with_the_samples_of_a_shard(tmp_path: Path):
    # red if `tar.members = []` is left out
    peaks = []
    for count in (100, 100, 2000):  # the first time modules are loaded
        with tarfile.open(tmp_path / f"{count}.tar", "w") as tar:
            for index in range(count):
                header = tarfile.TarInfo(f"{index:06d}.png")
                header.size = 100
                tar.addfile(header, io.BytesIO(b"x" * 100))
        source = open_source(str(tmp_path / f"{count}.tar"), Columns())
        tracemalloc.start()
        assert sum(1 for _ in source.read(0)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1]


@pytest.mark.parametrize(
    "rows, columns, message",
    [
        ([{"image": "a.png"}, {"file": "b.png"}], Columns(), r"line 2: no 'image', only 'file'.*image_column"),
        ([{"image": "a.png", "text": ""}], Columns(captions_needed=True), r"line 1: no 'caption'.*caption_column"),
        ([{"image": "a.png", "caption": 3}], Columns(), r"line 1: 'caption' must be a string, got 3"),
        (["a.png"], Columns(), r"line 1: no 'image', no columns"),
        ([], Columns(), "is empty"),
    ],
)
def test_a_wrong_jsonl_is_named_with_line_and_remedy(rows, columns: Columns, message: str, tmp_path: Path):
    # red if lines are counted from 0
    with pytest.raises(UsageError, match=f"rows.jsonl.*{message}"):
        open_source(str(jsonl(tmp_path, rows)), columns)


def test_a_path_without_data_is_named(tmp_path: Path, folder: Path):
    # red if an empty folder is taken for a source
    (tmp_path / "empty").mkdir()
    for path in ("empty", "none", "none.tar", "none{00..01}.tar", "none*.tar"):
        with pytest.raises((UsageError, FileNotFoundError), match="empty has no pictures|none.* correct"):
            ImageTextData(str(tmp_path / path), 8).train_dataloader()
    with pytest.raises(UsageError, match="leaves none to train on"):
        data_for(folder, validation_pictures=PICTURES).train_dataloader()
    with pytest.raises(UsageError, match="fewer than data.init_args.validation_pictures"):
        data_for(folder, validation_pictures=PICTURES + 1).train_dataloader()


def test_files_that_are_neither_picture_nor_caption_are_mentioned(tmp_path: Path):
    # red if `left_out` counts pictures
    for index in range(3):
        (tmp_path / f"{index}.PNG").write_bytes(png(index))
    (tmp_path / "movie.mp4").write_bytes(b"x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    with pytest.warns(UserWarning, match=r"left out: \.mp4 \(1\)$"):
        assert len(data_for(tmp_path).source) == 3
    with pytest.raises(UsageError, match="no picture in .* has a caption"):
        open_source(str(tmp_path), Columns(captions_needed=True))


# ---------------------------------------------------------------------------------------------------- who reads what


def first_epoch(data: ImageTextData, batches: int) -> list[int]:
    """The pictures of epoch 0 among those of the first batches, which hold one each."""
    read, deal = numbers(take(data, batches)), data._deal
    units = [deal.card(stream + turn * deal.streams)[0] for stream, (turn, _) in data._reports]
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
    assert resumed.state_dict()["deal"]["places"] == state["deal"]["places"]
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
    monkeypatch.setattr(image_text, "dist", gathering([data._deal.places for data in old]))
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
        for streams in rng.integers(1, 5, size=4).tolist():
            for stream in range(deal.streams):
                turns = deal.turns(stream)
                for _ in range(int(rng.integers(0, 5))):
                    turn, unit, before = next(turns)
                    dealt += [(unit, sample) for sample in range(before, 4)]
                    deal.places[stream] = (turn + 1, 0)
                turn, unit, before = next(turns)
                if before < 2:
                    dealt += [(unit, sample) for sample in range(before, 2)]
                    deal.places[stream] = (turn, 2)
            deal = Deal(**deal.state_dict()).redealt(streams)
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


# ---------------------------------------------------------------------------------------------------- held out


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_held_out_pictures_are_always_the_same_and_never_trained_on(form: str, request: pytest.FixtureRequest):
    # red if digests are not compared, or the batch size or the seed has a part in the choice
    path = request.getfixturevalue(form)
    data = data_for(path, validation_batch_size=3)
    kept = held_out(data)
    assert len(set(kept)) == 4
    assert kept == held_out(data_for(path, batch_size=3, seed=5, validation_batch_size=4))
    assert not set(kept) & set(numbers(take(data, 36)))


def test_a_copy_of_a_held_out_picture_is_not_trained_on(folder: Path, tmp_path: Path):
    # red if keys are compared instead of bytes
    for index in range(4):
        (tmp_path / f"{900 + index}.png").write_bytes(png(index))
    data = data_for(folder, validation_path=str(tmp_path), num_workers=2)
    assert sorted(held_out(data)) == [900, 901, 902, 903]
    trained = set(numbers(take(data, 24)))
    assert not trained & {0, 1, 2, 3} and data.skipped_files.held_out > 0
    with pytest.raises(UsageError, match="has no picture to train on"):
        take(data_for(tmp_path, validation_path=str(tmp_path)), 1)


@pytest.mark.parametrize("count, world, size", [(4, 1, 3), (7, 2, 2), (4, 3, 1), (64, 8, 5), (5, 5, 9), (9, 2, 4)])
def test_ranks_have_equally_many_validation_batches(count: int, world: int, size: int):
    # red if the ceiling becomes a floor
    ranks = equal_batches(list(range(count)), world, size)
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for batches in ranks for batch in batches]
    assert [sample for batch in batches for sample in batch] == list(range(count))
    assert min(map(len, batches)) >= 1 and max(map(len, batches)) <= size + (count % (world * size) > 0 and size == 1)
    assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_ranks_share_the_held_out_pictures(folder: Path):
    # red if every rank takes the batches of rank 0
    alone = held_out(data_for(folder, validation_pictures=7))
    options = {"world": 2, "validation_pictures": 7, "validation_batch_size": 2}
    shares = [held_out(data_for(folder, rank=rank, **options)) for rank in range(2)]
    assert shares[0] + shares[1] == alone
    with pytest.raises(UsageError, match="at least the number of ranks"):
        data_for(folder, world=5).val_dataloader()


# ---------------------------------------------------------------------------------------------------- bad files


def bad_pictures() -> dict[str, bytes]:
    scene = Image.open(io.BytesIO(png(0)))
    jpeg, large = io.BytesIO(), io.BytesIO()
    scene.save(jpeg, "JPEG")
    scene.resize((80, 80)).save(large, "PNG")
    return {
        "zero.png": b"",
        "text.jpg": b"not a picture at all",
        "cut.jpg": jpeg.getvalue()[: jpeg.tell() // 2],
        "cut.png": png(0)[:500],
        "large.png": large.getvalue(),
    }


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """20 good pictures, and bad ones, and bad captions."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for index in range(20):
        (folder / f"{index:03d}.png").write_bytes(png(index))
        (folder / f"{index:03d}.txt").write_text(" ".join(["word"] * 10_000) if index == 9 else f"picture {index}")
    for file, content in bad_pictures().items():
        (folder / file).write_bytes(content)
        (folder / file).with_suffix(".txt").write_text("a caption")
    for index, caption in enumerate((None, b"", b" \n", b"caf\xe9")):
        (folder / f"{800 + index}.png").write_bytes(png(100 + index))
        if caption is not None:
            (folder / f"{800 + index}.txt").write_bytes(caption)
    return folder


def test_bad_files_are_counted_by_reason_and_listed(mixed: Path):
    # red if `skipped` of a tally without a batch is dropped, or `read` leaves out what is held out
    data = data_for(mixed, require_captions=True, max_skipped=0.5, num_workers=2, max_source_pixels=5000)
    batches = take(data, 40)
    assert set(numbers(batches)) == set(range(20)) - set(held_out(data))
    words = {len(caption.split()) for batch in batches for caption in batch.captions}
    assert words <= {2, 10_000} and (9 in held_out(data) or 10_000 in words)
    files = data.skipped_files
    assert files.read == files.kept + files.held_out + files.skips and files.kept >= 80
    rows = [json.loads(line) for line in Path(f"{mixed}.out/skipped.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows} == {
        "zero.png": "empty file", "text.jpg": "not a picture", "cut.jpg": "damaged", "cut.png": "damaged",
        "large.png": "too many pixels", "800.png": "no caption", "801.png": "empty caption", "802.png": "empty caption",
        "803.png": "caption not in UTF-8",
    }  # fmt: skip
    assert len(rows) == 9  # each once, in whatever epoch
    with pytest.warns(UserWarning, match=r"read = \d+ used .* damaged \(2\), empty caption \(2\)"):
        data.teardown("fit")


def test_without_need_of_captions_their_faults_cost_no_picture(mixed: Path):
    # red if captions_needed is ignored
    data = data_for(mixed, max_skipped=0.5)
    captions = {
        key: caption for batch in take(data, 40) for key, caption in zip(batch.keys, batch.captions, strict=True)
    }
    assert all(captions.get(f"{800 + index}.png", "") == "" for index in range(4)) and "801.png" in captions
    assert data.skipped_files.converted["without its caption not in UTF-8"] > 0


def test_too_many_bad_files_stop_the_run(mixed: Path):
    # red if > becomes <, or skips are not added up
    with pytest.raises(
        UsageError, match=r"cannot be used, more than data.init_args.max_skipped \(0.05\).*skipped.jsonl"
    ):
        take(data_for(mixed, num_workers=1, validation_pictures=2), 200)


def test_a_set_of_bad_files_alone_stops_although_there_is_no_batch(tmp_path: Path, folder: Path):
    # red if `len(tally.skipped) >= REPORTED_AT` is left out
    (tmp_path / "bad").mkdir()
    for index in range(150):
        (tmp_path / "bad" / f"{index}.png").write_bytes(b"bad")
    with pytest.raises(UsageError, match=r"100 of 100 pictures .* not a picture \(100\)"):
        take(data_for(tmp_path / "bad", validation_path=str(folder)), 1)


def test_bad_shares_are_judged_after_100_samples(tmp_path: Path):
    # red if JUDGED_AFTER becomes 99, or > becomes >=
    from uae_lightning.data.images import BadFile

    files = SkippedFiles(0.05, "set", tmp_path / "skipped.jsonl")
    tally = Tally(kept=93)
    for index in range(6):
        tally.skip("set", str(index), BadFile("damaged"))
    files.add(tally)  # 6 of 99
    with pytest.raises(UsageError, match="6 of 100"):
        files.add(Tally(kept=1))
    SkippedFiles(0.06, "set", None).add(Tally(94, skipped=tally.skipped))
    again = SkippedFiles(0.05, "set", tmp_path / "skipped.jsonl")
    again.add(Tally(200, skipped=tally.skipped))
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 6


def test_bad_members_of_shards_are_skipped_and_a_cut_shard_ends_early(folder: Path, tmp_path: Path):
    # red if ReadError is not caught, or a stem without a picture is passed over in silence
    with tarfile.open(tmp_path / "00.tar", "w") as tar:
        for member, content in (
            ("000.txt", b"alone"),
            ("001.png", png(101)),
            ("002.jpg", b""),
            ("003.png", png(103)),
            ("004.png", png(104) * 20),
        ):
            header = tarfile.TarInfo(member)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    whole = (tmp_path / "00.tar").read_bytes()
    (tmp_path / "00.tar").write_bytes(whole[: whole.index(b"004.png") + 2000])
    (tmp_path / "01.tar").write_bytes(b"\0" * 10240)
    data = data_for(tmp_path, validation_path=str(folder), max_skipped=1.0)
    assert set(numbers(take(data, 4))) == {1}
    reasons = {key: reason for (_, key), reason in data.skipped_files.reasons.items()}
    assert reasons.pop("00.tar/000") == "no picture" and reasons.pop("00.tar/002") == "empty file"
    assert sorted(reasons.values()) == ["damaged shard", "empty shard"]


def test_options_out_of_range_are_named(folder: Path):
    # red if < 1 becomes < 0
    for option, value in (("resolution", 0), ("batch_size", 0), ("max_skipped", 1.5), ("max_source_pixels", 10**9)):
        with pytest.raises(UsageError, match=f"data.init_args.{option}"):
            data_for(folder, **{option: value})


def test_a_data_set_that_changed_is_mentioned(folder: Path, tmp_path: Path):
    # red if "units" is not compared
    data = data_for(folder)
    take(data, 3)
    used(data, 3)
    state = data.state_dict() | {"units": 39}
    with pytest.warns(UserWarning, match="has 40 pictures .* 39 when"):
        data_for(folder).load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data_for(folder).load_state_dict(state | {"units": 40})
