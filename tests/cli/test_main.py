from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

import p2pnet
from p2pnet import cli
from p2pnet.errors import ConfigError, NetworkError
from tests.cli.conftest import Run

HEAVY = {"torch", "numpy", "safetensors", "matplotlib", "hivemind", "trio", "sqlite3", "multiaddr"}


def app_that_raises(error: BaseException) -> typer.Typer:
    app = typer.Typer(cls=cli.Verbs, pretty_exceptions_enable=False)

    @app.callback()
    def options() -> None: ...

    @app.command("verb")
    def verb() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("key: found 1, allowed is 2"), 2, "p2pnet: key: found 1, allowed is 2\n"),
        (NetworkError("nobody answered"), 1, "p2pnet: nobody answered\n"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "pip install 'p2pnet[train]'"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_one_line_without_a_traceback(error: BaseException, status: int, message: str) -> None:
    result = CliRunner().invoke(app_that_raises(error), ["verb"])
    assert result.exit_code == status
    assert message in result.stderr
    assert result.stderr.count("\n") == (1 if message else 0)
    assert result.stdout == ""


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    for error in (ValueError("ours"), ModuleNotFoundError("No module named 'trio'", name="trio")):
        assert CliRunner().invoke(app_that_raises(error), ["verb"]).exception is error


@pytest.mark.parametrize("verb", [("--help",), ("bootstrap", "--help"), ("swarm", "new", "--help"), ("--version",)])
def test_help_is_there_at_once(verb: tuple[str, ...]) -> None:
    program = "import sys, atexit; from p2pnet.cli import main; atexit.register(lambda: print(*sys.modules)); main()"
    done = subprocess.run([sys.executable, "-c", program, *verb], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split("\n")[-2].split())


def verbs() -> list[tuple[str, ...]]:
    """Every command that does something, as one types it."""
    found: list[tuple[str, ...]] = []
    pending: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(cli.make_app()))]
    while pending:
        words, command = pending.pop()
        if hasattr(command, "commands"):
            pending += [((*words, name), one) for name, one in command.commands.items()]
        else:
            found.append(words)
    return found


def test_every_verb_is_listed_and_its_help_shows_an_example(run: Run) -> None:
    listed = run("--help").out
    for words in verbs():
        assert f" {words[0]} " in listed
        shown = run(*words, "--help").out.replace("Usage: ", "")
        examples = shown.partition("Arguments")[0].partition("Options")[0]
        assert f"p2pnet {' '.join(words)}" in examples.split("\n", 2)[2], words


def test_the_version_and_a_verb_that_does_not_exist(run: Run) -> None:
    assert run("--version").out == f"p2pnet {p2pnet.__version__}\n"
    assert run("nonsense").status == 2


def test_the_interpreter_runs_it_too() -> None:
    done = subprocess.run([sys.executable, "-m", "p2pnet.cli", "--version"], capture_output=True, text=True)
    assert done.stdout == f"p2pnet {p2pnet.__version__}\n"
