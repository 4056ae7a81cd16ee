"""Every stage, killed and resumed, ends in the weights of a run that was never stopped: bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.kill import start, wait
from uae_lightning.cli import main

ROOT = Path(__file__).parents[2]
STEPS = 5


def fit_arguments(stage: str, parts: Path, folder: Path) -> list[str]:
    options = {
        "config": ROOT / f"conf/scenes/{stage}.yaml",
        "model.autoencoder.encoder.path": parts / "encoder",
        "model.autoencoder.projector.path": parts / "projector",
        "model.autoencoder.decoder.path": parts / "decoder",
        "model.autoencoder.captioning.max_new_tokens": 8,
        "model.autoencoder.sampling.steps": 3,
        "data.init_args.batch_size": 2,
        "data.init_args.validation_pictures": 4,
        "data.init_args.validation_batch_size": 4,
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 2,  # a validation in the middle must leave no trace either
        "trainer.default_root_dir": folder,
        "checkpoint.every_n_train_steps": 2,
    }
    if stage == "joint_rl":  # and with all that a stage may be given
        options |= {
            "model.init_args.captions.init_args.micro_batch": 8,
            "model.init_args.pictures.init_args.micro_batch": 16,
            "model.init_args.learning_rates": {"encoder": 1e-3, "decoder": 3e-3},
            "model.init_args.reward_balance": "decoupled",
            "model.init_args.auxiliaries": [
                *(
                    {"class_path": f"uae_lightning.stages.replay.{name}", "init_args": {"weight": 0.1}}
                    for name in ("DecoderReplay", "EncoderReplay")
                ),
                {
                    "class_path": "uae_lightning.stages.memory_replay.Replay",
                    "init_args": {
                        "weight": 0.1,
                        "data": {"class_path": "uae_lightning.scenes.data.ScenesData", "init_args": {"batch_size": 2}},
                        "batches": 3,  # the memory is made again, of captions without the adapters by then trained
                    },
                },
            ],
        }
    elif stage not in ("decoder_pretrain", "cold_start"):
        options |= {"model.init_args.group_size": 4, "model.init_args.micro_batch": 8}
    return ["fit", *(f"--{name}={value}" for name, value in options.items())]


@pytest.mark.parametrize("stage", ["joint_rl", "encoder_rl", "decoder_rl", "cold_start", "decoder_pretrain"])
def test_killed_and_resumed_is_the_same_as_never_stopped(stage: str, parts_folder: Path, tmp_path: Path):
    # red if data position, noise, optimiser or EMA is left out of the checkpoint
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main(fit_arguments(stage, parts_folder, straight)) == 0
    kill = ["--trainer.callbacks+=tests.kill.KillAt", "--trainer.callbacks.batch=3"]  # after a checkpoint at 2
    killed = start([*fit_arguments(stage, parts_folder, stopped), *kill], stopped, tmp_path / "logs")
    assert wait(killed) == [-signal.SIGKILL], (tmp_path / "logs/rank-0").read_text()[-2000:]
    assert not (stopped / "weights").exists()
    assert main([*fit_arguments(stage, parts_folder, stopped), "--resume"]) == 0
    assert_same_weights(straight, stopped)
    rows = [(folder / "validation.jsonl").read_text() for folder in (straight, stopped)]
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 4  # steps 0, 2, 4 and 5


def assert_same_weights(one: Path, other: Path) -> None:
    files = sorted(path.relative_to(one) for path in (one / "weights").rglob("*.safetensors"))
    assert files
    for file in files:
        a, b = load_file(one / file), load_file(other / file)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), file
