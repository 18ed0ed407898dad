from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import trio

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.identity import Identity
from p2pnet.net.daemon import DaemonOptions, find_daemon
from p2pnet.net.process import check_listen, pin_ports, run_daemon, runtime_folder

LOOPBACK = DaemonOptions(listen=("/ip4/127.0.0.1/tcp/0",))


def runs(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_folder_for_sockets_is_private_and_short_and_goes_away() -> None:
    with runtime_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(os.fsencode(folder / "c")) <= 103
        (folder / "c").touch()
    assert not folder.exists()


def test_a_temporary_folder_with_a_long_path_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with runtime_folder() as folder:
        assert long not in folder.parents


def test_what_killed_nodes_left_is_removed_and_living_ones_keep_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as root, socket.socket(socket.AF_UNIX) as living:
        monkeypatch.setenv("XDG_RUNTIME_DIR", root)
        folders = {name: Path(root) / f"p2pnet-{name}" for name in ("deadnode", "new_node", "alive_01", "nosocket")}
        for name, folder in folders.items():
            folder.mkdir(mode=0o700)
            if name in {"deadnode", "new_node"}:
                with socket.socket(socket.AF_UNIX) as dead:
                    dead.bind(str(folder / "h"))
            if name == "alive_01":
                living.bind(str(folder / "h"))
                living.listen()
            if name != "new_node":
                os.utime(folder, (0, 0))
        with runtime_folder() as own:
            left = {path.name for path in Path(root).iterdir()}
            assert left == {own.name, "p2pnet-new_node", "p2pnet-alive_01", "p2pnet-nosocket"}


def test_a_port_in_use_is_the_operators_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        addr = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"listen: found {addr}, where another program listens"):
            check_listen(addr)
    check_listen(addr)


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(ConfigError, match="no address of this machine"):
        check_listen("/ip4/192.0.2.1/tcp/0")


def test_ports_that_the_system_chose_are_kept_where_it_is_clear_which() -> None:
    actual = ["/ip4/127.0.0.1/tcp/41", "/ip4/10.0.0.1/tcp/41", "/ip6/::1/tcp/61", "/ip4/10.0.0.1/udp/7/quic-v1"]
    assert pin_ports(["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"], actual) == (
        "/ip4/0.0.0.0/tcp/41",
        "/ip6/::/tcp/61",
        "/ip4/0.0.0.0/udp/7/quic-v1",
    )
    assert pin_ports(
        ["/ip4/127.0.0.1/tcp/4001", "/ip4/0.0.0.0/tcp/0"], ["/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/tcp/2"]
    ) == (
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/0.0.0.0/tcp/0",
    )
    assert pin_ports([], actual) == ()


@pytest.mark.processes
async def test_a_daemon_runs_within_the_block_and_not_after_it(tmp_path: Path, nursery: trio.Nursery) -> None:
    identity = Identity.generate()
    identity.save(tmp_path / "key")
    with runtime_folder() as folder:
        async with run_daemon(find_daemon(), LOOPBACK, tmp_path / "key", folder, nursery) as daemon:
            assert daemon.me.peer == identity.peer
            assert runs(daemon.pid)
        assert not runs(daemon.pid)
        assert daemon.gone.is_set()


@pytest.mark.processes
async def test_a_daemon_is_ended_when_its_node_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnet.net.process.STOP_S", 30.0)  # .005 s are enough, but not on a busy machine
    Identity.generate().save(tmp_path / "key")
    with runtime_folder() as folder, trio.CancelScope() as scope:
        async with (
            trio.open_nursery() as nursery,
            run_daemon(find_daemon(), LOOPBACK, tmp_path / "key", folder, nursery) as daemon,
        ):
            began = time.monotonic()
            scope.cancel()
            await trio.sleep_forever()
    assert not runs(daemon.pid)
    assert time.monotonic() - began < 29  # it went by itself, and was not killed for being late


@pytest.mark.processes
async def test_a_daemon_that_ends_at_once_tells_why(tmp_path: Path, nursery: trio.Nursery) -> None:
    (tmp_path / "key").write_bytes(b"no key")
    with runtime_folder() as folder, pytest.raises(NetworkError, match="the daemon ended at once: .+"):
        async with run_daemon(find_daemon(), LOOPBACK, tmp_path / "key", folder, nursery):
            pass


@pytest.mark.processes
async def test_alone_and_with_work_for_the_dht_the_daemon_dials_nobody(tmp_path: Path, nursery: trio.Nursery) -> None:
    Identity.generate().save(tmp_path / "key")
    options = DaemonOptions(listen=("/ip4/127.0.0.1/tcp/0",), autonat=True, relay_service=True)
    with runtime_folder() as folder:
        async with run_daemon(find_daemon(), options, tmp_path / "key", folder, nursery) as daemon:
            with pytest.raises(NetworkError, match="failed to find any peer in table"):
                await daemon.control.provide(bytes(32), 5)
            await daemon.control.find_providers(bytes(32), 20, 5, lambda _found: None)
            assert await daemon.control.list_peers() == []
            assert remote_ends(daemon.pid) == set()


def remote_ends(pid: int) -> set[str]:
    """The remote addresses of a process' TCP and UDP sockets, in the kernel's hexadecimal, listening ones left out."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = str(descriptor.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [line.split() for kind in ("tcp", "tcp6", "udp", "udp6") for line in proc_net(pid, kind)]
    return {row[2] for row in rows if row[9] in inodes and row[2].rpartition(":")[2] != "0000"}


def proc_net(pid: int, kind: str) -> list[str]:
    table = Path(f"/proc/{pid}/net/{kind}")
    return table.read_text().splitlines()[1:] if table.exists() else []


NODE = """
import json, multiprocessing, sys, threading, time
from pathlib import Path
import trio
from p2pnet.net import process
from p2pnet.net.daemon import DaemonOptions
from p2pnet.net.libp2p import open_libp2p_host

process._DIES_WITH_THREAD = process._DIES_WITH_THREAD and sys.argv[2] == "thread"
opened = threading.Event()
pids = []

async def node():
    async with open_libp2p_host(DaemonOptions(listen=("/ip4/127.0.0.1/tcp/0",)), Path(sys.argv[1])) as host:
        pids.append(host.daemon_pid)
        opened.set()
        await trio.sleep_forever()

threading.Thread(target=trio.run, args=(node,), daemon=True).start()
assert opened.wait(20)
context = multiprocessing.get_context("fork")  # as a DataLoader with num_workers=2 does
workers = [context.Process(target=time.sleep, args=(60,), daemon=True) for _ in range(2)]
for worker in workers:
    worker.start()
print(json.dumps({"daemon": pids[0], "workers": [worker.pid for worker in workers]}), flush=True)
time.sleep(60)
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("lifeline", ["thread", "connection"])
def test_kill_9_of_a_node_with_forked_workers_ends_its_daemon(tmp_path: Path, lifeline: str) -> None:
    Identity.generate().save(tmp_path / "key")
    command = [sys.executable, "-c", textwrap.dedent(NODE), str(tmp_path / "key"), lifeline]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout
            pids = json.loads(node.stdout.readline())
            assert runs(pids["daemon"])
            node.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            while runs(pids["daemon"]) and time.monotonic() - killed < 10:
                time.sleep(0.01)
            assert not runs(pids["daemon"])  # .03 s, measured; over a minute with a pipe alone
            assert all(runs(worker) for worker in pids["workers"])  # they outlive it, and did not keep the daemon
        finally:
            node.kill()
            for worker in pids["workers"]:
                os.kill(worker, signal.SIGKILL)
