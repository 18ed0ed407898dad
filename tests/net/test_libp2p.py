"""What only the libp2p host does: keep its daemon, and stand what the daemon may bring."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.identity import Identity, peer_id_text
from p2pnet.net.daemon import DaemonOptions
from p2pnet.net.host import Stream, join_addr
from p2pnet.net.libp2p import Libp2pHost, open_libp2p_host
from p2pnet.net.sockets import UnixSocket

pytestmark = pytest.mark.processes
LOOPBACK = DaemonOptions(listen=("/ip4/127.0.0.1/tcp/0",))
ECHO = "/p2pnet/echo/1"


def key_at(path: Path) -> Path:
    Identity.generate().save(path)
    return path


async def echo(stream: Stream) -> None:
    await stream.send_frame(await stream.receive_frame(100))


async def test_a_daemon_that_is_killed_comes_back_at_the_same_address_with_all_handlers(tmp_path: Path) -> None:
    restarted = trio.Event()
    async with (
        open_libp2p_host(LOOPBACK, key_at(tmp_path / "a")) as here,
        open_libp2p_host(LOOPBACK, key_at(tmp_path / "b"), on_restart=restarted.set) as there,
    ):
        await there.handle(ECHO, echo)
        await there.handle("/p2pnet/other/1", echo)
        addrs, old_pid = there.addrs(), there.daemon_pid
        await here.connect(there.peer, addrs, 5)
        async with await here.open_stream(there.peer, ECHO, 5) as stream:
            assert old_pid
            os.kill(old_pid, signal.SIGKILL)
            with trio.fail_after(10):
                with pytest.raises(NetworkError):
                    await stream.receive_frame(10)
                await restarted.wait()
        assert there.daemon_pid not in {None, old_pid}
        assert (there.addrs(), there.restarts) == (addrs, 1)
        # From there: libp2p does not dial an address again within 5 s when it has just failed.
        await there.connect(here.peer, here.addrs(), 5)
        for protocol in (ECHO, "/p2pnet/other/1"):
            assert await here.request(there.peer, protocol, b"back?", 5, 100) == b"back?"


async def test_while_the_daemon_is_away_everything_fails_at_once_and_handlers_wait(tmp_path: Path) -> None:
    restarted = trio.Event()
    stranger = Identity.generate().peer
    async with open_libp2p_host(LOOPBACK, key_at(tmp_path / "a"), on_restart=restarted.set) as host:
        await stop_daemon(host)
        with trio.fail_after(1):
            for attempt in (host.connected(), host.provide(bytes(32)), host.open_stream(stranger, ECHO, 30)):
                with pytest.raises(NetworkError):
                    await attempt
            await host.handle(ECHO, echo)
        with trio.fail_after(10):
            await restarted.wait()
        assert await host.connected() == []
        async with open_libp2p_host(LOOPBACK, key_at(tmp_path / "b")) as other:
            await other.connect(host.peer, host.addrs(), 5)
            assert await other.request(host.peer, ECHO, b"registered?", 5, 100) == b"registered?"


async def stop_daemon(host: Libp2pHost) -> None:
    """Kill the daemon and return when the host has noticed, before it starts the next one."""
    assert host.daemon_pid
    os.kill(host.daemon_pid, signal.SIGKILL)
    while host.daemon_pid is not None:
        await trio.lowlevel.checkpoint()


async def test_a_port_in_use_is_a_config_error_and_not_a_group_of_errors(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        options = DaemonOptions(listen=(f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}",))
        with pytest.raises(ConfigError, match="listen: found"):
            async with open_libp2p_host(options, key_at(tmp_path / "a")):
                pass


async def test_a_missing_key_or_daemon_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        async with open_libp2p_host(LOOPBACK, tmp_path / "nothing"):
            pass
    with pytest.raises(ConfigError, match="p2pnet daemon install"):
        async with open_libp2p_host(LOOPBACK, key_at(tmp_path / "a"), daemon_path=tmp_path / "nothing"):
            pass


async def test_whatever_comes_to_the_socket_for_inbound_streams_the_host_stays_up(tmp_path: Path) -> None:
    async with open_libp2p_host(LOOPBACK, key_at(tmp_path / "a")) as host:
        for junk in (b"", b"\xff" * 20, b"\xff\xff\x7f", b"\x02\x0a\x01", b"\x06\x0a\x01x\x12\x00\x1a\x00"):
            sock = await UnixSocket.connect(host._folder / "h")
            if junk:
                await sock.send_some(b"", memoryview(junk))
            sock.close()
        assert await host.connected() == []


async def test_relays_that_are_not_there_do_not_keep_a_host_from_starting_and_show_as_its_circuits(
    tmp_path: Path,
) -> None:
    relay = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_id_text(Identity.generate().peer)}"
    options = DaemonOptions(listen=LOOPBACK.listen, relays=(relay,), reachability="private")
    async with open_libp2p_host(options, key_at(tmp_path / "a")) as host:
        assert f"{relay}/p2p-circuit" in host.addrs()


async def test_a_peer_that_nobody_can_dial_is_reached_through_its_relay(tmp_path: Path) -> None:
    relaying = DaemonOptions(listen=LOOPBACK.listen, relay_service=True)
    async with open_libp2p_host(relaying, key_at(tmp_path / "relay")) as relay:
        full = join_addr(relay.addrs()[0], relay.peer)
        hidden = DaemonOptions(listen=(), dht="client", reachability="private", relays=(full,))
        async with (
            open_libp2p_host(hidden, key_at(tmp_path / "a")) as behind_nat,
            open_libp2p_host(LOOPBACK, key_at(tmp_path / "b")) as other,
        ):
            await behind_nat.handle(ECHO, echo)
            assert behind_nat.addrs() == (f"{full}/p2p-circuit",)
            with trio.fail_after(15):
                while full not in await reached(other, behind_nat):  # noqa: ASYNC110
                    await trio.sleep(0.1)
            assert await other.request(behind_nat.peer, ECHO, b"hello", 5, 100) == b"hello"


async def reached(host: Libp2pHost, other: Libp2pHost) -> str:
    """Through which address `host` could connect to `other`, empty when it could not."""
    with suppress(NetworkError):
        await host.connect(other.peer, other.addrs(), 5)
    return " ".join(addr for found in await host.connected() if found.peer == other.peer for addr in found.addrs)
