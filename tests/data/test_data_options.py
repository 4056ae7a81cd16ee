"""Every number among the options of the data modules, of caption-data and of cache: nonsense is named."""

import inspect
from pathlib import Path

import pytest

from uae_lightning.commands import cache, caption_data
from uae_lightning.data.cached import CachedData
from uae_lightning.data.image_text import ImageTextData
from uae_lightning.ranges import RANGES
from uae_lightning.run.stage_cli import parse_stage
from uae_lightning.scenes.data import ScenesData
from uae_lightning.usage import UsageError

ROOT = Path(__file__).parents[2]
MODULES = {ImageTextData: {"path": "x", "resolution": 8}, CachedData: {"path": "x"}, ScenesData: {}}
NUMBERS = [
    (module, name)
    for module in MODULES
    for name, parameter in inspect.signature(module.__init__).parameters.items()
    if str(parameter.annotation) in RANGES
]


@pytest.mark.parametrize("module", MODULES)
def test_every_number_has_a_range(module: type):
    # red if an option is a plain int or float
    annotations = {str(parameter.annotation) for parameter in inspect.signature(module.__init__).parameters.values()}
    assert not annotations & {"int", "float", "int | None", "float | None"}


@pytest.mark.parametrize(("module", "name"), NUMBERS)
def test_nonsense_is_refused_by_name(module: type, name: str):
    # red without `checked`
    right = MODULES[module]
    module(**right)
    for value in (-1, float("nan"), "many", True):
        with pytest.raises(ValueError, match=f"{name} must be "):
            module(**right | {name: value})
    if name not in ("num_workers", "max_skipped", "prompt_share", "seed", "validation_seed"):
        with pytest.raises(ValueError, match=f"{name} must be "):
            module(**right | {name: 0})


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (ImageTextData, {"max_source_pixels": 10**9}),
        (ImageTextData, {"max_aspect_ratio": 0.5}),
        (ImageTextData, {"max_skipped": 1.1}),
        (ScenesData, {"max_objects": 5}),
        (ScenesData, {"caption_level": "longer"}),
        (ScenesData, {"split": "train"}),  # would be validated on what is trained on
        (ScenesData, {"object_weight": float("inf")}),
    ],
)
def test_limits_of_single_options(module: type, options: dict):
    # red without the line that checks it
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be "):
        module(**MODULES[module] | options)


@pytest.mark.parametrize("option", ["validation_pictures=0", "resolution=0", "num_workers=-1", "max_skipped=nan"])
def test_a_stage_refuses_them_before_anything_is_loaded(option: str):
    # red if the types of the constructor are plain
    data = ["--data=uae_lightning.data.image_text.ImageTextData", "--data.init_args.path=x"]
    config = f"--config={ROOT / 'conf/scenes/decoder_pretrain.yaml'}"
    with pytest.raises(UsageError, match=f"(?s){option.partition('=')[0]}.*must be a "):
        parse_stage(["fit", config, *data, "--data.init_args.resolution=64", f"--data.init_args.{option}"])


CAPTION_DATA = ["--from=x", "--to=y", "--model=z"]
CACHE = ["--config=x", "--to=y"]


@pytest.mark.parametrize(
    ("parse", "call", "option", "values"),
    [
        *((caption_data.parse, CAPTION_DATA, option, ("0", "-1", "1.5", "nan", "x", "")) for option in (
            "--min-words", "--max-words", "--batch-size", "--max-pixels", "--max-new-tokens", "--shard-size")),
        *((caption_data.parse, CAPTION_DATA, option, ("-1", "nan", "x", "")) for option in (
            "--temperature", "--max-skipped", "--max-repetition", "--seed", "--duplicate-bits", "--part")),
        (caption_data.parse, CAPTION_DATA, "--temperature", ("inf",)),
        (caption_data.parse, CAPTION_DATA, "--max-pixels", ("3199",)),
        *((cache.parse, CACHE, option, ("0", "-1", "1.5", "nan", "x", "")) for option in (
            "--batch-size", "--shard-mb", "--part")),
    ],
)  # fmt: skip
def test_commands_refuse_them_by_name(parse, call: list[str], option: str, values: tuple[str, ...]):
    # red if the type of an option is int or float
    parse(call)
    for value in values:
        with pytest.raises(UsageError, match=f"{option}.* must "):
            parse([*call, f"{option}={value}"])
