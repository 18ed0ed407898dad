"""The in-process twin of the libp2p host: many hosts, one `MemoryNetwork`, faults per link; for tests and simulation.

Same limits, same errors, same handlers as `libp2p`: both share framing and reception. Nothing here touches a socket or
a real clock, so trio's MockClock runs it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

import trio

from p2pnet.errors import NetworkError
from p2pnet.identity import PeerId, peer_id_text
from p2pnet.net.framing import FramedStream, Traffic, closed_error
from p2pnet.net.host import (
    Handler,
    Host,
    Limits,
    Misbehaviour,
    PeerAddrs,
    bare_errors,
    check_key,
    check_protocol,
    deadline,
    exchange,
)
from p2pnet.net.reception import Reception

WINDOW_BYTES: Final = 262_144  # what may be under way in one direction of a stream; yamux starts with as much


@dataclass(frozen=True, slots=True)
class Link:
    """What happens between two hosts, the same in both directions."""

    delay_s: float = 0.0  # one way, per piece of a stream and per lookup
    drop: float = 0.0  # probability that a piece that is sent breaks the stream, and that a dial fails
    partitioned: bool = False  # nothing gets through: dials time out, streams stall until it is healed


class MemoryNetwork:
    """Hosts that reach each other, and the DHT they share. Deterministic under one seed and trio's MockClock."""

    def __init__(self, rng: Random | None = None, lookup_s: float = 0.0) -> None:
        """rng: decides which pieces a faulty link drops.   lookup_s: what an answer of the DHT takes."""
        self._rng = rng or Random(0)
        self._lookup_s = lookup_s
        self._pipes: WeakSet[_Pipe] = WeakSet()
        self._hosts: dict[PeerId, MemoryHost] = {}
        self._links: dict[frozenset[PeerId], Link] = {}
        self._changed = trio.Event()
        self._providers: dict[bytes, dict[PeerId, tuple[str, ...]]] = {}  # outlives its peers, as in kad-dht
        self._ports = 0

    @asynccontextmanager
    async def host(
        self, peer: PeerId, limits: Limits | None = None, on_misbehaviour: Misbehaviour = lambda _peer, _rule: None
    ) -> AsyncIterator[MemoryHost]:
        """Open a host for `peer`; its streams and handlers end with the block. `ValueError` when it is open already."""
        if peer in self._hosts:
            raise ValueError(f"{peer_id_text(peer)} has a host here already")
        self._ports += 1
        with bare_errors():
            async with trio.open_nursery() as nursery:
                reception = Reception(limits or Limits(), on_misbehaviour)
                host = MemoryHost(self, peer, f"/ip4/127.0.0.1/tcp/{self._ports}", reception, nursery)
                self._hosts[peer] = host
                try:
                    yield host
                finally:
                    del self._hosts[peer]
                    host.drop_connections()
                    nursery.cancel_scope.cancel()

    def set_link(self, one: PeerId, other: PeerId, link: Link) -> None:
        """Change what happens between two hosts, from the next piece on; what is stalled goes on when healed."""
        self._links[frozenset((one, other))] = link
        self._changed.set()
        self._changed = trio.Event()
        for pipe in self._pipes:
            pipe.wake()

    def link(self, one: PeerId, other: PeerId) -> Link:
        """Return what happens between two hosts."""
        return self._links.get(frozenset((one, other)), Link())

    def drops(self, link: Link) -> bool:
        """Throw the dice for one piece on `link`."""
        return link.drop > 0 and self._rng.random() < link.drop

    async def cross(self, one: PeerId, other: PeerId) -> None:
        """Take one way over a link: wait until it is whole, then its delay; `NetworkError` when the piece is lost."""
        while (link := self.link(one, other)).partitioned:
            await self._changed.wait()
        if self.drops(link):
            raise NetworkError(f"lost between {peer_id_text(one)} and {peer_id_text(other)}")
        await trio.sleep(link.delay_s)

    def find(self, peer: PeerId) -> MemoryHost | None:
        """Return the open host of `peer`."""
        return self._hosts.get(peer)

    async def look_up(self) -> None:
        """Take the time of one lookup in the DHT."""
        await trio.sleep(self._lookup_s)

    def pipe(self, sender: PeerId, receiver: PeerId) -> _Pipe:
        """Return a new direction of a stream."""
        pipe = _Pipe(self, sender, receiver)
        self._pipes.add(pipe)
        return pipe

    def provide(self, key: bytes, host: MemoryHost) -> None:
        """Keep a provider record."""
        self._providers.setdefault(key, {})[host.peer] = host.addrs()

    def providers(self, key: bytes) -> list[PeerAddrs]:
        """Return the provider records of `key`, dead peers included, the oldest first."""
        return [PeerAddrs(peer, addrs) for peer, addrs in self._providers.get(key, {}).items()]


class _Pipe:
    """One direction of a stream: at most WINDOW_BYTES under way, each piece after its link's delay."""

    def __init__(self, network: MemoryNetwork, sender: PeerId, receiver: PeerId) -> None:
        self.closed_by_sender = self.closed_by_receiver = self.reset = False
        self._network, self._sender, self._receiver = network, sender, receiver
        self._pieces: deque[tuple[float, memoryview]] = deque()
        self._bytes = 0
        self._news = trio.Event()

    def wake(self) -> None:
        """Let both ends look again."""
        self._news.set()
        self._news = trio.Event()

    async def send_some(self, data: bytes) -> int:
        """Take some of `data` in, as soon as there is room and no partition."""
        await trio.lowlevel.checkpoint()
        while not (error := self._cannot_send()) and (self._bytes >= WINDOW_BYTES or self._link().partitioned):
            await self._news.wait()
        if error:
            raise error
        link = self._link()
        if self._network.drops(link):
            self.reset = True
            self.wake()
            raise OSError("reset by the network")
        piece = data[: WINDOW_BYTES - self._bytes]
        self._pieces.append((trio.current_time() + link.delay_s, memoryview(piece)))
        self._bytes += len(piece)
        self.wake()
        return len(piece)

    def _link(self) -> Link:
        return self._network.link(self._sender, self._receiver)

    def _cannot_send(self) -> OSError | None:
        if self.closed_by_sender:
            return closed_error()
        if self.closed_by_receiver or self.reset:
            return BrokenPipeError("closed by the remote")
        return None

    async def receive_into(self, buffer: memoryview) -> int:
        """Put what has arrived into `buffer`; 0 once the sender has closed and all is read."""
        await trio.lowlevel.checkpoint()
        while not self.closed_by_receiver:
            due = self._pieces[0][0] if self._pieces else math.inf
            if self._link().partitioned:
                due = math.inf
            elif self.reset or (self.closed_by_sender and not self._pieces):
                return 0  # p2pd shows a reset as an ordinary end, too
            elif due <= trio.current_time():
                return self._take(buffer)
            news = self._news
            with trio.move_on_at(due):
                await news.wait()
        raise closed_error()

    def _take(self, buffer: memoryview) -> int:
        due, piece = self._pieces.popleft()
        count = min(len(buffer), len(piece))
        buffer[:count] = piece[:count]
        if count < len(piece):
            self._pieces.appendleft((due, piece[count:]))
        self._bytes -= count
        self.wake()
        return count


class _End:
    """One end of a stream: a `Transport` over the two pipes."""

    def __init__(self, inward: _Pipe, outward: _Pipe) -> None:
        self._inward, self._outward = inward, outward

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Transport`."""
        return await self._inward.receive_into(buffer)

    async def send_some(self, head: bytes, data: memoryview) -> int:
        """See `Transport`."""
        return await self._outward.send_some(head + bytes(data[:WINDOW_BYTES]))

    @property
    def closed(self) -> bool:
        """Whether this end is closed."""
        return self._outward.closed_by_sender

    def reset(self) -> None:
        """Break the stream at both ends."""
        self._inward.reset = self._outward.reset = True
        self._inward.wake()
        self._outward.wake()

    def close(self) -> None:
        """See `Transport`."""
        self._inward.closed_by_receiver = self._outward.closed_by_sender = True
        self._inward.wake()
        self._outward.wake()


class MemoryHost:
    """A host in memory; see `p2pnet.net.host.Host`."""

    def __init__(
        self, network: MemoryNetwork, peer: PeerId, addr: str, reception: Reception, nursery: trio.Nursery
    ) -> None:
        """Use `MemoryNetwork.host`."""
        self.peer: Final = peer
        self.traffic: Final = Traffic()
        self.reception: Final = reception
        self.tags: dict[PeerId, int] = {}
        self._network, self._addr, self._nursery = network, addr, nursery
        self._known: dict[PeerId, tuple[str, ...]] = {}
        self._connections: dict[PeerId, list[_End]] = {}

    def addrs(self) -> tuple[str, ...]:
        """See `Host`."""
        return (self._addr,)

    async def connect(self, peer: PeerId, addrs: Sequence[str], timeout_s: float) -> None:
        """See `Host`."""
        if peer == self.peer:
            raise ValueError("a host does not connect to itself")
        with deadline(timeout_s, f"connecting to {peer_id_text(peer)}"):
            if peer in self._connections:
                await trio.lowlevel.checkpoint()
                return
            remote = self._network.find(peer)
            if not addrs and (found := await self._look_up(peer)):
                addrs = found.addrs
            await self._network.cross(self.peer, peer)
            if remote is None or not set(addrs) & set(remote.addrs()):
                raise NetworkError(
                    f"connecting to {peer_id_text(peer)}: nobody answers at {', '.join(addrs) or 'no address'}"
                )
            self._known[peer] = remote.addrs()
            self._connections.setdefault(peer, [])
            remote._connections.setdefault(self.peer, [])
            remote._known[self.peer] = self.addrs()

    async def disconnect(self, peer: PeerId) -> None:
        """See `Host`."""
        await trio.lowlevel.checkpoint()
        self._drop(peer)

    async def open_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> FramedStream:
        """See `Host`."""
        check_protocol(protocol)
        with deadline(timeout_s, f"opening {protocol} to {peer_id_text(peer)}"):
            await self.connect(peer, self._known.get(peer, ()), timeout_s)
            await self._network.cross(self.peer, peer)
            remote = self._network.find(peer)
            if remote is None or peer not in self._connections:
                raise NetworkError(f"opening {protocol} to {peer_id_text(peer)}: the connection is gone")
            if protocol not in remote.reception.protocols:
                raise NetworkError(f"opening {protocol} to {peer_id_text(peer)}: protocols not supported")
            return self._pair(remote, protocol)

    async def handle(self, protocol: str, handler: Handler, concurrency_per_peer: int = 8) -> None:
        """See `Host`."""
        await trio.lowlevel.checkpoint()
        self.reception.add(protocol, handler, concurrency_per_peer)

    async def request(self, peer: PeerId, protocol: str, body: bytes, timeout_s: float, answer_bytes_max: int) -> bytes:
        """See `Host`."""
        return await exchange(self, peer, protocol, body, timeout_s, answer_bytes_max)

    async def provide(self, key: bytes, timeout_s: float = 30.0) -> None:
        """See `Host`; like kad-dht it needs somebody to tell."""
        check_key(key)
        with deadline(timeout_s, "providing in the DHT"):
            await self._network.look_up()
            if not self._reachable():
                raise NetworkError("providing in the DHT: no other peer is known")
            self._network.provide(key, self)

    async def find_providers(self, key: bytes, count: int, timeout_s: float) -> list[PeerAddrs]:
        """See `Host`."""
        check_key(key)
        found: list[PeerAddrs] = []
        with trio.move_on_after(timeout_s):
            await self._network.look_up()
            if self._reachable():
                found = [record for record in self._network.providers(key) if record.peer != self.peer]
        return found[:count]

    async def find_peer(self, peer: PeerId, timeout_s: float) -> PeerAddrs | None:
        """See `Host`."""
        with trio.move_on_after(timeout_s) as scope:
            found = await self._look_up(peer)
        return None if scope.cancelled_caught else found

    async def connected(self) -> list[PeerAddrs]:
        """See `Host`."""
        await trio.lowlevel.checkpoint()
        return [PeerAddrs(peer, self._known[peer]) for peer in self._connections]

    async def tag(self, peer: PeerId, weight: int) -> None:
        """See `Host`."""
        await trio.lowlevel.checkpoint()
        self.tags[peer] = weight

    def drop_connections(self) -> None:
        """Lose every connection, as when the daemon dies; handlers stay."""
        for peer in tuple(self._connections):
            self._drop(peer)

    def _drop(self, peer: PeerId) -> None:
        for end in self._connections.pop(peer, []):
            end.reset()
        if remote := self._network.find(peer):
            for end in remote._connections.pop(self.peer, []):
                end.reset()

    def _reachable(self) -> bool:
        return any(not self._network.link(self.peer, peer).partitioned for peer in self._connections)

    async def _look_up(self, peer: PeerId) -> PeerAddrs | None:
        await self._network.look_up()
        remote = self._network.find(peer)
        return PeerAddrs(peer, remote.addrs()) if remote and self._reachable() else None

    def _pair(self, remote: MemoryHost, protocol: str) -> FramedStream:
        there, back = self._network.pipe(self.peer, remote.peer), self._network.pipe(remote.peer, self.peer)
        here, far = _End(back, there), _End(there, back)
        self._keep(remote.peer, here)
        remote._keep(self.peer, far)
        outbound = FramedStream(here, remote.peer, protocol, self.traffic)
        if remote.reception.admits(self.peer, protocol):
            first_frame_s = remote.reception.limits.first_frame_s
            inbound = FramedStream(far, self.peer, protocol, remote.traffic, first_frame_s)
            remote._nursery.start_soon(remote.reception.serve, inbound)
        else:
            far.close()
        return outbound

    def _keep(self, peer: PeerId, end: _End) -> None:
        self._connections[peer] = [*(old for old in self._connections[peer] if not old.closed), end]


if TYPE_CHECKING:
    _is_a_host: type[Host] = MemoryHost
