"""The queue in front of the round machine."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from p2pnet.core import events as ev
from p2pnet.identity import PeerId
from p2pnet.node.inbox import PEER_BYTES_MAX, TAKEN_MAX, Inbox, size_of
from p2pnet.wire.branch import Branch, BranchCertificate
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.round import (
    Ask,
    Decision,
    Endorsement,
    GroupRoster,
    Listing,
    Quorum,
    WideDecision,
    WideRoster,
)  # fmt: skip
from tests.node.members import identity

ONE, TWO = identity(1).peer, identity(2).peer


def ask(sender: PeerId) -> ev.Heard:
    return ev.Heard(sender, Ask(b"\0" * 32, 0, 0))


QUORUM = Quorum(b"\0" * 32, 0, 0, 2, b"\1" * 32, tuple(Endorsement(ONE, b"\0" * 64) for _ in range(100)))


def decision(sender: PeerId) -> ev.Heard:
    return ev.Heard(sender, Decision(QUORUM, b"\0" * 40_000, (b"\0" * 500,) * 64))


async def drain(inbox: Inbox) -> list[ev.Event]:
    taken = []
    while inbox._events:
        taken.append(await inbox.take(None))
    return taken


async def test_the_first_event_is_a_tick() -> None:
    assert await Inbox().take(None) == ev.Tick()


async def test_a_tick_comes_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    inbox = Inbox()
    await inbox.take(None)
    assert await inbox.take(trio.current_time() + 5) == ev.Tick()
    assert trio.current_time() == 5


async def test_events_come_in_their_order() -> None:
    inbox = Inbox()
    events = [ev.PeerUp(ONE), ask(ONE), ev.Applied(3), ask(TWO)]
    for event in events:
        inbox.put(event)
    assert await drain(inbox) == [ev.Tick(), *events]


async def test_what_waits_is_taken_at_once_in_bounds_and_in_order() -> None:
    inbox = Inbox()
    assert inbox.take_waiting() == [ev.Tick()]
    assert inbox.take_waiting() == []
    events = [ev.Applied(number) for number in range(TAKEN_MAX + 1)]
    for event in events:
        inbox.put(event)
    assert inbox.take_waiting() == events[:TAKEN_MAX]
    assert await drain(inbox) == events[TAKEN_MAX:]


async def test_a_flood_of_one_peer_is_bounded_and_hides_nobody() -> None:
    inbox = Inbox()
    for _ in range(10_000):
        inbox.put(ask(ONE))
    inbox.put(ask(TWO))
    inbox.put(ev.Applied(1))
    taken = await drain(inbox)
    assert len(taken) <= PEER_BYTES_MAX // size_of(ask(ONE)) + 3
    assert taken[-2:] == [ask(TWO), ev.Applied(1)]
    inbox.put(ask(ONE))  # room again
    assert await drain(inbox) == [ask(ONE)]
    assert not inbox._waiting


async def test_large_messages_count_for_what_they_take() -> None:
    inbox = Inbox()
    for _ in range(1000):
        inbox.put(decision(ONE))
    assert len(inbox._events) < 20


@pytest.mark.parametrize(
    "message",
    [
        GroupRoster(b"s" * 32, 0, 0, b"l" * 32, 0, (b"c" * 500,) * 100),
        WideRoster(b"s" * 32, 0, 0, b"l" * 32, (b"d" * 32,) * 1000),
        WideDecision(QUORUM, b"o" * 9000, (Listing((b"c" * 500,) * 50),) * 9, (Listing((b"d" * 99,) * 9),) * 9),
        Branch(b"s" * 32, 0, b"l" * 32, (ONE,) * 100, b"h" * 13, b"n" * 8),
        BranchCertificate(
            b"s" * 32, 0, b"l" * 32, (ONE,) * 100, (b"h" * 13,) * 100, (b"n" * 8,) * 100, (b"g" * 64,) * 100
        ),
        Decision(QUORUM, b"o" * 9000, (b"c" * 500,) * 64),
    ],
    ids=lambda message: type(message).__name__,
)
def test_no_kind_of_message_takes_more_than_it_counts_for(message: Message) -> None:
    assert size_of(ev.Heard(ONE, message)) > 2 * len(encode(message))  # type: ignore[arg-type]


async def test_what_happens_here_is_never_dropped() -> None:
    inbox = Inbox()
    for number in range(100_000):
        inbox.put(ev.Applied(number))
    assert len(inbox._events) == 100_001


async def test_a_flood_does_not_hold_up_a_tick(autojump_clock: trio.testing.MockClock) -> None:
    inbox = Inbox()
    await inbox.take(None)
    for _ in range(10):
        inbox.put(ask(ONE))
    assert await inbox.take(math.inf) == ask(ONE)
    assert await inbox.take(trio.current_time()) == ev.Tick()
    assert await inbox.take(trio.current_time() + 1) == ask(ONE)
