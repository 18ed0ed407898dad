"""What a node finds its line to carry, over sockets with a cap on them, by a clock that jumps."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from p2pnet.errors import NetworkError
from p2pnet.identity import Identity
from p2pnet.net.framing import FramedStream, Traffic
from p2pnet.net.shaping import OVERHEAD, Shaper
from p2pnet.net.sockets import UnixSocket
from p2pnet.node.lines import Lines

MBIT = 1_000_000
PEER = Identity.from_seed(b"p" * 32).peer
FRAME = bytes(500_000)
LARGE = 10**9


async def linked(shaper: Shaper) -> tuple[FramedStream, FramedStream]:
    """Two ends of a stream, the first of them under caps."""
    ours, raw = UnixSocket.pair()
    return (
        FramedStream(shaper.shape(ours), PEER, "/p2pnet/x/1", Traffic()),
        FramedStream(UnixSocket(raw), PEER, "/p2pnet/x/1", Traffic()),
    )


async def take(stream: FramedStream) -> None:
    """What a contributor does: read its answer, close."""
    async with stream:
        await stream.receive_frame(len(FRAME))


async def give(stream: FramedStream) -> None:
    async with stream:
        await stream.send_frame(FRAME)
        await stream.finish()


async def receive(lines: Lines, stream: FramedStream) -> None:
    async with stream:
        await lines.receive(stream, len(FRAME))


@pytest.mark.parametrize("mbps", [2, 20])
async def test_a_line_is_found_to_carry_what_its_cap_lets_through(
    autojump_clock: trio.testing.MockClock, mbps: int
) -> None:
    lines, shaper = Lines(LARGE), Shaper(mbps * MBIT, mbps * MBIT)
    assert lines.kbps == (0, 0)
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                here, there = await linked(shaper)
                nursery.start_soon(lines.send, here, FRAME)
                nursery.start_soon(take, there)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                here, there = await linked(shaper)
                nursery.start_soon(receive, lines, here)
                nursery.start_soon(give, there)
        await trio.sleep(100)
    for kbps in lines.kbps:
        assert 0.6 * mbps < kbps / 1000 * OVERHEAD <= 1.1 * mbps


async def test_an_answer_that_breaks_off_says_nothing_of_the_line(autojump_clock: trio.testing.MockClock) -> None:
    lines = Lines(LARGE)
    here, there = await linked(Shaper())
    await there.aclose()
    with pytest.raises(NetworkError):
        async with here:
            await lines.send(here, FRAME)
    here, there = await linked(Shaper())
    await there.aclose()
    with pytest.raises(NetworkError):
        await receive(lines, here)
    assert lines.kbps == (0, 0)


async def test_while_nothing_is_known_the_caps_are_said_and_never_more(autojump_clock: trio.testing.MockClock) -> None:
    lines = Lines(LARGE, (5 * MBIT, 0))
    assert lines.kbps == (5000, 0)
    here, there = await linked(Shaper())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lines.send, here, FRAME)
        nursery.start_soon(take, there)
    assert lines.kbps == (5000, 0)
    for _ in range(100):
        lines.next_round()
    assert lines.kbps == (5000, 0)
