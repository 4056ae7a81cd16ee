"""What `make full-size` is made of: weights drawn as they are written, a run's YAML, memory by phase, the table."""

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from stand_ins import write_confs

from benchmarks import full_size, peak_memory, random_weights
from benchmarks.full_size import Row, compared, table, write_run
from benchmarks.peak_memory import read
from uae_lightning.cli import main
from uae_lightning.run import spec as run_spec
from uae_lightning.run.stage_cli import parse_stage


def options(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(folder=folder, resolution=64, tokens=4, dtype="float32", layers=1)


def test_a_judge_of_one_block_is_read_by_its_library(tmp_path, monkeypatch):
    # red if `layers` is not set in every part of a config, or a tensor is left out
    content = json.loads((random_weights.architecture("facebook/dinov2-large") / "config.json").read_text())
    small = {"hidden_size": 32, "num_attention_heads": 2, "image_size": 28}
    (tmp_path / "facebook--dinov2-large").mkdir()
    (tmp_path / "facebook--dinov2-large" / "config.json").write_text(json.dumps(content | small))
    (tmp_path / "facebook--dinov2-large" / "preprocessor_config.json").write_text("{}")
    monkeypatch.setattr(random_weights, "ARCHITECTURES", tmp_path)
    place = tmp_path / "models" / "facebook" / "dinov2-large"
    for _ in range(2):  # the second time it is there
        random_weights.once(
            place, lambda folder: random_weights.write_judge(folder, "facebook/dinov2-large", hf.Dinov2Model, 1)
        )
    model, found = hf.Dinov2Model.from_pretrained(place, output_loading_info=True)
    assert not found["missing_keys"] and len(model.encoder.layer) == 1
    weights = load_file(place / "model.safetensors")
    assert all(0.01 < tensor.std() < 0.03 for tensor in weights.values() if tensor.dim() == 2 and tensor.numel() > 999)
    assert torch.equal(weights["layernorm.weight"], torch.ones(32)) and not weights["layernorm.bias"].any()


def test_the_runs_are_those_of_conf_real_with_the_smallest_step(tmp_path):
    # red if an overlay of RUNS is not one of run.yaml, or an option of `smallest` is none of the stage
    for name, overlays in full_size.RUNS.items():
        config = write_run(options(tmp_path), name, overlays)
        stages = run_spec.read_run(config).stages
        assert [stage.name for stage in stages] == ["decoder_pretrain", "encoder_rl", "decoder_rl"]
    parsed = parse_stage(run_spec.fit_args(stages[2], [], tmp_path, {})).config.fit
    assert parsed.trainer.callbacks[-1].class_path.endswith("PeakMemory") and parsed.trainer.max_steps == 1
    assert (
        parsed.model.init_args.autoencoder.init_args.decoder.init_args.path == "stabilityai/stable-diffusion-3.5-large"
    )


def test_memory_is_measured_by_phase(tmp_path, monkeypatch):
    # red if a phase is not closed, or the hook that ends one goes
    monkeypatch.chdir(tmp_path)
    write_confs(tmp_path)
    fit = ["fit", "--config=conf/stage.yaml", "--trainer.default_root_dir=one"]
    assert main([*fit, "--trainer.callbacks+=benchmarks.peak_memory.PeakMemory"]) == 0
    found = read(tmp_path / "one")
    assert {"loading", "validation", "update", "saving"} <= found.keys()
    assert all(isinstance(bytes_, int) for bytes_ in found.values())


def test_memory_is_that_of_the_process_and_of_weights_in_their_file(tmp_path):
    # red if pages of files are counted, if what is freed before `reset` is lost, or if mapped weights are not found
    highest = peak_memory.Highest()
    highest.reset()
    taken = torch.zeros(64 * 2**20, dtype=torch.uint8)
    before = peak_memory.anonymous()
    time.sleep(20 * peak_memory.SECONDS)  # until it is looked at
    del taken
    assert highest.reset() + peak_memory.IMPORTED >= before - 2**20
    highest.ended.set()

    model = torch.nn.Linear(1024, 1024, bias=False)
    assert peak_memory.mapped_weights(model) == 0
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    model.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
    assert peak_memory.mapped_weights(model) == 4 * 1024**2

    measured = peak_memory.PeakMemory()  # of a judge, which is no part of the stage
    measured.peaks["update"] = 1
    trainer = SimpleNamespace(callbacks=[SimpleNamespace(reward=model)], default_root_dir=tmp_path)
    measured.on_fit_end(trainer, torch.nn.Linear(1, 1))
    assert read(tmp_path)["update"] == 1 + 4 * 1024**2


def test_the_table_compares_what_both_sides_name():
    # red if measured and planned are exchanged
    plan = {"peak": 3_000_000_000, "phases": {"update": {"peak": 3_000_000_000}, "reward": {"peak": 1}}}
    rows = compared("a", "b", plan, {"update": 2_500_000_000, "loading": 1_000_000_000, "saving": 900_000_000})
    assert [row.phase for row in rows] == ["update", "loading", "saving", "all"]
    assert table(rows)[2] == "| a | b | update | 3.00 | 2.50 | +20% |" and table([Row("a", "x", "all", None, 10**9)])[
        2:
    ] == ["| a | x | all |  | 1.00 |  |"]
