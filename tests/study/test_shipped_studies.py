"""Every stage of every shipped study passes the checks that come before a study's first job."""

import pytest

from tests.study.test_study import ROOT
from uae_lightning.study import plan, run
from uae_lightning.study.jobs import Desk

STUDIES = sorted(file.stem for file in (ROOT / "conf").glob("*.yaml") if "\narms:" in file.read_text())


def test_studies_are_found():
    assert {"ablations", "relatives", "relatives_two", "reproduce"} <= set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_study_would_run(name, tmp_path):
    # red with a learning rate of 0 in any of its arms, which a dry run does not see
    study = plan.read_study(ROOT / "conf" / f"{name}.yaml")
    arms = list(study.arms.values())
    run.check(Desk(tmp_path, run.plan_jobs(study, tmp_path, arms, [0])), arms, [0])
