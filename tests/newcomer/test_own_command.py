"""A newcomer adds a command: one file, and one row of the table in cli.py."""

from uae_lightning import cli

COMMAND = """
from uae_lightning.usage import Parser

def main(args: list[str]) -> None:
    parser = Parser(prog="uae greet", description="Greets.")
    parser.add_argument("--name", default="you")
    print(f"hello {parser.parse(args).name}")
"""


def test_a_command_is_a_file_and_a_row(newcomer, documented, monkeypatch, capsys):
    # red where another place must name it: the help, the look-up of close names, or the dispatch
    newcomer.write("greet.py", COMMAND)
    monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS})
    newcomer.line(cli.COMMANDS, "greet", ("says hello", "greet"))
    assert cli.main(["greet", "--name=Ada"]) == 0 and capsys.readouterr().out == "hello Ada\n"
    assert cli.main(["--help"]) == 0 and "greet           says hello" in capsys.readouterr().out
    assert cli.main(["greeet"]) == 2 and "did you mean greet?" in capsys.readouterr().err
    assert cli.main(["greet", "--nam=Ada"]) == 2 and "did you mean --name?" in capsys.readouterr().err
    assert len(newcomer.touched) == documented["a command"]
