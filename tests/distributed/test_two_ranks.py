"""Two processes on CPU (gloo): what they do together equals what one process does with both their batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from uae_lightning.cli import main
from uae_lightning.parallel.checkpoint_io import read_checkpoint
from uae_lightning.run.folder import read_rows
from uae_lightning.run.spec import read_stage_yaml

ROOT = Path(__file__).parents[2]
STAGES = ("decoder_pretrain", "encoder_rl", "decoder_rl")
LIMIT = 900  # seconds, on a busy machine; alone it takes a tenth of that


def stage_yaml(stage: str, parts: Path, folder: Path, fails_on_rank: int = -1) -> Path:
    """The stage of conf/scenes with small parts, light rewards and plain SGD, whose steps are its gradients."""
    config = read_stage_yaml(ROOT / f"conf/scenes/{stage}.yaml")
    options = config["model"]["init_args"]
    parts_of = options["autoencoder"]
    for part in ("encoder", "projector", "decoder"):
        parts_of[part]["init_args"]["path"] = str(parts / part)
    parts_of["encoder"]["class_path"] = "tests.distributed.standins.PicturewiseEncoder"
    options["optimizer"] = {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 100.0 if stage == "decoder_rl" else 0.1, "momentum": 0.9},
    }
    parts_of["captioning"] = {"temperature": 1.0, "max_new_tokens": 4}
    options["max_grad_norm"] = 0.1
    if stage != "decoder_pretrain":
        options |= {"group_size": 2, "micro_batch": 2, "kl_beta": 0.01}
    if stage == "decoder_rl":  # gradients through both branches, and noise in steps that are not trained
        parts_of["sampling"] = {"steps": 3, "guidance": 2.0}
        options |= {"window": [0, 2], "untrained_steps": "sde"}
    if stage == "encoder_rl":
        options |= {"normalization": "dapo", "advantage_scale": "batch_std"}
    if stage == "decoder_pretrain":
        options["learning_rates"] = {"projector": 0.05}
    else:
        replay = {"encoder_rl": ("EncoderReplay", 0.1), "decoder_rl": ("DecoderReplay", 0.001)}[stage]
        options["auxiliaries"] = [
            {"class_path": f"uae_lightning.stages.replay.{replay[0]}", "init_args": {"weight": replay[1]}}
        ]
    if stage == "encoder_rl":  # what is remembered is shared out among the ranks
        data = {"class_path": "uae_lightning.scenes.data.ScenesData", "init_args": {"batch_size": 4, "prompt_share": 1}}
        memory = {"weight": 0.1, "data": data, "batches": 2, "micro_batch": 1}
        options["auxiliaries"].append({"class_path": "uae_lightning.stages.memory_replay.Replay", "init_args": memory})
    config["data"]["init_args"] |= {"validation_pictures": 4, "validation_batch_size": 2}
    words = {"class_path": "tests.distributed.standins.Words", "init_args": {"fails_on_rank": fails_on_rank}}
    reward = {"class_path": "callbacks.RewardCallback", "init_args": {"reward": words}}
    others = ["callbacks.PolicyHealth", "callbacks.EMA", "callbacks.SampleGallery", "callbacks.Throughput",
              "callbacks.ComponentWeights", "callbacks.StepProgressBar"]  # fmt: skip
    config["trainer"]["callbacks"] = [reward, *({"class_path": name} for name in others)]
    config["trainer"] |= {"accelerator": "cpu", "max_steps": 2, "val_check_interval": 2}
    path = folder / (f"{stage}.yaml" if fails_on_rank < 0 else "fails.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def arguments(config: Path, folder: Path, ranks: int, *more: str) -> list[str]:
    """`fit` with a global batch of 4 pictures, on one rank or on two; every step leaves a checkpoint."""
    return [
        "fit",
        f"--config={config}",
        f"--trainer.default_root_dir={folder}",
        f"--trainer.devices={ranks}",
        f"--data.init_args.batch_size={4 // ranks}",
        "--checkpoint.every_n_train_steps=1",
        "--checkpoint.save_top_k=-1",
        "--checkpoint.filename={step}",
        *more,
    ]


def start(commands: list[list[str]], logs: Path) -> list[int]:
    """Runs the commands on two ranks; their exit codes. What they print is in `logs`/rank-N."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(2):
        with (logs / f"rank-{rank}").open("w") as log:
            command = [sys.executable, "-m", "tests.distributed.rank"]
            environment = os.environ | shared | {"LOCAL_RANK": str(rank), "HF_HUB_OFFLINE": "1"}
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        process.stdin.write(json.dumps(commands).encode())
        process.stdin.close()
        ranks.append(process)
    until = time.monotonic() + LIMIT
    try:
        return [process.wait(max(0.1, until - time.monotonic())) for process in ranks]
    finally:
        for process in ranks:
            process.kill()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All that a stage handed on, by file and name."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)} {name}": t for file in files for name, t in load_file(file).items()}


def assert_same_update(one: Path, other: Path, parts: Path) -> None:
    """Weights equal to 1e-4 of the largest change in their tensor, or 1e-7: the changes by plain SGD are gradients."""
    expected, found = weights(one / "weights"), weights(other / "weights")
    before = weights(parts)
    assert expected.keys() == found.keys() and expected
    moved = 0
    for name, tensor in expected.items():
        change = (tensor - before.get(name, 0)).abs().max()  # adapters: B starts at 0
        assert (tensor - found[name]).abs().max() <= 1e-4 * change + 1e-7, name
        moved += bool(change > 1e-4 and "lora_A" not in name)
    assert moved  # else the tolerance would pass for anything


@pytest.fixture(scope="module")
def runs(parts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything below, run once: one/STAGE, ddp/STAGE, fsdp/STAGE, and what was resumed from their first step."""
    folder = tmp_path_factory.mktemp("ranks")
    yamls = {stage: stage_yaml(stage, parts_folder, folder) for stage in STAGES}
    first, pretrain = "decoder_pretrain/checkpoints/step=1.ckpt", yamls["decoder_pretrain"]
    for stage in STAGES:
        assert main(arguments(yamls[stage], folder / "one" / stage, 1)) == 0
    both = [
        arguments(yamls[stage], folder / kind / stage, 2, f"--trainer.strategy={kind}")
        for kind in ("ddp", "fsdp")
        for stage in STAGES
    ]
    both += [
        arguments(pretrain, folder / f"{kind}-2", 2, "--trainer.strategy=fsdp", f"--ckpt_path={folder / kind / first}")
        for kind in ("fsdp", "one")
    ]
    fails = stage_yaml("encoder_rl", parts_folder, folder, fails_on_rank=1)
    rarely = ("--trainer.num_sanity_val_steps=0", "--checkpoint.every_n_train_steps=100")
    both += [arguments(fails, folder / "fails", 2, "--trainer.strategy=fsdp", *rarely)]
    (folder / "codes.json").write_text(json.dumps(start(both, folder)))
    assert main(arguments(pretrain, folder / "fsdp-1", 1, f"--ckpt_path={folder / 'fsdp' / first}")) == 0
    return folder


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_learns_from_both_their_batches(runs: Path, parts_folder: Path, kind: str, stage: str):
    # red with `rank` left out of _Stream's `first`, without average_gradients (ddp), without own_rows, with `first`
    # left out of Stage.generators, with group_advantages on `rewards` instead of `everyone`, or mask.sum() for tokens
    assert_same_update(runs / "one" / stage, runs / kind / stage, parts_folder)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_validation_gives_the_same_rows_once(runs: Path, kind: str):
    # red with rank() left out of the seed in validation_step, or [rank::world] out of _HeldOut
    expected, rows = (read_rows(runs / name / "decoder_pretrain") for name in ("one", kind))
    assert [row["step"] for row in rows] == [0, 2]
    for a, b in zip(expected, rows, strict=True):
        assert a["keys"] == b["keys"] and len(b["keys"]) == 4
        assert a["reward"] == pytest.approx(b["reward"], abs=1e-5)


def test_metrics_are_those_of_the_global_batch(runs: Path):
    # red with `self.reduced` left out of report, gathered() out of train/reward_std, mean_over_ranks out of the tokens
    # by which encoder_rl's means are taken, or out of the means of train/image
    names = ["train/reward", "train/reward_std", "train/image/saturation", "train/grad_norm", "policy/caption_tokens"]
    for stage in ("encoder_rl", "decoder_rl"):
        one, two = (scalars(runs / name / stage) for name in ("one", "fsdp"))
        for name in [*names, "policy/kl_reference", *(["policy/entropy"] if stage == "encoder_rl" else [])]:
            assert one[name] == pytest.approx(two[name], rel=1e-3), name
        assert two["policy/first_log_ratio"][0] < 1e-5


def test_a_sharded_checkpoint_resumes_on_two_ranks_bit_for_bit(runs: Path):
    # red if the optimiser's state, or EMA's average, is left out of the shards (`Owners.of` returning None for them)
    straight, resumed = (weights(runs / name / "weights") for name in ("fsdp/decoder_pretrain", "fsdp-2"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert sorted(path.name for path in (runs / "fsdp-2/checkpoints/step=2.ckpt").iterdir()) == [
        "rest.pt", "shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors",
    ]  # fmt: skip


def test_checkpoints_resume_on_another_number_of_ranks(runs: Path, parts_folder: Path):
    # red with `first` for `start` in the slices of `rows`, or without `distribute`
    assert_same_update(runs / "one" / "decoder_pretrain", runs / "fsdp-1", parts_folder)  # two ranks, then one
    assert_same_update(runs / "one" / "decoder_pretrain", runs / "one-2", parts_folder)  # one, then two


def test_rank_0_alone_reports(runs: Path):
    # red without `self.is_enabled` in StepProgressBar
    assert "DecoderRL" in (runs / "rank-0").read_text() and "DecoderRL" not in (runs / "rank-1").read_text()
    assert len(list((runs / "ddp" / "encoder_rl").glob("events.out.*"))) == 1


def test_a_bad_reward_on_one_rank_ends_all_with_the_reason_and_a_checkpoint(runs: Path):
    # red with a RaisedTogether that EndTogether does not know, or with ValueError in its place
    assert json.loads((runs / "codes.json").read_text()) == [1, 1]
    for rank in range(2):
        log = (runs / f"rank-{rank}").read_text()
        assert "'total' is NaN or infinite for 4 of 8 pictures" in log
    assert not (runs / "fails" / "weights").exists()
    assert read_checkpoint(runs / "fails" / "checkpoints" / "step=1.ckpt")["global_step"] == 1


def scalars(folder: Path) -> dict[str, list[float]]:
    """What a stage logged, by name, in order of steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
