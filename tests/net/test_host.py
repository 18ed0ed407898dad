"""What both hosts promise: every test here runs in memory and on real daemons."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio

from p2pnet.errors import NetworkError, PeerError, WireError
from p2pnet.identity import Identity
from p2pnet.net.framing import StreamClosedError, encode_length
from p2pnet.net.host import Host, Limits, Stream

if TYPE_CHECKING:
    from conftest import World

ECHO = "/p2pnet/echo/1"
TIMEOUT_S = 10.0
T = TypeVar("T")


async def echo(stream: Stream) -> None:
    """Send every frame back."""
    while True:
        try:
            frame = await stream.receive_frame(1 << 24)
        except StreamClosedError:
            return
        await stream.send_frame(frame)


async def until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Wait for what another task is about to do."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def in_the_dht(host: Host, action: Callable[[], Awaitable[T]]) -> T:
    """Do it as soon as the host has neighbours in the DHT: the daemon knows them a moment after it has connected."""
    with trio.fail_after(TIMEOUT_S):
        while True:
            with suppress(NetworkError):
                await host.provide(bytes(32))
                if outcome := await action():
                    return outcome
            await trio.sleep(0.01)


async def test_a_request_brings_the_answer_of_the_other_peer(world: World) -> None:
    here, there = await world.pair()

    async def answer(stream: Stream) -> None:
        assert stream.peer == here.peer
        await stream.send_frame(b"you said " + await stream.receive_frame(100))

    await there.handle(ECHO, answer)
    assert await here.request(there.peer, ECHO, b"hello", TIMEOUT_S, 100) == b"you said hello"


async def test_frames_of_every_size_cross_a_long_lived_stream_in_order(world: World) -> None:
    here, there = await world.pair()
    await there.handle(ECHO, echo)
    async with await here.open_stream(there.peer, ECHO, TIMEOUT_S) as stream:
        for size in (0, 1, 300, 70_000, 3_000_000, 2):
            body = hashlib.shake_128(bytes([size % 251])).digest(size)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_frame, body)
                assert await stream.receive_frame(1 << 24) == body


async def test_both_sides_count_the_same_bytes_headers_included(world: World) -> None:
    here, there = await world.pair()
    await there.handle(ECHO, echo)
    await here.request(there.peer, ECHO, b"x" * 200, TIMEOUT_S, 200)
    assert (here.traffic.bytes_up, here.traffic.bytes_down) == (202, 202)
    assert here.traffic.of(ECHO).bytes_up == 202
    await until(lambda: (there.traffic.bytes_up, there.traffic.bytes_down) == (202, 202))


async def test_connecting_makes_both_sides_connected_and_disconnecting_neither(world: World) -> None:
    here, there = await world.pair()
    assert [found.peer for found in await here.connected()] == [there.peer]
    assert [found.peer for found in await there.connected()] == [here.peer]
    await here.connect(there.peer, there.addrs(), TIMEOUT_S)
    with trio.fail_after(TIMEOUT_S):
        await here.disconnect(there.peer)
        while await here.connected():  # a daemon's DHT, at work on the peer it has just met, dials it once more
            await here.disconnect(there.peer)
    await here.disconnect(there.peer)


async def test_disconnecting_ends_the_streams_of_both_sides(world: World) -> None:
    here, there = await world.pair()
    ended = trio.Event()

    async def wait_for_the_end(stream: Stream) -> None:
        await stream.receive_frame(10)
        with pytest.raises(NetworkError):
            await stream.receive_frame(10)
        ended.set()

    await there.handle(ECHO, wait_for_the_end)
    async with await here.open_stream(there.peer, ECHO, TIMEOUT_S) as stream:
        await stream.send_frame(b"first")
        await until(lambda: there.traffic.bytes_down == 6)
        await there.disconnect(here.peer)
        with trio.fail_after(TIMEOUT_S), pytest.raises(NetworkError):
            await stream.receive_frame(10)
        with trio.fail_after(TIMEOUT_S):
            await ended.wait()


async def test_dialling_an_address_where_nobody_is_fails_with_the_reason(world: World) -> None:
    here = await world.host()
    stranger = Identity.generate().peer
    with pytest.raises(NetworkError, match="connecting to 12D3KooW"):
        await here.connect(stranger, ["/ip4/127.0.0.1/tcp/9"], 3)


async def test_dialling_somebody_elses_address_does_not_connect(world: World) -> None:
    here, there = await world.hosts(2)
    with pytest.raises(NetworkError):
        await here.connect(Identity.generate().peer, there.addrs(), 3)


async def test_a_protocol_that_the_other_does_not_speak_is_a_network_error(world: World) -> None:
    here, there = await world.pair()
    with pytest.raises(NetworkError, match="protocols not supported"):
        await here.open_stream(there.peer, "/p2pnet/other/1", TIMEOUT_S)


async def test_a_request_that_is_never_answered_ends_at_its_deadline(world: World) -> None:
    here, there = await world.pair()

    async def silent(stream: Stream) -> None:
        await trio.sleep(math.inf)

    await there.handle(ECHO, silent)
    begin = trio.current_time()
    with pytest.raises(NetworkError, match="nothing within"):
        await here.request(there.peer, ECHO, b"hello", 0.3, 100)
    assert trio.current_time() - begin < 2


async def test_an_answer_longer_than_allowed_is_the_remotes_fault(world: World) -> None:
    here, there = await world.pair()
    await there.handle(ECHO, echo)
    with pytest.raises(PeerError, match="frame-1/R2") as caught:
        await here.request(there.peer, ECHO, b"x" * 200, TIMEOUT_S, 199)
    assert caught.value.peer == there.peer


async def test_an_answer_and_the_close_right_after_it_arrive_in_that_order(world: World) -> None:
    here, there = await world.pair()

    async def answer_at_length(stream: Stream) -> None:
        await stream.receive_frame(10)
        await stream.send_frame(bytes(5_000_000))

    await there.handle(ECHO, answer_at_length)
    for _ in range(5):
        assert len(await here.request(there.peer, ECHO, b"go", TIMEOUT_S, 5_000_000)) == 5_000_000


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"\xff\xff\xff\xff\xff", "frame-1/R1"),
        (b"\x80\x00", "frame-1/R1"),
        (encode_length(1 << 25), "frame-1/R2"),
        (b"", "frame-1/R3"),
    ],
    ids=["garbage", "not-minimal", "over-long", "half-open"],
)
async def test_the_host_survives_hostile_bytes_and_names_the_broken_rule(world: World, raw: bytes, rule: str) -> None:
    here, there = await world.pair(Limits(first_frame_s=0.3))
    await there.handle(ECHO, echo)
    async with await here.open_stream(there.peer, ECHO, TIMEOUT_S) as stream:
        if raw:
            await stream._transport.send_some(raw, memoryview(b""))  # type: ignore[attr-defined]
        await until(lambda: world.misbehaviour)
        with trio.fail_after(TIMEOUT_S), pytest.raises(NetworkError):
            await stream.receive_frame(10)
    assert world.misbehaviour == [(here.peer, rule)]
    assert await here.request(there.peer, ECHO, b"still there?", TIMEOUT_S, 100) == b"still there?"


async def test_rules_that_a_handler_finds_broken_are_reported_whatever_wraps_them(world: World) -> None:
    here, there = await world.pair()

    async def picky(stream: Stream) -> None:
        frame = await stream.receive_frame(10)
        if frame == b"wire":
            raise WireError("test-1/R1", "not what I expected")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blame, stream)

    async def blame(stream: Stream) -> None:
        raise PeerError(stream.peer, "test-1/R2")

    await there.handle(ECHO, picky)
    for body in (b"wire", b"peer"):
        with pytest.raises(NetworkError):
            await here.request(there.peer, ECHO, body, TIMEOUT_S, 10)
    assert world.misbehaviour == [(here.peer, "test-1/R1"), (here.peer, "test-1/R2")]


async def test_streams_over_a_peers_bound_are_reset_and_those_within_it_go_on(world: World) -> None:
    here, there = await world.pair()
    await there.handle(ECHO, echo, concurrency_per_peer=2)
    first = await here.open_stream(there.peer, ECHO, TIMEOUT_S)
    second = await here.open_stream(there.peer, ECHO, TIMEOUT_S)
    for stream in (first, second):
        await stream.send_frame(b"in")
        await stream.receive_frame(10)
    with pytest.raises(NetworkError):
        await here.request(there.peer, ECHO, b"one too many", TIMEOUT_S, 100)
    await first.send_frame(b"still in")
    assert await first.receive_frame(10) == b"still in"
    await second.aclose()
    reception = there.reception  # type: ignore[attr-defined]
    await until(lambda: reception.open_streams == 1)
    assert await here.request(there.peer, ECHO, b"room again", TIMEOUT_S, 100) == b"room again"
    assert reception.refused == 1
    await first.aclose()


async def test_one_bound_holds_over_all_peers_and_protocols(world: World) -> None:
    here, there = await world.pair(Limits(streams_max=2, streams_per_peer_max=1))
    await there.handle(ECHO, echo)
    await there.handle("/p2pnet/other/1", echo)
    async with await here.open_stream(there.peer, ECHO, TIMEOUT_S) as stream:
        await stream.send_frame(b"in")
        await stream.receive_frame(10)
        with pytest.raises(NetworkError):
            await here.request(there.peer, "/p2pnet/other/1", b"over the peer's bound", TIMEOUT_S, 100)


async def test_a_second_handler_for_a_protocol_or_a_bad_name_is_our_own_mistake(world: World) -> None:
    host = await world.host()
    await host.handle(ECHO, echo)
    with pytest.raises(ValueError, match="a handler already"):
        await host.handle(ECHO, echo)
    with pytest.raises(ValueError, match="a protocol is named"):
        await host.handle("/ipfs/kad/1.0.0", echo)


async def test_the_dht_finds_who_provided_a_key_through_a_third_peer(world: World) -> None:
    bootstrap, one, two = await world.hosts(3)
    for host in (one, two):
        await host.connect(bootstrap.peer, bootstrap.addrs(), TIMEOUT_S)
    key = hashlib.sha256(b"a swarm").digest()
    await in_the_dht(one, one.connected)
    await one.provide(key)
    found = await in_the_dht(two, lambda: two.find_providers(key, 20, TIMEOUT_S))
    assert [record.peer for record in found] == [one.peer]
    await two.connect(one.peer, found[0].addrs, TIMEOUT_S)
    assert one.peer in [record.peer for record in await two.connected()]
    assert await two.find_providers(hashlib.sha256(b"another").digest(), 20, TIMEOUT_S) == []


async def test_the_dht_finds_a_peer_by_its_id(world: World) -> None:
    bootstrap, one, two = await world.hosts(3)
    for host in (one, two):
        await host.connect(bootstrap.peer, bootstrap.addrs(), TIMEOUT_S)
    found = await in_the_dht(two, lambda: two.find_peer(one.peer, TIMEOUT_S))
    assert found
    assert found.peer == one.peer
    assert set(found.addrs) & set(one.addrs())
    assert await two.find_peer(Identity.generate().peer, TIMEOUT_S) is None


async def test_without_any_other_peer_providing_fails_and_finding_finds_nothing(world: World) -> None:
    host = await world.host()
    key = hashlib.sha256(b"a swarm").digest()
    with pytest.raises(NetworkError, match="providing in the DHT"):
        await host.provide(key)
    assert await host.find_providers(key, 20, TIMEOUT_S) == []


async def test_a_tag_may_be_set_and_taken_back(world: World) -> None:
    here, there = await world.pair()
    await here.tag(there.peer, 50)
    await here.tag(there.peer, 0)
