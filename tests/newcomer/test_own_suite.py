"""A newcomer measures something else: one file, and one line of an evaluation's YAML."""

import json

import pytest
import yaml
from stand_ins import EVALUATION_YAML, write_confs

from uae_lightning.cli import main

SUITE = """
from uae_lightning.evaluation.statistics import Items
from uae_lightning.evaluation.suite import Subject, Suite

class Brightness(Suite):
    about = "How bright reconstructions are"
    neither = ("brightness",)

    def measure(self, subject: Subject) -> Items:
        return {"brightness": subject.round_trip.reconstructions.mean((1, 2, 3)).tolist()}
"""


def test_a_suite_is_a_file_and_a_line(newcomer, documented):
    # red where `uae evaluate`, its file or its table ask for suites by name
    newcomer.write("brightness.py", SUITE)
    evaluation = yaml.safe_load(EVALUATION_YAML)
    newcomer.line(evaluation["suites"], "brightness", {"class_path": "brightness.Brightness"})
    stage = write_confs(newcomer.folder).with_name("stage.yaml")
    stage.with_name("evaluation.yaml").write_text(yaml.safe_dump(evaluation))

    call = ["evaluate", f"--config={stage}", "--samples=8", "--suite=brightness", "--output=out.json"]
    assert main(call) == 0
    record, items = (json.loads((newcomer.folder / f"{name}.json").read_text()) for name in ("out", "out.items"))
    values = items["brightness"]["brightness"]
    assert len(values) == 8 and record["figures"]["brightness"]["brightness"]["n"] == 8
    assert record["figures"]["brightness"]["brightness"]["mean"] == pytest.approx(sum(values) / 8, abs=1e-5)
    assert record["suites"]["brightness"]["statistics"]["brightness"]["better"] == 0
    assert len(newcomer.touched) == documented["an evaluation suite"]
