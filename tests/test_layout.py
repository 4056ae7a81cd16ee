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


def test_stages_and_policies_know_no_model_no_reward_and_no_data():
    # red with `from uae_lightning.models import sd3` in any stage or policy
    for folder in ("stages", "policies"):
        unknown = tuple(f"uae_lightning.{place}" for place in ("models", "rewards", "data"))
        assert not offenders(f"uae_lightning/{folder}", unknown)


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


# From the door down to what everybody uses: a module imports what stands in its own place or further down.
ORDER = (
    "cli", "commands", "app", "scenes", "study", "pipeline", "report", "exchange", "planning", "run", "evaluation",
    "prepare", "stages", "policies", "refinement", "autoencoder", "engines", "rewards", "models", "data", "parallel",
    "remote", "interfaces", "types", "algorithms", "terminal", "paths", "files", "ranges", "usage",
)  # fmt: skip
PACKAGE = ROOT / "uae_lightning"


def place(name: str) -> int:
    """Of a module such as "uae_lightning.run.spec"; -1 for the package itself."""
    parts = name.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 and parts[1] in ORDER else -1


def only_for_types(file: Path) -> set[str]:
    """What a file imports under TYPE_CHECKING alone."""
    blocks = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.If)]
    blocks = [node for node in blocks if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"]
    found = [inner for block in blocks for inner in ast.walk(block) if isinstance(inner, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in found for alias in node.names} | {node.module for node in found}


def test_imports_go_down():
    # red with `from uae_lightning.run import folder` in any model
    upward = []
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(ROOT).with_suffix("").parts
        if len(own) > 2 or own[1] in ORDER:  # not the package's own two files
            for name in imported(file) - only_for_types(file):
                if 0 <= place(name) < place(".".join(own)):
                    upward.append(f"{'.'.join(own)} imports {name}")
    assert not upward, "\n".join(upward)


def own(name: str) -> bool:
    return name.split(".")[0] in ("uae_lightning", "callbacks")


def test_only_commands_import_inside_functions():
    # red with an import of ours in a function of any other file: it would hide a cycle, or who knows whom
    hidden = []
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]:
        functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
        for node in [inner for function in functions for inner in ast.walk(function)]:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if file.parent.name != "commands" and any(map(own, names)):
                hidden.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not hidden, "\n".join(hidden)


def test_no_two_files_import_each_other():
    # red with `from uae_lightning.run.compiled import build` in run/stage_cli.py
    files = {file: file.relative_to(ROOT).with_suffix("") for file in PACKAGE.rglob("*.py")}
    modules = {".".join(path.parts).removesuffix(".__init__"): file for file, path in files.items()}
    imports = {name: (imported(file) - only_for_types(file)) & {*modules} - {name} for name, file in modules.items()}
    while free := [name for name, others in imports.items() if not others & {*imports}]:
        for name in free:
            del imports[name]
    assert not {name: others & {*imports} for name, others in imports.items()}


def test_only_scenes_and_commands_know_the_scenes():
    # red with `from uae_lightning.scenes.scene import Scene` in any suite
    folders = [name for name in ORDER if name not in ("cli", "commands", "scenes")]
    assert not [line for name in folders for line in offenders(f"uae_lightning/{name}", ("uae_lightning.scenes",))]
    assert not offenders("callbacks", ("uae_lightning.scenes",))


def test_policies_and_the_auto_encoder_do_not_know_lightning():
    # red with `import lightning` in a policy or autoencoder.py, or in anything they import of ours
    for name in ("policies", "refinement", "autoencoder", "interfaces", "types", "ranges", "algorithms"):
        files = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else (PACKAGE / name).glob("*.py")
        for file in files:
            assert not {one for one in imported(file) if one.split(".")[0] == "lightning"}, file.name


def test_the_house_stays_small():
    # red with a thirteenth file at the package's root, a folder three deep, or a function of 61 lines
    assert len(list(PACKAGE.glob("*.py"))) <= 12
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]:
        assert len(file.relative_to(ROOT).parts) <= 4, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{file.relative_to(ROOT)}: {node.name} has {lines} lines"


def test_engines_know_no_reward():
    # red with `from uae_lightning.rewards.openai_chat import chat_url` in an engine
    assert not offenders("uae_lightning/engines", ("uae_lightning.rewards", "uae_lightning.data"))
