import os
import pickle

import pytest
import torch
from standins import fit

from uae_lightning import files
from uae_lightning.parallel import checkpoint_io
from uae_lightning.parallel.checkpoint_io import AtomicCheckpointIO


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program may catch it."""


def test_a_kill_in_the_middle_of_writing_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    # Red if `torch.save(checkpoint, partial)` becomes `torch.save(checkpoint, path)`.
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)

    def half(checkpoint, target):
        with open(target, "wb") as file:
            file.write(b"half of a checkpoint")
        raise Killed

    monkeypatch.setattr(checkpoint_io.torch, "save", half)
    with pytest.raises(Killed):
        io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_the_partial_file_lies_in_the_same_folder_and_is_on_disk_before_it_is_renamed(tmp_path, monkeypatch):
    # Red if fsync goes, or with_name(path.name + PARTIAL) becomes another folder.
    calls = []
    monkeypatch.setattr(files.os, "fsync", lambda fd: calls.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append((a.parent, b.parent)), replace(a, b)))
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "new" / "a.ckpt")
    assert calls == ["fsync", (tmp_path / "new", tmp_path / "new")]


def test_what_a_kill_left_behind_is_refused_and_overwritten(tmp_path):
    # Red if == PARTIAL becomes !=.
    path, io = tmp_path / "a.ckpt", AtomicCheckpointIO()
    (tmp_path / "a.ckpt.uae-partial").write_bytes(b"half")
    with pytest.raises(ValueError, match="still being written"):
        io.load_checkpoint(tmp_path / "a.ckpt.uae-partial")
    with pytest.raises(FileNotFoundError, match="--ckpt_path"):
        io.load_checkpoint(path)
    io.save_checkpoint({"step": 3}, path)
    assert io.load_checkpoint(path) == {"step": 3} and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_cut_file_is_refused(tmp_path, keep):
    # Red if RuntimeError or EOFError goes from the except clause.
    path, io = tmp_path / "a.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"weights": torch.arange(1000)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged, unfinished"):
        io.load_checkpoint(path)


def test_a_flipped_byte_is_found(tmp_path):
    # Red without check_zip: torch.load gives other weights without a word.
    path, io = tmp_path / "a.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"weights": torch.arange(1000.0), "step": 1}, path)
    whole, taken = path.read_bytes(), 0
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            read = io.load_checkpoint(path)
        except ValueError as error:
            assert "is damaged" in str(error)
        else:  # padding, or a date
            assert torch.equal(read["weights"], torch.arange(1000.0)) and read["step"] == 1
            taken += 1
    assert taken < len(whole) / 37 / 2


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["PAYLOAD_FOLDER"],)


def test_loading_runs_no_code_even_if_asked_to(tmp_path, monkeypatch):
    # Red if weights_only=True becomes weights_only=weights_only.
    monkeypatch.setenv("PAYLOAD_FOLDER", str(tmp_path / "ran"))
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Payload(), protocol=2))
    torch.save(Payload(), tmp_path / "b.ckpt")
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(ValueError, match="other objects"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / name, weights_only=False)
    assert not (tmp_path / "ran").exists()


def test_a_trainer_saves_and_resumes_through_it(tmp_path):
    # Red if load_checkpoint returns {} or save_checkpoint skips os.replace.
    fit(tmp_path, steps=2)
    _, trainer = fit(tmp_path, steps=3, resume=tmp_path / "checkpoints" / "step=2.ckpt")
    assert trainer.global_step == 3
