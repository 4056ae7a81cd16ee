import subprocess

from uae_lightning.run import provenance


def git(folder, *args):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *args], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_names_command_versions_and_machine():
    # red with a package misspelt, or a key renamed
    found = provenance.provenance("uae evaluate")
    assert set(found) == {"command", "written", "versions", "git", "machine"} and found["command"] == "uae evaluate"
    assert set(found["versions"]) >= {"python", "torch", "lightning", "transformers", "diffusers", "peft"}
    assert found["machine"]["cpu"] and found["machine"]["cores"] >= 1 and found["machine"]["torch_threads"] >= 1


def test_revision_and_whether_the_code_differs_from_it(tmp_path):
    # red with "status" without --porcelain, without CODE at its end, or without the look for .git
    assert provenance.git_revision(tmp_path) is None
    git(tmp_path, "init")
    assert provenance.git_revision(tmp_path) is None  # nothing committed yet
    for folder in provenance.CODE:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    (tmp_path / "results.md").write_text("a result does not change the code")
    assert provenance.git_revision(tmp_path) == {"revision": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "conf" / "a.py").write_text("2")
    assert provenance.git_revision(tmp_path)["dirty"] is True
    assert provenance.git_revision(tmp_path / "conf") is None  # an installed package inside somebody's repository
