import io
import json
import tarfile
import threading
import tracemalloc
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from own_pictures import PICTURES, data_for, held_out, name, numbers, png, take, used, write_folder, write_shards
from PIL import Image

from uae_lightning.data.held_out import equal_batches
from uae_lightning.data.image_text import ImageTextData, image_bytes, read_caption
from uae_lightning.data.opening import open_source
from uae_lightning.data.skipped import SkippedFiles, Tally
from uae_lightning.data.sources import Columns
from uae_lightning.scenes.scene import IMAGE_SIZE, render, sample_scene
from uae_lightning.usage import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(folder, tmp_path_factory.mktemp("shards"))


# ---------------------------------------------------------------------------------------------------- what is read


def test_a_batch_holds_pictures_captions_and_keys(folder: Path):
    # red if / 255 becomes / 256, or the caption is read from another picture's file
    batch = take(data_for(folder, resolution=IMAGE_SIZE), 1)[0]
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
    from uae_lightning.data import shards as module

    whole, broken = module._read_tar, []

    def breaks_once(url: str, column: str):
        for number, sample in enumerate(whole(url, column)):
            if number == 5 and not broken:
                broken.append(url)
                raise ConnectionResetError("lost")
            yield sample

    monkeypatch.setattr(module, "_read_tar", breaks_once)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
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
        (
            [{"image": "a.png", "caption": 3}],
            Columns(),
            r"'caption' must be a string or a list of strings, got 3",
        ),
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


def test_held_out_pictures_need_no_captions(folder: Path, tmp_path: Path):
    # red if `captions_needed` stays true in HeldOutPictures or for the source of `validation_path`
    rows = [{"image": str(folder / name(i)), **({} if i % 2 else {"caption": f"picture {i}"})} for i in range(PICTURES)]
    for index in range(3):
        (tmp_path / f"{900 + index}.png").write_bytes(png(900 + index))
    data = data_for(folder, validation_path=str(tmp_path), validation_pictures=3, require_captions=True)
    assert sorted(held_out(data)) == [900, 901, 902]
    half = jsonl(tmp_path, rows)
    with_captions, without = (
        data_for(half, validation_pictures=8, require_captions=needed, max_skipped=1.0) for needed in (True, False)
    )
    assert held_out(with_captions) == held_out(without)  # the same in all stages
    assert any(number % 2 for number in held_out(with_captions))
    assert not any(number % 2 for number in numbers(take(with_captions, 20)))


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
    scene.resize((IMAGE_SIZE + 1,) * 2).save(large, "PNG")
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
    data = data_for(mixed, require_captions=True, max_skipped=0.5, num_workers=2, max_source_pixels=IMAGE_SIZE**2)
    batches = take(data, 40)
    assert set(numbers(batches)) == set(range(20)) - {9} - set(held_out(data)) and 9 not in held_out(data)
    assert {len(caption.split()) for batch in batches for caption in batch.captions} == {2}
    files = data.skipped_files
    assert files.read == files.kept + files.held_out + files.skips and files.kept >= 80
    rows = [json.loads(line) for line in Path(f"{mixed}.out/skipped.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows} == {
        "zero.png": "empty file", "text.jpg": "not a picture", "cut.jpg": "damaged", "cut.png": "damaged",
        "large.png": "too many pixels", "800.png": "no caption", "801.png": "empty caption", "802.png": "empty caption",
        "803.png": "caption not in UTF-8", "009.png": "overlong caption",
    }  # fmt: skip
    assert len(rows) == 10  # each once, in whatever epoch
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
