"""The profile of a step: which operation is of which kind, and that nothing is counted twice or lost."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import step_profile
from benchmarks.measure import flops
from benchmarks.step_profile import MATMUL, OPTIMIZER, OTHER, PYTHON, kind_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", MATMUL),
        ("bmm", MATMUL),
        ("aten::linear", PYTHON),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::native_layer_norm_backward", "normalization"),
        ("aten::linalg_vector_norm", OTHER),
        ("aten::gelu_backward", OTHER),
        ("aten::copy_", "copies, indexing"),
        ("aten::slice_backward", "copies, indexing"),
        ("aten::_to_copy", PYTHON),
        ("aten::as_strided", PYTHON),
        ("aten::tanh", OTHER),
    ],
)
def test_operations_have_their_kind(operation, kind):
    # red if "norm" alone makes a normalization, the `$` behind PYTHON's names goes, or `aten::` stays
    assert kind_of(operation) == kind


class SmallStep:
    """Two verbs with a matrix product each, and an optimiser."""

    def __init__(self) -> None:
        self.layer, self.device, self.around = nn.Linear(64, 64), CPU, lambda verb, run: run()
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.0)

    def run(self) -> None:
        loss = self.around("forward", lambda: self.layer(torch.ones(8, 64)).sum())
        self.around("update", lambda: (loss.backward(), self.optimizer.step()))


@pytest.fixture
def options() -> argparse.Namespace:
    return argparse.Namespace(rounds=2, warmup=1, dtype="float32")


def test_flops_are_those_of_the_step_by_verb():
    # red if flops of a verb are put down to another, or counted twice
    step = SmallStep()
    found = step_profile.flops_by_verb(step)
    assert found == {"forward": {MATMUL: 2 * 8 * 64 * 64}, "update": {MATMUL: 2 * 8 * 64 * 64}}
    step.around = lambda verb, run: run()
    assert flops(step.run) == sum(sum(kinds.values()) for kinds in found.values())


def test_operations_belong_to_their_verb_and_the_optimizer_is_a_kind_of_its_own():
    # red if `<=` in `starts_in` is turned round, or the optimiser's operations count as element-wise
    found = step_profile.operations(SmallStep())
    assert {("forward", MATMUL), ("update", MATMUL), ("update", OPTIMIZER)} <= found.keys()
    assert ("forward", OPTIMIZER) not in found and all(seconds >= 0 for seconds in found.values())


def test_kinds_add_up_to_the_busy_seconds_of_a_verb(monkeypatch, options):
    # red if Python is not what is left, or the laps of the warm-up count
    busy = {"forward": [9.0, 0.5, 1.5], "update": [9.0, 1.5, 2.5]}
    step = SmallStep()

    def timed(run, device):
        run()
        return SimpleNamespace(busy=busy[verbs.pop(0)].pop(0) if verbs else 1.0)

    verbs = ["forward", "update"] * 3
    monkeypatch.setattr(step_profile, "timed", timed)
    missing = dict.fromkeys([(verb, kind) for verb in busy for kind in step_profile.ROWS], 0.0)
    monkeypatch.setattr(
        step_profile, "operations", lambda step: missing | {("forward", MATMUL): 0.25, ("update", MATMUL): 0.5}
    )
    found = step_profile.profile_of("small", step, options)
    assert {verb: sum(kinds.values()) for verb, kinds in found.seconds.items()} == {"forward": 1.0, "update": 2.0}
    assert (found.seconds["forward"][PYTHON], found.seconds["update"][PYTHON]) == (0.75, 1.5)


def test_the_table_has_shares_of_the_step_and_of_the_peak():
    # red if a share of the peak is that of another column, or shares do not add up to the whole
    of_kind = dict.fromkeys(step_profile.ROWS, 0.0)
    seconds = {"forward": of_kind | {MATMUL: 1.0}, "update": of_kind | {MATMUL: 1.0, OPTIMIZER: 2.0}}
    flops_of = {"forward": {MATMUL: 8 * 10**9}, "update": {MATMUL: 6 * 10**9}}
    lines = step_profile.table(step_profile.Profile("small", 10.0e9, seconds, flops_of)).splitlines()
    rows = {line[:24].strip(): line[24:].split() for line in lines}
    assert rows["small"][-2:] == ["forward", "update"]
    assert rows[MATMUL] == ["2.000", "50%", "14.00", "70%", "1.000", "1.000"]
    assert rows[OPTIMIZER] == ["2.000", "50%", "0.000", "2.000"]
    assert rows["all"] == ["4.000", "100%", "14.00", "35%", "1.000", "3.000"]
    assert rows["its share of the peak"] == ["80%", "20%"]
