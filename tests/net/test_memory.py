"""What only the memory host does: faults on links, under trio's fake clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing

from p2pnet.errors import NetworkError
from p2pnet.identity import Identity
from p2pnet.net.host import Stream
from p2pnet.net.memory import Link, MemoryHost, MemoryNetwork

ECHO = "/p2pnet/echo/1"
ONE, TWO = (Identity.from_seed(bytes([seed]) * 32).peer for seed in (1, 2))


async def echo(stream: Stream) -> None:
    while True:
        await stream.send_frame(await stream.receive_frame(1 << 24))


@asynccontextmanager
async def pair(network: MemoryNetwork) -> AsyncIterator[tuple[MemoryHost, MemoryHost]]:
    async with network.host(ONE) as here, network.host(TWO) as there:
        await there.handle(ECHO, echo)
        await here.connect(TWO, there.addrs(), 1)
        yield here, there


async def test_a_delay_is_paid_once_each_way(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with pair(network) as (here, _):
        network.set_link(ONE, TWO, Link(delay_s=0.1))
        async with await here.open_stream(TWO, ECHO, 1) as stream:
            began_s = trio.current_time()
            await stream.send_frame(b"x")
            await stream.receive_frame(1)
            assert trio.current_time() - began_s == pytest.approx(0.2)


async def test_through_a_partition_nothing_gets_and_after_it_everything(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with pair(network) as (here, _), await here.open_stream(TWO, ECHO, 1) as stream:
        await stream.send_frame(b"first")
        assert await stream.receive_frame(10) == b"first"
        network.set_link(ONE, TWO, Link(partitioned=True))
        for attempt in (here.open_stream(TWO, ECHO, 5), here.request(TWO, ECHO, b"x", 5, 1)):
            with pytest.raises(NetworkError, match="nothing within 5 s"):
                await attempt
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_frame, b"through")
            with trio.move_on_after(5) as scope:
                await stream.receive_frame(10)
            assert scope.cancelled_caught
            network.set_link(ONE, TWO, Link())
            assert await stream.receive_frame(10) == b"through"


async def test_a_stream_can_be_closed_inside_a_partition(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with pair(network) as (here, _), trio.open_nursery() as nursery:
        stream = await here.open_stream(TWO, ECHO, 1)
        network.set_link(ONE, TWO, Link(partitioned=True))

        async def wait() -> None:
            with pytest.raises(NetworkError, match="closed by us"):
                await stream.receive_frame(1)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()


async def test_a_lossy_link_breaks_streams_and_fails_dials_the_same_way_under_one_seed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def outcomes() -> list[bool]:
        network = MemoryNetwork(Random(7))
        async with pair(network) as (here, _):
            network.set_link(ONE, TWO, Link(drop=0.2))
            worked = []
            for _ in range(30):
                try:
                    worked.append(await here.request(TWO, ECHO, b"x", 1, 1) == b"x")
                except NetworkError:
                    worked.append(False)
        return worked

    first = await outcomes()
    assert True in first
    assert False in first
    assert await outcomes() == first


async def test_who_reads_slowly_holds_the_sender_back() -> None:
    network = MemoryNetwork()
    async with network.host(ONE) as here, network.host(TWO) as there:

        async def never_read(stream: Stream) -> None:
            await trio.sleep(math.inf)

        await there.handle(ECHO, never_read)
        await here.connect(TWO, there.addrs(), 1)
        async with await here.open_stream(TWO, ECHO, 1) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_frame, bytes(10_000_000))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert here.traffic.bytes_up < 300_000


async def test_a_host_that_goes_takes_its_streams_with_it() -> None:
    network = MemoryNetwork()
    async with network.host(ONE) as here:
        async with network.host(TWO) as there:
            await there.handle(ECHO, echo)
            await here.connect(TWO, there.addrs(), 1)
            stream = await here.open_stream(TWO, ECHO, 1)
        with pytest.raises(NetworkError):
            await stream.receive_frame(1)
        assert await here.connected() == []
        with pytest.raises(ValueError, match="a host here already"):
            async with network.host(ONE):
                pass
