import subprocess
import sys
import time
from importlib import metadata

import pytest
from PIL import Image
from stand_ins import write_confs

from uae_lightning.cli import main
from uae_lightning.commands import COMMANDS, init


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_confs(tmp_path)
    (tmp_path / "conf" / "judges.yaml").write_text(JUDGES)
    return tmp_path


EVALUATE = ["evaluate", "--config=conf/run.yaml", "--output=a.json", "--evaluation=conf/judges.yaml"]
JUDGES = """
data: {class_path: stand_ins.TinyData}
suites: {images: {class_path: uae_lightning.evaluation.image_health.ImageHealth}}
"""
FIT = ["fit", "--config=conf/stage.yaml", "--trainer.default_root_dir=runs/one"]


def test_help_lists_the_commands_without_importing_torch(capfd):
    # red with `import torch` at the head of cli.py
    code = "import sys; from uae_lightning.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    started = time.time()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert time.time() - started < 10
    text = capfd.readouterr().out
    assert all(f"\n  {command} " in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rum"], ["unknown command 'rum'", "run"]),
        (["run"], ["--config"]),
        (["run", "--config", "conf/run.yaml", "--resme"], ["--resme", "--resume"]),
        (["run", "--config", "conf/none.yaml"], ["none.yaml", "does not exist"]),
        (["run", "--config", "conf/run.yaml", "--only", "ser"], ["'ser'", "see"]),
        (["run", "--config", "conf/run.yaml", "--with", "80gb"], ["--with 80gb", "it offers none"]),
        (["plan", "--config", "conf/run.yaml", "--with", "a", "b"], ["--with a", "it offers none"]),
        ([*EVALUATE, "--with", "a"], ["--with a", "it offers none"]),
        (["plan", "--config", "conf/stage.yaml", "--with", "a"], ["--with a needs the YAML of a run", "stage.yaml"]),
        (["run", "--config", "conf/run.yaml", "--trainer.max_stps", "2"], ["trainer.max_stps", "trainer.max_steps"]),
        ([*FIT, "--trainer.max_step", "2"], ["trainer.max_step", "trainer.max_steps"]),  # no silent abbreviation
        ([*FIT, "--model.init_args.learn", "[]"], ["'learn'", "learns"]),
        ([*FIT, "--model.autoencoder.encoder.pth", "x"], ["'pth'", "path", "Part"]),
        ([*FIT, "--trainer.max_steps", "-1"], ["trainer.max_steps", "never end"]),
        ([*FIT, "--resume", "--overwrite"], ["choose one"]),
        (["fit", "--config", "conf/none.yaml"], ["none.yaml"]),
        (["reconstruct", "none.png", "--config", "conf/stage.yaml"], ["none.png", "does not exist"]),
        (["reconstruct", "conf/run.yaml", "--config", "conf/stage.yaml"], ["conf/run.yaml", "cannot be read"]),
        (["reconstruct", "a.png"], ["a.png does not exist"]),  # with the shipped YAML
        (["evaluate", "--output", "a.json"], ["--config"]),
        (["evaluate", "--config", "conf/run.yaml", "--output", "a.txt"], ["--output", "evaluation.json"]),
        (EVALUATE[:3], ["what to judge with", "--evaluation"]),
        ([*EVALUATE, "--suite", "image"], ["no suite 'image'", "did you mean images"]),
        ([*EVALUATE, "--stage", "see"], ["--stage", "--weights"]),
        ([*EVALUATE, "--weights", "conf"], ["conf is not the folder of a run", "uae run"]),
        ([*EVALUATE, "--samples", "x"], ["--samples", "'x'"]),
    ],
)
def test_mistakes_in_a_call_name_the_option_and_the_remedy(args, words, place, capsys):
    # red with `allow_abbrev` True, or with the traceback let through
    assert main(args) in (1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error and all(word in error for word in ["uae: error: ", *words]), error


@pytest.mark.parametrize(("path", "words"), [("broken", "choose another path"), ("missing", "correct the path")])
def test_what_a_part_refuses_is_said_without_a_traceback(path, words, place, capsys):
    # red without unwrapping what jsonargparse adds around the error of a constructor
    assert main([*FIT, f"--model.autoencoder.encoder.path={path}"]) == 1
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_init_copies_conf_and_writes_over_nothing(tmp_path, monkeypatch, capsys):
    # red without the look at what is there, with `shipped` one folder higher, or a YAML left out
    assert main(["init", str(tmp_path / "mine")]) == 0
    copied = tmp_path / "mine" / "conf"
    (copied / "demo.yaml").write_text("changed")
    assert main(["init", str(tmp_path / "mine")]) == 2
    assert "mine/conf is there already" in capsys.readouterr().err and (copied / "demo.yaml").read_text() == "changed"
    shipped = init.shipped()
    assert {p.relative_to(copied) for p in copied.rglob("*")} == {p.relative_to(shipped) for p in shipped.rglob("*")}
    # of a wheel: the list of its files says where
    (tmp_path / "share/uae-lightning").mkdir(parents=True)
    (tmp_path / "lib").mkdir()
    copied.rename(tmp_path / init.INSTALLED)
    record = metadata.PackagePath("../share/uae-lightning/conf/demo.yaml")
    record.dist = metadata.PathDistribution(tmp_path / "lib" / "uae.dist-info")
    monkeypatch.setattr(init, "__file__", str(tmp_path / "lib/uae_lightning/commands/init.py"))
    monkeypatch.setattr(init.metadata, "files", lambda name: [record])
    assert (init.shipped() / "demo.yaml").read_text() == "changed"


def test_config_by_name_is_here_or_shipped(tmp_path, monkeypatch):
    # red with the shipped YAML before that of this folder, a path taken for a name, or a word of another option changed
    monkeypatch.chdir(tmp_path)
    shipped = init.shipped()
    assert init.by_name(["--config", "demo", "-c=scenes/encoder_rl", "--with", "demo"]) == [
        "--config", str(shipped / "demo.yaml"), f"-c={shipped / 'scenes/encoder_rl.yaml'}", "--with", "demo"
    ]  # fmt: skip
    for stays in ("demo.yaml", "nothing", "../demo", "", "x" * 5000, "demo\0"):
        assert init.by_name(["--config", stays, f"--config={stays}"]) == ["--config", stays, f"--config={stays}"]
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/demo.yaml").write_text("mine")
    assert init.by_name(["--config", "demo"]) == ["--config", "conf/demo.yaml"]
    (tmp_path / "demo").write_text("a file of that name")
    assert init.by_name(["--config", "demo"]) == ["--config", "demo"]


def test_debug_shows_the_traceback(place, monkeypatch):
    # red with `!=` in place of `==`
    monkeypatch.setenv("UAE_DEBUG", "1")
    with pytest.raises(ValueError, match="rum"):
        main(["rum"])


def test_fit_leaves_everything_in_its_folder_and_never_mixes_two_stages(place, capsys):
    # red with `name="lightning_logs"` for the logger, or without the refusal in start_point
    assert main(FIT) == 0
    left = {path.name.split(".")[0] for path in (place / "runs" / "one").iterdir()}
    assert left >= {"config", "validation", "checkpoints", "weights", "gallery", "events"}
    assert [path.name for path in (place / "runs" / "one" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert {path.name for path in place.iterdir()} == {"conf", "runs"}

    assert main(FIT) == 2
    assert "--resume" in capsys.readouterr().err
    mistaken = [*FIT, "--overwrite", "--model.autoencoder.encoder.path=missing"]
    assert main(mistaken) == 1 and (place / "runs" / "one" / "weights").exists()  # nothing was lost
    config = (place / "runs" / "one" / "config.yaml").read_bytes()
    assert main(["validate", *FIT[1:], "--model.init_args.learns=[encoder]"]) == 0
    assert (place / "runs" / "one" / "config.yaml").read_bytes() == config


def test_reconstruct_writes_original_and_reconstruction(place, capsys):
    # red with `torch.cat(..., 2)` in place of 3: above each other instead of side by side
    Image.new("RGB", (40, 30), "white").save("white.png")
    assert main(["reconstruct", "white.png", "--config=conf/stage.yaml", "--output=both.png", "--steps=3"]) == 0
    assert "white.png: a caption" in capsys.readouterr().out
    both = Image.open("both.png")
    assert both.size == (32, 16) and both.getpixel((0, 0)) == (255, 255, 255)
    assert both.getpixel((31, 15)) == (32, 32, 32)  # 255 / 2 / 2 / 2
