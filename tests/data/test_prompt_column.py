"""Prompts beside captions, in the forms of data that have columns."""

import json
import tarfile
from pathlib import Path

import pytest
from own_pictures import PICTURES, data_for, name, numbers, take, write_folder

from uae_lightning.data.opening import open_source
from uae_lightning.data.sources import Columns
from uae_lightning.usage import UsageError

WITHOUT = {3: {"caption": "picture 3"}, 4: {"prompt": "4"}, 5: {"prompt": "  ", "caption": "picture 5"}}  # of both


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pictures"))


def rows(folder: Path) -> list[dict]:
    texts = [WITHOUT.get(i, {"prompt": f"{i}", "caption": f"picture {i}"}) for i in range(PICTURES)]
    return [{"image": str(folder / name(i))} | texts[i] for i in range(PICTURES)]


def write_form(form: str, folder: Path, to: Path) -> Path:
    if form == "jsonl":
        (to / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(folder)))
        return to / "rows.jsonl"
    if form == "datasets":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(rows(folder)).save_to_disk(to / "saved")
        return to / "saved"
    with tarfile.open(to / "00.tar", "w") as tar:
        for index, row in enumerate(rows(folder)):
            tar.add(row["image"], f"{index:03d}.png")
            text = {key: value for key, value in row.items() if key != "image"}
            if index % 2 and "caption" in text:  # the caption from the .txt, and then the prompt from the .json still
                (to / "text").write_text(text.pop("caption"))
                tar.add(to / "text", f"{index:03d}.txt")
            (to / "text").write_text(json.dumps(text))
            tar.add(to / "text", f"{index:03d}.json")
    return to / "00.tar"


@pytest.mark.parametrize("form", ["jsonl", "datasets", "shards"])
def test_every_form_with_columns_gives_pairs(form, folder, tmp_path):
    # red if a prompt is that of another row, a picture without one is trained on, or no .json is read beside a .txt
    source = write_form(form, folder, tmp_path)
    held_out = write_folder(
        tmp_path / "held out"
    )  # of its own: which of the source's are held out depends on their paths
    data = data_for(source, validation_path=str(held_out), prompt_column="prompt", max_skipped=1.0)
    batches = take(data, 30)
    for batch in batches:
        wanted = [caption.removeprefix("picture ") for caption in batch.captions]
        assert batch.prompts == wanted and all(wanted)
    if form != "datasets":  # whose keys are numbers of rows
        assert not set(numbers(batches)) & WITHOUT.keys()
    assert {"no prompt", "empty prompt", "no caption"} == set(data.skipped_files.reasons.values())
    assert all(batch.prompts is None for batch in data.val_dataloader())  # the round trip needs none


def test_prompts_are_read_only_where_they_are_asked_for(folder, tmp_path):
    # red if the column has a default: a .json would be read beside each .txt
    (batch,) = take(data_for(write_form("jsonl", folder, tmp_path)), 1)
    assert batch.prompts is None


def test_data_without_prompts_is_refused(folder, tmp_path):
    # red without a look at the column in each of the forms
    with pytest.raises(UsageError, match="a folder of pictures has no prompts: write a JSONL"):
        open_source(str(folder), Columns(prompt="prompt"))
    with pytest.raises(UsageError, match="rows.jsonl, line 1: no 'short', nor in any later .*prompt_column"):
        open_source(str(write_form("jsonl", folder, tmp_path)), Columns(prompt="short"))
    with pytest.raises(UsageError, match="no column 'short'.*data.init_args.prompt_column"):
        open_source(str(write_form("datasets", folder, tmp_path)), Columns(prompt="short"))
