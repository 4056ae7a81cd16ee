"""A run that is killed at moments drawn from a seed, and killed again while it goes on, ends as one never stopped."""

from __future__ import annotations

import functools
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed.test_two_ranks import stage_yaml
from tests.kill import start, wait
from uae_lightning.run.settings import leaves

KILL, TERM = signal.SIGKILL, signal.SIGTERM
OF_THE_MACHINE = {"seconds", "time", "command", "written", "minutes"}
EVALUATION = {
    "data": {"class_path": "uae_lightning.scenes.data.ScenesData", "init_args": {"validation_batch_size": 4}},
    "suites": {
        "unified_bench": {
            "class_path": "uae_lightning.evaluation.unified_bench.UnifiedBench",
            "init_args": {
                "score": {
                    "class_path": "uae_lightning.rewards.unified_score.UnifiedScore",
                    "init_args": {"backbones": {"words": {"class_path": "tests.distributed.standins.Words"}}},
                }
            },
        },
        "images": {"class_path": "uae_lightning.evaluation.image_health.ImageHealth"},
    },
    "samples": 4,
}


def write_run(parts: Path, folder: Path) -> Path:
    """Two stages of three steps, with an odd one that no validation is due at, and an evaluation of start and end."""
    stages = []
    for stage in ("decoder_pretrain", "encoder_rl"):
        path = stage_yaml(stage, parts, folder)
        config = yaml.safe_load(path.read_text())
        reward = config["trainer"]["callbacks"][0]["init_args"]
        reward["unrewarded"] = reward["reward"]
        config["data"]["init_args"]["batch_size"] = 2
        config["trainer"] |= {"max_steps": 3, "val_check_interval": 2}
        config["checkpoint"] = {"every_n_train_steps": 1}
        path.write_text(yaml.safe_dump(config))
        stages.append({"name": stage, "config": path.name})
    (folder / "evaluation.yaml").write_text(yaml.safe_dump(EVALUATION))
    (folder / "run.yaml").write_text(yaml.safe_dump({"name": "x", "stages": stages, "evaluation": "evaluation.yaml"}))
    return folder / "run.yaml"


def command(config: Path, folder: Path, ranks: int, *more: str) -> list[str]:
    devices = [f"--trainer.devices={ranks}", *(["--trainer.strategy=ddp"] if ranks > 1 else [])]
    return ["run", f"--config={config}", f"--output={folder}", *devices, *more]


@pytest.fixture(scope="module")
def config(parts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(parts_folder, tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def straight(config: Path) -> Callable[[int], tuple[Path, int]]:
    """For one rank and for two: the folder of a run that was never stopped, and how often rank 0 touched it."""

    @functools.cache
    def run(ranks: int) -> tuple[Path, int]:
        folder, logs = config.parent / f"straight-{ranks}", config.parent / f"logs-{ranks}"
        assert wait(start(command(config, folder, ranks), folder, logs, ranks=ranks)) == [0] * ranks, said(logs)
        return folder, int((logs / "touches").read_text())

    return run


@pytest.mark.parametrize(
    ("ranks", "signals"), [(1, (KILL, KILL)), (1, (TERM, KILL)), (1, (KILL, TERM)), (2, (KILL, TERM))]
)
def test_a_run_ended_twice_is_that_of_a_run_never_stopped(ranks, signals, straight, config: Path, tmp_path: Path):
    # red without on_fit_end in Throughput, without no_padding in QwenVLEncoder.save, without CurvesOnce, or with any
    # state left out of the checkpoint
    expected, touches = straight(ranks)
    draw, folder, logs = random.Random(f"{ranks} {signals}"), tmp_path / "run", tmp_path / "logs"
    args, left, moments = command(config, folder, ranks, "--resume"), touches, []
    for number in signals:
        at, target = draw.randint(1, left), draw.randrange(ranks)
        at = min(at, touches - 8)  # then the run is over and gives back its lock: SIGTERM has nothing left to end
        left = (touches - at) // 2 + 10  # to be sure that the resumed run gets there
        ended = wait(start(args, folder, logs, ranks=ranks, at=at, number=number, target=target))
        moments.append((at, target, ended))
        assert ended[target] == (-KILL if number == KILL else 128 + TERM), said(logs)
        assert 0 not in ended or target > 0, said(logs)  # rank 0 may have had nothing left but what it does alone
        if number == TERM and target == 0:
            assert said(logs).splitlines()[-1].startswith("uae: stopped by SIGTERM; go on with: uae run")
    assert wait(start(args, folder, logs, ranks=ranks)) == [0] * ranks, said(logs)
    found, wanted = (
        {name: value for name, value in leaves(contents(run)) if OF_THE_MACHINE.isdisjoint(name.split("."))}
        for run in (folder, expected)
    )
    assert found.keys() == wanted.keys(), moments
    assert [(name, found[name], wanted[name]) for name in wanted if found[name] != wanted[name]] == [], moments


def said(logs: Path) -> str:
    return "\n".join(log.read_text()[-3000:] for log in sorted(logs.glob("rank-*"), reverse=True))  # rank 0 is last


def contents(run: Path) -> dict[str, object]:
    """What a run has found, by file; without what depends on the clock and on how it was called."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or "checkpoints" in name or path.suffix in (".html", ".log"):
            continue
        if "events.out" in name:
            found[str(Path(name).parent)] = curves(path.parent)
        elif path.name == "time.json":
            found[name] = sorted(json.loads(path.read_text()))
        elif path.suffix == ".json" and "weights" not in name:
            found[name] = json.loads(path.read_text().replace(str(run), "RUN"))
        elif name.endswith(("config.yaml", "hparams.yaml")):
            found[name] = path.read_text().replace(str(run), "RUN")
        else:
            found[name] = path.read_bytes()
    return found


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith(("time/", "throughput/"))]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}
