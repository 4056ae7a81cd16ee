"""Objectives of captions and distances of velocities as options of the stages: named in YAML, refused where they do not
belong together, and at work in an update."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import small_stages as small
import torch
from jsonargparse import Namespace

from uae_lightning.policies.token_objectives import CISPO, GSPO, SAPO
from uae_lightning.run.stage_checks import check_training
from uae_lightning.run.stage_cli import parse_stage
from uae_lightning.scenes.data import ScenesData
from uae_lightning.stages.decoder_matching import DecoderMatching
from uae_lightning.stages.decoder_rl import DecoderRL
from uae_lightning.stages.encoder_rl import EncoderRL
from uae_lightning.usage import UsageError

make_stage = small.make_stage
PLACE = "uae_lightning.policies.token_objectives"
OF_STAGE = {"encoder_rl": "model.init_args", "joint_rl": "model.init_args.captions.init_args"}


def parsed(stage: str, *options: str):
    return parse_stage(["fit", f"--config=conf/scenes/{stage}.yaml", *(f"--{option}" for option in options)])


@pytest.mark.parametrize("stage", OF_STAGE)
def test_an_objective_is_named_in_yaml(stage):
    # red if the objective does not reach the policy, or the YAML's own clip ranges are taken for another one's
    place = OF_STAGE[stage]
    cli = parsed(stage, f"{place}.objective={PLACE}.GSPO", f"{place}.objective.init_args.clip_high=0.01")
    check_training(cli.config.fit)
    with torch.device("meta"):
        model = cli._parser("fit").instantiate(Namespace(model=cli.config.fit.model)).model
    assert model.policies["captions"].objective == GSPO(3e-4, 0.01)


@pytest.mark.parametrize("stage", OF_STAGE)
def test_clip_ranges_beside_another_objective_are_refused(stage):
    # red if a stage does not hand its captions' options to CaptionGRPO.check
    place = OF_STAGE[stage]
    cli = parsed(stage, f"{place}.objective={PLACE}.CISPO", f"{place}.clip_high=0.28")
    with pytest.raises(UsageError, match="clip_low and clip_high .* set those in objective.init_args"):
        check_training(cli.config.fit)


def test_numbers_of_one_objective_are_none_of_another(capsys):
    # red if the objectives share a class
    with pytest.raises(UsageError, match="clip_low"):
        parsed(
            "encoder_rl", f"model.init_args.objective={PLACE}.SAPO", "model.init_args.objective.init_args.clip_low=1"
        )


def test_the_kl_of_version_1_has_another_name():
    # red without OPTIONS in of_version_1
    with pytest.raises(UsageError, match="kl_includes_dt is of version 0.1: it is kl_form"):
        parsed("decoder_rl", "model.init_args.kl_includes_dt=false")


@pytest.mark.parametrize(
    ("objective", "figure"), [(GSPO(), "clip_fraction"), (CISPO(), "clip_fraction"), (SAPO(), "gate")]
)
def test_a_second_update_tells_what_an_objective_lets_through(make_stage, objective, figure):
    # red if the stage does not hand the objective on, or old log-probabilities are taken anew for every update
    watch = small.Watch()
    stage = make_stage(EncoderRL, objective=objective, entropy_bonus=0.01, updates_per_batch=2)
    before = small.snapshot(stage)
    small.fit(stage, 1, [watch])
    (row,) = watch.rows
    assert row["log_ratio_abs_max"] > 1e-3 and figure in row and row["first_log_ratio"] < 1e-4
    assert (row.get("gate", 1) < 1 or objective != SAPO()) and (row.get("clip_fraction", 1) > 0 or objective != GSPO())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in small.snapshot(stage).items())


@pytest.mark.parametrize("sde", ["flow_sde", "dance_sde"])
@pytest.mark.parametrize(
    ("kind", "options", "distance"),
    [
        (DecoderRL, {"kl_form": "velocity"}, "kl_reference"),
        (DecoderMatching, {}, "distance_to_reference"),
    ],
)
def test_what_rl_does_to_the_norm_of_the_velocity_is_told(make_stage, kind, options, distance, sde):
    # red if the ratio is turned round, if kl_form is not looked at, or if the KL is not multiplied by kl_beta: here the
    # policy's velocities are the reference's times 1.1
    if kind is DecoderMatching and sde != "flow_sde":
        pytest.skip("it has no SDE")
    options = options | ({"sde": sde} if kind is DecoderRL else {})
    found = {}
    for kl_beta in (0.0, 0.5, 1.0):
        stage, scale = make_stage(kind, kl_beta=kl_beta, **options), [1.1]
        velocity = stage.decoder.velocity

        @contextmanager
        def reference(scale=scale):
            scale[0] = 1.0
            yield
            scale[0] = 1.1

        stage.decoder.reference = reference
        stage.decoder.velocity = lambda *args, scale=scale, velocity=velocity: scale[0] * velocity(*args)
        acts = stage.rollout(next(iter(ScenesData(batch_size=2).train_dataloader()))).acts[0]
        with torch.no_grad():
            found[kl_beta] = stage.policy.loss(acts, torch.arange(8), 0, torch.zeros(8), first=True)
    for kl_beta in (0.5, 1.0):
        metrics = found[kl_beta][1]
        assert metrics["velocity_norm_ratio"].item() == pytest.approx(1.1, rel=1e-4) and metrics[distance] > 0
        added = (found[kl_beta][0] - found[0.0][0]).mean()
        assert added.item() == pytest.approx(kl_beta * metrics[distance].item(), rel=1e-3)
    assert "velocity_norm_ratio" not in found[0.0][1]  # there is no reference to compare with
