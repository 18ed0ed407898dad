"""The messages of the libp2p daemon's control protocol, protobuf written and read by hand; pure.

A dozen messages do not deserve generated code, nor the protobuf package's version in every environment. Field numbers
are those of p2pd.proto in go-libp2p-daemon 0.5. What comes from the daemon is checked like any foreign bytes: parts of
it are what strangers told the daemon.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnet.identity import PeerId, to_libp2p

MESSAGE_BYTES_MAX: Final = 1 << 20  # a list of 5,000 connections; the daemon's own limit is 4 MiB
VARINT_BYTES_MAX: Final = 10

# Request.Type
IDENTIFY: Final = 0
CONNECT: Final = 1
STREAM_OPEN: Final = 2
STREAM_HANDLER: Final = 3
DHT: Final = 4
LIST_PEERS: Final = 5
CONNMANAGER: Final = 6
DISCONNECT: Final = 7
PERSISTENT_CONN_UPGRADE: Final = 9

# DHTRequest.Type
FIND_PEER: Final = 0
FIND_PROVIDERS: Final = 2
GET_CLOSEST_PEERS: Final = 3
PROVIDE: Final = 8

# DHTResponse.Type
DHT_BEGIN: Final = 0
DHT_VALUE: Final = 1
DHT_END: Final = 2

_UNIX_CODE: Final = 400  # multicodec of /unix
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types


class MalformedError(ValueError):
    """Bytes from the daemon that are none of its messages."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer as the daemon names it: libp2p id and multiaddrs, both in binary, neither checked."""

    id: bytes
    addrs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What comes first on a stream: who is at the other end, and for which protocol."""

    peer: bytes
    addr: bytes
    protocol: str


@dataclass(frozen=True, slots=True)
class DhtAnswer:
    """One of the answers to a DHT request: kind is DHT_BEGIN, DHT_VALUE or DHT_END."""

    kind: int
    peer: PeerInfo | None = None
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """The daemon's answer; `error` is None when it did what it was asked."""

    error: str | None
    stream: StreamInfo | None = None
    identity: PeerInfo | None = None
    dht: DhtAnswer | None = None
    peers: tuple[PeerInfo, ...] = ()


def encode_varint(value: int) -> bytes:
    """Return protobuf's varint of a non-negative integer."""
    if value < 0:
        raise ValueError(f"only non-negative integers are sent, not {value}")
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    out.append(value)
    return bytes(out)


def unix_multiaddr(path: str) -> bytes:
    """Return the binary multiaddr of a socket's absolute path.

    Written by hand, since py-multiaddr 0.2 drops the leading slash, and the daemon then looks in its own directory.
    """
    if not path.startswith("/"):
        raise ValueError(f"a socket's path is absolute: {path!r}")
    return encode_varint(_UNIX_CODE) + _delimited(path.encode())


def cid_of(key: bytes) -> bytes:
    """Return the CIDv1 (raw, sha2-256) whose digest is `key`, 32 bytes."""
    if len(key) != 32:
        raise ValueError(f"a key of the DHT has 32 bytes, not {len(key)}")
    return bytes((0x01, 0x55, 0x12, 0x20)) + key


def identify() -> bytes:
    """Return the request for the daemon's peer id and addresses."""
    return _request(IDENTIFY)


def list_peers() -> bytes:
    """Return the request for all connections."""
    return _request(LIST_PEERS)


def upgrade() -> bytes:
    """Return the request that makes a connection persistent; the daemon ends when the last such one closes."""
    return _request(PERSISTENT_CONN_UPGRADE)


def connect(peer: PeerId, addrs: Sequence[bytes], timeout_s: int) -> bytes:
    """Return the request to connect; without addresses the daemon looks the peer up."""
    return _request(CONNECT, 2, _data(1, to_libp2p(peer)), *(_data(2, addr) for addr in addrs), _number(3, timeout_s))


def disconnect(peer: PeerId) -> bytes:
    """Return the request to close all connections to a peer."""
    return _request(DISCONNECT, 7, _data(1, to_libp2p(peer)))


def stream_open(peer: PeerId, protocol: str, timeout_s: int) -> bytes:
    """Return the request to open a stream; after the answer the connection is the stream."""
    return _request(STREAM_OPEN, 3, _data(1, to_libp2p(peer)), _data(2, protocol.encode()), _number(3, timeout_s))


def stream_handler(socket_path: str, protocols: Sequence[str]) -> bytes:
    """Return the request to bring inbound streams of `protocols` to a unix socket."""
    names = (_data(2, protocol.encode()) for protocol in protocols)
    return _request(STREAM_HANDLER, 4, _data(1, unix_multiaddr(socket_path)), *names, _number(3, 0))


def find_peer(peer: PeerId, timeout_s: int) -> bytes:
    """Return the request to look a peer up in the DHT."""
    return _dht(FIND_PEER, _data(2, to_libp2p(peer)), _number(7, timeout_s))


def find_providers(key: bytes, count: int, timeout_s: int) -> bytes:
    """Return the request for up to `count` providers of `key`; many answers follow."""
    return _dht(FIND_PROVIDERS, _data(3, cid_of(key)), _number(6, count), _number(7, timeout_s))


def provide(key: bytes, timeout_s: int) -> bytes:
    """Return the request to announce oneself as a provider of `key`."""
    return _dht(PROVIDE, _data(3, cid_of(key)), _number(7, timeout_s))


def closest_peers(key: bytes, timeout_s: int) -> bytes:
    """Return the request for the ids nearest to `key`; many answers follow."""
    return _dht(GET_CLOSEST_PEERS, _data(4, key), _number(7, timeout_s))


def tag_peer(peer: PeerId, tag: str, weight: int) -> bytes:
    """Return the request to make a connection dearer to the connection manager."""
    return _request(
        CONNMANAGER, 6, _number(1, 0), _data(2, to_libp2p(peer)), _data(3, tag.encode()), _number(4, weight)
    )


def untag_peer(peer: PeerId, tag: str) -> bytes:
    """Return the request to take a tag back."""
    return _request(CONNMANAGER, 6, _number(1, 1), _data(2, to_libp2p(peer)), _data(3, tag.encode()))


def delimit(message: bytes) -> bytes:
    """Return the message behind its length, as it goes over the control socket."""
    return _delimited(message)


def parse_response(data: bytes) -> Response:
    """Read a Response; raises `MalformedError`."""
    kind, error, stream, identity, dht, peers = -1, "", None, None, None, []
    for number, value in _fields(data):
        match number:
            case 1:
                kind = _as_int(value)
            case 2:
                error = "; ".join(_text(part) for field, part in _fields(_as_bytes(value)) if field == 1)
            case 3:
                stream = parse_stream_info(_as_bytes(value))
            case 4:
                identity = _parse_peer(_as_bytes(value))
            case 5:
                dht = parse_dht(_as_bytes(value))
            case 6:
                peers.append(_parse_peer(_as_bytes(value)))
    if kind not in (0, 1):
        raise MalformedError(f"a response of type {kind}")
    return Response((error or "no reason given") if kind == 1 else None, stream, identity, dht, tuple(peers))


def parse_stream_info(data: bytes) -> StreamInfo:
    """Read a StreamInfo; raises `MalformedError`."""
    fields = dict(_fields(data))
    return StreamInfo(_as_bytes(fields.get(1)), _as_bytes(fields.get(2)), _text(fields.get(3)))


def parse_dht(data: bytes) -> DhtAnswer:
    """Read a DHTResponse; raises `MalformedError`."""
    fields = dict(_fields(data))
    peer = _parse_peer(_as_bytes(fields[2])) if 2 in fields else None
    return DhtAnswer(_as_int(fields.get(1)), peer, _as_bytes(fields.get(3, b"")))


def _parse_peer(data: bytes) -> PeerInfo:
    fields = list(_fields(data))
    ids = [_as_bytes(value) for number, value in fields if number == 1]
    if len(ids) != 1:
        raise MalformedError(f"a peer with {len(ids)} ids")
    return PeerInfo(ids[0], tuple(_as_bytes(value) for number, value in fields if number == 2))


def _request(kind: int, field: int = 0, *parts: bytes) -> bytes:
    return _number(1, kind) + (_data(field, b"".join(parts)) if field else b"")


def _dht(kind: int, *parts: bytes) -> bytes:
    return _request(DHT, 5, _number(1, kind), *parts)


def _delimited(data: bytes) -> bytes:
    return encode_varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return encode_varint(field << 3 | _VARINT) + encode_varint(value)


def _data(field: int, value: bytes) -> bytes:
    return encode_varint(field << 3 | _BYTES) + _delimited(value)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of one message, unknown ones too."""
    position = 0
    while position < len(data):
        key, position = _varint_at(data, position)
        match key & 7:
            case 0:
                value, position = _varint_at(data, position)
                yield key >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, position = _varint_at(data, position)
            case 5:
                length = 4
            case other:
                raise MalformedError(f"wire type {other}")
        if length > len(data) - position:
            raise MalformedError(f"a field of {length} bytes where {len(data) - position} are left")
        yield key >> 3, data[position : position + length]
        position += length


def _varint_at(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[position : position + VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise MalformedError("a varint that does not end")


def _as_int(value: int | bytes | None) -> int:
    if not isinstance(value, int):
        raise MalformedError("a number is missing")
    return value


def _as_bytes(value: int | bytes | None) -> bytes:
    if not isinstance(value, bytes):
        raise MalformedError("bytes are missing")
    return value


def _text(value: int | bytes | None) -> str:
    return _as_bytes(value).decode("utf-8", "replace")
