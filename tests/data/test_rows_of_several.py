"""Several captions of a picture, columns that go to the reward, and rows that are chats."""

import json
import tarfile
from pathlib import Path

import pytest
from own_pictures import PICTURES, data_for, name, take, write_folder

from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns
from uae_lightning.usage import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pictures"))


def row(index: int) -> dict:
    return {
        "caption": [f"picture {index}", f"again {index}"],
        "questions": [{"question": f"which? {index}"}],
        "n": index,
    }


def write_form(form: str, folder: Path, to: Path) -> Path:
    rows = [{"image": str(folder / name(index))} | row(index) for index in range(PICTURES)]
    if form == "jsonl":
        (to / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        return to / "rows.jsonl"
    if form == "datasets":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(rows).save_to_disk(to / "saved")
        return to / "saved"
    with tarfile.open(to / "00.tar", "w") as tar:
        for index, one in enumerate(rows):
            tar.add(one["image"], f"{index:03d}.png")
            (to / "text").write_text(json.dumps(one))
            tar.add(to / "text", f"{index:03d}.json")
    return to / "00.tar"


@pytest.mark.parametrize("form", ["jsonl", "datasets", "shards"])
def test_one_of_the_captions_comes_and_columns_go_along(form, folder, tmp_path):
    # red if it is always the same caption, one of another picture, or a column is left out or another picture's
    data = data_for(write_form(form, folder, tmp_path), require_captions=True, metadata_columns=["questions", "n"])
    batches = take(data, 30)
    captions = [caption for batch in batches for caption in batch.captions]
    rows = [found for batch in batches for found in batch.metadata]
    assert {caption.split()[0] for caption in captions} == {"picture", "again"}
    for caption, found in zip(captions, rows, strict=True):
        index = int(caption.split()[1])
        assert found == {name: row(index)[name] for name in ("questions", "n")}
    held_out = next(iter(data.val_dataloader()))
    assert all(
        text == f"picture {found['n']}" for text, found in zip(held_out.captions, held_out.metadata, strict=True)
    )


def test_a_list_lies_beside_a_picture(tmp_path):
    # red if the .json is not read, counts before the .txt, or is called a file that is left out
    write_folder(tmp_path)
    for index in (0, 1):
        (tmp_path / name(index)).with_suffix(".json").write_text('["one", "two"]')
    (tmp_path / name(0)).with_suffix(".txt").unlink()
    source = open_source(str(tmp_path), Columns())
    captions = {sample.key: sample.caption for unit in range(PICTURES) for sample in source.read(unit)}
    assert captions[name(0)] == ("one", "two") and captions[name(1)] == b"picture 1\n"
    assert not source.without()


def test_chats_are_rows(folder, tmp_path):
    # red if the mark of the picture stays, parts of a message are not joined, or the question is no prompt
    question = [{"type": "image"}, {"type": "text", "text": "a ball"}]
    rows = [
        {
            "messages": [
                {"role": "system", "content": "You describe."},
                {"role": "user", "content": "<image>a ball" if index % 2 else question},
                {"role": "assistant", "content": f"picture {index}"},
            ],
            "images": [str(folder / name(index))] if index % 3 else [{"path": str(folder / name(index))}],
            "n": index,
        }
        for index in range(PICTURES)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    data = data_for(tmp_path / "rows.jsonl", prompt_column="prompt", metadata_columns=["n"])
    for batch in take(data, 6):
        assert batch.captions == [f"picture {found['n']}" for found in batch.metadata]
        assert batch.prompts == ["a ball"] * len(batch.captions)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": ["a.png", "b.png"]}, "line 2: 'images' must be a list with the path of one picture"),
        ({"messages": ["hello"]}, "line 2: 'messages' must be a list of objects"),
        ({"messages": [{"role": [], "content": 3}]}, "line 2: the content of a message must be a text"),
    ],
)
def test_what_is_no_chat_about_a_picture_is_named(change, words, tmp_path):
    # red without the line, or with a TypeError from inside
    good = {"messages": [{"role": "assistant", "content": "a"}], "images": ["a.png"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(UsageError, match=f"rows.jsonl, {words}"):
        open_source(str(tmp_path / "rows.jsonl"), Columns())


@pytest.mark.parametrize("form", ["jsonl", "datasets"])
def test_a_column_that_is_nowhere_is_named(form, folder, tmp_path):
    # red without either look for columns of metadata
    with pytest.raises(UsageError, match=r"no (column )?'question'.*correct data.init_args.metadata_columns"):
        open_source(str(write_form(form, folder, tmp_path)), Columns(metadata=("question",)))
