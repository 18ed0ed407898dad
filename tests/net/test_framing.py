from __future__ import annotations

import math
from collections import deque
from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.errors import NetworkError, PeerError, WireError
from p2pnet.identity import Identity
from p2pnet.net.framing import (
    BUFFER_BYTES,
    FRAME_BYTES_MAX,
    STALL_S,
    FramedStream,
    StreamClosedError,
    Traffic,
    decode_length,
    encode_length,
)

PEER = Identity.from_seed(b"\7" * 32).peer


class Tape:
    """A transport that plays pieces to the receiver and writes down what is sent."""

    def __init__(self, *pieces: bytes, then_wait: bool = False, send_max: int = 1 << 30) -> None:
        self.pieces = deque(pieces)
        self.sent = bytearray()
        self.then_wait, self.send_max = then_wait, send_max
        self.largest_buffer = 0
        self.closed = False

    async def receive_into(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        self.largest_buffer = max(self.largest_buffer, len(buffer))
        if not self.pieces:
            if self.then_wait:
                await trio.sleep(math.inf)
            return 0
        piece = self.pieces.popleft()
        count = min(len(piece), len(buffer))
        buffer[:count] = piece[:count]
        if piece[count:]:
            self.pieces.appendleft(piece[count:])
        return count

    async def send_some(self, head: bytes, data: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        some = (head + bytes(data))[: self.send_max]
        self.sent += some
        return len(some)

    def close(self) -> None:
        self.closed = True


def stream_of(tape: Tape, first_frame_s: float | None = None) -> FramedStream:
    return FramedStream(tape, PEER, "/p2pnet/test/1", Traffic(), first_frame_s)


@given(st.integers(0, FRAME_BYTES_MAX), st.binary(max_size=3))
def test_a_length_comes_back_from_its_shortest_prefix(length: int, after: bytes) -> None:
    prefix = encode_length(length)
    assert decode_length(prefix + after) == (length, len(prefix))
    assert all(decode_length(prefix[:cut]) is None for cut in range(len(prefix)))


@given(st.binary(max_size=8))
def test_every_prefix_that_is_accepted_is_the_one_we_would_write(data: bytes) -> None:
    with suppress(WireError):
        decoded = decode_length(data)
        assert decoded is None or data.startswith(encode_length(decoded[0]))


@pytest.mark.parametrize("length", [-1, FRAME_BYTES_MAX + 1])
def test_a_frame_that_no_prefix_can_name_is_our_own_mistake(length: int) -> None:
    with pytest.raises(ValueError, match="a frame has"):
        encode_length(length)


SIZES = [0, 1, 127, 128, BUFFER_BYTES - 5, BUFFER_BYTES - 4, BUFFER_BYTES - 3, BUFFER_BYTES, 3 * BUFFER_BYTES + 1]


@pytest.mark.parametrize("piece_bytes", [11, 1000, BUFFER_BYTES, 1 << 20])
async def test_frames_come_back_whatever_pieces_the_network_makes_of_them(piece_bytes: int) -> None:
    frames = [bytes([size % 251]) * size for size in SIZES]
    out = Tape(send_max=piece_bytes)
    async with stream_of(out) as sender:
        for frame in frames:
            await sender.send_frame(memoryview(frame))
    data = bytes(out.sent)
    tape = Tape(*(data[begin : begin + piece_bytes] for begin in range(0, len(data), piece_bytes)))
    receiver = stream_of(tape)
    assert [await receiver.receive_frame(1 << 20) for _ in frames] == frames
    with pytest.raises(StreamClosedError):
        await receiver.receive_frame(1 << 20)


async def test_the_counters_hold_every_byte_of_frames_and_prefixes() -> None:
    traffic, tape = Traffic(), Tape(b"\x03abc\x80\x01" + b"x" * 128)
    stream = FramedStream(tape, PEER, "/p2pnet/test/1", traffic)
    await stream.send_frame(b"y" * 300)
    await stream.receive_frame(3)
    await stream.receive_frame(128)
    assert (traffic.bytes_up, traffic.bytes_down) == (302, 134)
    assert (traffic.total.frames_up, traffic.total.frames_down) == (1, 2)
    assert traffic.by_protocol == {"/p2pnet/test/1": traffic.total}


async def test_an_over_long_frame_is_refused_before_anything_is_allocated() -> None:
    tape = Tape(encode_length(200 << 20))
    with pytest.raises(PeerError, match="frame-1/R2") as caught:
        await stream_of(tape).receive_frame(100 << 20)
    assert caught.value.peer == PEER
    assert tape.largest_buffer <= BUFFER_BYTES


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff\x01", b"\x80\x00", b"\x81\x80\x80\x00"])
async def test_a_length_that_is_too_long_or_not_minimal_is_a_broken_rule(garbage: bytes) -> None:
    stream = stream_of(Tape(garbage))
    with pytest.raises(PeerError, match="frame-1/R1"):
        await stream.receive_frame(100)
    with pytest.raises(NetworkError, match="broke frame-1/R1"):  # what follows is not read
        await stream.receive_frame(100)


@pytest.mark.parametrize("cut", [b"\x80", b"\x05abc", encode_length(100_000) + b"abc"])
async def test_an_end_inside_a_frame_says_so(cut: bytes) -> None:
    with pytest.raises(NetworkError, match="inside a frame") as caught:
        await stream_of(Tape(cut)).receive_frame(100_000)
    assert not isinstance(caught.value, StreamClosedError)


async def test_a_stream_on_which_nothing_comes_is_a_broken_rule_for_who_opened_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = stream_of(Tape(then_wait=True), first_frame_s=10)
    with pytest.raises(PeerError, match="frame-1/R3"):
        await stream.receive_frame(100)
    assert trio.current_time() == pytest.approx(10)


async def test_after_its_first_frame_a_stream_may_be_idle(autojump_clock: trio.testing.MockClock) -> None:
    stream = stream_of(Tape(b"\x01a", then_wait=True), first_frame_s=10)
    await stream.receive_frame(1)
    with trio.move_on_after(1000) as scope:
        await stream.receive_frame(1)
    assert scope.cancelled_caught


@pytest.mark.parametrize("begun", [b"\x80", b"\x05abc", encode_length(100_000) + b"abc"])
async def test_a_frame_that_stops_in_the_middle_is_a_broken_rule(
    begun: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(PeerError, match="frame-1/R4"):
        await stream_of(Tape(begun, then_wait=True), first_frame_s=10).receive_frame(100_000)
    assert trio.current_time() == pytest.approx(STALL_S)


@pytest.mark.parametrize("size", [5, 100_000])
async def test_a_receive_that_is_cancelled_loses_nothing(size: int, autojump_clock: trio.testing.MockClock) -> None:
    data = encode_length(size) + b"z" * size
    tape = Tape(data[:-2], then_wait=True)
    stream = stream_of(tape)
    for _ in range(3):
        with trio.move_on_after(1) as scope:
            await stream.receive_frame(size)
        assert scope.cancelled_caught
    tape.pieces.append(data[-2:])
    assert await stream.receive_frame(size) == b"z" * size


async def test_a_send_that_is_cancelled_in_the_middle_spoils_the_stream() -> None:
    class Stuck(Tape):
        async def send_some(self, head: bytes, data: memoryview) -> int:
            if self.sent:
                await trio.sleep(math.inf)
            return await super().send_some(head, data)

    stream = stream_of(Stuck(send_max=3))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_frame, b"abcdef")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    with pytest.raises(NetworkError, match="cut short"):
        await stream.send_frame(b"abcdef")


async def test_two_senders_on_one_stream_do_not_mix_their_frames() -> None:
    tape = Tape(send_max=7)
    stream = stream_of(tape)
    async with trio.open_nursery() as nursery:
        for letter in b"ab":
            nursery.start_soon(stream.send_frame, bytes([letter]) * 50)
    assert sorted([bytes(tape.sent[:51]), bytes(tape.sent[51:])]) == [b"\x32" + b"a" * 50, b"\x32" + b"b" * 50]


async def test_leaving_the_block_closes_the_stream_and_further_use_is_an_error() -> None:
    tape = Tape()
    async with stream_of(tape) as stream:
        pass
    assert tape.closed
    with pytest.raises(NetworkError, match="closed"):
        await stream.send_frame(b"late")
