"""Every number that can be set is found by asking the parsers; nonsense is refused by name before anything is loaded.

An option that is new is covered as soon as a parser knows it. Red wherever the range of one goes.
"""

import argparse
import copy
import math
import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentError

from uae_lightning.cli import COMMANDS, main
from uae_lightning.run.compiled import evaluation_parser
from uae_lightning.run.parser_messages import explain
from uae_lightning.run.stage_checks import check_fit
from uae_lightning.run.stage_cli import parse_stage
from uae_lightning.usage import UsageError

STAGES = [
    *(f"conf/scenes/{name}.yaml" for name in ("decoder_pretrain", "encoder_rl", "decoder_rl", "decoder_matching")),
    "conf/real/decoder_pretrain.yaml conf/real/buckets.yaml",
    "conf/scenes/decoder_rl.yaml conf/scenes/decoder_rl_prompts.yaml conf/scenes/decoder_rl_http.yaml",
    "conf/real/decoder_rl.yaml conf/real/decoder_rl_prompts.yaml conf/real/decoder_rl_judge.yaml",
]  # those laid over the first behind it
NONSENSE = (-7, math.nan)
ANY_SIGN = ("sigma_mean", "lowest", "highest")
JUDGED_ELSEWHERE = ("torch.", "bitsandbytes.")  # by optimizers as they are built

NOT_HERE = ("fit", "validate")  # those above


def numbers(node, path=(), owner=""):
    """(Keys that lead there, class_path that owns it) of every number below a parsed configuration."""
    if isinstance(node, dict):
        owner = node.get("class_path", owner)
    if isinstance(node, dict | list | tuple):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from numbers(value, (*path, key), owner)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, owner


def changed(node, path, value):
    node = copy.deepcopy(node)
    *before, last = path
    place = node
    for key in before:
        place[key] = list(place[key]) if isinstance(place[key], tuple) else place[key]
        place = place[key]
    place[last] = value
    return node


def accepted(parser, check, config, path) -> list:
    """What is not refused, or not by name."""
    wrong, name = [], next(key for key in reversed(path) if isinstance(key, str))
    for value in NONSENSE[name in ANY_SIGN :]:
        try:
            check(parser.parse_object(changed(config, path, value)))
            wrong.append((path, value, "accepted"))
        except (ArgumentError, UsageError) as error:
            text = explain(str(error), [])
            if name not in text or not re.search("must be|Expected a", text) or len(text) > 250:
                wrong.append((path, value, text))
    return wrong


def test_numbers_of_stages_callbacks_rewards_and_trainer():
    wrong, seen = [], set()
    for yaml in STAGES:
        cli = parse_stage(["fit", *(f"--config={name}" for name in yaml.split())])
        config = {key: value for key, value in cli.config.fit.as_dict().items() if key != "config"}
        for path, owner in numbers(config):
            option = owner, path[-1], path[0]
            if (
                option not in seen
                and "weights" not in path
                and (path[-1] == "lr" or not owner.startswith(JUDGED_ELSEWHERE))
            ):
                wrong += accepted(cli._parser("fit"), check_fit, config, path)
            seen.add(option)
    assert not wrong and len(seen) > 60, "\n".join(map(str, wrong))


def test_numbers_of_an_evaluation():
    parser, wrong = evaluation_parser(), []
    config = parser.parse_args(["--evaluation=conf/scenes/evaluation.yaml"]).as_dict()
    config["evaluation"].pop("__path__", None)
    for path, owner in numbers(config):
        if not owner.startswith(JUDGED_ELSEWHERE):
            wrong += accepted(parser, lambda config: None, config, path)
    assert not wrong, wrong


@pytest.fixture
def parsers(monkeypatch):
    """Command -> its parser, as soon as that is about to parse."""

    def of(command: str) -> argparse.ArgumentParser:
        found = []

        def remember(parser, *_):
            found.append(parser)
            raise UsageError("seen enough")

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", remember)
            main([command])
        return found[0]

    return of


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in NOT_HERE])
def test_numbers_of_commands(command, parsers, capsys, monkeypatch, tmp_path):
    parser = parsers(command)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    for action in parser._actions:
        if not action.option_strings or action.type in (None, str, Path):
            continue
        flag = action.option_strings[0]
        for value in ("nan", "-7", "words", ""):
            assert main([command, f"{flag}={value}"]) == 2
            error = capsys.readouterr().err
            assert error.startswith("uae: error: ") and flag in error and len(error.splitlines()) == 1, error
