"""Frames on a byte stream: a minimal varint length, then the bytes; limits come before allocation. Rules: frame-1.

R1 [REJECT] the length is an unsigned varint of at most 4 bytes in its shortest form
R2 [REJECT] the length is at most what the receiver of this message allows
R3 [REJECT] who opens a stream begins its first frame within the receiver's `first_frame_s`
R4 [REJECT] a frame that has begun goes on: no gap longer than the receiver's `stall_s`
"""

from __future__ import annotations

import errno
import io
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from p2pnet.errors import NetworkError, PeerError, WireError
from p2pnet.identity import PeerId, peer_id_text

PREFIX_BYTES_MAX: Final = 4
FRAME_BYTES_MAX: Final = (1 << 7 * PREFIX_BYTES_MAX) - 1  # 268,435,455
BUFFER_BYTES: Final = 16_384  # per stream, so small; measured: a larger one does not make small frames faster
STALL_S: Final = 30.0  # guess: three lost TCP retransmissions in a row stay below it
LINGER_S: Final = 60.0  # guess: what a slow reader may take for the last answer
_LINGER_BYTES_MAX: Final = 1 << 20


class StreamClosedError(NetworkError):
    """The remote closed the stream between two frames: the ordinary end of a conversation."""


class Transport(Protocol):
    """What frames travel on: a socket to the daemon, or a pipe in memory. Both methods raise `OSError` when broken."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes, put some into `buffer`, return how many; 0 at the end of the stream."""

    async def send_some(self, head: bytes, data: memoryview) -> int:
        """Wait for room, send some of `head` followed by `data`, return how many bytes of the two."""

    def close(self) -> None:
        """Close both directions; a task that waits in this transport gets an `OSError`. Idempotent."""


@dataclass(slots=True)
class Flow:
    """Application stream bytes, frame prefixes included, one way and the other; frames alike."""

    bytes_up: int = 0
    bytes_down: int = 0
    frames_up: int = 0
    frames_down: int = 0


@dataclass(slots=True)
class Traffic:
    """What a host has sent and received on its streams: in total and per protocol."""

    total: Flow = field(default_factory=Flow)
    by_protocol: dict[str, Flow] = field(default_factory=dict)  # bounded: protocols of ours, never the remote's word

    @property
    def bytes_up(self) -> int:
        """All bytes sent, the issue's `wire_bytes_up`."""
        return self.total.bytes_up

    @property
    def bytes_down(self) -> int:
        """All bytes received, the issue's `wire_bytes_down`."""
        return self.total.bytes_down

    def of(self, protocol: str) -> Flow:
        """Return the counter of one protocol, a new one when it is the first time."""
        return self.by_protocol.setdefault(protocol, Flow())


def encode_length(length: int) -> bytes:
    """Return the varint of a frame's length; `ValueError` above FRAME_BYTES_MAX."""
    if not 0 <= length <= FRAME_BYTES_MAX:
        raise ValueError(f"a frame has 0..{FRAME_BYTES_MAX} bytes, not {length}")
    prefix = bytearray()
    while length > 0x7F:
        prefix.append(0x80 | length & 0x7F)
        length >>= 7
    prefix.append(length)
    return bytes(prefix)


def decode_length(buffer: bytes | bytearray | memoryview) -> tuple[int, int] | None:
    """Return (length of the frame, bytes of the prefix); None when the prefix is not complete yet.

    Raises `WireError("frame-1/R1")` for a prefix of more than 4 bytes or one with a shorter form.
    """
    length = 0
    for position in range(min(len(buffer), PREFIX_BYTES_MAX)):
        byte = buffer[position]
        length |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            if byte == 0 and position > 0:
                raise WireError("frame-1/R1", "the length is not in its shortest form")
            return length, position + 1
    if len(buffer) >= PREFIX_BYTES_MAX:
        raise WireError("frame-1/R1", f"the length takes more than {PREFIX_BYTES_MAX} bytes")
    return None


class FramedStream:
    """One stream to one peer, a frame at a time; implements `p2pnet.net.host.Stream`.

    Receiving is safe to cancel: a frame that was half received goes on in the next call. Sending is not: a frame cut
    in the middle makes the stream useless, and it says so from then on.
    """

    def __init__(
        self, transport: Transport, peer: PeerId, protocol: str, traffic: Traffic, first_frame_s: float | None = None
    ) -> None:
        """first_frame_s: how long the remote may take to begin its first frame (None: as long as the caller waits)."""
        self.peer: Final = peer
        self.protocol: Final = protocol
        self._transport = transport
        self._flows = (traffic.total, traffic.of(protocol))
        self._first_frame_s = first_frame_s
        self._buffer = bytearray(BUFFER_BYTES)
        self._start = self._end = 0  # what lies in the buffer, unread
        self._body: io.BytesIO | None = None  # a frame larger than the buffer, being filled
        self._filled = 0
        self._send_lock = trio.Lock()
        self._broken = ""
        self._closed = False

    async def send_frame(self, data: bytes | bytearray | memoryview) -> None:
        """Send one frame; several tasks may send, frames stay whole.

        Raises `NetworkError` when the stream is closed or breaks, `ValueError` above FRAME_BYTES_MAX.
        """
        body = memoryview(data).cast("B")
        prefix = encode_length(len(body))
        async with self._send_lock:
            self._check_usable()
            total, sent = len(prefix) + len(body), 0
            try:
                while sent < total:
                    head = prefix[sent:]
                    sent += await self._transport.send_some(head, body[max(0, sent - len(prefix)) :])
            except OSError as error:
                self._broken = f"the stream broke: {error.strerror or error}"
                raise NetworkError(self._where(self._broken)) from error
            finally:
                if 0 < sent < total and not self._broken:
                    self._broken = "a frame was cut short by a cancellation"
                for flow in self._flows:
                    flow.bytes_up += sent
                    flow.frames_up += sent == total

    async def receive_frame(self, bytes_max: int) -> bytes:
        """Return the next frame of at most `bytes_max` bytes.

        Raises `PeerError` for a broken rule of frame-1, `StreamClosedError` when the remote closed between frames,
        any other `NetworkError` when the stream broke.
        """
        self._check_usable()
        with trio.CancelScope() as scope:
            if self._first_frame_s is not None and not self._begun():
                scope.deadline = trio.current_time() + self._first_frame_s
            frame = await self._next_frame(bytes_max, scope)
            self._first_frame_s = None
        if scope.cancelled_caught:
            raise self._too_late()
        return frame

    async def finish(self) -> None:
        """Wait until the remote has closed, then close: what was sent last arrives.

        p2pd resets a stream that is closed while the other side still reads, and yamux then drops what it has not
        read; there is no half-close. So who answers last waits, and who has its answer closes.
        """
        swallowed = 0
        with trio.move_on_after(LINGER_S):
            try:
                while swallowed < _LINGER_BYTES_MAX and not self._closed and not self._broken:
                    count = await self._transport.receive_into(memoryview(self._buffer))
                    if count == 0:
                        break
                    swallowed += count
            except OSError:
                pass  # gone: what we waited for
        await self.aclose()

    async def aclose(self) -> None:
        """Close both directions at once; frames that the remote has not answered may be lost."""
        self._closed = True
        self._transport.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> FramedStream:
        """Return the stream itself."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close without waiting, also when cancelled."""
        self._closed = True
        self._transport.close()

    def _begun(self) -> bool:
        return self._body is not None or self._end > self._start

    def _where(self, what: str) -> str:
        return f"{self.protocol} with {peer_id_text(self.peer)}: {what}"

    def _check_usable(self) -> None:
        if self._broken or self._closed:
            raise NetworkError(self._where(self._broken or "the stream is closed"))

    async def _next_frame(self, bytes_max: int, scope: trio.CancelScope) -> bytes:
        if self._body is None:
            length = await self._next_length(bytes_max, scope)
            if length <= BUFFER_BYTES - PREFIX_BYTES_MAX:
                return await self._small_frame(length, scope)
            # getbuffer and getvalue of a BytesIO share one block: the frame is received in place and never copied.
            self._body, self._filled = io.BytesIO(bytes(length)), self._end - self._start
            with self._body.getbuffer() as body:
                body[: self._filled] = memoryview(self._buffer)[self._start : self._end]
            self._start = self._end = 0
        with self._body.getbuffer() as body:
            while self._filled < len(body):
                self._filled += await self._receive(body[self._filled :], scope)
        frame, self._body = self._body.getvalue(), None
        self._count_frame()
        return frame

    async def _next_length(self, bytes_max: int, scope: trio.CancelScope) -> int:
        """Return the length of the next frame, its prefix taken out of the buffer."""
        while True:
            try:
                decoded = decode_length(memoryview(self._buffer)[self._start : self._end])
            except WireError as error:
                raise self._breach(error.rule, error.detail) from error
            if decoded is not None:
                length, prefix_bytes = decoded
                if length > bytes_max:
                    raise self._breach("frame-1/R2", f"a frame of {length} bytes where {bytes_max} are allowed")
                # Taken out together with the body, in `_small_frame`, so that a cancelled call loses nothing.
                if length > BUFFER_BYTES - PREFIX_BYTES_MAX:
                    self._start += prefix_bytes
                return length
            await self._fill(scope)

    async def _small_frame(self, length: int, scope: trio.CancelScope) -> bytes:
        prefix_bytes = len(encode_length(length))
        while self._end - self._start < prefix_bytes + length:
            await self._fill(scope)
        begin = self._start + prefix_bytes
        self._start = begin + length
        frame = bytes(memoryview(self._buffer)[begin : self._start])
        self._count_frame()
        return frame

    async def _fill(self, scope: trio.CancelScope) -> None:
        """Receive into the buffer behind what it holds; a whole small frame always has room."""
        if self._start:
            self._buffer[: self._end - self._start] = self._buffer[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
        self._end += await self._receive(memoryview(self._buffer)[self._end :], scope)

    async def _receive(self, buffer: memoryview, scope: trio.CancelScope) -> int:
        if self._begun():
            scope.deadline = trio.current_time() + STALL_S
        try:
            count = await self._transport.receive_into(buffer)
        except OSError as error:
            self._broken = f"the stream broke: {error.strerror or error}"
            raise NetworkError(self._where(self._broken)) from error
        if count == 0:
            self._broken = "closed by the remote"
            if self._begun():
                raise NetworkError(self._where("closed by the remote inside a frame"))
            raise StreamClosedError(self._where(self._broken))
        for flow in self._flows:
            flow.bytes_down += count
        return count

    def _count_frame(self) -> None:
        for flow in self._flows:
            flow.frames_down += 1

    def _too_late(self) -> PeerError:
        if self._begun():
            return self._breach("frame-1/R4", f"nothing for {STALL_S:g} s inside a frame")
        return self._breach("frame-1/R3", f"opened a stream and sent nothing for {self._first_frame_s:g} s")

    def _breach(self, rule: str, detail: str) -> PeerError:
        self._broken = f"broke {rule}"  # what follows cannot be told apart from garbage
        return PeerError(self.peer, rule, detail)


def closed_error() -> OSError:
    """Return what a transport raises when used after, or while, it is closed."""
    return OSError(errno.EBADF, "closed by us")
