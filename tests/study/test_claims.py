from pathlib import Path

import numpy as np
import pytest

from uae_lightning.evaluation.geneval import TASKS
from uae_lightning.evaluation.statistics import Statistic
from uae_lightning.study import claims as study
from uae_lightning.study.claims import figure, worsened
from uae_lightning.study.plan import read_shown
from uae_lightning.usage import UsageError

SHOWN = read_shown(Path(__file__).parents[2] / "conf" / "scenes" / "study.yaml")


def mean(name, better=1):
    return {name: {"lists": [name], "kind": "mean", "better": better}}


ABOUT = {  # as an evaluation describes its suites
    "unified_bench": {"statistics": mean("overall") | mean("pixels")},
    "geneval": {"statistics": {"overall": {"lists": list(TASKS), "kind": "tasks", "better": 1}}},
    "perception": {"statistics": mean("small_objects") | mean("hallucination", -1)},
    "language": {"statistics": mean("tokens", 0)},
}


def figures(before, after):
    return study.figures(ABOUT, before if isinstance(before, list) else [before], after)


def claimed(found):
    return study.claimed(SHOWN.claims, {"start": found})


def items(score, small, tokens, hallucination, geneval=0.5):
    """Evaluations as `uae evaluate` writes them, with values near these."""
    noise = np.random.default_rng(0).normal(0, 0.01, 40)
    near = lambda value: (value + noise).tolist()  # noqa: E731
    return {
        "unified_bench": {"overall": near(score), "pixels": near(score)},
        "geneval": {task: [geneval] * (10 + number) for number, task in enumerate(TASKS)},
        "perception": {"small_objects": near(small), "hallucination": near(hallucination)},
        "language": {"tokens": near(tokens)},
    }


def test_a_planted_gain_is_reached_and_a_wrong_direction_is_not():
    # red with `2 * before` made `before`, `>= at_least` made `> 0`, or `gain["low"]` made `gain["high"]`
    found = figures(items(0.5, 0.3, 20, 0.1), [items(0.6, 0.5, 15, 0.2), items(0.7, 0.55, 16, 0.2)])
    claims = {claim["name"]: claim for claim in claimed(found)}
    unified = claims["unified_score"]
    assert claims["unified_pixels"]["reached"] and not unified["reached"]  # risen, but not to 0.93
    assert unified["gain"]["mean"] == pytest.approx(0.15) and unified["gain"]["of_seeds"] == pytest.approx([0.1, 0.2])
    assert unified["gain"]["seeds"] == 2 and unified["gain"]["n"] == 40
    assert unified["before"]["mean"] == pytest.approx(0.5, abs=0.01) and unified["after"]["low"] > 0.55
    assert not claims["small_object_recall"]["reached"]  # risen, but neither doubled nor above 0.9
    assert not claims["caption_tokens"]["reached"] and not claims["hallucination"]["reached"]
    assert set(worsened(found)) == {"perception/hallucination"}  # shorter captions are no loss in themselves


def test_small_objects_doubled():
    # red with `and` in place of `or`
    one = claimed(figures(items(0.5, 0.2, 20, 0.1), [items(0.5, 0.45, 20, 0.1)]))
    assert next(claim for claim in one if claim["name"] == "small_object_recall")["reached"]


def test_a_gain_whose_interval_holds_zero_is_not_reached():
    # red with `gain["low"]` turned into `gain["mean"]` in RISES
    before, after = items(0.5, 0.2, 20, 0.1), items(0.5, 0.2, 20, 0.1)
    after["unified_bench"]["pixels"] = (0.51 + np.random.default_rng(1).normal(0, 0.3, 40)).tolist()
    claim = next(claim for claim in claimed(figures(before, [after])) if claim["name"] == "unified_pixels")
    assert claim["gain"]["mean"] > 0 and not claim["reached"] and worsened(figures(before, [after])) == {}


@pytest.mark.parametrize(("after", "reached"), [(0.87, True), (0.85, False)])
def test_geneval_is_the_mean_of_its_tasks_and_ends_where_the_paper_does(after, reached):
    # red with 0.86 turned into 0.8
    found = figures(items(0, 0, 0, 0, geneval=0.5), [items(0, 0, 0, 0, geneval=after)])
    claim = next(claim for claim in claimed(found) if claim["name"] == "geneval_overall")
    assert claim["reached"] == reached and claim["gain"]["mean"] == pytest.approx(after - 0.5)
    assert claim["gain"]["n"] == sum(10 + number for number in range(6))


def test_tasks_count_alike_however_many_prompts_they_have():
    # red with the items of all groups pooled
    statistic = Statistic(("few", "many"), "tasks")
    one = figure(statistic, [{"few": [0.0] * 10, "many": [0.0] * 90}], [{"few": [1.0] * 10, "many": [0.0] * 90}])
    assert one.gain["mean"] == pytest.approx(0.5) and one.of_seeds == pytest.approx([0.5])


def test_other_items_cannot_be_compared():
    # red without the check of lengths
    with pytest.raises(ValueError, match="same suites, samples"):
        figure(Statistic(("a",)), [{"a": [0.0] * 10}], [{"a": [1.0] * 9}])


def test_an_arm_is_compared_with_another_seed_by_seed():
    # red if the first start is that of all seeds, or a claim looks for its figure over the start
    ends = [items(0.6, 0.5, 15, 0.2), items(0.9, 0.5, 15, 0.2)]
    over_arm = figures([items(0.5, 0.3, 20, 0.1), items(0.7, 0.3, 20, 0.1)], ends)
    assert over_arm["unified_bench/overall"].of_seeds == pytest.approx([0.1, 0.2])
    assert over_arm["unified_bench/overall"].gain["mean"] == pytest.approx(0.15)
    assert over_arm["unified_bench/overall"].before["mean"] == pytest.approx(0.6, abs=0.01)
    entry = {"name": "a", "title": "A", "figure": "unified_bench/overall", "goal": "rises", "over": "captions"}
    claim = study.read_claim(entry, "claim 1")
    found = {"start": figures(items(0, 0, 0, 0), ends), "captions": over_arm}
    assert study.claimed((claim,), found)[0]["gain"]["mean"] == pytest.approx(0.15)
    assert study.claimed((claim,), {"start": found["start"]}) == []


@pytest.mark.parametrize("goal", ["rise", {"gains": {"at_least": 1}}, {"gain": {"least": 1}}, None, {}])
def test_goals_that_are_none_are_refused(goal):
    # red without the look for the goal's name, or without the TypeError
    with pytest.raises(UsageError, match="goal"):
        study.read_claim({"name": "a", "title": "A", "figure": "b/c", "goal": goal}, "claim 1")


def test_a_reward_that_a_later_stage_does_not_have_is_left_out():
    # red if `figures` asks for the suite alone
    statistics = {name: {"lists": [name], "kind": "mean", "better": 1} for name in ("reward", "other")}
    about, first, last = {"validation": {"statistics": statistics}}, {"other": [0.0, 1.0]}, {"other": [1.0, 2.0]}
    found = study.figures(about, [{"validation": first}], [{"validation": last}])
    assert list(found) == ["validation/other"] and found["validation/other"].gain["mean"] == 1.0
    assert not study.figures(about, [{}], [{"validation": last}])
