"""`uae export --push` against a hub on the loopback (hub_server.py), with huggingface_hub as it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import SCENES_PROMPTS
from hub_server import OWNER, READER, Hub
from huggingface_hub import ModelCard, constants
from small_run import write_run

from uae_lightning.cli import main
from uae_lightning.exchange import push as pushing
from uae_lightning.scenes.scene import IMAGE_SIZE

CLIENT = """
import json, os, sys
from pathlib import Path

from uae_lightning.exchange.push import check_push, push

for token, folder, name, public in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        check_push(name)
        print(push(Path(folder), name, public))
    except ValueError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def run(parts_folder, tmp_path_factory) -> Path:
    start = {part: {"path": str(parts_folder / part)} for part in ("encoder", "projector", "decoder")}
    start["encoder"] |= SCENES_PROMPTS
    start["decoder"] |= {"resolution": IMAGE_SIZE}
    stages = {"pretrain": {"projector": "all", "decoder": {"rank": 4, "alpha": 8}}, "see": {"encoder": {"rank": 4}}}
    run = write_run(tmp_path_factory.mktemp("runs") / "small", start, stages)
    for stage, path in (("pretrain", "hub:somebody/pictures?split=train"), ("see", "photos")):
        file = run / stage / "config.yaml"
        data = {"data": {"class_path": "stand_ins.TinyData", "init_args": {"path": path}}}
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | data))
    return run


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    """With the call of `push` recorded in `pushed.json` beside it."""
    target = tmp_path_factory.mktemp("exports") / "out"

    def record(*call) -> str:
        assert (target / "README.md").exists()
        (target.parent / "pushed.json").write_text(json.dumps(list(map(str, call))))
        return "https://hub/me/small"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pushing, "push", record)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", OWNER)
        options = ["--license=mit", "--push=me/small", "--public"]
        assert main(["export", f"--weights={run}", f"--to={target}", *options]) == 0
    return target


def test_the_head_of_the_card(exported):
    # red with the split in the name of the data set, or without the line of three dashes behind the head
    card = ModelCard((exported / "README.md").read_text())
    assert card.data.to_dict() == {
        "license": "mit", "library_name": "diffusers", "pipeline_tag": "text-to-image",
        "datasets": ["somebody/pictures"],
        "tags": ["uae-lightning", "image-to-text", "arxiv:2509.09666", "lora", "qwen2_5_vl", "sd3"],
    }  # fmt: skip
    assert card.text.lstrip().startswith("# small: a UAE auto-encoder")
    assert json.loads((exported.parent / "pushed.json").read_text()) == [str(exported), "me/small", "True"]


def test_without_a_license_those_of_the_bases_hold(run, tmp_path, monkeypatch):
    # red if bases that are folders here are named, or those of the hub are not
    monkeypatch.setattr(pushing, "data_sets", lambda stages: [])
    facts = stand_in(on_hub={"encoder": "Qwen/small", "decoder": None})
    head = yaml.safe_load(pushing.head(facts, None, []).strip().strip("-"))
    assert head["license"] == "other" and head["license_name"] == "those-of-the-base-models"
    assert head["base_model"] == ["Qwen/small"] and "datasets" not in head and "lora" not in head["tags"]


def stand_in(on_hub: dict[str, str | None]):
    """As much of `card.Facts` as the head looks at."""
    from types import SimpleNamespace as Some

    history = Some(adapter=None)
    parts = {part: Some(base=name or "/here", on_hub=bool(name), history=history) for part, name in on_hub.items()}
    model = Some(encoder=Some(model=Some(config=Some(model_type="qwen"))), decoder=Some(family="sd3"))
    return Some(parts=parts, model=model)


def test_an_export_goes_to_the_hub(exported, tmp_path):
    # red if it is public unasked, a file is left out, or another's public repository is written to
    target, wrong = exported, tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "README.md").write_text("---\nlicense: nonsense\n---\n")
    there = "already, and nothing was sent: `uae export`"
    calls = [
        (OWNER, target, "me/small", False, "{url}/me/small"),
        (OWNER, target, "me/shown", True, "{url}/me/shown"),
        (OWNER, target, "me/shown", False, f"this repository is public {there} with --public"),
        (OWNER, target, "me/small", True, f"this repository is private {there} without --public"),
        (OWNER, wrong, "me/wrong", False, '"license" must be one of.*licences are `uae export --license ID`'),
        (READER, target, "me/other", False, f"may not write there.*`hf upload me/other {target} . --private` sends it"),
        ("hf_no", target, "me/other", False, f"does not know this token: `hf auth login`.*{target} is whole"),
        ("", target, "me/other", False, "no token of the hub: `hf auth login`"),
    ]
    with Hub() as hub:
        given = json.dumps([(token, str(folder), *rest) for token, folder, *rest, _ in calls])
        command = [sys.executable, "-c", CLIENT, given]
        ended = subprocess.run(command, env=hub.environment(tmp_path / "home"), capture_output=True, text=True)
        hub.shutdown()
    assert ended.returncode == 0, ended.stderr[-3000:]
    for line, (*_, words) in zip(ended.stdout.splitlines(), calls, strict=True):
        assert all(part in line for part in words.format(url=hub.url).split(".*")), (line, words)
    private, public = hub.repositories["models/me/small"], hub.repositories["models/me/shown"]
    assert private.private and not public.private and not hub.repositories["models/me/wrong"].files
    assert set(hub.repositories) == {"models/me/small", "models/me/shown", "models/me/wrong"}
    here = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert private.files == public.files == here


def test_without_a_connection_the_export_stays(tmp_path, monkeypatch):
    # red if errors of the connection come through as they are
    (tmp_path / "README.md").write_text("here")
    with Hub() as hub:
        closed = hub.url
        hub.shutdown()
    monkeypatch.setattr(pushing, "HfApi", lambda: __import__("huggingface_hub").HfApi(endpoint=closed, token="hf_x"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=f"cannot be reached .*{tmp_path} is whole, `hf upload me/small .* --private`"):
        pushing.push(tmp_path, "me/small", False)
    assert (tmp_path / "README.md").read_text() == "here"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--push=me/small"], "HF_HUB_OFFLINE forbids it: unset it, or export without --push"),
        (["--push=small"], "--push small: give OWNER/NAME"),
        (["--push=me/..small--"], "--push me/..small--: "),
        (["--public"], "--public belongs to --push OWNER/NAME"),
    ],
)
def test_what_is_known_before_stops_before(options, words, run, tmp_path, capsys):
    # red without either check: the export would be written first
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert main(["export", f"--weights={run}", f"--to={tmp_path / 'out'}", *options]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())
