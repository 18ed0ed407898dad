"""What the node needs of a network: `Host` and `Stream`. Two hosts exist: `libp2p` for real, `memory` for tests."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

import trio

from p2pnet.errors import NetworkError
from p2pnet.identity import PeerId, parse_peer_id, peer_id_text
from p2pnet.net.framing import Traffic

KEY_BYTES: Final = 32
PROTOCOL_PATTERN: Final = re.compile(r"/p2pnet/[a-z0-9-]+(/[A-Za-z0-9-]+)*/[0-9]+")
PROTOCOL_CHARS_MAX: Final = 200

Misbehaviour = Callable[[PeerId, str], None]
"""Told the peer and the rule that it broke, e.g. "frame-1/R2"."""


@dataclass(frozen=True, slots=True)
class PeerAddrs:
    """A peer and where it may be dialled: multiaddrs as text, without the /p2p/... suffix, perhaps none."""

    peer: PeerId
    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what others may make this host do. All are guesses, an order above what a round needs."""

    streams_max: int = 2048  # inbound streams open, over all peers
    streams_per_peer_max: int = 64  # inbound streams open, of one peer over all protocols
    first_frame_s: float = 10.0  # from an inbound stream's opening to the first byte of its first frame


class Stream(Protocol):
    """A conversation with one peer in whole frames; close it, or use it as `async with`."""

    @property
    def peer(self) -> PeerId:
        """Return who is at the other end, proved by the secure channel."""

    @property
    def protocol(self) -> str:
        """Return the protocol that the stream was opened for."""

    async def send_frame(self, data: bytes | bytearray | memoryview) -> None:
        """Send one frame; `NetworkError` when the stream is closed or breaks. Not to be cancelled in the middle."""

    async def receive_frame(self, bytes_max: int) -> bytes:
        """Return the next frame; safe to cancel, nothing is lost.

        Raises `PeerError` for an over-long frame or garbage (rules frame-1/R1..R4), `StreamClosedError` when the
        remote closed between two frames, any other `NetworkError` when the stream broke.
        """

    async def finish(self) -> None:
        """Wait (bounded) until the remote closes, then close: for who sent the last frame and gets no answer."""

    async def aclose(self) -> None:
        """Close both directions now; what the remote has not answered may be lost."""

    async def __aenter__(self) -> Self:
        """Return the stream."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream, also when cancelled."""


Handler = Callable[[Stream], Awaitable[None]]


class Host(Protocol):
    """One peer's place in the network. Everything that waits has a deadline and fails with `NetworkError`."""

    @property
    def peer(self) -> PeerId:
        """Return who this host is."""

    @property
    def traffic(self) -> Traffic:
        """Return the counters of this host's application streams."""

    def addrs(self) -> tuple[str, ...]:
        """Return where this host can be dialled, multiaddrs without the /p2p/... suffix."""

    async def connect(self, peer: PeerId, addrs: Sequence[str], timeout_s: float) -> None:
        """Connect to `peer` at any of `addrs` (none: look it up); at once when already connected."""

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`; streams to it break. Nothing happens when there is none.

        It does not keep either side from dialling again, and a daemon's DHT may do so at once.
        """

    async def open_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> Stream:
        """Open a stream, after connecting when that is needed and an address is known."""

    async def handle(self, protocol: str, handler: Handler, concurrency_per_peer: int = 8) -> None:
        """Let `handler` serve the streams that others open for `protocol`.

        A stream over the bound is reset. Protocol errors that the handler raises (`PeerError`, `WireError`) go to the
        misbehaviour callback, network errors to the log. When it returns, the stream lingers until the remote closes.
        Raises `ValueError` for a second handler of one protocol.
        """

    async def request(self, peer: PeerId, protocol: str, body: bytes, timeout_s: float, answer_bytes_max: int) -> bytes:
        """Send one frame on a stream of its own, return the frame that answers; one deadline over the whole."""

    async def provide(self, key: bytes, timeout_s: float = 30.0) -> None:
        """Tell the DHT that this host belongs to `key` (32 bytes)."""

    async def find_providers(self, key: bytes, count: int, timeout_s: float) -> list[PeerAddrs]:
        """Ask the DHT for up to `count` others that provided `key`: what came within the time, perhaps nothing."""

    async def find_peer(self, peer: PeerId, timeout_s: float) -> PeerAddrs | None:
        """Ask the DHT where `peer` is; None when nobody knows."""

    async def connected(self) -> list[PeerAddrs]:
        """Return the connected peers, each once, with the addresses of the connections."""

    async def tag(self, peer: PeerId, weight: int) -> None:
        """Say how dear the connection is when there are too many, higher is dearer; 0 is as dear as any stranger's."""


def check_key(key: bytes) -> None:
    """Raise `ValueError` unless `key` has 32 bytes."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key of the DHT has {KEY_BYTES} bytes, not {len(key)}")


def check_protocol(protocol: str) -> None:
    """Raise `ValueError` unless `protocol` looks like /p2pnet/<name>/<n>."""
    if len(protocol) > PROTOCOL_CHARS_MAX or not PROTOCOL_PATTERN.fullmatch(protocol):
        raise ValueError(f"a protocol is named /p2pnet/<name>/<number>, not {protocol!r}")


def split_addr(text: str) -> PeerAddrs:
    """Take "/ip4/.../tcp/4001/p2p/12D3KooW..." apart; `ValueError` when it does not end in a peer id."""
    addr, separator, name = text.rpartition("/p2p/")
    if not separator or not addr.startswith("/"):
        raise ValueError(f"a peer's full address ends in /p2p/<peer id>: {text[:200]!r}")
    return PeerAddrs(parse_peer_id(name), (addr,))


def join_addr(addr: str, peer: PeerId) -> str:
    """Return the full address, "<addr>/p2p/<peer id>"."""
    return f"{addr}/p2p/{peer_id_text(peer)}"


@contextmanager
def deadline(timeout_s: float, what: str) -> Iterator[None]:
    """Give the block `timeout_s`, then raise `NetworkError` that names `what` was being done."""
    with trio.move_on_after(timeout_s) as scope:
        yield
    if scope.cancelled_caught:
        raise NetworkError(f"{what}: nothing within {timeout_s:g} s")


@contextmanager
def bare_errors() -> Iterator[None]:
    """Raise an error that is alone in its group without the group, into which trio's nurseries put every error."""
    alone: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        alone = group
        while isinstance(alone, BaseExceptionGroup) and len(alone.exceptions) == 1:
            alone = alone.exceptions[0]
    if alone:
        raise alone  # here, where the group does not become its context


async def exchange(
    host: Host, peer: PeerId, protocol: str, body: bytes, timeout_s: float, answer_bytes_max: int
) -> bytes:
    """Do what `Host.request` promises, over any host's streams."""
    with deadline(timeout_s, f"{protocol} request to {peer_id_text(peer)}"):
        async with await host.open_stream(peer, protocol, timeout_s) as stream:
            await stream.send_frame(body)
            return await stream.receive_frame(answer_bytes_max)
