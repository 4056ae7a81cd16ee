"""The folder of a cache: one writer, nothing but a cache's files deleted, and no flipped bit trained on."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from uae_lightning.cli import main
from uae_lightning.commands import cache as command
from uae_lightning.data import cache_shards as shards
from uae_lightning.data.cache_shards import Entry, Header, inspect_all, read_entry, write_shard
from uae_lightning.data.cached import CachedData
from uae_lightning.files import PARTIAL
from uae_lightning.prepare import cache_pass
from uae_lightning.prepare.cache_folder import claimed
from uae_lightning.prepare.part import Part
from uae_lightning.usage import UsageError

HEADER = Header({"resolution in pixels": "16", "precision": "32-true"}, "uae cache --config a.yaml --to b")
WHOLE = Part()


def entry(number: int) -> Entry:
    latents, states = torch.full((2, 2, 2), float(number)), torch.full((1 + number, 3), float(number)).bfloat16()
    return Entry(bytes([number] * 32), f"{number:03d}.png", f"caption \u00e9 {number}", latents, states)


def write(folder: Path, name: str = "cache-000000.safetensors", header: Header = HEADER) -> Path:
    write_shard(folder / name, [entry(number) for number in range(4)], header)
    return folder / name


def same(a: Entry, b: Entry) -> bool:
    """Bit by bit."""
    tensors = ((a.latents, b.latents), (a.states, b.states))
    return (a.content, a.key, a.caption) == (b.content, b.key, b.caption) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in tensors
    )


# ---------------------------------------------------------------------------------------------------- flipped bytes


def test_no_flipped_byte_is_read(tmp_path: Path):
    # red if latents, states, text, digests or the metadata are left out of the checksums, or a header is believed
    shard = write(tmp_path)
    data = shard.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")  # of the tensors
    assert all(same(read_entry(shard, row), entry(row)) for row in range(4))
    for place in [*range(0, start, 3), *range(start, len(data))]:
        for bit in (1, 128):
            shard.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            try:
                header, _, [count] = inspect_all(tmp_path)
                right = header == HEADER and count == 4 and all(same(read_entry(shard, i), entry(i)) for i in range(4))
                assert right and place < start, place  # a blank in the header of safetensors, say
            except ValueError as error:
                assert str(shard) in str(error) and (place < start or "is damaged" in str(error)), place


def test_a_shard_that_is_cut_after_it_was_opened_is_damaged(tmp_path: Path):
    # red if rows that are not there are an error of torch
    shard = write(tmp_path)
    data = shard.read_bytes()
    for size in (0, 4, 100, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"cache-000000.safetensors is damaged .*run `uae cache` again"):
            for row in range(4):
                read_entry(shard, row)


def test_a_cache_of_another_version_is_to_be_made_again(tmp_path: Path, monkeypatch):
    # red if it is called foreign, or `clear` leaves it
    monkeypatch.setattr(shards, "FORMAT", "uae cache 1")
    shard = write(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="another version .*--overwrite"):
        inspect_all(tmp_path)
    cache_pass.clear_or_check(tmp_path, HEADER, overwrite=True)
    assert not shard.exists()


# ---------------------------------------------------------------------------------------------------- foreign files


def test_overwrite_deletes_what_a_cache_wrote_and_nothing_else(tmp_path: Path):
    # red if every .safetensors is deleted, damaged shards are left, or what has a shard's name alone is one
    own = [write(tmp_path), write(tmp_path, "cache-2of4-000001.safetensors")]
    own[1].write_bytes(b"damaged")
    mine = tmp_path / "cache-000009.safetensors"
    save_file({"content": torch.ones(3)}, mine)
    with pytest.raises(UsageError, match="cache-000009.safetensors is a foreign file.*another folder"):
        cache_pass.clear_or_check(tmp_path, HEADER, overwrite=True)
    assert all(path.exists() for path in (*own, mine))
    mine.rename(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="model.safetensors is a foreign file"):
        cache_pass.clear_or_check(tmp_path, HEADER, overwrite=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.bin")
    cache_pass.clear_or_check(tmp_path, HEADER, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


def test_a_folder_with_foreign_files_is_no_folder_for_a_cache(tmp_path: Path):
    # red if what lies there is not looked at: skipped.jsonl would be deleted and report.json written over
    for name in ("thesis.tex", "captions.jsonl", "000000.tar", "model.safetensors"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        for file in (name, "skipped.jsonl"):
            (folder / file).write_text("mine")
        args = ["cache", "--config=conf/scenes/decoder_pretrain.yaml", f"--to={folder}"]
        for options in (args, [*args, "--overwrite"]):
            with pytest.raises(UsageError, match=f"{name} is a foreign file"):
                command.main(options[1:])
        assert (folder / "skipped.jsonl").read_text() == "mine" and len(list(folder.iterdir())) == 2
    write(tmp_path / "own")
    (tmp_path / "own" / "notes.md").write_text("beside a cache nothing is in the way")
    with claimed(tmp_path / "own", WHOLE):
        pass
    with pytest.raises(UsageError, match="is a file"), claimed(tmp_path / "own" / "notes.md", WHOLE):
        pass


def test_a_foreign_file_among_shards_is_named_in_training(tmp_path: Path):
    # red if it is called damaged, or passed over: it may be a shard that was renamed
    write(tmp_path)
    save_file({"x": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="model.safetensors is a foreign file, not written by `uae cache`"):
        CachedData(str(tmp_path)).source  # noqa: B018


# ---------------------------------------------------------------------------------------------------- one writer


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (WHOLE, WHOLE, True),
        (Part(1, 2), Part(1, 2), True),
        (Part(1, 2), WHOLE, True),  # which might delete what the part has written
        (Part(1, 2), Part(2, 2), False),
    ],
)
def test_two_processes_do_not_write_the_same(first: Part, second: Part, refused: bool, tmp_path: Path, capsys):
    # red without the lock, or where one lock is for all parts
    args = ["cache", "--config=none.yaml", f"--to={tmp_path / 'cache'}", f"--part={second.number}/{second.of}"]
    with claimed(tmp_path / "cache", first):
        assert main(args) in (1, 2)
    assert ("is being written by" in capsys.readouterr().err) is refused


def test_a_part_leaves_the_partial_files_of_others_alone(tmp_path: Path):
    # red if the whole cleans up `cache-*`, which is what names of parts begin with
    from uae_lightning.prepare.cache_writing import _Shards

    for name in ("cache-1of2-000000", "cache-000000"):
        (tmp_path / f"{name}.safetensors{PARTIAL}").write_bytes(b"x")
    _Shards(tmp_path, WHOLE, HEADER, 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"cache-1of2-000000.safetensors{PARTIAL}"]


@pytest.mark.parametrize("place", ["file/cache", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(place: str, tmp_path: Path, capsys):
    # red if OSError comes through
    (tmp_path / "file").write_text("a file")
    assert main(["cache", "--config=none.yaml", f"--to={tmp_path / place}"]) in (1, 2)
    error = capsys.readouterr().err
    assert "--to" in error and place[:20] in error and "Traceback" not in error


def test_a_damaged_shard_is_made_up_for(tmp_path: Path):
    # red if what is left cannot be gone on from once it is deleted
    write(tmp_path).write_bytes(b"cut")
    with pytest.raises(ValueError, match="delete it and run `uae cache` again"):
        cache_pass.clear_or_check(tmp_path, HEADER, overwrite=False)
    (tmp_path / "cache-000000.safetensors").unlink()
    cache_pass.clear_or_check(tmp_path, HEADER, overwrite=False)
