"""The benchmark of data measures what it says: same steps from files and from the cache, memory of the call alone."""

from __future__ import annotations

import argparse
import mmap
from pathlib import Path

import pytest
import torch
from staged import staged

from benchmarks import data, own_stage
from benchmarks.measure import forwards
from uae_lightning.stages.decoder_pretrain import DecoderPretrain
from uae_lightning.types import Learn


def test_a_step_from_files_and_from_the_cache_do_the_same(
    make_encoder, make_projector, make_decoder, monkeypatch, tmp_path: Path
):
    # red if the cached batch is of other pictures, or the cache of another stage
    learn = Learn(projector="all", decoder="all")
    stage = staged(
        DecoderPretrain, make_encoder(), make_projector(), make_decoder(), learn=learn, condition_dropout=0.3
    )
    monkeypatch.setattr(data, "build_stage", lambda *_: stage)

    def counted(part, steps, *, modules, **_) -> dict[str, dict[str, int]]:
        return {name: forwards(step, modules[name]) for name, step in steps.items()}

    monkeypatch.setattr(data, "compare", counted)
    options = argparse.Namespace(dtype="float32", config=None, train="all", pictures=9, batch_size=4)
    found, calls = data.step(options, torch.device("cpu"), tmp_path)
    assert max(found.values()) < own_stage.TOLERANCE["float32"]
    assert calls == {data.FILES: {"decoder": 1, "encoder": 1}, data.CACHE: {"decoder": 1, "encoder": 0}}


def test_forms_hold_the_same_pictures(tmp_path: Path):
    # red if the captions of a form go missing, or the last shard
    pytest.importorskip("datasets")
    folder = data.write_folder(tmp_path / "a", (b"%d" % i for i in range(5)), [f"caption {i}" for i in range(5)])
    files = sorted(folder.glob("*.jpg"))
    forms = [folder, data.write_rows(tmp_path / "rows.jsonl", files), data.write_shards(tmp_path / "b", files, 2)]
    for path in [*forms, data.write_saved(tmp_path / "c", files)]:
        source = data.ImageTextData(str(path), 8).source
        samples = [sample for unit in range(len(source)) for sample in source.read(unit)]
        captions = [one.caption if isinstance(one.caption, str) else one.caption.decode() for one in samples]
        assert sorted(captions) == [f"caption {i}" for i in range(5)]


def test_peak_is_that_of_the_call(tmp_path: Path):
    # red if what the process held before is counted
    def fill() -> None:  # pages of its own: those of a heap may be there already
        block = mmap.mmap(-1, 40_000_000)
        for place in range(0, len(block), mmap.PAGESIZE):
            block[place] = 1

    held = bytearray(60_000_000)
    assert 38 < data.peak_of(fill) < 60
    assert len(held) and data.peak_of(lambda: None) < 5
