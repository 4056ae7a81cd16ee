"""Bad calls drawn from seeds end with code 1 or 2 and one message that names what is wrong, or with nothing lost."""

from random import Random

import generators
import pytest

from uae_lightning.cli import main

SEEDS = range(8)
GENERATORS = generators.OF_CALLS + generators.OF_FILES


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_bad_calls(generator, seed, tmp_path, monkeypatch, capsys):
    # red where main lets a TypeError through, or where the range of an option goes
    monkeypatch.chdir(tmp_path)
    case = generator(Random(f"{generator.__name__}{seed}"), tmp_path)
    capsys.readouterr()
    code = main(case.args)  # whatever it raises is a traceback to the user
    error = capsys.readouterr().err
    if code == 0:
        assert case.lost() is None, (case.lost(), case.args)
        return
    _, found, message = error.partition("uae: error: ")
    assert code in (1, 2) and found and "Traceback" not in error, (code, error)
    assert len(message) < 800 and any(name in message for name in case.names), (message, case.names)


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda g: g.__name__)
def test_generators_draw_the_same_from_the_same_seed(generator, tmp_path, monkeypatch):
    # red if a generator draws from the global `random`
    drawn = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        case = generator(Random(3), tmp_path / folder)
        files = {path.relative_to(tmp_path / folder): path for path in sorted((tmp_path / folder).rglob("*"))}
        small = {str(name): path.read_bytes() for name, path in files.items() if path.suffix in (".yaml", ".tar")}
        drawn.append((case.args, case.names, small))
    assert drawn[0] == drawn[1]
