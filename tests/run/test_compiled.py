"""A run's stages are parsed once, and what earlier stages trained is handed on without parsing them again."""

from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI
from stand_ins import EVALUATION_YAML, write_confs

from uae_lightning.cli import main
from uae_lightning.run.compiled import StageRun, compile_run
from uae_lightning.run.spec import StageSpec, read_run
from uae_lightning.run.stage_cli import parse_stage
from uae_lightning.usage import UsageError

SCENES = Path("conf/scenes")


@pytest.mark.parametrize("name", ["decoder_pretrain", "encoder_rl", "decoder_rl"])
def test_weights_handed_on_are_what_the_command_says(name):
    # red with a part left out of starting_from, or with a Path where the parser makes a text
    stage = StageRun(StageSpec(name, SCENES / f"{name}.yaml", {"trainer.max_steps": 3}), ["--seed_everything=4"])
    weights = {part: Path("runs/x/weights") / part for part in ("encoder", "projector", "decoder")}
    handed = stage.starting_from(weights)
    assert handed == parse_stage(stage.arguments(weights)).config.fit
    assert handed != stage.config == parse_stage(stage.arguments({})).config.fit  # which is as it was


def test_a_part_that_is_not_there_gets_no_weights(tmp_path):
    # red without the look at what is described
    (tmp_path / "over.yaml").write_text("model: {init_args: {autoencoder: {encoder: null}}}")
    stage = StageRun(StageSpec("cached", SCENES / "decoder_pretrain.yaml", {}, (tmp_path / "over.yaml",)))
    with pytest.raises(UsageError, match="stage cached .*an earlier stage trained the encoder, and this one has none"):
        stage.starting_from({"encoder": Path("x")})


def test_a_run_parses_each_stage_once(tmp_path, monkeypatch):
    """To check, to train, to evaluate before and after; what is done already, to compare its settings."""
    # red with `property` in place of `cached_property`, or without `parsed` in pipeline.trained
    parses, parse_arguments = [], LightningCLI.parse_arguments

    def counted(self, *args):
        parses.append(self)
        parse_arguments(self, *args)

    monkeypatch.setattr(LightningCLI, "parse_arguments", counted)
    monkeypatch.chdir(tmp_path)
    run = write_confs(tmp_path)
    (run.parent / "evaluation.yaml").write_text(EVALUATION_YAML)
    run.write_text(run.read_text() + "evaluation: {config: evaluation.yaml, options: {samples: 8}}\n")
    assert main(["run", f"--config={run}", "--trainer.max_steps=2"]) == 0 and len(parses) == 2
    parses.clear()
    assert main(["run", f"--config={run}", "--trainer.max_steps=2", "--resume"]) == 0 and len(parses) == 2


def test_what_is_not_run_is_not_parsed(tmp_path):
    # red with a list of parsed stages in place of `cached_property`: a study runs its stages one by one
    run = compile_run(read_run(write_confs(tmp_path)), tmp_path / "out")
    run.stages[1].check()
    assert "parsed" not in vars(run.stages[0]) and run.stages[0].place == tmp_path / "out" / "draw"
