"""`seed_everything` is the seed of weights that start at random, of a stage's noise and captions, and of its data."""

import pytest
import yaml

from uae_lightning.commands.run import parse
from uae_lightning.run import spec as run_spec
from uae_lightning.run.settings import check_resumed
from uae_lightning.run.stage_cli import parse_stage
from uae_lightning.usage import UsageError

STAGE = "--config=conf/scenes/encoder_rl.yaml"


def seeds(*options: str) -> list[int]:
    config = parse_stage(["fit", STAGE, *options]).config.fit
    return [config.seed_everything, config.model.init_args.seed, config.data.init_args.seed]


def test_one_option_sets_all_three():
    # red with "data" left out of the links in stage_cli
    assert seeds() == [0, 0, 0] and seeds("--seed_everything=7") == [7, 7, 7]


def test_the_seed_of_a_run_is_that_of_its_stages_unless_they_have_their_own(tmp_path):
    # red with `stage.options | seed` in read_run
    run = {"name": "r", "seed_everything": 5, "stages": [{"name": n, "config": "stage.yaml"} for n in ("a", "b")]}
    run["stages"][1]["options"] = {"seed_everything": 6}
    (tmp_path / "stage.yaml").write_text("{}")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    stages = run_spec.read_run(tmp_path / "run.yaml").stages
    assert [stage.options["seed_everything"] for stage in stages] == [5, 6]


def test_uae_run_takes_it_for_all_stages():
    # red with the option left out of the overrides, or its range
    for name in ("--seed_everything", "--seed"):
        _, overrides = parse(["--config", "run.yaml", name, "7", "--trainer.max_steps=2"])
        assert overrides == ["--trainer.max_steps=2", "--seed_everything=7"]
        with pytest.raises(UsageError, match="from 0 to 4294967295"):
            parse(["--config", "run.yaml", f"{name}=-1"])


def test_the_data_may_do_without():
    # red with the links made by `compute_fn` on a key that must be there
    config = parse_stage(["fit", STAGE, "--seed_everything=7", "--data=lightning.LightningDataModule"]).config.fit
    assert "seed" not in (config.data.get("init_args") or {}) and config.model.init_args.seed == 7


@pytest.mark.parametrize("option", ["model.init_args.seed", "model.seed", "data.init_args.seed", "data.seed"])
def test_a_seed_apart_is_refused_with_the_new_name(option, tmp_path):
    # red without check_seeds in command_line, once for the options and once for the YAMLs
    for said in ([f"--{option}=4"], [f"--{option}", "4"]):
        with pytest.raises(UsageError, match=f"{option} is of version 0.1: set seed_everything"):
            parse_stage(["fit", STAGE, *said])
    part = option.split(".")[0]
    (tmp_path / "over.yaml").write_text(yaml.safe_dump({part: {"init_args": {"seed": 4}}}))
    with pytest.raises(UsageError, match=f"over.yaml: {part}.init_args.seed is of version 0.1"):
        parse_stage(["fit", STAGE, f"--config={tmp_path / 'over.yaml'}"])


@pytest.mark.parametrize(("before", "allowed"), [(3, True), (4, False)])
def test_a_stage_of_version_0_1_is_resumed_where_its_seeds_were_one(before, allowed):
    # red without the loop over SEEDS in check_resumed: no such stage could be resumed
    started = {"seed_everything": 3, "model": {"init_args": {"seed": before}}}
    if allowed:
        assert check_resumed(started, {"seed_everything": 3}, "x") == []
    else:
        with pytest.raises(UsageError, match="model.init_args.seed 4 -> "):
            check_resumed(started, {"seed_everything": 3}, "x")
