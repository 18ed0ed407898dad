"""Talk to the libp2p daemon over its control socket: one connection per request, one answer or a row of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from p2pnet.errors import NetworkError
from p2pnet.identity import PeerId, from_libp2p
from p2pnet.net import p2pd
from p2pnet.net.host import PeerAddrs, deadline
from p2pnet.net.sockets import UnixSocket

ANSWER_S: Final = 10.0  # guess: for requests that the daemon answers from memory
MESSAGE_PREFIX_BYTES_MAX: Final = 5
CLOSEST_MAX: Final = 64
ADDRS_MAX: Final = 32  # per peer; more is a stranger's nonsense
_TAG: Final = "p2pnet"

T = TypeVar("T")


class DaemonError(NetworkError):
    """The daemon said no; the message is its reason."""


class ControlError(NetworkError):
    """The control socket does not work: the daemon is gone, or what it sends is malformed."""


class Control:
    """The daemon's control socket. Every request has a deadline; a cancelled one leaves nothing behind here."""

    def __init__(self, path: Path) -> None:
        """path: of the daemon's socket."""
        self.path = path

    async def identify(self) -> PeerAddrs:
        """Return the daemon's peer and the addresses under which it believes to be reachable."""
        response = await self._ask(p2pd.identify(), ANSWER_S)
        if response.identity is None:
            raise ControlError("the daemon did not say who it is")
        try:
            return _peer_addrs(response.identity)
        except ValueError as error:
            raise ControlError(f"the daemon has an unusable identity: {error}") from error

    async def connect(self, peer: PeerId, addrs: Sequence[str], timeout_s: float) -> None:
        """Connect; `DaemonError` says why each address failed. `ValueError` for an address that is none."""
        binary = [addr_to_bytes(addr) for addr in addrs]
        await self._ask(p2pd.connect(peer, binary, _whole(timeout_s)), timeout_s)

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to `peer`."""
        await self._ask(p2pd.disconnect(peer), ANSWER_S)

    async def list_peers(self) -> list[PeerAddrs]:
        """Return the connected peers, each once; peers whose key is not Ed25519 are none of ours and left out."""
        response = await self._ask(p2pd.list_peers(), ANSWER_S)
        merged: dict[PeerId, dict[str, None]] = {}
        for found in _usable(response.peers):
            merged.setdefault(found.peer, {}).update(dict.fromkeys(found.addrs))
        return [PeerAddrs(peer, tuple(addrs)) for peer, addrs in merged.items()]

    async def tag(self, peer: PeerId, weight: int) -> None:
        """Tell the connection manager what the connection is worth; 0 forgets."""
        message = p2pd.tag_peer(peer, _TAG, weight) if weight > 0 else p2pd.untag_peer(peer, _TAG)
        await self._ask(message, ANSWER_S)

    async def open_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> UnixSocket:
        """Open a stream and return it; the caller closes it."""
        return await self._keep(p2pd.stream_open(peer, protocol, _whole(timeout_s)), timeout_s)

    async def hold(self, socket_path: Path, protocols: Sequence[str]) -> UnixSocket:
        """Register `protocols`; keep what is returned open, since p2pd may forget them with this connection."""
        return await self._keep(p2pd.stream_handler(str(socket_path), protocols), ANSWER_S)

    async def lifeline(self) -> UnixSocket:
        """Return a connection with which the daemon ends, and which ends with the daemon."""
        return await self._keep(p2pd.upgrade(), ANSWER_S)

    async def provide(self, key: bytes, timeout_s: float) -> None:
        """Announce ourselves as a provider of `key`."""
        await self._ask(p2pd.provide(key, _whole(timeout_s)), timeout_s)

    async def find_peer(self, peer: PeerId, timeout_s: float) -> PeerAddrs | None:
        """Look `peer` up; None when the DHT does not know it."""
        try:
            response = await self._ask(p2pd.find_peer(peer, _whole(timeout_s)), timeout_s)
        except DaemonError:
            return None
        found = response.dht.peer if response.dht else None
        return next(iter(_usable([found])), None) if found else None

    async def find_providers(
        self, key: bytes, count: int, timeout_s: float, found: Callable[[PeerAddrs], None]
    ) -> None:
        """Call `found` for each provider as it comes, at most `count` of them."""

        def take(answer: p2pd.DhtAnswer) -> None:
            for provider in _usable([answer.peer] if answer.peer else []):
                found(provider)

        await self._row(p2pd.find_providers(key, count, _whole(timeout_s)), timeout_s, count, take)

    async def closest_peers(self, key: bytes, timeout_s: float) -> list[PeerId]:
        """Return the peers nearest to `key` in the DHT, at most CLOSEST_MAX."""
        found: list[PeerId] = []

        def take(answer: p2pd.DhtAnswer) -> None:
            with suppress(ValueError):  # a peer with another kind of key: none of ours
                found.append(from_libp2p(answer.value))

        await self._row(p2pd.closest_peers(key, _whole(timeout_s)), timeout_s, CLOSEST_MAX, take)
        return found

    async def _ask(self, message: bytes, timeout_s: float) -> p2pd.Response:
        with deadline(timeout_s, "waiting for the daemon"):
            response, sock = await self._begin(message)
            sock.close()
            return response

    async def _keep(self, message: bytes, timeout_s: float) -> UnixSocket:
        """Ask, and return the connection, still open."""
        with deadline(timeout_s, "waiting for the daemon"):
            return (await self._begin(message))[1]

    async def _row(
        self, message: bytes, timeout_s: float, answers_max: int, take: Callable[[p2pd.DhtAnswer], None]
    ) -> None:
        with deadline(timeout_s, "waiting for the daemon"):
            _, sock = await self._begin(message)
            with sock:
                for _ in range(answers_max):
                    answer = _parse(p2pd.parse_dht, await receive_message(sock, p2pd.MESSAGE_BYTES_MAX))
                    if answer.kind == p2pd.DHT_END:
                        break
                    take(answer)

    async def _begin(self, message: bytes) -> tuple[p2pd.Response, UnixSocket]:
        """Send a request on a connection of its own, return the first answer and the connection."""
        try:
            sock = await UnixSocket.connect(self.path)
        except OSError as error:
            raise ControlError(f"the daemon does not listen: {error.strerror or error}") from error
        try:
            await _send(sock, p2pd.delimit(message))
            response = _parse(p2pd.parse_response, await receive_message(sock, p2pd.MESSAGE_BYTES_MAX))
            if response.error is not None:
                raise DaemonError(response.error)
        except BaseException:
            sock.close()
            raise
        return response, sock


async def receive_message(sock: UnixSocket, bytes_max: int) -> bytes:
    """Return one length-prefixed message and not a byte of what follows it, which may be a stream's.

    Raises `ControlError` at the end of the connection and above `bytes_max`, before anything is allocated.
    """
    length = 0
    for position in range(MESSAGE_PREFIX_BYTES_MAX):
        (byte,) = await _receive(sock, 1)
        length |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            if length > bytes_max:
                raise ControlError(f"the daemon sent a message of {length} bytes, {bytes_max} are allowed")
            return await _receive(sock, length)
    raise ControlError("the daemon sent a length that does not end")


def addr_to_bytes(text: str) -> bytes:
    """Return the binary form of a multiaddr; `ValueError` when it is none."""
    try:
        return bytes(Multiaddr(text).to_bytes())
    except (MultiaddrError, ValueError) as error:
        raise ValueError(f"not a multiaddr: {text[:200]!r}: {error}") from error


def addr_to_text(data: bytes) -> str:
    """Return the text form of a multiaddr; `ValueError` when it is none."""
    try:
        return str(Multiaddr(data))
    except (MultiaddrError, ValueError, TypeError, LookupError) as error:
        raise ValueError(f"not a multiaddr: {data[:100].hex()}: {error}") from error


async def _send(sock: UnixSocket, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[await sock.send_some(b"", rest) :]
    except OSError as error:
        raise ControlError(f"the daemon hung up: {error.strerror or error}") from error


async def _receive(sock: UnixSocket, count: int) -> bytes:
    data = bytearray(count)
    rest = memoryview(data)
    try:
        while rest:
            received = await sock.receive_into(rest)
            if received == 0:
                raise ControlError("the daemon hung up")
            rest = rest[received:]
    except OSError as error:
        raise ControlError(f"the daemon hung up: {error.strerror or error}") from error
    return bytes(data)


def _parse(parser: Callable[[bytes], T], data: bytes) -> T:
    try:
        return parser(data)
    except p2pd.MalformedError as error:
        raise ControlError(f"the daemon sent a malformed message: {error}") from error


def _peer_addrs(info: p2pd.PeerInfo) -> PeerAddrs:
    """Check a peer that the daemon names; addresses of kinds that we do not know are left out."""
    addrs: dict[str, None] = {}
    for data in info.addrs[:ADDRS_MAX]:
        with suppress(ValueError):
            addrs[addr_to_text(data)] = None
    return PeerAddrs(from_libp2p(info.id), tuple(addrs))


def _usable(infos: Iterable[p2pd.PeerInfo]) -> Iterator[PeerAddrs]:
    for info in infos:
        with suppress(ValueError):
            yield _peer_addrs(info)


def _whole(timeout_s: float) -> int:
    """Return whole seconds, which is what the daemon counts in, less than ours, so that its reason comes in time."""
    return max(1, math.ceil(timeout_s) - 1)
