"""The lock of a folder: one holder, and none after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from uae_lightning.parallel.locking import LOCK, locked

HOLD = """
import os, sys, time
from pathlib import Path
from uae_lightning.parallel.locking import locked
with locked(Path(sys.argv[1]), "it"):
    worker = os.fork()  # as a DataLoader does
    if not worker:
        print(os.getpid(), flush=True)  # what is done at a fork is done by now
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path: Path):
    # red with LOCK_SH for LOCK_EX
    folder = tmp_path / "run"
    with (
        locked(folder, "the run"),
        pytest.raises(ValueError, match=f"the run is being written by process {os.getpid()} "),
    ):
        with locked(folder, "the run"):
            pass
    assert not folder.exists()  # as before
    folder.mkdir()
    with locked(folder, "the run"):
        assert (folder / LOCK).exists()
    assert list(folder.iterdir()) == []


def test_a_lock_dies_with_its_process_also_where_its_workers_live_on(tmp_path: Path):
    # red without register_at_fork
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(ValueError, match=f"process {holder.pid}"), locked(tmp_path, "it"):
            pass
        holder.kill()
        holder.wait()
        with locked(tmp_path, "it"):  # the file of the killed process is still there
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
