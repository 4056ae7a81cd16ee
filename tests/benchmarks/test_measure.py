"""The arithmetic of benchmarks; nothing here is judged by how long it took."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import measure

CPU = torch.device("cpu")


def test_ratios_compare_within_a_round():
    # red if ratios are those of the medians: 30 / 2 = 15
    slow, fast = [10.0, 30.0, 100.0], [1.0, 6.0, 2.0]
    assert measure.ratios(slow, fast) == measure.Spread(median=10.0, low=7.5, high=30.0)
    with pytest.raises(ValueError):
        measure.ratios(slow, fast[:2])


def test_rounds_alternate_and_warmup_is_not_kept():
    # red if `reversed` goes, or warm-up rounds are kept
    calls: list[str] = []
    laps = measure.interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=2, device=CPU)
    assert "".join(calls) == "abc" + "cba" + "abc"
    assert {name: len(of) for name, of in laps.items()} == {"a": 2, "b": 2, "c": 2}


def test_busy_seconds_leave_out_waiting():
    # red if busy seconds are by the clock on a CPU
    import time

    lap = measure.timed(lambda: time.sleep(0.05), CPU)
    assert lap.seconds >= 0.05 > 2 * lap.busy


def test_flops_of_matmul_and_of_attention_on_a_cpu():
    # red if `custom_mapping` goes: torch counts no attention on CPUs
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert measure.flops(lambda: a @ b) == 2 * 3 * 5 * 7
    query = torch.randn(2, 3, 16, 64, requires_grad=True)
    forward = 2 * 2 * (2 * 3) * 16 * 16 * 64  # scores, and their product with the values
    assert measure.flops(lambda: F.scaled_dot_product_attention(query, query, query)) == forward
    both = measure.flops(lambda: F.scaled_dot_product_attention(query, query, query).sum().backward())
    assert both == 3.5 * forward  # scores again, and four products


def test_forwards_are_counted_and_hooks_leave():
    # red if `remove` goes, or a count starts at 1
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    run = lambda: other(layer(layer(torch.ones(1, 2))))  # noqa: E731
    for _ in range(2):
        assert measure.forwards(run, {"layer": layer, "other": other}) == {"layer": 2, "other": 1}
    assert not layer._forward_pre_hooks


def test_peak_is_the_most_held_at_once():
    # red if all allocations are added up, or what is held at the end is taken for the peak
    def run() -> None:
        for _ in range(3):
            first = torch.empty(1_000_000)  # 4 MB
            second = first + 1
            del first, second

    assert measure.peak_bytes(run, CPU) == pytest.approx(8e6, rel=0.02)
    kept: list[torch.Tensor] = [torch.empty(1_000_000)]
    assert measure.peak_bytes(kept.clear, CPU) == 0


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    measure.add_options(parser)
    return parser.parse_args(["--rounds", "2", "--device", "cpu", "--json", str(tmp_path / "folder" / "rows.json")])


def test_a_comparison_has_one_row_each(options, monkeypatch, capsys):
    # red if the speed-up is upside down for the baseline alone, or flops are those of another alternative
    monkeypatch.setattr(measure, "MATMUL_SECONDS", 1e-9)  # once
    layer = nn.Linear(64, 64)
    once, twice = (lambda: layer(torch.ones(8, 64))), (lambda: [layer(torch.ones(8, 64)) for _ in range(2)])
    rows = measure.compare(
        "loss", {"peer": twice, "own": once}, baseline="peer", options=options, device=CPU,
        modules={"peer": {"linear": layer}, "own": {"linear": layer}},
    )  # fmt: skip
    peer, own = rows
    assert peer.speedup == measure.Spread(1.0, 1.0, 1.0)
    assert peer.flops == 2 * own.flops == 4 * 8 * 64 * 64
    assert (peer.forwards, own.forwards) == ({"linear": 2}, {"linear": 1})
    assert all(row.peak_share > 0 and len(row.laps) == 2 for row in rows)
    expected = [first.seconds / second.seconds for first, second in zip(peer.laps, own.laps, strict=True)]
    assert own.speedup == measure.spread(expected)

    measure.finish("python -m benchmarks.none", options, rows, equality={"loss": 0.0})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and printed[0].split()[:2] == ["part", "of"] and "2 linear" in printed[1]
    written = json.loads(options.json.read_text())
    assert written["settings"]["rounds"] == 2 and written["equality"] == {"loss": 0.0}
    assert written["rows"][1]["name"] == "own" and "git" in written
