"""The call that is prepared for a GPU runs in small on a CPU, and says what it left out."""

import json

import pytest

from benchmarks import on_a_card, plan_error


def test_every_part_runs_in_small_and_what_is_left_out_has_a_reason(tmp_path, monkeypatch):
    # red if a part raises, or `found["skipped"]` is not written
    monkeypatch.setattr(plan_error, "SMALL", plan_error.SMALL[:1])
    monkeypatch.setattr(on_a_card, "seconds_of", lambda run, device: run() is None or 1e-3)
    found = on_a_card.main(["--small", "--json", str(tmp_path / "card.json")])
    assert json.loads((tmp_path / "card.json").read_text()) == found
    assert {row["what"] for row in found["products"]} == {"float32", "bfloat16", "float16"}
    errors = {row["what"].rpartition(", ")[2]: row["relative error"] for row in found["layers"]}
    assert errors["none"] == 0 < errors["8bit"] < errors["4bit"] < 0.3
    (stage,) = found["stages"]
    assert stage["step s"] > 0 and abs(stage["step planned GB"] / stage["step measured GB"] - 1) < 0.1
    assert any("math" in row["what"] for row in found["attention"]) and found["compile"][0]["what"] == "eager"
    assert {"attention: flash-attn package", "compile: compiled"} <= found["skipped"].keys() and found["small"]


def test_nothing_begins_when_the_time_is_over():
    # red if `until` is not asked
    found = on_a_card.main(["--small", "--seconds", "0"])
    assert not any(found[part] for part in ("products", "attention", "layers", "compile", "stages"))
    assert set(found["skipped"].values()) == {"0.0 seconds are over"}


def test_without_a_gpu_it_has_to_be_asked_for(monkeypatch, capsys):
    # red if figures of a CPU could be taken for those of a card
    monkeypatch.setattr(on_a_card.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        on_a_card.main([])
    assert "--small" in capsys.readouterr().err
