"""Prompts without pictures: their files, who draws which, and where a resumed run goes on."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from uae_lightning.data.prompts import PromptData
from uae_lightning.types import Batch
from uae_lightning.usage import UsageError

TEXTS = [f"a photo of {count} cups" for count in range(40)]


def data_for(path: Path, *, rank: int = 0, world: int = 1, **options) -> PromptData:
    """On a rank, as the trainer sees it."""
    options = {"batch_size": 2, "validation_pictures": 4} | options
    data = PromptData(str(path), **options)
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, default_root_dir=f"{path}.out",
        fit_loop=SimpleNamespace(epoch_loop=progress), lightning_module=SimpleNamespace(trains_from_prompts=True),
    )  # fmt: skip
    data.setup("fit")
    return data


def take(data: PromptData, batches: int) -> list[Batch]:
    return list(islice(iter(data.train_dataloader()), batches))


def texts_of(batches: list[Batch]) -> list[str]:
    return [text for batch in batches for text in batch.captions]


@pytest.fixture
def lines(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff" + "\r\n".join([*TEXTS, "", "  "]), encoding="utf-8", newline="")
    return path


def write_form(form: str, folder: Path) -> Path:
    path = folder / f"prompts.{form}"
    if form == "txt":
        path.write_text("\n".join(TEXTS))
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"tag": "counting", "prompt": text}) + "\n" for text in TEXTS))
    elif form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"picture": [b"\xff"] * len(TEXTS), "prompt": TEXTS}), path)
    else:
        (path / "below").mkdir(parents=True)
        for number, text in enumerate(TEXTS):
            (path / "below" / f"{number:02d}.txt").write_text(text.replace(" of ", " of\n"))
    return path


@pytest.mark.parametrize("form", ["txt", "jsonl", "parquet", "folder"])
def test_every_form_gives_the_same_prompts(form, tmp_path):
    # red if a form loses or splits a prompt, or a held-out one is trained on
    data = data_for(write_form(form, tmp_path))
    read, held_out = texts_of(take(data, 18)), texts_of(list(data.val_dataloader()))
    assert sorted([*read, *held_out]) == sorted(TEXTS) and len(held_out) == 4
    batch = take(data, 1)[0]
    assert batch.images.shape == (2, 3, 0, 0) and not batch.has_images and batch.keys == batch.captions
    rows = None if form != "jsonl" else [{"tag": "counting", "prompt": text} for text in batch.captions]
    assert batch.metadata == rows


def test_blank_lines_and_a_mark_at_the_start_are_no_prompts(lines):
    # red with "utf-8" for "utf-8-sig", or without the look at an empty text
    data = data_for(lines)
    assert sorted([*(prompt.text for prompt in data.source.prompts), *(p.text for p in data.held_out)]) == sorted(TEXTS)


def test_what_is_held_out_is_the_same_in_every_run_and_never_trained_on(lines, tmp_path):
    # red if held-out prompts are chosen by their place, or a copy of one stays among those to train on
    held = {prompt.text for prompt in data_for(lines).held_out}
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*reversed(TEXTS), *TEXTS[:20]]))
    again = data_for(other)
    assert {prompt.text for prompt in again.held_out} == held and len(again.held_out) == 4
    assert not held & {prompt.text for prompt in again.source.prompts} and len(again.source) > 36
    elsewhere = data_for(lines, validation_path=str(other), validation_pictures=30)
    assert len(elsewhere.held_out) == 30 and len(elsewhere.source) == 10


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_an_epoch_and_the_held_out_prompts(lines, world):
    # red if a rank reads what is another's, or has another number of validation batches
    ranks = [data_for(lines, rank=rank, world=world, batch_size=1, validation_batch_size=2) for rank in range(world)]
    read = [texts_of(take(data, 36 // world)) for data in ranks]
    assert sorted(sum(read, [])) == sorted(prompt.text for prompt in ranks[0].source.prompts)
    held = [list(data.val_dataloader()) for data in ranks]
    assert len({len(batches) for batches in held}) == 1
    assert sorted(text for batches in held for text in texts_of(batches)) == sorted(p.text for p in ranks[0].held_out)


def test_a_resumed_stream_goes_on_exactly(lines):
    # red if the place of the stream is left out of the state
    wanted = texts_of(take(data_for(lines), 24))
    stopped = data_for(lines)
    read = iter(stopped.train_dataloader())
    assert texts_of([next(read) for _ in range(15)]) == wanted[:30]
    stopped.trainer.fit_loop.epoch_loop.batch_progress.total.processed = 13  # two were read ahead
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = data_for(lines)
    resumed.load_state_dict(state)
    resumed.trainer.fit_loop.epoch_loop.batch_progress.total.processed = 13
    assert texts_of(take(resumed, 11)) == wanted[26:] and texts_of(take(data_for(lines, seed=1), 24)) != wanted


MISTAKES = {  # name of the file, content, options, words
    "empty": ("a.txt", "\n \n", {}, "a.txt has no prompts: write one a line"),
    "kind": ("a.csv", "a", {}, "a.csv: prompts are read from a .txt, a .jsonl, a .parquet"),
    "json": ("a.jsonl", '{"prompt": "a"}\n{', {}, "a.jsonl, line 2: not JSON"),
    "column": ("a.jsonl", '{"promt": "a"}', {}, "no text under 'prompt', only 'promt'; did you mean promt.*prompt_col"),
    "number": ("a.jsonl", '{"prompt": 3}', {}, "line 1: no text under 'prompt', 3; name the column"),
    "no object": ("a.jsonl", "[3]", {}, "line 1: no text under 'prompt'"),
    "parquet": ("a.parquet", "PAR1", {}, "a.parquet is no parquet, or damaged"),
    "long": ("a.txt", "a b c", {"max_prompt_words": 2}, "a prompt of 3 words.* raise data.init_args.max_prompt_words"),
    "few": ("a.txt", "a\na\nb", {}, "2 different prompts, fewer than data.init_args.validation_pictures .4.: lower it"),
    "all": ("a.txt", "a\nb", {"validation_pictures": 2}, "leaves none to train on.*data.init_args.validation_path"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_with_the_remedy(mistake, tmp_path):
    # red without the check that the message is from
    name, content, options, words = MISTAKES[mistake]
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=words):
        data_for(tmp_path / name, **options).source  # noqa: B018


def test_files_that_cannot_be_read(tmp_path):
    # red without errors for a missing file, another encoding, or an unknown column of a parquet
    with pytest.raises(FileNotFoundError, match="none.txt does not exist: correct data.init_args.path"):
        data_for(tmp_path / "none.txt").source  # noqa: B018
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UsageError, match="latin.txt is not UTF-8 text .*byte 3.: save it as such"):
        data_for(tmp_path / "latin.txt").source  # noqa: B018
    parquet = write_form("parquet", tmp_path)
    with pytest.raises(UsageError, match="row 1: no text under 'text', only 'picture', 'prompt'"):
        data_for(parquet, prompt_column="text").source  # noqa: B018


def test_a_stage_that_needs_pictures_is_refused_before_it_starts(lines):
    # red if setup asks nobody: the encoder would be given pictures of no pixels
    data = data_for(lines)
    data.trainer.lightning_module = SimpleNamespace(trains_from_prompts=False)
    with pytest.raises(UsageError, match="needs pictures, and data.class_path PromptData has none"):
        data.setup("fit")
