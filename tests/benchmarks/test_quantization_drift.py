"""What bases of fewer bits change: against themselves nothing, and the fewer the more."""

from __future__ import annotations

import torch

from benchmarks import quantization_drift as drift


def test_rounding_to_fp8_is_by_row():
    # red without the scale, or with one for the whole matrix: the second row would be rounded to zeros
    layer = torch.nn.Linear(64, 2, bias=False)
    layer.weight.data = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [1e-9]])
    before = layer.weight.detach().clone()
    drift.round_to_fp8(torch.nn.Sequential(layer))
    error = (layer.weight - before).norm(dim=1) / before.norm(dim=1)
    assert (error > 0.01).all() and (error < 0.04).all()


def test_fewer_bits_drift_further(tmp_path, capsys):
    # red if a base is not that of its name, or the pictures of both sides differ
    drift.main(["--pictures", "3", "--bases", "bf16", "4bit", f"--json={tmp_path / 'drift.json'}"])
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| velocity")]
    bf16, four = (float(cell.split()[0]) for cell in table[0][1:])
    assert 0 < bf16 < 0.05 < four < 0.5 and (tmp_path / "drift.json").exists()
