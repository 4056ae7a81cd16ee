"""`uae evaluate`: what the parts can do on held-out data, by judges that were not the reward.

The same pictures, prompts, noise and seeds for any weights: two evaluations can be compared item by item.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uae_lightning.evaluation.table import SUITES, table
from uae_lightning.files import check_writable
from uae_lightning.ranges import Count, Seed
from uae_lightning.run import folder as run_folder
from uae_lightning.run.masking import masked, masked_command
from uae_lightning.run.provenance import provenance
from uae_lightning.run.spec import EvaluationSpec, StageSpec, fit_args, is_run, read_run
from uae_lightning.usage import Parser, UsageError, closest

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from uae_lightning.evaluation.suites import Evaluation, Items

DESCRIPTION = """\
Measures captions, pictures and the round trip on held-out data, and writes every figure with its 95% interval.

    uae evaluate --config conf/demo.yaml --output start.json                       the weights that the YAML names
    uae evaluate --config conf/demo.yaml --weights runs/demo --output end.json     what a run has trained
    uae evaluate --config conf/demo.yaml --weights runs/demo --stage encoder_rl --output middle.json
    uae evaluate --config conf/demo.yaml --suite geneval instruments --samples 32 --output quick.json

The values behind the figures, one per picture or prompt, go to a second file, end.items.json beside end.json; two
evaluations with the same samples, drawings and seed have the same pictures and prompts there, in the same order.

suites:
  unified_bench   picture -> caption -> picture: cosine to the source, by vision backbone
  geneval         prompt -> picture: GenEval's six tasks, read by an object detector
  perception      facts that captions get right and wrong, and questions answered by likelihood
  language        whether captions are still language
  images          statistics of the pictures that no reward asks for
  instruments     how often the judges themselves are right
"""


def main(args: list[str]) -> None:
    options = parse(args)
    stage, spec = read_config(options.config, options.evaluation)
    counts = {name: getattr(options, name) for name in ("samples", "drawings") if getattr(options, name) is not None}
    spec = EvaluationSpec(spec.config, spec.options | counts)
    weights = run_folder.latest_weights(stages_until(options.weights, options.stage))
    record = evaluate_into(
        options.output,
        stage,
        spec,
        weights,
        suites=options.suite,
        seed=options.seed,
        command=masked_command(["uae", "evaluate", *args]),
    )
    print(table(record))
    print(f"Figures: {options.output}\nValues:  {run_folder.items_of(options.output)}")


# ------------------------------------------------------------------------------------------------ command line


def parse(args: list[str]):
    parser = Parser(prog="uae evaluate", description=DESCRIPTION)
    parser.add_argument("--config", type=Path, metavar="YAML", help="of a run or of a stage (needed)")
    parser.add_argument(
        "--weights", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="of a run: the latest weights of each part; of several runs the later one counts",
    )  # fmt: skip
    parser.add_argument("--stage", metavar="NAME", help="of the (last) run in --weights: as it was after that stage")
    parser.add_argument(
        "--suite", nargs="+", default=["all"], metavar="SUITE", help="one or more of those above; default: all that fit"
    )
    parser.add_argument("--samples", type=Count, metavar="N", help="held-out pictures; default: the YAML's")
    parser.add_argument("--drawings", type=Count, metavar="N", help="pictures drawn from prompts; default: the YAML's")
    parser.add_argument("--seed", type=Seed, default=0, help="of captions, noise and prompts; default: %(default)s")
    parser.add_argument(
        "--evaluation", type=Path, metavar="YAML",
        help="what to judge with; default: what a run's YAML names, or evaluation.yaml beside a stage's",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="JSON", help="file of the figures (needed)")
    options = parser.parse(args)
    if options.config is None:
        parser.error("name the YAML of a run or of a stage with --config")
    if options.output is None or options.output.suffix != ".json":
        parser.error("name the file to write with --output, such as --output evaluation.json")
    for file in (options.output, run_folder.items_of(options.output)):
        check_writable(file, "--output")
    if options.stage and not options.weights:
        parser.error("--stage needs the folder of the run: name it with --weights")
    for name in options.suite:
        if name not in ("all", *SUITES):
            parser.error(f"no suite {name!r}{closest(name, SUITES)} (suites: all, {', '.join(SUITES)})")
    options.suite = None if "all" in options.suite else [name for name in SUITES if name in options.suite]
    return options


def read_config(config: Path, evaluation: Path | None) -> tuple[StageSpec, EvaluationSpec]:
    """The stage that describes the models, of a run the last one, and what to judge with.

    Raises:
        FileNotFoundError: a YAML is missing.
        UsageError: it is none, or nothing says what to judge with.
    """
    if evaluation is not None and not evaluation.is_file():
        raise FileNotFoundError(f"{evaluation} does not exist: --evaluation is a YAML as conf/scenes/evaluation.yaml")
    if is_run(config):
        run = read_run(config)
        stage, spec = run.stages[-1], run.evaluation
    else:
        beside = config.parent / "evaluation.yaml"
        stage, spec = StageSpec(config.stem, config, {}), EvaluationSpec(beside, {}) if beside.is_file() else None
    if evaluation is not None:
        spec = EvaluationSpec(evaluation, {})
    if spec is None:
        raise UsageError(f"{config} does not say what to judge with: name a YAML such as conf/scenes/evaluation.yaml "
                         "with --evaluation, or under the key `evaluation` of a run")  # fmt: skip
    return stage, spec


def stages_until(runs: list[Path], last: str | None) -> list[Path]:
    """Folders of the stages of these runs, one run after the other; of the last run those up to the stage `last`."""
    stages = [run_folder.stages_of(run) for run in runs]
    if last is not None:
        names = [stage.name for stage in stages[-1]]
        if last not in names:
            raise UsageError(f"no stage {last!r} in {runs[-1]}{closest(last, names)} (stages: {', '.join(names)})")
        stages[-1] = stages[-1][: names.index(last) + 1]
    for run, folders in zip(runs, stages, strict=True):
        if not run_folder.latest_weights(folders):
            raise FileNotFoundError(f"{run} holds no weights yet: finish a stage of it, or leave --weights out")
    return [stage for folders in stages for stage in folders]


# ------------------------------------------------------------------------------------------------ from YAML to a file


def evaluate_into(
    output: Path,
    stage: StageSpec,
    spec: EvaluationSpec,
    weights: dict[str, Path],
    *,
    overrides: list[str] | None = None,
    suites: list[str] | None = None,
    without: tuple[str, ...] = (),
    seed: int = 0,
    command: str,
    keep_earlier: bool = False,
) -> dict[str, Any]:
    """Evaluates a stage's parts with these weights and writes figures to `output`, values to its `.items.json`.

    Args:
        weights: folder of each part that does not start from where the YAML says.
        overrides: dotted options on top of the stage's YAML.
        suites: what to measure; None is what the evaluation's YAML says, `without` is left out of it.
        keep_earlier: a result that is there already counts, if it was made with the same settings and seed.

    Returns:
        What `output` holds.
    """
    from uae_lightning.evaluation.suites import evaluate
    from uae_lightning.run.stage_cli import quiet

    began = time.monotonic()
    quiet()
    config, judges = stage_config(stage, overrides or [], weights), parse_evaluation(spec)
    evaluation = build_evaluation(judges)
    chosen = [suite for suite in evaluation.chosen(suites) if suite not in without]
    settings = masked(as_json({"model": config.model, "evaluation": judges.evaluation, "suites": chosen}))
    if keep_earlier and (earlier := same_evaluation(output, settings, seed)):
        return earlier
    model, reward, reference = build_stage(config), build_reward(config), None
    if "language" in chosen:  # perplexity is that under the encoder before RL
        changed = "encoder" in weights
        reference = build_encoder(stage_config(stage, overrides or [], {})) if changed else model.encoder
    figures, items = evaluate(model, evaluation, suites=chosen, seed=seed, reference_encoder=reference)
    record = figures | {"reward": name_of(reward), "kin_of_reward": kin(reward, evaluation.backbones)}
    record |= provenance(command) | {"seed": seed, "settings": settings}
    record["minutes"] = round((time.monotonic() - began) / 60, 2)
    run_folder.write_json(run_folder.items_of(output), rounded(items))  # first: figures are there once all is
    run_folder.write_json(output, record)
    return record


def same_evaluation(output: Path, settings: Any, seed: int) -> dict[str, Any] | None:
    """What lies there already, if it was made with the same settings."""
    if not (output.is_file() and run_folder.items_of(output).is_file()):
        return None
    record = run_folder.read_json(output)
    return record if (record.get("settings"), record.get("seed")) == (settings, seed) else None


def rounded(items: Items) -> Items:
    return {suite: {name: [round(v, 6) for v in values] for name, values in of.items()} for suite, of in items.items()}


def as_json(namespaces: dict[str, Any]) -> dict[str, Any]:
    """Plain values, as they come back from a file."""
    plain = {key: value.as_dict() if hasattr(value, "as_dict") else value for key, value in namespaces.items()}
    return json.loads(json.dumps(plain, default=str))


# ------------------------------------------------------------------------------------------------ from YAML to objects


def stage_config(stage: StageSpec, overrides: list[str], weights: dict[str, Path]) -> Namespace:
    from uae_lightning.run.stage_cli import parse_stage

    try:
        return parse_stage(fit_args(stage, overrides, Path("unused"), weights)).config.fit
    except UsageError as error:
        raise UsageError(f"{stage.config}: {error}") from error


def parse_evaluation(spec: EvaluationSpec) -> Namespace:
    """The configuration of an `Evaluation`, checked, nothing built."""
    from uae_lightning.run.class_paths import check_class_paths
    from uae_lightning.run.stage_cli import errors_explained

    options = {key: value if isinstance(value, str) else json.dumps(value) for key, value in spec.options.items()}
    args = [f"--evaluation={spec.config}", *(f"--evaluation.{key}={text}" for key, text in options.items())]
    try:
        with errors_explained():
            config = evaluation_parser().parse_args(args)
            check_class_paths(config)
    except UsageError as error:
        raise UsageError(f"{spec.config}: {error}") from error
    config.evaluation.pop("__path__", None)  # of the YAML, on this machine
    return config


def evaluation_parser():
    from jsonargparse import ArgumentParser

    from uae_lightning.evaluation.suites import Evaluation

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Evaluation, "evaluation")
    return parser


def build_evaluation(config: Namespace) -> Evaluation:
    from uae_lightning.run.stage_cli import errors_explained

    with errors_explained():
        return evaluation_parser().instantiate(config).evaluation


def build_stage(config: Namespace):
    from uae_lightning.stages.common import Stage

    return build(Stage, config.model).eval()


def build_encoder(config: Namespace):
    from uae_lightning.interfaces import Encoder

    return build(Encoder, config.model.init_args.encoder).eval()


def build_reward(config: Namespace):
    """What the stage is trained on; None where its YAML has no RewardCallback."""
    from uae_lightning.interfaces import Reward

    callbacks = [c for c in config.trainer.callbacks or [] if c.class_path.endswith(".RewardCallback")]
    return build(Reward, callbacks[0].init_args.reward) if callbacks else None


def build(kind: type, config: Namespace):
    """The object of this kind that a class_path and its init_args describe."""
    from jsonargparse import ArgumentParser, Namespace

    from uae_lightning.run.stage_cli import errors_explained

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "it")
    with errors_explained():
        return parser.instantiate(Namespace(it=config)).it


def name_of(reward) -> str | None:
    """The class; of a weighted sum those of its terms."""
    if reward is None:
        return None
    terms = getattr(reward, "rewards", None)
    return " + ".join(type(term).__name__ for term in terms.values()) if terms else type(reward).__name__


def kin(reward, backbones: dict[str, Any]) -> list[str]:
    """Names of the backbones that share weights with the reward: no independent judges of it."""
    own = fingerprints(reward) if reward is not None else set()
    return [name for name, backbone in backbones.items() if own & fingerprints(backbone)]


def fingerprints(module) -> set[tuple]:
    """One for each larger weight tensor; the same numbers have the same."""
    weights = (weight.detach().double() for weight in module.parameters() if weight.numel() > 1000)
    return {(tuple(weight.shape), weight.sum().item(), weight.square().sum().item()) for weight in weights}
