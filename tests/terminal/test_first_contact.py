"""What a newcomer types first: `uae`, `uae doctor`, `uae completion`, and --help of everything."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from uae_lightning.cli import COMMANDS, main
from uae_lightning.commands import completion
from uae_lightning.terminal import checks
from uae_lightning.terminal.completion import bash

HEAVY = ("fit", "validate")  # their help takes seconds: what it begins with is looked at below


def test_alone_it_names_three_things_to_try_and_imports_nothing_heavy(tmp_path):
    # red with `import torch` at the head of cli.py, or with the list of all commands in its place
    code = "import sys; from uae_lightning.cli import main; code = main([]); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  uae ")]
    assert first == ["doctor", "generate", "run"] and len(done.stdout.splitlines()) < 12
    assert "uae init ." in done.stdout and set(first) < set(COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in HEAVY])
def test_the_help_of_every_command_has_an_example(name, capsys):
    # red with an example left out, or of another command
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert re.search(rf"^ +uae {name}\b", capsys.readouterr().out, re.MULTILINE)


def test_the_help_of_stages_begins_with_examples(monkeypatch, capsys):
    # red without the print in one of them
    for name in HEAVY:
        module = __import__(f"uae_lightning.commands.{name}", fromlist=["main"])
        monkeypatch.setattr(module, "run_stage", lambda args: print("the options"))
        module.main(["--help"])
        output = capsys.readouterr().out
        assert output.startswith(f"    uae {name} --config") and output.endswith("the options\n")


# ------------------------------------------------------------------------------------------------ doctor


def test_the_doctor_is_content_with_the_environment_of_the_tests(capsys, monkeypatch):
    # red with a requirement of an extra taken for one of the package
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(checks, "available_memory", lambda: 8e9)
    monkeypatch.setattr(checks, "disk", lambda place: checks.Finding("ok", "disk"))
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "Nothing is missing." in output and "Python 3" in output and "CPU core" in output
    assert re.search(r"^ok +conf/ is here$", output, re.MULTILINE) and "shipped weights are here" in output


def test_what_is_missing_is_told_with_its_remedy_and_the_exit_code(capsys, monkeypatch, tmp_path):
    # red with a return in place of the error: a script would go on
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "available_memory", lambda: 1e9)
    monkeypatch.setattr(
        checks.metadata, "requires", lambda name: ["torch>=99", "nowhere-to-be-found>=1", "x; extra == 'a'"]
    )
    monkeypatch.setattr(checks, "PARTS", ("encoder", "none-such"))
    assert main(["doctor"]) == 1
    output, error = capsys.readouterr()
    for words in ('pip install "torch>=99"', "package nowhere-to-be-found", "1.0 GB of memory", "weights of none-such"):
        assert any(line.startswith("missing") and words in line for line in output.splitlines()), words
    assert "note     conf/ is not in this folder: uae init ." in output and len(error.splitlines()) == 1


def test_other_versions_than_those_tested_are_told(monkeypatch):
    # red without `normal`: Pillow and pillow are one
    monkeypatch.setattr(checks, "constraints", lambda: "Pillow==0.1 \\\n    --hash=sha256:0\ntorch==1.0\n")
    (finding,) = checks.packages()
    assert finding.level == "note" and f"pillow {metadata.version('pillow')} (tested: 0.1)" in finding.what
    pinned = dict(checks.PINNED.findall((Path(__file__).parents[2] / "constraints.txt").read_text()))
    assert {"lightning", "transformers", "diffusers"} <= set(pinned)


def test_instructions_and_limits_of_the_machine_are_read(tmp_path):
    # red with the memory of the host where a container has less
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t\t: fpu avx2 avx512f\n")
    assert [(one.level, "bfloat16" in one.what) for one in checks.cpu(info)] == [("slow", True)]
    info.write_text("flags : fpu avx512_bf16\n")
    assert [one.level for one in checks.cpu(info)] == ["ok"] and checks.cpu(tmp_path / "none") == []
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n")
    assert checks.available_memory(tmp_path / "meminfo", tmp_path) == 8000000 * 1024
    for name, value in (("max", "2000000"), ("current", "500000")):
        (tmp_path / f"memory.{name}").write_text(value)
    assert checks.available_memory(tmp_path / "meminfo", tmp_path) == 1500000
    (tmp_path / "memory.max").write_text("max")
    assert checks.available_memory(tmp_path / "meminfo", tmp_path) == 8000000 * 1024


# ------------------------------------------------------------------------------------------------ completion


def complete(script, *words):
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    code = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _uae; echo "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_bash_completes_commands_options_and_leaves_files_to_itself():
    # red with the commands of another version, or with an option of another command
    script = bash({"run": ["--config", "--resume"], "reconstruct": ["--weights"], "watch": ["--once"]})
    assert complete(script, "uae", "r") == ["run", "reconstruct"]
    assert complete(script, "uae", "run", "--re") == ["--resume"]
    assert complete(script, "uae", "watch", "--") == ["--once", "--help"]
    assert complete(script, "uae", "run", "conf/") == []


def test_options_are_those_of_the_help(capsys):
    # red with examples of the description taken for options
    assert completion.options_of(".commands.watch") == ["--help", "--once", "--every"]
    assert {"--config", "--resume", "--only", "--seed_everything"} <= set(completion.options_of(".commands.run"))
    assert capsys.readouterr().out == ""
