from __future__ import annotations

import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest
import trio

from p2pnet.errors import ConfigError
from p2pnet.identity import Identity
from p2pnet.net import metrics
from p2pnet.net.bootstrap import BootstrapConfig, BootstrapStarted, run_bootstrap
from p2pnet.net.daemon import DaemonOptions, daemon_arguments
from p2pnet.net.host import split_addr
from p2pnet.net.libp2p import open_libp2p_host

pytestmark = pytest.mark.processes
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


async def start(nursery: trio.Nursery, config: BootstrapConfig) -> BootstrapStarted:
    told: list[BootstrapStarted] = []
    ready = trio.Event()

    def on_started(started: BootstrapStarted) -> None:
        told.append(started)
        ready.set()

    nursery.start_soon(run_bootstrap, config, on_started)
    with trio.fail_after(20):
        await ready.wait()
    return told[0]


async def metric(port: int, name: str) -> float:
    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read(), "utf-8")

    rows = (row.rpartition(" ") for row in (await trio.to_thread.run_sync(read)).splitlines())
    return {key: float(value) for key, _, value in rows if key.startswith("p2pnet")}[name]


async def until_metric(port: int | None, name: str, wanted: float) -> None:
    assert port
    with trio.fail_after(15):
        while await metric(port, name) != wanted:  # noqa: ASYNC110
            await trio.sleep(0.05)


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LOOK_S", 0.05)


async def test_others_start_from_it_and_its_metrics_show_it(tmp_path: Path) -> None:
    Identity.generate().save(tmp_path / "member.key")
    async with trio.open_nursery() as nursery:
        started = await start(nursery, BootstrapConfig(tmp_path / "key", LOOPBACK, metrics_port=0))
        assert started.metrics_port
        where = split_addr(started.addrs[0])
        assert where.peer == Identity.load(tmp_path / "key").peer
        async with open_libp2p_host(DaemonOptions(listen=LOOPBACK), tmp_path / "member.key") as member:
            await member.connect(where.peer, where.addrs, 5)
            await until_metric(started.metrics_port, "p2pnet_connected_peers", 1)
        for name in ("p2pnet_uptime_seconds", "p2pnet_daemon_up"):
            assert await metric(started.metrics_port, name) > 0
        for name in ("p2pnet_daemon_restarts_total", 'p2pnet_traffic_bytes_total{direction="up"}'):
            assert await metric(started.metrics_port, name) == 0
        nursery.cancel_scope.cancel()


async def test_its_identity_lasts_and_its_key_is_private(tmp_path: Path) -> None:
    peers = []
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            started = await start(nursery, BootstrapConfig(tmp_path / "key", LOOPBACK))
            peers.append(split_addr(started.addrs[0]).peer)
            assert started.metrics_port is None
            nursery.cancel_scope.cancel()
    assert peers[0] == peers[1]
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0


async def test_two_bootstrap_peers_keep_together(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        first = await start(nursery, BootstrapConfig(tmp_path / "a", LOOPBACK, metrics_port=0))
        await start(nursery, BootstrapConfig(tmp_path / "b", LOOPBACK, peers=first.addrs))
        await until_metric(first.metrics_port, "p2pnet_connected_peers", 1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("key", ["metrics", "listen"])
async def test_a_port_in_use_is_named(tmp_path: Path, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = (
            BootstrapConfig(tmp_path / "key", LOOPBACK, metrics_port=port)
            if key == "metrics"
            else BootstrapConfig(tmp_path / "key", (f"/ip4/127.0.0.1/tcp/{port}",))
        )
        with pytest.raises(ConfigError, match=f"^{key}: found .*{port}"):
            await run_bootstrap(config, lambda _started: None)


def test_it_serves_the_dht_and_relays_and_leaves_it_to_autonat_whether_it_is_public(tmp_path: Path) -> None:
    arguments = daemon_arguments(BootstrapConfig(tmp_path / "key").daemon_options(), tmp_path / "key", tmp_path / "c")
    assert {"-dhtServer=1", "-relayService=1"} <= set(arguments)
    assert not {"-b", "-forceReachabilityPublic=1"} & set(arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_killed_daemon_is_counted(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        before = children()
        started = await start(nursery, BootstrapConfig(tmp_path / "key", LOOPBACK, metrics_port=0))
        (daemon,) = children() - before
        os.kill(daemon, signal.SIGKILL)
        await until_metric(started.metrics_port, "p2pnet_daemon_restarts_total", 1)
        nursery.cancel_scope.cancel()


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
