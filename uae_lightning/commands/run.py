"""The command `uae run`."""

from __future__ import annotations

from pathlib import Path

from uae_lightning.ranges import Seed
from uae_lightning.run.masking import masked_command
from uae_lightning.run.spec import add_overlays, read_run
from uae_lightning.usage import Parser

DESCRIPTION = """\
Runs the stages that a YAML lists, one after the other, and writes summary.json and report.html.

    uae run --config conf/demo.yaml
    uae run --config conf/demo.yaml --resume              goes on where it was stopped
    uae run --config conf/demo.yaml --only encoder_rl     that stage again

The YAML:

    name: demo                        the run goes to runs/demo
    seed_everything: 0                of all stages and their data, also --seed_everything 1 (may be left out)
    stages:
      - name: encoder_rl              a folder in it
        config: encoder_rl.yaml       the stage's YAML, looked up next to this one; [a.yaml, b.yaml] lays b over a
        options: {trainer.max_steps: 40}   dotted options on top of it (may be left out)
    evaluation:                       what `uae evaluate` judges start and end with (may be left out)
      config: evaluation.yaml
      options: {samples: 32}
    captions: {class_path: ...}       a report.captions.CaptionMarker, which marks facts in the report (may be left out)
    choices: [[medium, large]]        names that exclude each other, the default first (may be left out)
    overlays:                         what a name given by --with lays over the stages, in this order (may be left out)
      large: {all: large.yaml}        over every stage
      80gb:
        encoder_rl:                   over that one
          config: 80gb.yaml           or [a.yaml, b.yaml]
          options: {model.init_args.micro_batch: 4}
      80gb+large: ...                 where both are chosen

--with large 80gb lays these over the stages, and the run goes to runs/demo_large_80gb. Any other dotted option, such as
--trainer.max_steps 2, is passed to every stage.
"""


def main(args: list[str]) -> None:
    options, overrides = parse(args)
    from uae_lightning import pipeline
    from uae_lightning.parallel.launch import Followers, is_main
    from uae_lightning.run.compiled import compile_run

    others = Followers()
    if not is_main():
        pipeline.follow(others)
        return
    spec = read_run(options.config, options.overlays)
    run = compile_run(spec, options.output or Path("runs") / spec.name, overrides)
    pipeline.run_stages(run, options, masked_command(["uae", "run", *args]), others)
    print(f"Summary: {run.folder / 'summary.json'}\nReport:  {run.folder / 'report.html'}")


def parse(args: list[str]):
    """The options of `run`, and what it passes on to every stage."""
    parser = Parser(prog="uae run", description=DESCRIPTION)
    parser.add_argument("--config", type=Path, metavar="YAML", help="the list of stages (needed)")
    add_overlays(parser)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the run goes instead of runs/NAME")
    parser.add_argument("--resume", action="store_true", help="keep finished stages, continue a half-finished one")
    parser.add_argument("--overwrite", action="store_true", help="start again in a folder that holds a run")
    parser.add_argument("--seed_everything", "--seed", type=Seed, metavar="N", help="of all stages and their data")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--from", dest="start", metavar="STAGE", help="redo that stage and all later ones, keeping the earlier ones"
    )
    choice.add_argument(
        "--only", metavar="STAGE", help="redo that stage alone; later ones are cleared, as their start is gone"
    )
    options, rest = parser.parse_known_args(args)
    if options.resume and options.overwrite:
        parser.error("--resume continues and --overwrite starts again: choose one")
    overrides = pair_up(parser, rest)
    if options.seed_everything is not None:
        overrides.append(f"--seed_everything={options.seed_everything}")
    if options.config is None:
        parser.error("name the YAML of a run with --config")
    return options, overrides


def pair_up(parser: Parser, rest: list[str]) -> list[str]:
    """`--a.b 2` and `--a.b=2` alike become `--a.b=2`; anything that is no dotted option is refused."""
    pairs: list[str] = []
    for word in rest:
        if word.startswith("--"):
            if "." not in word.split("=")[0]:
                parser.refuse([word])
            if word.split("=")[0] == "--trainer.default_root_dir":
                parser.error("--trainer.default_root_dir is set for each stage: choose the run's folder with --output")
            pairs.append(word)
        elif pairs and "=" not in pairs[-1]:
            pairs[-1] += f"={word}"
        else:
            parser.error(f"unexpected argument {word!r}")
    for pair in pairs:
        if "=" not in pair:
            parser.error(f"{pair} needs a value")
    return pairs
