"""`uae evaluate`: what the parts can do on held-out data, by judges that were not the reward."""

from __future__ import annotations

from pathlib import Path

from uae_lightning.evaluation.table import table
from uae_lightning.files import check_writable
from uae_lightning.ranges import Count, Seed
from uae_lightning.run import folder as run_folder
from uae_lightning.run.masking import masked_command
from uae_lightning.run.spec import EvaluationSpec, StageSpec, add_overlays, read_run_or_stage
from uae_lightning.usage import Parser, UsageError, closest

DESCRIPTION = """\
Measures captions, pictures and the round trip on held-out data, and writes every figure with its 95% interval.

    uae evaluate --config conf/demo.yaml --output start.json                       the weights that the YAML names
    uae evaluate --config conf/demo.yaml --weights runs/demo --output end.json     what a run has trained
    uae evaluate --config conf/demo.yaml --weights runs/demo --stage encoder_rl --output middle.json
    uae evaluate --config conf/demo.yaml --suite geneval instruments --samples 32 --output quick.json

The values behind the figures, one per picture or prompt, go to a second file, end.items.json beside end.json; two
evaluations with the same samples, drawings and seed have the same pictures and prompts there, in the same order.

Which suites there are, and what they judge with, says a YAML such as conf/scenes/evaluation.yaml; a suite is a class of
its own (`uae_lightning.evaluation.suite.Suite`).
"""


def main(args: list[str]) -> None:
    options = parse(args)
    from uae_lightning.run.compiled import StageRun, parse_evaluation
    from uae_lightning.run.evaluation import evaluate_into

    stage, spec = read_config(options.config, options.overlays, options.evaluation)
    counts = {name: getattr(options, name) for name in ("samples", "drawings") if getattr(options, name) is not None}
    spec, run = EvaluationSpec(spec.config, spec.options | counts), StageRun(stage)
    _ = run.parsed  # its mistakes are told first
    weights = run_folder.latest_weights(stages_until(options.weights, options.stage))
    record = evaluate_into(
        options.output,
        run,
        parse_evaluation(spec),
        weights,
        suites=options.suite,
        without=options.without,
        seed=options.seed,
        command=masked_command(["uae", "evaluate", *args]),
    )
    print(table(record))
    print(f"Figures: {options.output}\nValues:  {run_folder.items_of(options.output)}")


# ------------------------------------------------------------------------------------------------ command line


def parse(args: list[str]):
    parser = Parser(prog="uae evaluate", description=DESCRIPTION)
    parser.add_argument(
        "--config", "-c", type=Path, metavar="YAML", action="append",
        help="of a run or of a stage (needed); again: laid over the stage's, as for `uae fit`",
    )  # fmt: skip
    add_overlays(parser)
    parser.add_argument(
        "--weights", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="of a run, or of a stage: the latest weights of each part; of several the later one counts",
    )  # fmt: skip
    parser.add_argument("--stage", metavar="NAME", help="of the (last) run in --weights: as it was after that stage")
    parser.add_argument(
        "--suite", nargs="+", metavar="SUITE", help="one or more of those in the YAML; default: all that fit"
    )
    parser.add_argument("--without", nargs="+", default=[], metavar="SUITE", help="all that fit but these")
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
    return options


def read_config(configs: list[Path], overlays: list[str], evaluation: Path | None) -> tuple[StageSpec, EvaluationSpec]:
    """The stage that describes the models, of a run the last one, and what to judge with.

    Args:
        configs: of a run or of a stage, and what is laid over a stage's; the later one counts.
        overlays: names of those that a run offers.

    Raises:
        FileNotFoundError: a YAML is missing.
        UsageError: it is none, or nothing says what to judge with.
    """
    if evaluation is not None and not evaluation.is_file():
        raise FileNotFoundError(f"{evaluation} does not exist: --evaluation is a YAML as conf/scenes/evaluation.yaml")
    first, *over = configs
    run = read_run_or_stage(first, overlays, over)
    stage, spec = run.stages[-1], run.evaluation
    if evaluation is not None:
        spec = EvaluationSpec(evaluation, {})
    if spec is None:
        raise UsageError(f"{first} does not say what to judge with: name a YAML such as conf/scenes/evaluation.yaml "
                         "with --evaluation, or under the key `evaluation` of a run")  # fmt: skip
    return stage, spec


def stages_until(runs: list[Path], last: str | None) -> list[Path]:
    """Folders of the stages of these runs, one run after the other; of the last run those up to the stage `last`."""
    stages = [run_folder.trained_stages(run) for run in runs]
    if last is not None:
        names = [stage.name for stage in stages[-1]]
        if last not in names:
            raise UsageError(f"no stage {last!r} in {runs[-1]}{closest(last, names)} (stages: {', '.join(names)})")
        stages[-1] = stages[-1][: names.index(last) + 1]
    for run, folders in zip(runs, stages, strict=True):
        if not run_folder.latest_weights(folders):
            raise FileNotFoundError(f"{run} holds no weights yet: finish a stage of it, or leave --weights out")
    return [stage for folders in stages for stage in folders]
