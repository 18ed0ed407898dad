from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from p2pnet.errors import ConfigError
from p2pnet.identity import Identity, PeerId, peer_id_text
from p2pnet.net.discovery import Discovery, merge_bootstrap
from p2pnet.net.host import Host, PeerAddrs, join_addr
from p2pnet.net.memory import Link, MemoryHost, MemoryNetwork

if TYPE_CHECKING:
    from conftest import World

KEY = hashlib.sha256(b"a swarm").digest()


def peer(number: int) -> PeerId:
    return Identity.from_seed(bytes([number]) * 32).peer


def full(host: Host) -> list[str]:
    return [join_addr(addr, host.peer) for addr in host.addrs()]


class Seen:
    """Runs a discovery and keeps what it tells."""

    def __init__(self, host: Host, bootstrap: Sequence[str]) -> None:
        self.host = host
        self.found: list[PeerId] = []
        self.trouble: list[str] = []
        self.discovery = Discovery(
            host,
            KEY,
            bootstrap,
            rng=Random(1),
            on_connected=lambda where: self.found.append(where.peer),
            on_trouble=self.trouble.append,
        )

    async def wait_for(self, peers: Sequence[Host]) -> None:
        wanted = {other.peer for other in peers} - {self.host.peer}
        while not wanted <= {where.peer for where in await self.host.connected()}:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_members_that_know_only_a_bootstrap_peer_find_each_other(world: World) -> None:
    bootstrap, *members = await world.hosts(4)
    async with trio.open_nursery() as nursery:
        seen = [Seen(member, full(bootstrap)) for member in members]
        for one in seen:
            nursery.start_soon(one.discovery.run)
        with trio.fail_after(10):
            for one in seen:
                await one.wait_for(members)
        nursery.cancel_scope.cancel()
    assert not any(one.trouble for one in seen)
    assert all(set(one.found) <= {member.peer for member in members} - {one.host.peer} for one in seen)


async def test_without_a_bootstrap_peer_that_answers_it_says_which_and_why_and_goes_on_trying(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = MemoryNetwork()
    dead = [f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_text(peer(port))}" for port in (91, 92)]
    async with network.host(peer(1)) as host, trio.open_nursery() as nursery:
        seen = Seen(host, dead)
        nursery.start_soon(seen.discovery.run)
        await trio.sleep(60)
        for addr in dead:
            assert f"{addr} (connecting to {addr[-52:]}: nobody answers" in seen.trouble[-1]
        assert [(one.addr, one.connected) for one in seen.discovery.report()] == [(addr, False) for addr in dead]
        assert all(4 <= one.tries <= 6 for one in seen.discovery.report())  # after 0, 5.5, 11, 22 and 44 s, or later
        nursery.cancel_scope.cancel()


async def test_a_bootstrap_peer_that_comes_late_is_found(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with network.host(peer(1)) as host, trio.open_nursery() as nursery:
        seen = Seen(host, [f"/ip4/127.0.0.1/tcp/2/p2p/{peer_id_text(peer(2))}"])
        nursery.start_soon(seen.discovery.run)
        await trio.sleep(100)
        assert seen.trouble
        async with network.host(peer(2)):
            with trio.fail_after(80):
                await seen.discovery.wait_in_touch()
            (report,) = seen.discovery.report()
            assert report.connected
            assert report.reason == ""
            nursery.cancel_scope.cancel()


async def test_members_long_gone_in_the_dht_do_not_keep_it_from_those_that_are_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = MemoryNetwork()
    async with network.host(peer(1)) as bootstrap:
        for number in range(100, 140):  # each has provided and gone
            async with network.host(peer(number)) as gone:
                await gone.connect(bootstrap.peer, bootstrap.addrs(), 1)
                await gone.provide(KEY)
                network.set_link(peer(3), peer(number), Link(partitioned=True))  # a dial takes all of its deadline
        async with network.host(peer(2)) as alive, network.host(peer(3)) as host:
            await alive.connect(bootstrap.peer, bootstrap.addrs(), 1)
            await alive.provide(KEY)
            async with trio.open_nursery() as nursery:
                seen = Seen(host, full(bootstrap))
                nursery.start_soon(seen.discovery.run)
                with trio.fail_after(40 / 8 * 5 + 1):
                    await seen.wait_for([alive])
                nursery.cancel_scope.cancel()


async def test_whom_gossip_saw_is_dialled_without_the_dht(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with network.host(peer(1)) as other, network.host(peer(2)) as host, trio.open_nursery() as nursery:
        seen = Seen(host, [])
        nursery.start_soon(seen.discovery.run)
        await trio.sleep(10)
        assert seen.discovery.describe_trouble().startswith("no bootstrap peer is known; a link")
        seen.discovery.see(PeerAddrs(other.peer, other.addrs()))
        with trio.fail_after(0.1):
            await seen.wait_for([other])
        assert seen.found == [other.peer]
        nursery.cancel_scope.cancel()


async def test_an_ignored_peer_is_not_dialled(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with network.host(peer(1)) as other, network.host(peer(2)) as host, trio.open_nursery() as nursery:
        seen = Seen(host, [])
        nursery.start_soon(seen.discovery.run)
        seen.discovery.ignore(other.peer)
        seen.discovery.see(PeerAddrs(other.peer, other.addrs()))
        await trio.sleep(100)
        assert seen.found == []
        nursery.cancel_scope.cancel()


async def test_a_daemon_that_has_lost_everything_is_connected_and_announced_again_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = MemoryNetwork()
    async with network.host(peer(1)) as bootstrap, network.host(peer(2)) as host, trio.open_nursery() as nursery:
        provided = Provided(host)
        seen = Seen(provided, full(bootstrap))  # type: ignore[arg-type]
        nursery.start_soon(seen.discovery.run)
        await trio.sleep(30)
        assert provided.times == 1
        host.drop_connections()
        seen.discovery.renew()
        with trio.fail_after(1):
            await seen.wait_for([bootstrap])
            while provided.times < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


class Provided:
    """A host that counts how often it has announced itself."""

    def __init__(self, host: MemoryHost) -> None:
        self.host, self.times = host, 0

    async def provide(self, key: bytes, timeout_s: float) -> None:
        await self.host.provide(key, timeout_s)
        self.times += 1

    def __getattr__(self, name: str) -> object:
        return getattr(self.host, name)


def test_a_bootstrap_peer_with_several_addresses_is_one_peer() -> None:
    name = peer_id_text(peer(1))
    merged = merge_bootstrap([f"/ip4/10.0.0.1/tcp/1/p2p/{name}", f"/ip6/::1/tcp/1/p2p/{name}"])
    assert merged == [PeerAddrs(peer(1), ("/ip4/10.0.0.1/tcp/1", "/ip6/::1/tcp/1"))]


@pytest.mark.parametrize("wrong", ["/ip4/10.0.0.1/tcp/1", "10.0.0.1:4001", "/ip4/10.0.0.1/tcp/1/p2p/QmWrong"])
def test_a_bootstrap_address_without_a_usable_peer_id_is_the_operators_mistake(wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"bootstrap: found '{wrong}'"):
        merge_bootstrap([wrong])
