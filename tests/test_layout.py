"""Who may import whom: what makes parts swappable and algorithms readable."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported(file: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parts[: -node.level] if node.level else ()  # of a relative import
            module = ".".join([*package, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def offenders(folder: str, forbidden: tuple[str, ...]) -> list[str]:
    found = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        bad = [name for name in imported(file) if any(name == f or name.startswith(f + ".") for f in forbidden)]
        found += [f"{file.relative_to(ROOT)} imports {name}" for name in bad]
    return found


def test_stages_know_no_model_no_reward_and_no_data():
    # red with `from uae_lightning.models import sd3` in any stage
    assert not offenders("uae_lightning/stages", tuple(f"uae_lightning.{p}" for p in ("models", "rewards", "data")))


def test_algorithms_import_torch_and_themselves_only():
    # red with `import numpy` in any algorithm
    allowed = {"torch", *sys.stdlib_module_names}
    for file in (ROOT / "uae_lightning" / "algorithms").glob("*.py"):
        for name in imported(file) - {"uae_lightning"}:
            assert name.split(".")[0] in allowed or name.startswith("uae_lightning.algorithms"), f"{file.name}: {name}"


def test_the_package_does_not_import_callbacks():
    # red with `import callbacks` in any file but the command line
    assert [line for line in offenders("uae_lightning", ("callbacks",)) if "cli.py" not in line] == []


def test_models_rewards_data_and_callbacks_do_not_import_stages():
    # red with `from uae_lightning.stages.common import Stage` in any of them
    for folder in ("uae_lightning/models", "uae_lightning/rewards", "uae_lightning/data", "callbacks"):
        assert not offenders(folder, ("uae_lightning.stages",))
