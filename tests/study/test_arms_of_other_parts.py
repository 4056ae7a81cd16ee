"""Studies of what crosses from encoder to decoder, and of other decoders: their arms have parts of several kinds."""

import itertools
from pathlib import Path

import pytest
import yaml

from uae_lightning.study.cost import decoder_forwards
from uae_lightning.study.plan import read_study
from uae_lightning.study.run import plan_jobs

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def study():
    return read_study(CONF / "relatives_two.yaml")


def evaluated(study, jobs) -> dict[str, str]:
    """For the start and each arm the YAMLs that it is evaluated with."""
    configs = {}
    for name in ("start", *(f"seed-0/{arm}" for arm in study.arms)):
        words = jobs[f"{name}/evaluation"].command()
        given = [Path(path).stem for word, path in itertools.pairwise(words) if word == "--config"]
        configs[name.rpartition("/")[2]] = "+".join(given)
    return configs


def jobs_of(study, place: Path):
    return {job.name: job for job in plan_jobs(study, place, list(study.arms.values()), [0])}


def test_each_arm_is_evaluated_as_its_parts_are(study, tmp_path):
    # red if all arms are evaluated by the study's own YAML, whose encoder has no codebook, or without what lies over
    jobs = jobs_of(study, tmp_path)
    codes = dict.fromkeys(("codes_10", "codes_8", "codes_6", "codes_4"), "codebook_pretrain")
    codes |= {"codes_levels": "codebook_pretrain+codebook_pretrain_levels"}
    codes |= {"codes_16": "codebook_pretrain+codebook_pretrain_bsq"}
    bridges = {"bridge": "bridge_pretrain", "bridge_regression": "bridge_pretrain+bridge_pretrain_regression"}
    same = ("start", "captions", "captions_rl", "captions_more")
    assert evaluated(study, jobs) == dict.fromkeys(same, "decoder_rl") | codes | bridges
    assert jobs["seed-0/codes_4/evaluation"].digest != jobs["seed-0/captions/evaluation"].digest


def test_a_decoder_from_random_weights_is_evaluated_as_it_is(tmp_path):
    # red if it is evaluated by the study's own YAML, whose decoder is SD3's
    study = read_study(CONF / "decoders.yaml")
    same = ("start", "codec_base", "codec_flow", "codec_regression")
    mar = dict.fromkeys(("mar", "mar_rl"), "mar_pretrain")
    assert evaluated(study, jobs_of(study, tmp_path)) == dict.fromkeys(same, "decoder_rl") | mar


def test_codes_are_given_fewer_decoder_forwards_than_captions(study):
    # red if what codes win could be won by training longer
    forwards = {arm.name: sum(map(decoder_forwards, arm.stages)) for arm in study.arms.values()}
    assert forwards["captions_more"] == forwards["bridge"] == forwards["bridge_regression"] == 10_800
    assert forwards["captions"] == 14_400 and {forwards[arm] for arm in forwards if arm.startswith("codes_")} == {8_640}


def test_a_missing_evaluation_is_named(tmp_path):
    # red if it is found out once the arm is trained
    content = yaml.safe_load((CONF / "relatives_two.yaml").read_text())
    content["arms"][2]["evaluation"] = "none.yaml"
    for folder in ("scenes",):
        (tmp_path / folder).symlink_to(CONF / folder)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(FileNotFoundError, match="none.yaml does not exist: it is the evaluation of arm 3"):
        read_study(tmp_path / "study.yaml")
