"""One of two ranks is late, or hangs for good."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from stand_ins import write_confs

from tests.distributed.test_two_ranks import start
from uae_lightning.parallel.strategy import ShardedStrategy

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")


def fit(config: Path, folder: Path, seconds: float, *more: str) -> list[str]:
    late = ["--data=tests.distributed.late_data.LateData", "--data.rank=1", f"--data.seconds={seconds}"]
    return [
        "fit",
        f"--config={config.parent / 'stage.yaml'}",
        f"--trainer.default_root_dir={folder}",
        "--trainer.devices=2",
        *late,
        *more,
    ]


def test_a_late_rank_changes_nothing_but_the_time(tmp_path: Path):
    # red if a rank's lateness changed its data: with `* (1 + self.seconds)` on the pictures of LateData.wait
    config = write_confs(tmp_path)
    quick, late = (fit(config, tmp_path / str(pause), pause, "--trainer.strategy=ddp") for pause in (0.0, 1.0))
    assert start([quick, late], tmp_path) == [0, 0], (tmp_path / "rank-0").read_text()[-2000:]
    values = [(tmp_path / name / "weights" / "decoder" / "value.json").read_text() for name in ("0.0", "1.0")]
    assert values[0] == values[1] != "0.5"


def test_a_rank_that_hangs_ends_all_within_the_timeout(tmp_path: Path):
    # red without EndTogether's NO_ANSWER: gloo's own words name neither the cause nor the option
    config = write_confs(tmp_path)
    timeout = ["--trainer.strategy=lightning.pytorch.strategies.DDPStrategy", "--trainer.strategy.timeout=0:00:04"]
    before = time.monotonic()
    assert start([fit(config, tmp_path / "hangs", 500.0, *timeout)], tmp_path) == [1, 1]
    assert time.monotonic() - before < 200
    for rank in range(2):
        said = (tmp_path / f"rank-{rank}").read_text()
        assert "another rank has not answered" in said and "strategy.init_args.timeout" in said, said[-2000:]


def test_fsdp_hands_the_timeout_on():
    # red with `timeout` left out of the parent's arguments
    assert ShardedStrategy(timeout=timedelta(seconds=4))._timeout == timedelta(seconds=4)
