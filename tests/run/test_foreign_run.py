"""A run folder from elsewhere is read, never obeyed; and what is wrong with its YAML is said in one message."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_ins import STAGE_YAML, Closeness

from uae_lightning.cli import main
from uae_lightning.paths import resolve
from uae_lightning.scenes.scene import IMAGE_SIZE

sys.path.insert(0, str(Path(__file__).parents[1] / "exchange"))
from small_run import write_config  # noqa: E402

CALLS = []


def harmful(path: str):
    """What a stranger could find on a machine: importable, and it does something when it is called."""
    CALLS.append(path)


class Harmful:
    def __init__(self, path: str) -> None:
        CALLS.append(path)


def call(name: str) -> dict:
    return {"class_path": name, "init_args": {"path": "harm"}}


CALLABLES = [call(f"test_foreign_run.{name}") for name in ("harmful", "Harmful")]
CALLABLES += [{"class_path": "os.system", "init_args": {"command": "true"}}, "os.system"]


@pytest.fixture
def stage(parts_folder, tmp_path, monkeypatch):
    """The YAML of a stage with small models, and a folder to be in."""
    monkeypatch.chdir(tmp_path)
    parts = {part: {"path": str(parts_folder / part)} for part in ("encoder", "projector", "decoder")}
    parts["encoder"] |= {"caption_system": "", "caption_prompt": "", "generate_system": "", "max_pixels": IMAGE_SIZE**2}
    parts["decoder"] |= {"resolution": IMAGE_SIZE, "sigma_spacing": "even"}
    write_config(tmp_path / "stage.yaml", parts, {"projector": "all"}, {"sampling": {"steps": 1}})
    CALLS.clear()
    return yaml.safe_load((tmp_path / "stage.yaml").read_text())


@pytest.mark.parametrize("optimizer", CALLABLES)
def test_commands_that_train_nothing_do_not_look_at_the_optimizer(optimizer, stage):
    # red without the pop in read_model, or where the whole YAML is parsed
    stage["model"]["init_args"]["optimizer"] = optimizer
    Path("stage.yaml").write_text(yaml.safe_dump(stage))
    assert main(["generate", "a ball", "--config=stage.yaml"]) == 0 and not CALLS


@pytest.mark.parametrize("optimizer", CALLABLES)
def test_fit_calls_optimizers_only(optimizer, stage, capsys):
    # red without check_class_paths: `harmful` is called when the model is built
    stage["model"]["init_args"]["optimizer"] = optimizer
    stage["data"] = {"class_path": "uae_lightning.scenes.data.ScenesData"}
    Path("stage.yaml").write_text(yaml.safe_dump(stage))
    for command in ("fit", "validate"):
        assert main([command, "--config=stage.yaml"]) == 2 and not CALLS
        assert "model.init_args.optimizer" in capsys.readouterr().err


ANYTHING = [
    ("trainer.profiler", {"class_path": "lightning.pytorch.profilers.PyTorchProfiler",
                          "init_args": {"on_trace_ready": CALLABLES[0]}}),
    ("trainer.strategy", {"class_path": "lightning.pytorch.strategies.DDPStrategy",
                          "init_args": {"ddp_comm_hook": CALLABLES[0]}}),
    ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.LambdaCallback",
                            "init_args": {"setup": CALLABLES[0]}}]),
    ("trainer.callbacks", [CALLABLES[0]]),
    ("trainer.logger", CALLABLES[0]),
    ("trainer.plugins", [CALLABLES[1]]),
    ("data", CALLABLES[0]),
    ("model", CALLABLES[1]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ANYTHING)
def test_no_other_key_calls_a_function_or_a_class_of_another_kind(key, value, tmp_path):
    # red without check_class_paths for the second and the third: functions in place of a Callable are called
    content = yaml.safe_load(STAGE_YAML)
    *groups, last = key.split(".")
    place = content
    for group in groups:
        place = place[group]
    place[last] = value
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(content))
    CALLS.clear()
    assert main(["validate", f"--config={tmp_path / 'stage.yaml'}"]) == 2 and not CALLS


class Takes(Closeness):
    def __init__(self, anything: Any = None) -> None:
        super().__init__()
        self.anything = anything


def test_what_takes_anything_gets_plain_data(tmp_path):
    # red with instantiate_subclass_spec_in_any left as it is
    content = yaml.safe_load(STAGE_YAML)
    content["trainer"]["callbacks"] = [{"class_path": "callbacks.RewardCallback", "init_args": {
        "reward": {"class_path": "test_foreign_run.Takes", "init_args": {"anything": CALLABLES[1]}}}}]  # fmt: skip
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(content))
    CALLS.clear()
    assert main(["validate", f"--config={tmp_path / 'stage.yaml'}"]) == 0 and not CALLS


def test_shipped_weights_are_those_of_the_package():
    # red without the look at "..": `uae export` copies the folder that an adapter belongs to
    with pytest.raises(FileNotFoundError, match="leaves the package"):
        resolve("shipped:scenes/../../../tests")


def changed(**parts: dict) -> Callable[[dict], dict]:
    def change(stage: dict) -> dict:
        for part, options in parts.items():
            stage["model"]["init_args"]["autoencoder"]["init_args"][part]["init_args"].update(options)
        return stage

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(decoder={"resolution": "big"}), "decoder.init_args.resolution (SD3Decoder) must be a whole number"),
        (changed(decoder={"resolutoin": 64}), "SD3Decoder has no option 'resolutoin'; did you mean resolution?"),
        (changed(encoder={"path": "none"}), "'none' does not exist"),
        (changed(encoder={"path": "a\0b"}), "encoder.init_args.path is 'a\\x00b'"),
        (changed(encoder={"path": "${oc.env:NO_SUCH_THING}"}), "'NO_SUCH_THING' not found"),
        (changed(encoder={"path": "${a"}), "stage.yaml: no viable alternative"),
        (changed(projector={"path": None, "input_size": 3, "hidden_size": 3, "output_size": 3}), "do not fit"),
        (lambda stage: {"model": {"class_path": "stand_ins.TinyStage"}}, "stage.yaml has no model.init_args"),
    ],
)
def test_mistakes_in_a_stage_are_one_message(change, words, stage, capsys):
    # red without errors_explained in build_stage: 2,000 characters of types for the first
    Path("stage.yaml").write_text(yaml.safe_dump(change(stage)))
    assert main(["generate", "a ball", "--config=stage.yaml"]) in (1, 2)
    error = capsys.readouterr().err.split("uae: error: ")[1]
    assert words in error and len(error) < 300 and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: käse".encode("latin-1"), "is not UTF-8 text"),
        (b"- a secret\n- list\n", "is not the YAML of a stage"),
        (b"", "is not the YAML of a stage"),
        (b"model: [", "is not valid YAML"),
        (b"[" * 100_000, "is not valid YAML: maximum recursion depth"),
        (b"model: 2025-99-99", "is not valid YAML: month"),
        (b"model: &a {init_args: *a}", "is not valid YAML: Circular reference"),
        (b'model: "a\\0b"', "model is 'a\\x00b': no path"),
        (b"name: demo\nstages: []\n", "lists the stages of a run"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "plan", "generate", "evaluate"])
def test_what_is_no_yaml_of_a_stage_is_named_and_not_quoted(command, content, words, tmp_path, monkeypatch, capsys):
    # red without read_stage_yaml: jsonargparse prints "Unexpected config:" and the file
    monkeypatch.chdir(tmp_path)
    Path("stage.yaml").write_bytes(content)
    text = {"generate": ["a ball"], "evaluate": ["--output=a.json", "--evaluation=stage.yaml"]}.get(command, [])
    if (command, words) in [("evaluate", "lists the stages of a run"), ("plan", "lists the stages of a run")]:
        words = "at least one stage"
    assert main([command, *text, "--config=stage.yaml"]) == 2
    error = capsys.readouterr().err
    assert "stage.yaml" in error and words in error and "secret" not in error and error.count("\n") == 1, error
