"""Killed at any moment, or out of disk, and run again: the same set, byte by byte."""

from __future__ import annotations

import errno
import os
import resource
import signal
import tarfile
import time
from pathlib import Path

import pytest
import torch
from caption_sets import caption_data, contents, in_child, rows, save_scenes

from uae_lightning.cli import main
from uae_lightning.prepare.caption_settings import begin_or_go_on
from uae_lightning.prepare.caption_writer import claimed
from uae_lightning.prepare.captioner import Captioner
from uae_lightning.scenes.scene import IMAGE_SIZE

PICTURES = 20  # in shards of 6, batches of 4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_scenes(tmp_path_factory.mktemp("pictures") / "scenes", PICTURES - 2)
    (folder / "copy.png").write_bytes((folder / "003.png").read_bytes())  # comes three shards later
    (folder / "9.png").write_bytes(b"bad")
    return folder


@pytest.fixture(scope="module")
def options() -> dict:
    """The shipped encoder, sampling; some captions are cut off, and dropped."""
    captioner = Captioner("shipped:scenes/encoder", "describe the picture", max_new_tokens=5, temperature=1.0)
    return {"captioner": captioner, "duplicate_bits": 3}


@pytest.fixture(scope="module")
def whole(scenes: Path, options: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    counts = caption_data(scenes, folder, **options).run()
    assert counts.seen == PICTURES and counts.dropped["exact duplicate"] == 1 and counts.skipped.total() == 1
    assert counts.kept > 5 and counts.dropped["unfinished"] > 1
    return contents(folder)


def after(count: int, act, function):
    """`function`, but `act` comes before its call number `count` (from 1)."""
    calls = iter(range(1, 10**6))

    def wrapped(*args, **kwargs):
        if next(calls) == count:
            act()
        return function(*args, **kwargs)

    return wrapped


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


MOMENTS = {  # where -> which call of what
    "captioning the second shard": ("captioner", 3),
    "within a shard": (tarfile.TarFile, "addfile", 8),
    "before a shard is in place": (os, "replace", 3),
    "between a shard and its record": (os, "replace", 4),
    "behind a record": (os, "replace", 5),
    "writing the lists": (os, "replace", 10),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_it_is_the_set_of_one_run(moment, scenes, options, whole, tmp_path, monkeypatch):
    # red if the record is written before the shard, the seed leaves out the shard's number, or hashes are forgotten
    *where, count = MOMENTS[moment]

    def work() -> None:
        if where == ["captioner"]:
            killed = after(count, kill, options["captioner"])
            caption_data(scenes, tmp_path, **options | {"captioner": killed}).run()
        monkeypatch.setattr(*where, after(count, kill, getattr(*where)))
        caption_data(scenes, tmp_path, **options).run()

    assert in_child(work) == -signal.SIGKILL
    left = contents(tmp_path)
    assert left != whole
    for path in tmp_path.glob("*.tar"):  # what is there is whole
        assert left[path.name] == whole[path.name]
    caption_data(scenes, tmp_path, **options).run()
    leftovers = {name for name in contents(tmp_path) if name.endswith(".uae-partial")}
    assert {name: content for name, content in contents(tmp_path).items() if name not in leftovers} == whole


@pytest.mark.parametrize("call", [1, 8, 15])
def test_a_full_disk_leaves_whole_shards_and_is_gone_on_from(call, scenes, options, whole, tmp_path, monkeypatch):
    # red if the tar is opened under its own name
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", after(call, no_space, tarfile.TarFile.addfile))
        with pytest.raises(OSError, match="No space left"):
            caption_data(scenes, tmp_path, **options).run()
    left = contents(tmp_path)
    assert not [name for name in left if name.endswith(".uae-partial")]
    assert all(left[path.name] == whole[path.name] for path in tmp_path.glob("*.tar"))
    caption_data(scenes, tmp_path, **options).run()
    assert contents(tmp_path) == whole


# ---------------------------------------------------------------------------------------------------- the command


def command(scenes: Path, folder: Path) -> list[str]:
    return [
        "caption-data", f"--from={scenes}", f"--to={folder}", "--model=shipped:scenes/encoder", "--max-new-tokens=24",
        "--prompt=describe the picture", "--min-words=2", "--shard-size=6", "--batch-size=2", "--temperature=1",
        f"--max-pixels={IMAGE_SIZE**2}",
    ]  # fmt: skip


def test_the_command_killed_from_outside_goes_on(scenes: Path, tmp_path: Path, capsys):
    # red if settings.json holds what a second call cannot repeat, or the lock outlives its process
    call = command(scenes, tmp_path / "killed")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as in caption_sets.in_child
        os._exit(main(call))
    started = time.time()
    while not (tmp_path / "killed" / "records" / "000000.jsonl").exists() and time.time() < started + 120:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "report.json").exists()
    assert main(call) == 0 == main(command(scenes, tmp_path / "straight"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    printed = capsys.readouterr().out
    assert "pictures seen" in printed and "exact duplicate" in printed
    assert f"next: uae fit --config conf/real/decoder_pretrain.yaml --data.init_args.path {tmp_path}" in printed


def test_a_full_disk_for_real_says_what_to_do(scenes: Path, tmp_path: Path, capfd):
    # red if EFBIG is not among NO_SPACE
    call = command(scenes, tmp_path / "set")

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
        return main(call)

    assert in_child(work) == 1
    error = capfd.readouterr().err
    assert "no space is left" in error and "run the same command again" in error and "Traceback" not in error
    assert not list((tmp_path / "set").glob("*.uae-partial"))
    assert main(call) == 0
    assert len(rows(tmp_path / "set" / "captions.jsonl")) > 5


def test_other_settings_or_other_pictures_are_refused(scenes: Path, tmp_path: Path, capsys):
    # red if FREE holds "prompt", the names of the pictures are not compared, or a try that failed settles the model
    pictures = save_scenes(tmp_path / "pictures", 4)
    call = command(pictures, tmp_path / "set")
    assert main([*call, "--model=shipped:scenes/clip"]) == 1
    assert main(call) == 0
    before = contents(tmp_path / "set")
    capsys.readouterr()
    for change, words in (
        ("--prompt=what is it", ["--prompt was", "what is it"]),
        ("--min-words=3", ["--min-words was 2, is 3"]),
        ("--duplicate-bits=off", ["--duplicate-bits was 3, is null"]),
        ("--model=shipped:scenes/clip", ["--model"]),
        (f"--from={scenes}", ["--from was"]),
    ):
        assert main([*call, change]) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in words) and "--to" in error, error
    assert main([*call, "--batch-size=3", "--max-skipped=0.5"]) == 0
    (pictures / "002.png").rename(pictures / "other.png")
    assert main(call) == 2 and "when" in capsys.readouterr().err
    assert contents(tmp_path / "set") == before


def test_two_processes_do_not_share_a_folder(scenes: Path, tmp_path: Path, capsys):
    # red if nothing is locked
    with claimed(tmp_path / "set"):
        assert main(command(scenes, tmp_path / "set")) == 1
    assert "is being written by" in capsys.readouterr().err and not (tmp_path / "set").exists()


@pytest.mark.parametrize("file", ["settings.json", "records/000001.jsonl"])
def test_a_damaged_record_is_named(file: str, scenes: Path, tmp_path: Path, capsys):
    # red if json's own words come through, or a record that lost lines is believed
    caption_data(scenes, tmp_path).run()
    (tmp_path / "settings.json").write_text("{}")
    whole = (tmp_path / file).read_text()
    for text in ("", "[1, 2", "3", *(["\n".join(whole.splitlines()[:-1])] if file.startswith("records") else [])):
        (tmp_path / file).write_text(text)
        with pytest.raises(ValueError, match=f"{file} is damaged .*--to"):
            if file.startswith("records"):
                caption_data(scenes, tmp_path).run()
            else:
                begin_or_go_on(tmp_path, {})


def test_a_shard_that_is_gone_is_missed(scenes: Path, tmp_path: Path):
    # red if records are believed without a look
    caption_data(scenes, tmp_path).run()
    (tmp_path / "000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match="000001.tar was written and is gone"):
        caption_data(scenes, tmp_path).run()
