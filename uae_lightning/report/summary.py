"""What a run changed, stage by stage and as a whole: stage.json and summary.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uae_lightning.evaluation.intervals import mean_interval
from uae_lightning.evaluation.statistics import compare, statistics_of
from uae_lightning.files import write_json
from uae_lightning.run import folder as run_folder

SUMMARY_KEYS = (
    "name", "reward_before", "reward_after", "gain", "caption_tokens_before", "caption_tokens_after", "seconds",
)  # fmt: skip


def stage_record(name: str, place: Path, steps: int, seconds: float, command: str) -> dict[str, Any]:
    """What a stage changed on the held-out pictures, from its first validation and that of the weights it hands on.

    Raises:
        ValueError: these are not of the weights it began with and of those it hands on, after `steps` steps.
    """
    rows = run_folder.read_rows(place)
    validated = [row["step"] for row in rows]
    if [*validated[:1], *validated[-1:]] != [0, steps]:
        raise ValueError(
            f"{place} has weights of step {steps} and figures of the steps {', '.join(map(str, validated)) or 'none'}: "
            "before and after need step 0 and the last one. Keep trainer.num_sanity_val_steps at -1; where "
            "trainer.max_steps was lowered for a resume, raise it again and resume; else start again with --overwrite"
        )
    before, after = rows[0], run_folder.final_row(place)
    return {
        "name": name,
        "reward_before": mean_interval(before["reward"]),
        "reward_after": mean_interval(after["reward"]),
        "gain": paired_gain(before, after, "reward"),
        "caption_tokens_before": mean(before["caption_tokens"]),
        "caption_tokens_after": mean(after["caption_tokens"]),
        "seconds": round(seconds, 1),
        "time": time_of(place, seconds),
        "reward_name": after["reward_name"],
        "unrewarded": {
            "name": after["unrewarded_name"],
            "before": mean_interval(before["unrewarded"]),
            "after": mean_interval(after["unrewarded"]),
            "gain": paired_gain(before, after, "unrewarded"),
        },
        "step": after["step"],
        "command": command,
    }


def summarise(folder: Path) -> None:
    """summary.json of the stages done so far; the run's gain is last after less first before.

    Where some stage was validated on other pictures than the last, the gain is that of the others, from "since" on.
    """
    done = [stage for stage in run_folder.stages_of(folder) if run_folder.is_done(stage)]
    records = [run_folder.read_json(stage / "stage.json", *SUMMARY_KEYS) for stage in done]
    compared = run_folder.comparable(done)
    before, after = run_folder.read_rows(compared[0])[0], run_folder.final_row(compared[-1])
    run = {
        "gain": paired_gain(before, after, "reward"),
        "unrewarded": {"name": after["unrewarded_name"], "gain": paired_gain(before, after, "unrewarded")},
    }
    if compared != done:
        run["since"] = compared[0].name
        others = ", ".join(stage.name for stage in done if stage not in compared)
        print(
            f"validated on other pictures than {done[-1].name}: {others}; the gain of the run leaves it out", flush=True
        )
    summary = {"stages": [{key: record[key] for key in SUMMARY_KEYS} for record in records], "run": run}
    if all(run_folder.evaluation(folder, moment).exists() for moment in ("start", "end")):
        summary["evaluation"] = evaluated_gains(folder)
    write_json(folder / "summary.json", summary)


def evaluated_gains(folder: Path) -> dict[str, Any]:
    """Figures of `uae evaluate` before and after the run, and the gains of the same pictures and prompts."""
    outputs = [run_folder.evaluation(folder, moment) for moment in ("start", "end")]
    before, after = map(run_folder.read_json, outputs)
    items = [run_folder.read_json(run_folder.items_of(output)) for output in outputs]
    gains = {
        suite: compare(*(statistics_of(record)[suite] for record in (before, after)), *(of[suite] for of in items))
        for suite in after["figures"]
    }
    about = {key: before[key] for key in ("reward", "kin_of_reward", "suites")}
    return {"before": before["figures"], "after": after["figures"], "gain": gains, **about}


def paired_gain(before: dict[str, Any], after: dict[str, Any], measure: str) -> dict[str, float | int]:
    """Mean difference over the same pictures, each with itself.

    Raises:
        ValueError: the two rows are of different pictures, or of different measures.
    """
    if set(before["keys"]) != set(after["keys"]):
        raise ValueError("held-out pictures differ between validations: every stage needs the same validation set")
    if before[f"{measure}_name"] != after[f"{measure}_name"]:
        raise ValueError(
            f"{measure} is {before[f'{measure}_name']!r} in one stage and {after[f'{measure}_name']!r} in another: "
            "a run has one"
        )
    first = dict(zip(before["keys"], before[measure], strict=True))
    return mean_interval([value - first[key] for key, value in zip(after["keys"], after[measure], strict=True)])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def one_line(record: dict[str, Any]) -> str:
    gain = record["gain"]
    return (
        f"{record['name']}: {record['reward_name']} {record['reward_before']['mean']:.4f} -> "
        f"{record['reward_after']['mean']:.4f}, gain {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}], "
        f"caption {record['caption_tokens_before']:.1f} -> {record['caption_tokens_after']:.1f} tokens, "
        f"{record['seconds']:.0f} s{in_brackets(record['time'])}"
    )


def time_of(place: Path, seconds: float) -> dict[str, float]:
    """Seconds of a stage by what they were spent on, where callbacks.Throughput was there to count them."""
    file = place / run_folder.TIME
    if not file.exists():
        return {}
    spent = run_folder.read_json(file)
    counted = spent.get("steps", 0.0) + spent.get("validation", 0.0)
    return spent | {"start and end": round(max(0.0, seconds - counted), 1)}


def in_brackets(time: dict[str, float]) -> str:
    """' (steps 120: rollout 60, update 40; validation 30, ...)', the verbs of RL stages after the steps they are of."""
    if not time:
        return ""
    whole = ("steps", "validation", "start and end")
    verbs = ", ".join(f"{name} {seconds:.0f}" for name, seconds in time.items() if name not in whole)
    parts = {name: f"{name} {time[name]:.0f}" for name in whole if name in time}
    if verbs and "steps" in parts:
        parts["steps"] += f" of which {verbs}"
    return f" ({'; '.join(parts.values())})"
