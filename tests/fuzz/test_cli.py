"""The command line with arguments that nobody meant: an exit status and a message, never a traceback."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from p2pnet.cli import allow_files, make_app
from tests.fuzz.material import fuzz_settings
from tests.fuzz.targets import LINK, ledger_seed

APP = make_app()
ODD = [
    "",
    "-",
    "--",
    "\0",
    "ü\u202e",
    "/dev/null",
    "~nobody-at-all/x",
    "999999999999999999999",
    "-1",
    "nan",
    "[",
    "x" * 5000,
]
VALUES = st.sampled_from([*ODD, "p2pnet://[", LINK.decode()[:60], "5M", "22-07", "/ip4/1.2.3.4/tcp/1"]) | st.text(
    max_size=12
)
OPTIONS = [
    "--json",
    "--last",
    "--swarm",
    "--state-dir",
    "--key",
    "--help",
    "--threads",
    "--max-up",
    "--hours",
    "--port",
    "--config",
]
VERBS = [["status"], ["log"], ["key"], ["swarm", "show"], ["swarm", "new"], ["join"], ["pause"], ["resume"], ["leave"]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own, with a ledger of some rounds."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".local" / "share" / "p2pnet" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "ledger.db").write_bytes(ledger_seed())
    return tmp_path


def test_arguments_that_nobody_meant_end_in_words(home: Path) -> None:
    runner = CliRunner()

    @fuzz_settings(40)
    @given(
        verb=st.sampled_from(VERBS),
        words=st.lists(st.tuples(st.sampled_from([*OPTIONS, None]), VALUES), max_size=4),
    )
    def check(verb: list[str], words: list[tuple[str | None, str]]) -> None:
        arguments = [word for pair in words for word in pair if word is not None]
        if verb == ["join"]:
            arguments = ["p2pnet://nothing", *arguments]  # no link that leads anywhere: nothing is to be started
        done = runner.invoke(APP, [*verb, *arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), (verb, arguments, done.exc_info)
        assert done.exit_code in (0, 1, 2), (verb, arguments)

    check()
    assert home.is_dir()


def test_a_node_may_open_more_files_than_a_shell_allows_by_itself() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = 600 if hard == resource.RLIM_INFINITY else min(600, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (top - 100, hard))
        allow_files(top)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (top, hard)
        allow_files(top - 50)  # never fewer
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (top, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
