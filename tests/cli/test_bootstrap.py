from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pnet.cli.settings import merge_settings
from p2pnet.config import BootstrapConfig
from p2pnet.identity import Identity
from p2pnet.net.host import split_addr
from tests.cli.conftest import Run

ANY_PORT = "/ip4/127.0.0.1/tcp/0"
COMMAND = [sys.executable, "-m", "p2pnet.cli", "bootstrap"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A bootstrap peer in a process of its own, which is gone at the end however the test went."""
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def is_listening(where: tuple[str, int]) -> bool:
    try:
        socket.create_connection(where, timeout=5).close()
    except OSError:  # refused, or reset in the middle of the daemon's end
        return False
    return True


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_its_full_address_serves_metrics_and_stops_when_told(home: Path, number: signal.Signals) -> None:
    port = free_port()
    with started("--listen", ANY_PORT, "--key", "b.key", "--metrics-port", str(port)) as process:
        addr = split_addr(read_line(process).strip())
        assert addr.peer == Identity.load(home / "b.key").peer
        assert addr.addrs[0].startswith("/ip4/127.0.0.1/tcp/")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert b"p2pnet_daemon_up 1.0" in answer.read()
        where = ("127.0.0.1", int(addr.addrs[0].rpartition("/")[2]))
        assert is_listening(where)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, "")
        assert f"metrics at http://127.0.0.1:{port}/metrics" in err
        assert "Traceback" not in err
        assert not is_listening(where)


@pytest.mark.processes
def test_programs_read_json_and_torch_is_never_imported(home: Path) -> None:
    (home / "b.toml").write_text(f'key = "b.key"\nlisten = ["{ANY_PORT}"]\n')
    options = ["-X", "importtime", *COMMAND[1:], "b.toml", "--json"]
    process = subprocess.Popen([sys.executable, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        facts = json.loads(read_line(process))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert [facts["peer"] in addr for addr in facts["addrs"]] == [True]
    assert facts["metrics"] is None
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines() if line.count("|") == 2}
    assert "trio" in imported
    assert not imported & {"torch", "numpy", "safetensors", "matplotlib", "hivemind"}


@pytest.mark.processes
def test_the_daemon_is_gone_when_it_was_killed(home: Path) -> None:
    with started("--listen", ANY_PORT, "--json") as process:
        addr = split_addr(json.loads(read_line(process))["addrs"][0]).addrs[0]
        where = ("127.0.0.1", int(addr.rpartition("/")[2]))
        os.kill(process.pid, signal.SIGKILL)
        deadline_s = time.monotonic() + 10
        while is_listening(where) and time.monotonic() < deadline_s:
            pass  # the kernel closes its sockets one after the other
        assert not is_listening(where)


@pytest.mark.processes
@pytest.mark.parametrize("key", ["listen", "metrics"])
def test_a_port_in_use_is_named(run: Run, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = {"listen": f"/ip4/127.0.0.1/tcp/{port}", "metrics": ANY_PORT}[key]
        done = run("bootstrap", "--listen", taken, *(["--metrics-port", port] if key == "metrics" else []))
    assert (done.status, done.out) == (2, "")
    assert f"p2pnet: {key}: found " in done.err
    assert str(port) in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "127.0.0.1:4001"], "command line: listen[0]: found '127.0.0.1:4001'"),
        (["--metrics-port", "70000"], "metrics_port: found 70000"),
        (["--bootstrap", "/ip4/127.0.0.1/tcp/1"], "bootstrap: found '/ip4/127.0.0.1/tcp/1'"),
        (["--announce", "nowhere"], "announce[0]: found 'nowhere'"),
        (["nothing.toml"], "nothing.toml: cannot read it"),
        (["unknown.toml"], "unknown.toml: lisen: unknown key; did you mean listen?"),
        (["typed.toml"], "typed.toml: metrics_port: found '9100' (text)"),
        (["--key", "open.key"], "chmod 600"),
        (["--key", "text.key"], "not a libp2p private key file"),
        (["daemon.toml"], "not an executable file"),
    ],
)
def test_what_will_not_do_is_named_before_anything_starts(
    run: Run, home: Path, arguments: list[str], message: str
) -> None:
    (home / "unknown.toml").write_text('lisen = ["/ip4/0.0.0.0/tcp/1"]')
    (home / "typed.toml").write_text('metrics_port = "9100"')
    (home / "daemon.toml").write_text('daemon = "unknown.toml"')
    Identity.generate().save(home / "open.key")
    (home / "open.key").chmod(0o604)
    (home / "text.key").write_text("not a key")
    (home / "text.key").chmod(0o600)
    done = run("bootstrap", *arguments)
    assert (done.status, done.out) == (2, "")
    assert message in done.err


def test_the_command_line_goes_before_the_file(home: Path) -> None:
    (home / "b.toml").write_text('key = "a.key"\nmetrics_port = 1\nannounce = ["/dns4/b.example.org/tcp/4001"]\n')
    settings = merge_settings(BootstrapConfig, Path("b.toml"), key="other.key", metrics_port=0, listen=None)
    assert (settings.key, settings.metrics_port) == (Path("other.key"), 0)
    assert settings.announce == ("/dns4/b.example.org/tcp/4001",)
    assert settings.listen == ("/ip4/0.0.0.0/tcp/4001",)
