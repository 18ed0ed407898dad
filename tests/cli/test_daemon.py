from __future__ import annotations

from pathlib import Path

import pytest

from p2pnet.errors import NetworkError
from p2pnet.net import daemon, install
from tests.cli.conftest import Run


def test_the_path_is_the_daemon_that_would_be_started(run: Run) -> None:
    assert Path(run("daemon", "path").out.strip()) == daemon.find_daemon()


def test_a_missing_daemon_says_how_to_get_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_in_distribution", lambda: None)
    done = run("daemon", "path")
    assert done.status == 2
    assert "p2pnet daemon install" in done.err


def test_the_installed_path_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "install_daemon", lambda to: to or Path("/default"))
    assert run("daemon", "install").out == "/default\n"
    assert run("daemon", "install", "--to", tmp_path).out == f"{tmp_path}\n"


def test_a_download_that_fails_is_the_networks_fault(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(to: Path | None) -> Path:
        raise NetworkError("pip could not download it")

    monkeypatch.setattr(install, "install_daemon", fail)
    done = run("daemon", "install")
    assert done.status == 1
    assert "p2pnet: pip could not download it" in done.err
