from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from p2pnet.identity import Identity, peer_id_text
from tests.processes.runs import COMMAND, Run

SWARM = "ab" * 32
LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0")


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def nobody() -> str:
    """The full address of a bootstrap peer that is not there."""
    return f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{peer_id_text(Identity.generate().peer)}"


def join(nobody: str, tmp_path: Path, *more: str, log: str = "log") -> Run:
    link = f"p2pnet://{SWARM}?bootstrap={nobody}"
    listen = () if "--listen" in more else LISTEN
    return Run([*COMMAND, "join", link, "--state-dir", str(tmp_path), *listen, *more], tmp_path / log)


def test_a_link_without_reachable_bootstrap_says_which_it_tried_and_why_and_tries_again(
    nobody: str, tmp_path: Path
) -> None:
    with join(nobody, tmp_path, "--json") as run:
        trouble = run.wait_for(lambda event: event["event"] == "trouble")
        assert nobody in trouble["text"]
        assert "refused" in trouble["text"]
        run.wait_for(lambda event: event["event"] == "trouble", start=run.lines.index(run.wait_line(is_trouble)) + 1)
        assert run.kill(signal.SIGTERM) == 143
        assert run.left_after(1.0) == []


def is_trouble(line: str) -> bool:
    return '"event": "trouble"' in line


def test_it_ends_instead_when_it_is_told_to(nobody: str, tmp_path: Path) -> None:
    with join(nobody, tmp_path, "--exit-when-unreachable") as run:
        assert run.wait() == 1
        assert run.left_after(1.0) == []
    said = (tmp_path / "log").read_text()
    assert nobody in said
    assert "Traceback" not in said


def test_a_second_node_on_one_state_directory_is_refused_and_the_first_goes_on(nobody: str, tmp_path: Path) -> None:
    with join(nobody, tmp_path, "--json") as first:
        first.wait_for(lambda event: event["event"] == "listening")
        with join(nobody, tmp_path, log="second") as second:
            assert second.wait() == 2
        assert f"in use by process {first.process.pid}" in (tmp_path / "second").read_text()
        assert first.process.poll() is None
        assert first.kill(signal.SIGINT) == 130


def test_a_port_in_use_is_named(nobody: str, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        addr = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        with join(nobody, tmp_path, "--listen", addr) as run:
            assert run.wait() == 2
    said = (tmp_path / "log").read_text()
    assert addr in said
    assert "another program listens" in said


def test_settings_that_will_not_do_are_refused_before_anything_starts(nobody: str, tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("device = 'gpu'\nspeed = 3\n")
    with join(nobody, tmp_path, "--config", str(tmp_path / "node.toml")) as run:
        assert run.wait() == 2
    said = (tmp_path / "log").read_text()
    assert "device: found 'gpu'" in said
    assert "speed: unknown key" in said


def test_words_are_for_people_and_go_to_standard_error_until_there_is_a_round(nobody: str, tmp_path: Path) -> None:
    with join(nobody, tmp_path, "--exit-when-unreachable") as run:
        run.wait()
    assert run.lines == []
    assert "at /ip4/127.0.0.1/tcp/" in (tmp_path / "log").read_text()
