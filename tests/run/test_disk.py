"""A full disk, or a place that may not be written: found out before time is spent, or else said in one message."""

import contextlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from stand_ins import EVALUATION_YAML, write_confs

from callbacks import component_weights
from uae_lightning import files as disk
from uae_lightning.cli import main
from uae_lightning.commands import bootstrap
from uae_lightning.files import making_folder, replacing
from uae_lightning.run import evaluation
from uae_lightning.run import folder as run_folder
from uae_lightning.scenes.scene import IMAGE_SIZE

sys.path.insert(0, str(Path(__file__).parents[1] / "exchange"))
from small_run import write_run  # noqa: E402

EVALUATE = ["evaluate", "--config=conf/stage.yaml", "--evaluation=conf/evaluation.yaml"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_confs(tmp_path)
    Path("conf/evaluation.yaml").write_text(EVALUATION_YAML + "samples: 8\n")
    return tmp_path


@pytest.fixture(scope="module")
def run(parts_folder, tmp_path_factory):
    """One stage of small models, as `uae run` leaves it."""
    start = {part: {"path": str(parts_folder / part)} for part in ("encoder", "projector", "decoder")}
    start["encoder"] |= {"caption_system": "", "caption_prompt": "", "generate_system": "", "max_pixels": IMAGE_SIZE**2}
    start["decoder"] |= {"resolution": IMAGE_SIZE, "sigma_spacing": "even"}
    return write_run(
        tmp_path_factory.mktemp("runs") / "run", start, {"draw": {"projector": "all"}}, sampling={"steps": 1}
    )


# ------------------------------------------------------------------------------------------------ a full disk


def in_child(args: list[str], most: int, said) -> None:
    """The kernel refuses what makes a file larger than `most` bytes, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            said.send((main(args), errors.getvalue()))
        except BaseException as error:
            said.send((repr(error), errors.getvalue()))


@pytest.mark.parametrize(
    ("args", "most", "named"),
    [
        (["fit", "--config=conf/stage.yaml", "--trainer.default_root_dir=one"], 100, "one/config.yaml"),
        (["fit", "--config=conf/stage.yaml", "--trainer.default_root_dir=one"], 7000, "one"),
        (["run", "--config=conf/run.yaml"], 50, "run.json"),
        ([*EVALUATE, "--output=a.json"], 100, "a.items.json"),
        (["generate", "a ball", "--config={run}/draw/config.yaml", "--output=a.png"], 1000, "a.png"),
        (["reconstruct", "a.png", "--config=conf/stage.yaml"], 40, "reconstruction.png"),
        (["export", "--weights={run}", "--to=out"], 1000, "--to out"),
        (["bootstrap", "--only=text", "--scale=0.001"], 1000, "bootstrap/scenes-0.001/text"),
    ],
)
def test_a_full_disk_is_one_message_that_names_the_place(args, most, named, place, run):
    # red without `explained` in cli.main, or without `naming` where torch and safetensors write
    Image.new("RGB", (16, 16)).save("a.png")
    before = Path("a.png").read_bytes()
    listen, say = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(
        target=in_child, args=([word.format(run=run) for word in args], most, say)
    )
    child.start()
    code, errors = listen.recv()
    child.join()
    error = errors.split("uae: error: ")[1]
    assert code == 1 and named in error and "no space is left" in error and error.count("\n") == 1, error
    assert Path("a.png").read_bytes() == before and not Path("out").exists()  # nothing is half there, nothing lost


def test_what_torch_says_of_a_full_disk_is_understood(tmp_path):
    # red with a word of WRITERS mistyped: these are the words of the installed version
    with pytest.raises(OSError, match="No space left") as caught, disk.naming(tmp_path):
        torch.save(torch.zeros(9), "/dev/full")
    assert caught.value.filename == str(tmp_path)


def test_a_stage_whose_weights_find_no_room_is_finished_by_resume(place, monkeypatch, capsys):
    # red without `is_over` in StageCheckpoint: the steps since the last checkpoint, here all of them, are taken again
    fit = ["fit", "--config=conf/stage.yaml", "--trainer.default_root_dir=one", "--checkpoint.every_n_train_steps=100"]

    def full(folder, needed, what):
        if "weights.partial" in str(folder):
            disk.check_room(folder, 2**60, what)

    with monkeypatch.context() as patch:
        patch.setattr(component_weights, "check_room", full)
        assert main(fit) == 1
    error = capsys.readouterr().err
    assert "no space is left for the weights of the stage one" in error and "--resume" in error, error
    assert not Path("one/weights").exists()
    rows, last = Path("one/validation.jsonl").read_text(), Path("one/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == max(
        row["step"] for row in map(json.loads, rows.split("\n")[:-1])
    )
    assert main([*fit, "--resume"]) == 0
    assert Path("one/weights").exists() and Path("one/validation.jsonl").read_text() == rows
    assert main([word.replace("=one", "=two") for word in fit]) == 0
    files = [
        {file.name: file.read_bytes() for file in Path(name, "weights").rglob("*.json")} for name in ("one", "two")
    ]
    assert files[0] == files[1] != {}


def test_a_stage_for_which_there_is_no_room_does_not_begin(place, monkeypatch, capsys):
    # red without on_fit_start in ComponentWeights
    monkeypatch.setattr(
        component_weights, "check_room", lambda folder, needed, what: disk.check_room(folder, 2**60, what)
    )
    assert main(["fit", "--config=conf/stage.yaml", "--trainer.default_root_dir=one"]) == 1
    assert "what the stage one will write: 1152921504.6 GB are needed" in capsys.readouterr().err
    assert not Path("one/validation.jsonl").exists()


# ------------------------------------------------------------------------------------------------ no permission


@pytest.mark.parametrize(
    ("args", "option"),
    [
        ([*EVALUATE, "--output=none/a.json"], "--output none/a.json"),
        ([*EVALUATE, "--output=folder.json"], "--output folder.json"),
        (["generate", "a ball", "--config=conf/stage.yaml"], "--output generated.png"),
        (["reconstruct", "a.png", "--config=conf/stage.yaml"], "--output reconstruction.png"),
        (["export", "--weights=run", "--to=a/b"], "--to a/b"),
        (["plan", "--config=conf/run.yaml", "--json=a.json"], "--json a.json"),
        (["study", "--config=conf/run.yaml"], "--output docs/results.md"),
        (["bootstrap", "--output=here"], "--work bootstrap/scenes"),
        (["cache", "--config=conf/stage.yaml", "--to=here"], "--to here"),
        (["import-release", "--from=conf", "--to=here"], "--to here"),
        (["fit", "--config=conf/stage.yaml"], "--trainer.default_root_dir runs/fit"),
    ],
)
def test_a_place_that_may_not_be_written_is_found_before_anything_is_computed(args, option, place, monkeypatch, capsys):
    # red without check_writable in that command
    Path("folder.json").mkdir()

    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    monkeypatch.setattr(evaluation, "build_evaluation", refused)
    names = {path.name for path in place.rglob("*")}
    assert main(args) == 2
    error = capsys.readouterr().err
    assert f"{option}" in error and "cannot be written (" in error and "name another place" in error, error
    assert {path.name for path in place.rglob("*")} == names


def test_no_permission_where_a_command_finds_it_later(place, monkeypatch, capsys):
    # red with `errno` in NOT_ALLOWED left out: no remedy is named
    def refused(path, *args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    assert main(["run", "--config=conf/run.yaml"]) == 1
    error = capsys.readouterr().err
    assert "runs/tiny: Permission denied: change the permissions of that place, or name another" in error


# ------------------------------------------------------------------------------------------------ what is not ours


def test_files_of_the_user_beside_the_target_stay(tmp_path):
    # red with PARTIAL = ".partial", or PREVIOUS = ".previous"
    for name in ("out.partial", "out.previous", "a.json.partial", "a.json.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    for _ in range(2):
        with making_folder(tmp_path / "out") as folder:
            (folder / "new").write_text("new")
        with replacing(tmp_path / "a.json") as partial:
            partial.write_text("{}")
    assert len(list(tmp_path.rglob("thesis.txt"))) == 4 and len(list(tmp_path.iterdir())) == 6


def test_others_may_read_what_is_saved(tmp_path):
    # red without `shared`: safetensors makes files that nobody else can read
    mask = os.umask(0o027)
    try:
        with making_folder(tmp_path / "out") as folder, replacing(tmp_path / "alone.safetensors") as alone:
            save_file({"a": torch.zeros(1)}, folder / "a.safetensors")
            save_file({"a": torch.zeros(1)}, alone)
    finally:
        os.umask(mask)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.rglob("*.safetensors")}
    assert modes == {0o640}


def test_overwrite_clears_what_a_stage_has_written(place):
    # red with "weights*", or without is_stage
    mine = [place / "thesis" / name for name in ("weights/a.bin", "weights_of_mine/a.bin", "config.yaml")]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    fit = ["fit", "--config=conf/stage.yaml", "--overwrite", "--trainer.default_root_dir"]
    assert main([*fit, "thesis"]) == 2
    assert all(file.exists() for file in mine)
    (place / "thesis" / "stage.json").write_text("{}")
    run_folder.clear_stage(place / "thesis")
    assert [file.exists() for file in mine] == [False, True, False]


def test_clearing_that_was_killed_is_gone_on_with(tmp_path, monkeypatch):
    # red with config.yaml before the others, or stage.json behind them
    (tmp_path / "weights").mkdir()
    (tmp_path / "config.yaml").write_text(run_folder.WRITTEN_FIRST)
    (tmp_path / "stage.json").write_text("{}")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        run_folder.clear_stage(tmp_path)
    assert not run_folder.is_done(tmp_path) and (tmp_path / "weights").exists()
    run_folder.clear_stage(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["", " ", "null"])
def test_an_empty_folder_is_not_the_current_one(folder, place, capsys):
    # red without check_folder
    stage = yaml.safe_load(Path("conf/stage.yaml").read_text())
    stage["trainer"]["default_root_dir"] = yaml.safe_load(folder) if folder else ""
    Path("conf/stage.yaml").write_text(yaml.safe_dump(stage))
    assert main(["fit", "--config=conf/stage.yaml", "--overwrite"]) == 2
    assert "trainer.default_root_dir is empty" in capsys.readouterr().err


def test_a_trial_of_bootstrap_leaves_the_shipped_weights_alone():
    # red with SHIPPED, or the checkpoints of the real training, whatever the scale
    assert bootstrap.places(None, None, 1.0) == (Path("bootstrap/scenes"), bootstrap.SHIPPED)
    assert bootstrap.places(None, None, 0.01) == (Path("bootstrap/scenes-0.01"), Path("bootstrap/scenes-0.01/weights"))
    assert bootstrap.places(Path("w"), Path("o"), 0.01) == (Path("w"), Path("o"))


# ------------------------------------------------------------------------------------------------ damaged records


@pytest.mark.parametrize("content", ["", '{"name": "dr', "[1]", "{}", "5", "\x00\x00"])
@pytest.mark.parametrize("name", ["draw/stage.json", "draw/clock.json", "run.json"])
def test_a_damaged_record_is_named(name, content, tmp_path):
    # red with json.loads in place of read_json: "Expecting value: line 1 column 1", or a KeyError
    keys = {"draw/stage.json": ["name"], "draw/clock.json": ["start"], "run.json": ["stages"]}[name]
    (tmp_path / "draw").mkdir()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} is damaged .*: delete it, and `uae run --resume` writes it again"):
        run_folder.read_json(tmp_path / name, *keys)
