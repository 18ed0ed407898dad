from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, Count, Message, Size, decode, encode, pack, unpack
from tests import independent
from tests.wire.example import MESSAGES, Note, Ping

pings = st.builds(Ping, st.binary(min_size=8, max_size=8), st.integers(0, 2**40))
texts = st.text(max_size=64).filter(lambda text: len(text.encode()) <= 64)
notes = st.builds(
    Note,
    texts,
    st.lists(st.binary(min_size=32, max_size=32), max_size=4).map(tuple),
    st.integers(-(2**31), 2**31 - 1),
    pings,
    st.lists(pings, max_size=3).map(tuple),
)
plain = st.recursive(
    st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=300),
    lambda items: st.lists(items, max_size=20),
    max_leaves=30,
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=9)
    | st.text(max_size=9),
    lambda items: st.lists(items, max_size=4) | st.dictionaries(st.text(max_size=2), items, max_size=2),
    max_leaves=12,
)


@given(pings | notes)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(MESSAGES, encode(message)) == message


@given(plain)
def test_the_encoding_is_the_one_of_the_specification(value: Any) -> None:
    assert pack(value) == independent.msgpack(value)


@pytest.mark.parametrize("length", [0, 15, 16, 31, 32, 255, 256, 65535, 65536])
def test_headers_change_size_where_the_specification_says(length: int) -> None:
    for value in (bytes(length), "t" * length, [0] * length):
        assert pack(value) == independent.msgpack(value)
        assert unpack(pack(value), MESSAGE_BYTES_MAX) == value


@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_with_one_encoding_or_refused(data: bytes) -> None:
    check(data)


@given(notes | pings, st.data())
def test_a_damaged_message_is_another_one_or_refused(message: Message, draw: st.DataObject) -> None:
    data = bytearray(encode(message))
    for _ in range(draw.draw(st.integers(1, 3))):
        where = draw.draw(st.integers(0, len(data)))
        data[where : where + draw.draw(st.integers(0, 2))] = draw.draw(st.binary(max_size=2))
    check(bytes(data))


@given(anything)
def test_anything_msgpack_can_say_is_a_message_or_refused(value: object) -> None:
    import msgpack

    check(msgpack.packb(value, use_bin_type=True))
    check(msgpack.packb([1, value, value], use_bin_type=True))


def check(data: bytes) -> None:
    try:
        message = decode(MESSAGES, data)
    except WireError as error:
        rule = error.rule
    else:
        assert encode(message) == data
        rule = "wire-1/R1"
    assert rule in {f"wire-1/R{number}" for number in range(1, 5)}


def test_the_size_is_checked_before_anything_else() -> None:
    with pytest.raises(WireError, match="wire-1/R1: 1048577 bytes, at most 1048576"):
        decode(MESSAGES, bytes(MESSAGE_BYTES_MAX + 1))
    with pytest.raises(WireError, match="at most 20"):
        decode(MESSAGES, encode(Ping(bytes(8), 2**40)) + bytes(10), bytes_max=20)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\x7f\xff\xff\xff",  # a list of two thousand million items that are not there
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdd\x00\x0f\xff\x00" * 200_000,  # each list claims as many items as bytes could follow
        b"\x91" * MESSAGE_BYTES_MAX,
        b"\xdd\x00\x0f\xff\xfb" + b"\x90" * (MESSAGE_BYTES_MAX - 5),  # a million empty lists
    ],
    ids=["list", "bytes", "text", "lists", "depth", "empty lists"],
)
def test_a_frame_costs_no_more_than_its_size_warrants(data: bytes) -> None:
    start_s = time.thread_time()  # of this thread's own work: what else the machine does is not the frame's cost
    with pytest.raises(WireError):
        decode(MESSAGES, data[:MESSAGE_BYTES_MAX])
    spent_s = time.thread_time() - start_s
    assert spent_s < 5.0  # a fifth of a second, half a one beside others; work that grows with the square takes hours
    tracemalloc.start()  # by itself, as it makes everything slower
    with pytest.raises(WireError):
        decode(MESSAGES, data[:MESSAGE_BYTES_MAX])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 150 << 20, f"{peak_bytes >> 20} MiB"


@pytest.mark.parametrize(
    "message",
    [
        Ping(bytes(7), 0),
        Ping(bytes(8), -1),
        Ping(bytes(8), True),  # type: ignore[arg-type]
        Ping(bytes(8), 2**40 + 1),
        Ping(bytearray(8), 0),  # type: ignore[arg-type]
        Note("t" * 65, (), 0, Ping(bytes(8), 0), ()),
        Note("\ud800", (), 0, Ping(bytes(8), 0), ()),
        Note("", (bytes(32),) * 5, 0, Ping(bytes(8), 0), ()),
        Note("", (), 0, Ping(bytes(9), 0), ()),  # inside a nested message too
        Note("", (), 0, Ping(bytes(8), 0), (Ping(bytes(8), -1),)),
    ],
)
def test_we_never_send_what_every_receiver_refuses(message: Message) -> None:
    with pytest.raises(ValueError, match="wire-1|surrogates"):
        encode(message)


def test_a_field_without_a_limit_is_a_mistake_found_at_once() -> None:
    @dataclass(frozen=True, slots=True)
    class Unlimited(Message):
        protocol, kind = "example/1", 9
        data: bytes

    with pytest.raises(TypeError, match="needs a limit"):
        encode(Unlimited(b""))


def test_a_peer_is_a_field_of_32_bytes() -> None:
    with pytest.raises(ValueError, match="32"):
        encode(Introduction(PeerId(bytes(31)), ()))
    message = Introduction(PeerId(bytes(32)), (PeerId(b"\x01" * 32),))
    assert decode((Introduction,), encode(message)) == message


@dataclass(frozen=True, slots=True)
class Introduction(Message):
    protocol, kind = "example/1", 3
    peer: PeerId
    friends: Annotated[tuple[Annotated[PeerId, Size(32)], ...], Count(0, 2)]
