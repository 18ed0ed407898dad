"""Hellos, gossip and direct messages between members, and what hostile peers make of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnet.core import events as ev
from p2pnet.core.gossip import Verdict
from p2pnet.errors import NetworkError, P2pnetError
from p2pnet.identity import PeerId
from p2pnet.net.host import PeerAddrs
from p2pnet.net.memory import Link, MemoryHost
from p2pnet.node import links as links_module
from p2pnet.node.links import GOSSIP, HELLO, OUTBOX_BYTES_MAX, REFUSED_MAX, ROUND, _Outbox
from p2pnet.wire.codec import decode, encode, pack
from p2pnet.wire.gossip import MESSAGES as GOSSIP_MESSAGES
from p2pnet.wire.gossip import Data, Want
from p2pnet.wire.membership import RECORD_BYTES_MAX, VERSION, Hello, HelloAnswer, PeerRecord, Reason
from p2pnet.wire.round import Ask, Commit, Quorum, Vote
from p2pnet.wire.signing import sign_message
from tests.node.members import WAIT_S, Member, World, identity, until

ME, STRANGER = 1, 9


@pytest.fixture
def world(nursery: trio.Nursery, tmp_path: Path) -> World:
    return World(nursery, tmp_path)


def a_record(world: World, number: int = STRANGER, seq: int = 1) -> bytes:
    who = identity(number)
    return sign_message(PeerRecord(world.swarm, seq, (), 0, "x/1", 0, 0, 0), who.peer, who.sign).raw


def a_foreign_record() -> bytes:
    who = identity(STRANGER)
    return sign_message(PeerRecord(b"\7" * 32, 1, (), 0, "x/1", 0, 0, 0), who.peer, who.sign).raw


def a_hello(world: World, **changes: object) -> Hello:
    fields: dict[str, object] = {"version": VERSION, "swarm": world.swarm, "session": b"12345678", "agent": "x/1"}
    fields |= {"record": a_record(world)} | changes
    return Hello(**fields)  # type: ignore[arg-type]


def a_vote(world: World, number: int = STRANGER, value: bytes = b"\3" * 32) -> bytes:
    who = identity(number)
    return sign_message(Vote(world.swarm, 0, 0, 1, value), who.peer, who.sign).raw


def a_commit(world: World, number: int) -> bytes:
    who = identity(number)
    message = Commit(world.swarm, 0, b"\1" * 32, b"\2" * 32, 8, b"\3" * 32, 0, 1, 0, 0, 0)
    return sign_message(message, who.peer, who.sign).raw


async def connect(host: MemoryHost, member: Member) -> None:
    await host.connect(member.host.peer, member.host.addrs(), 5)


async def say_hello(host: MemoryHost, member: Member, hello: Hello) -> HelloAnswer:
    raw = await host.request(member.host.peer, HELLO, encode(hello), 5, 1 << 20)
    return decode((HelloAnswer,), raw)


async def a_neighbour(world: World, member: Member) -> MemoryHost:
    """A host that has said hello and does what the test wants from now on."""
    host = await world.stranger(STRANGER)
    await connect(host, member)
    assert (await say_hello(host, member, a_hello(world))).accepted
    return host


async def send(host: MemoryHost, member: Member, protocol: str, *frames: bytes) -> None:
    """Send frames on a new stream and wait until it ends."""
    with trio.fail_after(10):
        async with await host.open_stream(member.host.peer, protocol, 5) as stream:
            with suppress(NetworkError):
                for frame in frames:
                    await stream.send_frame(frame)
                while True:
                    await stream.receive_frame(1 << 20)


# Members ------------------------------------------------------------------------------------------------------------


async def test_members_that_meet_are_up_and_hear_each_other(world: World) -> None:
    one, two, three = await world.members(1, 2, 3)
    raw = a_vote(world, 1)
    one.links._judge = two.links._judge = three.links._judge = lambda _heard: Verdict.ACCEPT
    one.links.broadcast(raw)
    for member in (two, three):
        await until(lambda member=member: any(isinstance(e, ev.Heard) for e in member.inbox._events))  # type: ignore[misc]
    two.links.send(one.host.peer, raw)
    await until(lambda: any(isinstance(e, ev.Heard) and e.sender == two.host.peer for e in one.inbox._events))


async def test_members_learn_of_each_other_through_a_third(world: World) -> None:
    one, two, three = [await world.member(number) for number in (1, 2, 3)]
    await one.meet(two)
    await three.meet(two)
    await until(lambda: one.host.peer in three.links.membership.up)


async def test_a_member_that_goes_is_down_and_comes_up_again(world: World) -> None:
    one, two = await world.members(1, 2)
    world.network.set_link(one.host.peer, two.host.peer, Link(partitioned=True))  # or one dials before the other looks
    one.host.drop_connections()
    await until(lambda: ev.PeerDown(two.host.peer) in one.inbox._events)
    await until(lambda: ev.PeerDown(one.host.peer) in two.inbox._events)
    world.network.set_link(one.host.peer, two.host.peer, Link())
    await one.meet(two)
    raw = a_vote(world, 1)
    one.links.send(two.host.peer, raw)
    await until(lambda: any(isinstance(e, ev.Heard) for e in two.inbox._events))


async def test_a_peer_that_restarts_within_a_connection_gets_what_is_sent_from_then_on(world: World) -> None:
    member = await world.member(ME)
    host = await a_neighbour(world, member)
    heard: list[bytes] = []

    async def listen(stream: object) -> None:
        while True:
            heard.append(await stream.receive_frame(1 << 20))  # type: ignore[attr-defined]

    await host.handle(ROUND, listen)
    member.links.send(host.peer, b"one")
    await until(lambda: heard == [b"one"])
    hello = a_hello(world, session=b"87654321")  # down and up in one go
    assert (await say_hello(host, member, hello)).accepted
    member.links.send(host.peer, b"two")
    await until(lambda: heard == [b"one", b"two"])


async def test_nothing_is_sent_to_whom_is_not_up(world: World) -> None:
    member = await world.member(ME)
    member.links.send(identity(STRANGER).peer, b"x")
    assert not member.links._outboxes


def test_an_outbox_drops_the_oldest_and_never_more_than_it_holds() -> None:
    outbox = _Outbox()
    for number in range(12):
        outbox.put(bytes([number]) * (1 << 20))
    assert outbox.queued_bytes <= OUTBOX_BYTES_MAX
    assert outbox.frames[-1][0] == 11
    taken = [outbox.take() for _ in range(len(outbox.frames))]
    assert [frame[0] for frame in taken] == list(range(12 - len(taken), 12))
    assert outbox.queued_bytes == 0


async def test_a_peer_that_takes_nothing_costs_one_outbox_and_not_the_node(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "SEND_S", 0.2)
    member = await world.member(ME)
    host = await a_neighbour(world, member)

    async def deaf(_stream: object) -> None:
        await trio.sleep_forever()

    await host.handle(ROUND, deaf)
    for _ in range(100):
        member.links.send(host.peer, bytes(1 << 20))
    assert sum(outbox.queued_bytes for outbox in member.links._outboxes.values()) <= OUTBOX_BYTES_MAX
    await until(lambda: (host.peer, ROUND) not in member.links._outboxes)
    assert host.peer in member.links.membership.up


async def test_an_address_that_a_stranger_made_up_harms_nobody(world: World) -> None:
    member = await world.member(ME)
    member.links.connected(PeerAddrs(identity(STRANGER).peer, ("/nonsense/1", "/ip4/127.0.0.1/tcp/9")))


# Hellos -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"swarm": b"\7" * 32}, Reason.OTHER_SWARM),
        ({"version": 2}, Reason.OTHER_VERSION),
        ({"record": b""}, Reason.BAD_RECORD),
    ],
)
async def test_who_does_not_belong_here_is_told_why_and_shown(
    world: World, changes: dict[str, object], reason: Reason
) -> None:
    member = await world.member(ME)
    host = await world.stranger(STRANGER)
    await connect(host, member)
    answer = await say_hello(host, member, a_hello(world, **changes))
    assert (answer.accepted, answer.reason) == (0, int(reason))
    assert member.links.refused == {host.peer: reason.name.lower().replace("_", " ")}
    await until(lambda: host.peer not in member.host._connections)
    assert member.links.membership.up == ()


async def test_a_member_of_another_swarm_is_refused_on_both_sides(world: World) -> None:
    here, there = await world.member(1), await world.member(2, swarm=b"\7" * 32)
    await here.host.connect(there.host.peer, there.host.addrs(), 5)
    here.links.connected(PeerAddrs(there.host.peer, there.host.addrs()))
    await until(lambda: here.links.refused == {there.host.peer: "other swarm"})
    assert there.links.refused == {here.host.peer: "other swarm"}
    assert here.links.membership.up == there.links.membership.up == ()


async def test_somebody_elses_record_in_a_hello_lowers_the_senders_standing_not_the_authors(world: World) -> None:
    member = await world.member(ME)
    host = await world.stranger(STRANGER)
    await connect(host, member)
    answer = await say_hello(host, member, a_hello(world, record=a_record(world, 5)))
    assert answer.reason == int(Reason.BAD_RECORD)
    assert member.score(host.peer) < 100
    assert member.score(identity(5).peer) == 100


async def test_refusals_are_remembered_up_to_a_bound_and_forgotten_when_they_end(world: World) -> None:
    member = await world.member(ME)
    for number in range(REFUSED_MAX + 50):
        other = PeerId(number.to_bytes(32, "big"))
        member.links._tell_membership(
            links_module.members.HelloReceived(other, a_hello(world, swarm=b"\7" * 32)), later=[]
        )
    assert len(member.links.refused) == REFUSED_MAX
    member.links.refused[identity(STRANGER).peer] = "full"
    await a_neighbour(world, member)
    assert identity(STRANGER).peer not in member.links.refused


# Hostile streams ----------------------------------------------------------------------------------------------------


def lies_of_hello(world: World) -> dict[str, bytes]:
    good = encode(a_hello(world))
    return {
        "nothing": b"",
        "garbage": b"\xff" * 64,
        "cut short": good[:-1],
        "trailing": good + b"\0",
        "another kind": pack([1]),
        "over-long": b"\0" * (2 * RECORD_BYTES_MAX + 1),
    }


def lies_of_gossip(world: World) -> dict[str, bytes]:
    signed = bytearray(a_vote(world))
    signed[-1] ^= 1
    return {
        "nothing": b"",
        "garbage": b"\xff" * 64,
        "over-long": b"\0" * ((1 << 20) + 1),
        "too many ids": pack([3, 0, [b"\0" * 20] * 129]),
        "a wrong signature": encode(Data(0, 0, "round", bytes(signed))),
        "garbage inside": encode(Data(0, 0, "round", b"\xff")),
        "an ask, which is not for all": encode(Data(0, 0, "round", encode(Ask(world.swarm, 0, 0)))),
        "a record of another swarm": encode(Data(0, 0, "record", a_foreign_record())),
    }


def lies_of_round(world: World) -> dict[str, bytes]:
    signed = bytearray(a_vote(world))
    signed[-1] ^= 1
    return {
        "nothing": b"",
        "garbage": b"\xff" * 64,
        "over-long": b"\0" * ((1 << 20) + 1),
        "a wrong signature": bytes(signed),
        "a view beyond all": pack([10, world.swarm, 0, 1 << 40]),
    }


@pytest.mark.parametrize("lie", ["nothing", "garbage", "cut short", "trailing", "another kind", "over-long"])
async def test_a_hostile_hello_costs_its_sender(world: World, lie: str) -> None:
    member = await world.member(ME)
    host = await world.stranger(STRANGER)
    await connect(host, member)
    await send(host, member, HELLO, lies_of_hello(world)[lie])
    assert member.score(host.peer) == 90
    assert (await say_hello(host, member, a_hello(world))).accepted


@pytest.mark.parametrize(
    "lie",
    [
        "nothing",
        "garbage",
        "over-long",
        "too many ids",
        "a wrong signature",
        "garbage inside",
        "an ask, which is not for all",
        "a record of another swarm",
    ],
)
async def test_hostile_gossip_costs_who_passed_it_on(world: World, lie: str) -> None:
    member = await world.member(ME)
    host = await a_neighbour(world, member)
    async with await host.open_stream(member.host.peer, GOSSIP, 5) as stream:
        with suppress(NetworkError):
            await stream.send_frame(lies_of_gossip(world)[lie])
        await until(lambda: member.score(host.peer) == 90)
    assert not any(isinstance(event, ev.Heard) for event in member.inbox._events)
    assert host.peer in member.links.membership.up


@pytest.mark.parametrize(
    "lie",
    [
        "nothing",
        "garbage",
        "over-long",
        "a wrong signature",
        "a view beyond all",
    ],
)
async def test_a_hostile_direct_message_costs_its_sender(world: World, lie: str) -> None:
    member = await world.member(ME)
    host = await a_neighbour(world, member)
    await send(host, member, ROUND, lies_of_round(world)[lie])
    assert member.score(host.peer) == 90
    assert not any(isinstance(event, ev.Heard) for event in member.inbox._events)


async def test_whoever_lies_eleven_times_is_banned_and_stays_out(world: World) -> None:
    member = await world.member(ME)
    host = await a_neighbour(world, member)
    for _ in range(11):
        await connect(host, member)
        await send(host, member, ROUND, b"\xff")
    await until(lambda: host.peer not in member.host._connections)
    assert member.score(host.peer) == 0
    assert ev.PeerDown(host.peer) in member.inbox._events
    await connect(host, member)
    answer = await say_hello(host, member, a_hello(world))
    assert answer.reason == int(Reason.BANNED)


@pytest.mark.parametrize("protocol", [HELLO, GOSSIP, ROUND])
async def test_a_stream_that_is_opened_and_left_costs_its_sender(world: World, protocol: str) -> None:
    member = await world.member(ME)
    host = await a_neighbour(world, member)
    await send(host, member, protocol)
    assert member.score(host.peer) == 90
    assert host.peer in member.links.membership.up


@pytest.mark.parametrize("protocol", [GOSSIP, ROUND])
async def test_a_stream_without_a_hello_is_not_heard(
    world: World, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "UP_WAIT_S", 0.05)
    member = await world.member(ME)
    host = await world.stranger(STRANGER)
    await connect(host, member)
    await send(host, member, protocol, encode(Ask(world.swarm, 0, 0)))
    assert len(member.inbox._events) == 1
    assert member.links._up == {}
    assert member.score(host.peer) == 100  # its hello may be on the way


async def test_a_hello_may_come_after_the_stream(world: World) -> None:
    member = await world.member(ME)
    host = await world.stranger(STRANGER)
    await connect(host, member)
    async with await host.open_stream(member.host.peer, ROUND, 5) as stream:
        await stream.send_frame(encode(Ask(world.swarm, 0, 0)))
        assert (await say_hello(host, member, a_hello(world))).accepted
        await until(lambda: any(isinstance(event, ev.Heard) for event in member.inbox._events))


async def test_a_commit_that_a_stranger_signed_is_not_held_against_who_passes_it_on(world: World) -> None:
    member = await world.member(ME)
    host = await a_neighbour(world, member)
    async with await host.open_stream(member.host.peer, ROUND, 5) as stream:
        await stream.send_frame(a_commit(world, 77))
        await until(lambda: any(isinstance(event, ev.Heard) for event in member.inbox._events))
    assert member.score(host.peer) == member.score(identity(77).peer) == 100


async def test_a_bundle_of_votes_is_told_to_the_core_with_who_handed_it_over(world: World) -> None:
    member = await world.member(ME)
    host = await a_neighbour(world, member)
    from p2pnet.wire.round import Endorsement

    quorum = Quorum(world.swarm, 0, 0, 1, b"\1" * 32, (Endorsement(identity(5).peer, b"\0" * 64),))
    async with await host.open_stream(member.host.peer, ROUND, 5) as stream:
        await stream.send_frame(encode(quorum))
        await until(lambda: ev.Heard(host.peer, quorum) in member.inbox._events)


async def test_what_a_neighbour_asks_for_again_and_again_is_bounded(world: World) -> None:
    member = await world.member(ME)
    host = await a_neighbour(world, member)
    async with await host.open_stream(member.host.peer, GOSSIP, 5) as stream:
        for _ in range(40):
            await stream.send_frame(encode(Want(0, tuple(bytes([n]) * 20 for n in range(128)))))
        await until(lambda: member.score(host.peer) < 100)
    assert sum(outbox.queued_bytes for outbox in member.links._outboxes.values()) < 1 << 20


def fuzz(protocol: str) -> Callable[[bytes, Path], None]:
    def check(frame: bytes, folder: Path) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                world = World(nursery, folder)
                member = await world.member(ME)
                host = await a_neighbour(world, member)
                async with await host.open_stream(member.host.peer, protocol, 5) as stream:
                    await stream.send_frame(frame)
                    served = member.host.reception
                    with trio.move_on_after(0.05), suppress(P2pnetError):
                        while True:
                            await stream.receive_frame(1 << 20)
                    assert served.misbehaved <= 1
                await until(lambda: not member.host.reception.open_streams)  # a refusal ends the connection
                await connect(host, member)
                assert (await say_hello(host, member, a_hello(world))).accepted
                nursery.cancel_scope.cancel()

        trio.run(main)

    return check


def _frames() -> st.SearchStrategy[bytes]:
    world = World(None, Path())  # type: ignore[arg-type]
    good = [
        encode(a_hello(world)),
        a_vote(world),
        encode(Ask(world.swarm, 0, 0)),
        encode(Data(0, 0, "round", a_vote(world))),
    ]
    items = st.recursive(
        st.integers(0, 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=5),
    )

    def cut(pair: tuple[bytes, int, int]) -> bytes:
        data, at, value = pair
        at %= len(data)
        return data[:at] + bytes([value]) + data[at + 1 :]

    mutated = st.tuples(st.sampled_from(good), st.integers(0, 4000), st.integers(0, 255)).map(cut)
    return st.one_of(st.binary(max_size=200), st.lists(items, max_size=8).map(pack), mutated)


@pytest.mark.parametrize("protocol", [HELLO, GOSSIP, ROUND])
def test_no_first_frame_raises_more_than_an_error_that_is_the_senders(protocol: str, tmp_path: Path) -> None:
    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(frame=_frames())
    def check(frame: bytes) -> None:
        fuzz(protocol)(frame, tmp_path)

    check()


def test_gossip_knows_the_messages_of_its_page() -> None:
    assert {message.kind for message in GOSSIP_MESSAGES} == {1, 2, 3, 4, 5}


async def test_the_answer_to_a_hello_tells_how_far_away_a_peer_is(world: World) -> None:
    one, two = await world.members(1, 2)
    seen = [event for member in (one, two) for event in member.inbox._events if isinstance(event, ev.RoundTrip)]
    assert seen
    assert all(0 < event.after_s < WAIT_S for event in seen)
    assert {event.peer for event in seen} <= {one.host.peer, two.host.peer}
