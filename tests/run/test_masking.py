"""Secrets are not in what is saved; the interpolations that stood for them are."""

import json
import shlex

import pytest
import yaml
from jsonargparse import Namespace
from stand_ins import write_confs

from uae_lightning.cli import main
from uae_lightning.run import masking

TOKEN = "hf_ThisIsNobodysToken"


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setattr(masking, "read", {})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SHORT_TOKEN", "a")
    monkeypatch.setenv("PICTURES", "/somewhere/pictures")
    monkeypatch.setenv("NOTHING", "")


def test_values_of_variables_become_interpolations(environment):
    # red without masked_text, with `read` left out, or with short values replaced inside of words
    config = Namespace(a=f"Bearer {TOKEN}", b=Namespace(c=["a", 3, None]), d={"e": "/somewhere/pictures/1.png"})
    assert masking.masked(config) == Namespace(
        a="Bearer ${oc.env:HF_TOKEN}", b=Namespace(c=["a", 3, None]), d={"e": "/somewhere/pictures/1.png"}
    )
    masking._env("PICTURES"), masking._env("NOTHING")
    assert masking.masked(["", "word"]) == ["", "word"]
    assert masking.masked(config).d == {"e": "${oc.env:PICTURES}/1.png"}
    assert config.a == f"Bearer {TOKEN}"  # a copy


@pytest.mark.parametrize(
    ("key", "secret"),
    [("api_key", True), ("password", True), ("hf_token", True), ("token", True), ("image_token", False),
     ("max_new_tokens", False), ("suppress_token", False), ("key", False)],
)  # fmt: skip
def test_what_is_given_by_hand_to_an_option_of_such_a_name(key, secret, environment):
    # red with `search` of "token" anywhere, or with MASK for an interpolation, which gives nothing away
    assert (masking.masked({key: "abc"})[key] == masking.MASK) == secret
    assert masking.masked({key: "${oc.env:HF_TOKEN}"}) == {key: "${oc.env:HF_TOKEN}"}
    words = ["uae", "fit", f"--a.{key}", "abc", f"--b.{key}=a b", "--c", TOKEN, "--d=s3://me:pw@host/x"]
    kept = shlex.split(masking.masked_command(words))
    assert kept[3:5] == (["***", f"--b.{key}=***"] if secret else ["abc", f"--b.{key}=a b"])
    assert kept[5:] == ["--c", "${oc.env:HF_TOKEN}", "--d=s3://***@host/x"]


def test_no_file_of_a_run_holds_the_token(environment, tmp_path, monkeypatch):
    # red with SaveConfigCallback's own saving, or with shlex.join in pipeline.py
    monkeypatch.chdir(tmp_path)
    run = write_confs(tmp_path)
    run.write_text("name: tiny\nstages: [{name: draw, config: stage.yaml}]")
    stage = yaml.safe_load((run.parent / "stage.yaml").read_text())
    stage["model"]["init_args"]["autoencoder"]["init_args"]["decoder"]["init_args"]["path"] = "${oc.env:HF_TOKEN}/a"
    stage["model"]["init_args"]["autoencoder"]["init_args"]["encoder"]["init_args"]["path"] = (
        "${model.init_args.autoencoder.init_args.decoder.init_args.path}"
    )
    (run.parent / "stage.yaml").write_text(yaml.safe_dump(stage))
    path = "--model.autoencoder.projector.path"
    assert main(["run", f"--config={run}", "--trainer.max_steps=1", "--trainer.val_check_interval=1", path, TOKEN]) == 0
    files = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]
    config = yaml.safe_load((tmp_path / "runs/tiny/draw/config.yaml").read_text())["model"]["init_args"]
    config = config["autoencoder"]["init_args"]
    assert config["decoder"]["init_args"]["path"] == "${oc.env:HF_TOKEN}/a" == config["encoder"]["init_args"]["path"]
    again = json.loads((tmp_path / "runs/tiny/draw/stage.json").read_text())["command"]
    assert f"{path}=${{oc.env:HF_TOKEN}}" in shlex.split(again)
