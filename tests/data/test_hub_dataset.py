"""Data sets of the hub: local folders laid out as such a repository, and a hub on the loopback."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import Hub
from own_pictures import PICTURES, data_for, png, take, used
from PIL import Image

from uae_lightning.data import streams
from uae_lightning.data.image_text import ImageTextData, image_bytes, read_caption
from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns
from uae_lightning.prepare.caption_reading import Reading
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

datasets = pytest.importorskip("datasets")
HELD_OUT = {"validation_pictures": 4, "max_skipped": 0.5}
ROWS = {"image": datasets.Image(), "caption": datasets.Value("string")}


def write_parquet(folder: Path, rows: list[dict], features: dict, files: int = 4, rows_of_group: int = 5) -> Path:
    """As the hub's own: `data/train-00000-of-00004.parquet`, ..."""
    (folder / "data").mkdir(parents=True)
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features)).data.table
    each = len(rows) // files
    for number in range(files):
        file = folder / "data" / f"train-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(table.slice(number * each, each), file, row_group_size=rows_of_group)
    return folder


def picture(index: int) -> dict:
    return {"bytes": png(index), "path": f"{index:03d}.png"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures in 4 files of 2 row groups."""
    rows = [{"image": picture(index), "caption": f"picture {index}"} for index in range(PICTURES)]
    return write_parquet(tmp_path_factory.mktemp("hub") / "pictures", rows, ROWS)


def numbers(batches: list[Batch]) -> list[int]:
    return [int(caption.split()[1]) for batch in batches for caption in batch.captions]


def data_of(repository: Path, **options) -> ImageTextData:
    data = data_for(f"hub:{repository}", **HELD_OUT | options)
    data.trainer.default_root_dir = f"{repository}.out"
    return data


def everything(data: ImageTextData) -> list[int]:
    return sorted(set(range(PICTURES)) - set(numbers(list(data.val_dataloader()))))


# ---------------------------------------------------------------------------------------------------- what is read


def test_rows_are_pictures_with_captions(repository: Path):
    # red if pictures are decoded, or rows of a table after its first are left out
    source = open_source(f"hub:{repository}", Columns(captions_needed=True))
    samples = [sample for unit in range(len(source)) for sample in source.read(unit)]
    assert len(source) == 8 and len({sample.key for sample in samples}) == PICTURES
    found = [(read_caption(sample.caption), image_bytes(sample)) for sample in samples]
    assert found == [(f"picture {index}", png(index)) for index in range(PICTURES)]


def test_a_part_of_a_shard_from_any_place_on(repository: Path):
    # red if `start` is not counted in samples of the part
    source = open_source(f"hub:{repository}", Columns())
    for parts in (1, 2, 3):
        for part in range(parts):
            for start in range(4):
                wanted = [sample.key for sample in source.read(3)][part::parts][start:]
                assert [sample.key for sample in source.read_from(start, 3, part, parts)] == wanted


def test_lists_of_captions_and_columns_for_rewards(tmp_path: Path):
    # red if a list of captions is no caption, or metadata columns are not selected
    rows = [{"picture": picture(i), "texts": [f"picture {i}", f"again {i}"], "n": i} for i in range(12)]
    features = {"picture": datasets.Image(), "texts": datasets.List(datasets.Value("string"))}
    write_parquet(tmp_path / "x", rows, features | {"n": datasets.Value("int64")})
    columns = {"image_column": "picture", "caption_column": "texts", "metadata_columns": ["n"]}
    batches = take(data_of(tmp_path / "x", require_captions=True, **columns), 24)
    assert {caption.split()[0] for batch in batches for caption in batch.captions} == {"picture", "again"}
    assert numbers(batches) == [row["n"] for batch in batches for row in batch.metadata]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_rows_that_are_chats(form: str, tmp_path: Path):
    # red if pictures within a list are decoded, or paths are not those of the repository
    def chat(index: int) -> dict:
        said = [("user", f"<image>a ball {index}"), ("assistant", f"picture {index}")]
        return {"messages": [{"role": role, "content": text} for role, text in said]}

    if form == "parquet":
        message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
        features = {"messages": datasets.List(message), "images": datasets.List(datasets.Image())}
        write_parquet(tmp_path / "x", [chat(i) | {"images": [picture(i)]} for i in range(12)], features)
    else:
        (tmp_path / "x/pictures").mkdir(parents=True)
        for index in range(12):
            (tmp_path / f"x/pictures/{index}.png").write_bytes(png(index))
        rows = [chat(index) | {"images": [f"pictures/{index}.png"]} for index in range(12)]
        (tmp_path / "x/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = data_of(tmp_path / "x", prompt_column="prompt")
    batches = take(data, 8)
    assert sorted(set(numbers(batches))) == sorted({*range(12)} & {*everything(data)})
    assert [int(prompt.split()[-1]) for batch in batches for prompt in batch.prompts] == numbers(batches)
    assert not data.skipped_files.skips


# ---------------------------------------------------------------------------------------------------- bad rows


def test_bad_rows_are_counted(tmp_path: Path):
    # red if a row of text that is not in UTF-8 ends its shard, or a damaged file the run
    rows = [{"image": picture(index), "caption": f"picture {index}"} for index in range(PICTURES)]
    rows[7]["image"] = {"bytes": png(7)[:200], "path": None}
    rows[9]["image"], rows[12]["caption"] = None, None
    write_parquet(tmp_path / "x", rows, ROWS, rows_of_group=PICTURES)
    first, last = (tmp_path / f"x/data/train-{number:05d}-of-00004.parquet" for number in (0, 3))
    table = pq.read_table(first)
    texts = [b"caf\xe9" if index == 3 else f"picture {index}".encode() for index in range(10)]
    broken = pa.Array.from_buffers(pa.string(), 10, pa.array(texts, pa.binary()).buffers())
    pq.write_table(table.set_column(1, "caption", broken).replace_schema_metadata(table.schema.metadata), first)
    content = bytearray(last.read_bytes())
    content[4:2000] = bytes(1996)
    last.write_bytes(content)
    data = data_of(tmp_path / "x", require_captions=True, num_workers=2)
    assert sorted(set(numbers(take(data, 30)))) == sorted(set(everything(data)) - {3, 7, 9, 12, *range(30, 40)})
    listed = [json.loads(line) for line in Path(data.skipped_files.file).read_text().splitlines()]
    reasons = {row["key"].partition("hub:")[2] and "file" or row["key"]: row["reason"] for row in listed}
    assert reasons == {
        "00000/0000003": "damaged row", "00000/0000007": "damaged", "00000/0000009": "no picture",
        "00001/0000002": "no caption", "file": "damaged shard",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- who, and where


def first_epoch(data: ImageTextData, batches: int) -> list[int]:
    """The pictures of epoch 0 among those of the first batches, which hold one each."""
    read, deal = numbers(take(data, batches)), data._deal
    units = [deal.card(stream + turn * deal.streams)[0] for stream, (turn, *_) in data._reports]
    return [number for number, unit in zip(read, units, strict=True) if unit < len(data.source) * deal.parts]


@pytest.mark.parametrize("world, workers", [(1, 0), (2, 2), (5, 2)])
def test_ranks_and_workers_share_an_epoch(world: int, workers: int, repository: Path):
    # red with `iter(shard)`, which `datasets` deals to the workers once more; the last has more streams than shards
    options = {"num_workers": workers, "batch_size": 1}
    read = [first_epoch(data_of(repository, rank=rank, world=world, **options), 44) for rank in range(world)]
    assert sorted(number for numbers in read for number in numbers) == everything(data_of(repository))
    assert all(read)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_exactly(workers: int, repository: Path):
    # red if `read_from` leaves out one sample more or less, or blocks are numbered from the place
    options = {"num_workers": workers, "shuffle_buffer": 3, "random_crop": True}
    wanted = take(data_of(repository, **options), 30)
    stopped = data_of(repository, **options)
    stream = iter(stopped.train_dataloader())
    for _ in range(15):
        next(stream)
    used(stopped, 13)  # two were read ahead
    state = json.loads(json.dumps(stopped.state_dict()))
    assert any(samples for _, samples, _ in state["deal"]["places"])  # within a shard, and an epoch has 18 batches
    resumed = data_of(repository, **options)
    resumed.load_state_dict(state)
    used(resumed, 13)
    got = take(resumed, 17)
    assert numbers(got) == numbers(wanted[13:])
    assert all(torch.equal(a.images, b.images) for a, b in zip(got, wanted[13:], strict=True))


def test_what_two_ranks_left_one_goes_on_with(repository: Path, monkeypatch: pytest.MonkeyPatch):
    # red if a place is the state of a stream of `datasets`, which no other rank can take over
    from test_streams import gathering

    old = [data_of(repository, rank=rank, world=2, num_workers=2) for rank in range(2)]
    seen = [number for data in old for number in numbers(take(data, 6))]
    for data in old:
        used(data, 6)
        data._settle()
    monkeypatch.setattr(streams, "dist", gathering([data._deal.places for data in old]))
    state = old[0].state_dict()
    monkeypatch.undo()
    new = data_of(repository)
    new.load_state_dict(state)
    used(new, 6)
    assert len(set(seen)) == 24 and sorted(seen + numbers(take(new, 6))) == everything(new)


def test_captions_for_it_go_on_where_they_stood(repository: Path):
    # red if the place counts from the first sample that is read
    reading = Reading(open_source(f"hub:{repository}", Columns()), 1, 3)
    every = list(reading.samples((0, 0)))
    for place in (0, 6, 14):
        behind = every[place][0]
        assert [one.key for _, one in reading.samples(behind)] == [one.key for _, one in every[place + 1 :]]


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hub:{}?split=test", r"Bad split: test. Available splits: \['train'\].*split=SPLIT"),
        ("hub:{}?subset=small", "'small' not found.*subset=SUBSET"),
        ("hub:{}?spilt=train", "data.init_args.path .*'spilt' is none of split, subset, revision"),
        ("hub:{}?split=", "'split' is none of split, subset, revision with a value"),
        ("hub:{}/nowhere", "neither a folder here nor the name of a data set of the hub"),
        ("hub:somebody/pictures", "hub cannot be reached.*hf download somebody/pictures --repo-type dataset"),
        ("somebody/pictures", "does not exist.*or name a data set of the hub as hub:somebody/pictures"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(name: str, words: str, repository: Path):
    # red without any of the checks: errors of `datasets` come through as they are
    with pytest.raises((UsageError, FileNotFoundError), match=words):
        open_source(name.format(repository), Columns())


def test_a_column_that_is_not_there_is_named(repository: Path):
    # red without `_check_names` or `_check_kind`
    for columns, words in (
        (Columns(image="photo"), "no column 'photo', only 'image', 'caption'.*image_column"),
        (Columns(caption="text", captions_needed=True), "no column 'text'.*caption_column"),
        (Columns(metadata=("n",)), "no column 'n'.*metadata_columns"),
        (Columns(caption="image"), "column 'image' holds PIL.*, where captions are strings"),
    ):
        with pytest.raises(UsageError, match=words):
            open_source(f"hub:{repository}", columns)


# ---------------------------------------------------------------------------------------------------- over the hub

CLIENT = """
from itertools import islice

from uae_lightning.data.image_text import ImageTextData
from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns

for workers in (0, 2):
    data = ImageTextData("hub:me/data", resolution=8, validation_pictures=4, num_workers=workers, batch_size=2)
    read = [caption for batch in islice(iter(data.train_dataloader()), 18) for caption in batch.captions]
    print(len(read), len(set(read)))
for sample in open_source("hub:me/chats", Columns()).read(0):
    print(getattr(sample.image, "reason", None) or len(sample.image), sample.caption)
try:
    open_source("hub:me/none", Columns())
except ValueError as error:
    print(error)
"""


def test_a_data_set_is_streamed_from_a_hub(repository: Path, tmp_path: Path):
    # red without the token, with `Path("hf://...")`, or if addresses outside of the repository are read
    (tmp_path / "chats/images").mkdir(parents=True)
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "BMP")
    (tmp_path / "chats/images/0.bmp").write_bytes(file.getvalue())
    places = ["images/0.bmp", "images/1.bmp", "../data/0.bmp", "/etc/hostname", "http://127.0.0.1/0.bmp"]
    places.append("file:///etc/hostname::hf://datasets/me/chats@main/images/0.bmp")
    said = [{"role": "assistant", "content": "a text"}]
    rows = [{"messages": said, "images": [place]} for place in places]
    (tmp_path / "chats/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Hub() as hub:
        hub.add("datasets/me/data", repository, private=True)
        hub.add("datasets/me/chats", tmp_path / "chats")
        environment = hub.environment(tmp_path / "home")
        ended = subprocess.run([sys.executable, "-c", CLIENT], env=environment, capture_output=True, text=True)
        hub.shutdown()
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = ended.stdout.splitlines()
    assert lines[0] == "36 36" and lines[1].startswith("36 ")
    outside = ["no picture a text"] * 4
    assert lines[2:8] == [f"{len(file.getvalue())} a text", "missing file a text", *outside]
    assert "hub:me/none is no data set that this account may read" in lines[8] and len(lines) == 9
    downloads = {request.rpartition("/")[2] for request in hub.requests if request.startswith("GET /datasets")}
    assert downloads == {"train.jsonl", "0.bmp", *(f"train-{n:05d}-of-00004.parquet" for n in range(4))}
