from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.core.addressbook import BookLimits
from p2pnet.core.membership import (
    Answer,
    Ban,
    Connected,
    Dial,
    DialFailed,
    Disconnect,
    Disconnected,
    Down,
    Effect,
    Found,
    HelloAnswered,
    HelloReceived,
    Membership,
    MembershipLimits,
    Misbehaved,
    Profile,
    ProfileChanged,
    PublishRecord,
    RecordReceived,
    Refused,
    SendHello,
    Tick,
    Up,
)
from p2pnet.core.news import Verdict
from p2pnet.core.standing import Standing, StandingLimits
from p2pnet.identity import PeerId
from p2pnet.wire.codec import decode, encode
from p2pnet.wire.membership import MESSAGES, Hello, HelloAnswer, PeerRecord, Reach, Reason
from p2pnet.wire.signing import sign_message
from tests.core.network import Network, replayable, seeds

SWARM, OTHER_SWARM = b"s" * 32, b"o" * 32
UNIX_S = 1_800_000_000.0  # what the wall clock says at monotonic 0


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def addr(name: PeerId, port: int = 4001) -> bytes:
    return b"\x04\x7f\x00\x00\x01\x06" + port.to_bytes(2, "big") + name[-2:]


def fake_sign(name: PeerId, data: bytes) -> bytes:
    return hashlib.sha512(name + data).digest()  # the simulator needs no real signatures


def fake_verify(name: PeerId, data: bytes, signature: bytes) -> bool:
    return signature == fake_sign(name, data)


def member(
    number: int, swarm: bytes = SWARM, *, clock_s: float = UNIX_S, session: int = 1, **limits: Any
) -> Membership:
    name = peer(number)
    profile = Profile((addr(name),), Reach.PUBLIC, "p2pnet/test", 10**8, 10**8)
    rng = random.Random(number)
    key = number.to_bytes(4, "big") + session.to_bytes(4, "big")
    return Membership(
        name,
        swarm,
        profile,
        key,
        clock_s,
        lambda data: fake_sign(name, data),
        fake_verify,
        rng,
        MembershipLimits(**limits),
    )


def record(
    number: int, seq: int = int(UNIX_S), swarm: bytes = SWARM, addrs: tuple[bytes, ...] | None = None, issued_s: int = 0
) -> bytes:
    name = peer(number)
    message = PeerRecord(swarm, seq, (addr(name),) if addrs is None else addrs, 1, "p2pnet/test", 0, 0, issued_s)
    return sign_message(message, name, lambda data: fake_sign(name, data)).raw


def hello(
    number: int, swarm: bytes = SWARM, version: int = 1, raw: bytes | None = None, session: bytes = b"12345678"
) -> Hello:
    return Hello(version, swarm, session, "p2pnet/test", record(number, swarm=swarm) if raw is None else raw)


def accepting(number: int, *others: bytes, newer: bytes = b"", session: bytes = b"12345678") -> HelloAnswer:
    return HelloAnswer(1, 0, 1, session, record(number), newer, others)


def of(kind: type, effects: list[Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


def joined(number: int, *others: int, **limits: Any) -> Membership:
    """A member that is up with others."""
    machine = member(number, **limits)
    machine.handle(Tick(), 0.0)
    for other in others:
        machine.handle(HelloReceived(peer(other), hello(other)), 0.0)
    return machine


# --- hellos


def test_a_hello_is_answered_with_our_record_and_the_peer_is_up() -> None:
    effects = member(1).handle(HelloReceived(peer(2), hello(2)), 0.0)
    (answer,) = of(Answer, effects)
    assert (answer.answer.accepted, answer.answer.reason) == (1, Reason.NONE)
    assert fake_open(answer.answer.record).addrs == (addr(peer(1)),)
    assert of(Up, effects) == [Up(peer(2))]


def fake_open(raw: bytes) -> PeerRecord:
    from p2pnet.wire.signing import open_signed

    return open_signed((PeerRecord,), raw, fake_verify).message


def test_whoever_connects_says_hello_and_an_accepted_one_is_up() -> None:
    machine = member(1)
    (said,) = of(SendHello, machine.handle(Connected(peer(2)), 0.0))
    assert decode(MESSAGES, encode(said.hello)) == said.hello
    assert of(Up, machine.handle(HelloAnswered(peer(2), accepting(2)), 0.1)) == [Up(peer(2))]
    assert machine.up == (peer(2),)


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (hello(2, swarm=OTHER_SWARM), Reason.OTHER_SWARM),
        (hello(2, version=2), Reason.OTHER_VERSION),
        (hello(2, raw=b""), Reason.BAD_RECORD),
        (hello(2, raw=b"garbage"), Reason.BAD_RECORD),
        (hello(2, raw=record(3)), Reason.BAD_RECORD),
        (hello(2, raw=record(2, swarm=OTHER_SWARM)), Reason.BAD_RECORD),
        (hello(2, raw=record(2)[:-1] + b"\x00"), Reason.BAD_RECORD),
    ],
)
def test_a_refusal_names_its_reason_to_both_and_gives_nothing_away(greeting: Hello, reason: Reason) -> None:
    effects = joined(1, 4, 5).handle(HelloReceived(peer(2), greeting), 1.0)
    (answer,) = of(Answer, effects)
    assert (answer.answer.accepted, answer.answer.reason) == (0, reason)
    assert answer.answer.record == b""
    assert answer.answer.others == ()
    assert of(Refused, effects) == [Refused(peer(2), reason, by_us=True)]
    assert of(Disconnect, effects)
    assert not of(Up, effects)


def test_who_is_refused_says_why_and_does_not_dial_again_soon() -> None:
    machine = joined(1)
    assert of(Dial, machine.handle(Found(peer(2), (addr(peer(2)),)), 1.0))
    machine.handle(Connected(peer(2)), 1.0)
    refusal = HelloAnswer(0, int(Reason.OTHER_SWARM), 1, b"12345678", b"", b"", ())
    effects = machine.handle(HelloAnswered(peer(2), refusal), 1.1)
    assert of(Refused, effects) == [Refused(peer(2), Reason.OTHER_SWARM, by_us=False)]
    assert of(Disconnect, effects)
    for second in range(2, 170):
        assert not of(Dial, machine.handle(Tick(), float(second)))


def test_a_full_peer_refuses_and_names_others() -> None:
    machine = joined(1, 2, 3, degree_max=2)
    (answer,) = of(Answer, machine.handle(HelloReceived(peer(4), hello(4)), 1.0))
    assert answer.answer.reason == Reason.FULL
    assert sorted(answer.answer.others) == sorted([record(2), record(3)])
    newcomer = joined(4)
    newcomer.handle(Connected(peer(1)), 1.0)
    dials = of(Dial, newcomer.handle(HelloAnswered(peer(1), answer.answer), 1.1))
    dials += of(Dial, newcomer.handle(Tick(), 3.0))
    assert {dial.peer for dial in dials} == {peer(2), peer(3)}


def test_who_does_not_answer_a_hello_is_let_go() -> None:
    machine = joined(1)
    machine.handle(Connected(peer(2)), 0.0)
    assert not of(Disconnect, machine.handle(Tick(), 9.0))
    assert of(Disconnect, machine.handle(Tick(), 10.0))


def test_a_restart_that_broke_no_connection_is_seen() -> None:
    machine = joined(1, 2)
    assert not of(Up, machine.handle(HelloReceived(peer(2), hello(2)), 1.0))
    effects = machine.handle(HelloReceived(peer(2), hello(2, session=b"restart!")), 2.0)
    assert [type(effect) for effect in effects if isinstance(effect, Up | Down)] == [Down, Up]


# --- records


def test_a_record_is_judged_before_it_is_passed_on() -> None:
    machine = joined(1, 2)
    assert machine.judge(peer(2), record(3), 1.0) is Verdict.ACCEPT
    machine.handle(RecordReceived(peer(2), record(3, seq=7)), 1.0)
    assert machine.judge(peer(2), record(3, seq=7), 9.0) is Verdict.IGNORE
    assert machine.judge(peer(2), record(3, seq=6), 9.0) is Verdict.IGNORE
    assert machine.judge(peer(2), record(3, seq=8), 9.0) is Verdict.ACCEPT
    assert machine.judge(peer(2), record(3, seq=8), 1.1) is Verdict.IGNORE  # one per few seconds, or a peer could flood
    assert machine.judge(peer(2), record(3, swarm=OTHER_SWARM), 1.0) is Verdict.REJECT
    assert machine.judge(peer(2), record(3)[:-1] + b"\x00", 1.0) is Verdict.REJECT
    assert machine.judge(peer(2), b"", 1.0) is Verdict.REJECT


def test_a_record_that_a_hello_told_us_is_passed_on_all_the_same() -> None:
    machine = joined(1)
    machine.handle(Connected(peer(2)), 0.0)
    machine.handle(HelloAnswered(peer(2), accepting(2, record(3))), 0.1)
    assert machine.judge(peer(2), record(3), 0.2) is Verdict.ACCEPT
    machine.handle(RecordReceived(peer(2), record(3)), 0.2)
    assert machine.judge(peer(2), record(3), 9.0) is Verdict.IGNORE


def test_a_record_not_refreshed_is_dropped_and_its_replay_does_not_bring_it_back() -> None:
    machine = joined(1, 2)
    machine.handle(RecordReceived(peer(2), record(3, seq=7)), 1.0)
    machine.handle(Tick(), 180.0)
    assert machine.record(peer(3)) is not None
    machine.handle(Tick(), 181.0)
    assert machine.record(peer(3)) is None
    assert machine.judge(peer(2), record(3, seq=7), 182.0) is Verdict.IGNORE
    machine.handle(RecordReceived(peer(2), record(3, seq=7)), 182.0)
    assert machine.record(peer(3)) is None
    machine.handle(RecordReceived(peer(2), record(3, seq=8)), 183.0)
    assert machine.record(peer(3)) is not None


def test_a_connected_member_is_never_aged_out() -> None:
    machine = joined(1, 2)
    machine.handle(Tick(), 10_000.0)
    assert machine.record(peer(2)) is not None


@pytest.mark.parametrize("issued_s", [0, 2**63 - 1])
def test_the_time_in_a_record_decides_nothing(issued_s: int) -> None:
    machine = joined(1, 2)
    raw = record(3, issued_s=issued_s)
    assert machine.judge(peer(2), raw, 1.0) is Verdict.ACCEPT
    machine.handle(RecordReceived(peer(2), raw), 1.0)
    machine.handle(Tick(), 180.0)
    assert machine.record(peer(3)) is not None


def test_our_record_is_refreshed_and_follows_our_addresses() -> None:
    machine = member(1)
    published = of(PublishRecord, machine.handle(Tick(), 0.0))
    profile = Profile((addr(peer(1), 5000),), Reach.PRIVATE)
    assert not of(PublishRecord, machine.handle(ProfileChanged(profile), 1.0))  # a flapping address must not flood
    published += of(PublishRecord, machine.handle(Tick(), 5.0))
    assert fake_open(published[-1].raw).addrs == profile.addrs
    for second in range(6, 72):
        published += of(PublishRecord, machine.handle(Tick(), float(second)))
    assert len(published) == 3
    seqs = [fake_open(each.raw).seq for each in published]
    assert seqs == sorted(set(seqs))


def test_after_a_restart_with_a_clock_an_hour_behind_a_peer_is_heard_again() -> None:
    restarted = member(1, clock_s=UNIX_S - 3600.0, session=2)
    restarted.handle(Tick(), 0.0)
    other = joined(2)
    other.handle(RecordReceived(peer(3), record(1, seq=int(UNIX_S) + 50, addrs=(addr(peer(1), 999),))), 0.0)
    (said,) = of(SendHello, restarted.handle(Connected(peer(2)), 1.0))
    (answer,) = of(Answer, other.handle(HelloReceived(peer(1), said.hello), 1.0))
    restarted.handle(HelloAnswered(peer(2), answer.answer), 1.1)
    (published,) = of(PublishRecord, restarted.handle(Tick(), 5.1))
    assert other.judge(peer(1), published.raw, 6.0) is Verdict.ACCEPT


def test_nobody_can_use_up_our_numbers() -> None:
    machine = joined(1)
    machine.handle(Connected(peer(2)), 1.0)
    forged = record(1, seq=2**63 - 1)[:-1] + b"\x00"
    machine.handle(HelloAnswered(peer(2), accepting(2, newer=forged)), 1.1)
    machine.handle(RecordReceived(peer(2), record(1, seq=2**63 - 1)), 1.2)  # even signed: a machine gone mad
    (published,) = of(PublishRecord, machine.handle(Tick(), 100.0))
    assert fake_open(published.raw).seq < 2**40


def test_private_peers_without_addresses_are_members_and_not_dialled() -> None:
    machine = joined(1, 2)
    effects = machine.handle(RecordReceived(peer(2), record(3, addrs=())), 1.0)
    assert not of(Dial, effects + machine.handle(Tick(), 5.0))
    assert machine.size == 3


# --- the table


def test_a_flood_of_identities_does_not_wash_out_those_known() -> None:
    book = BookLimits(peers_max=20, peers_per_source_max=8)
    machine = joined(1, 2, 3, book=book)
    machine.handle(RecordReceived(peer(2), record(4)), 1.0)
    for number in range(100, 400):
        machine.handle(RecordReceived(peer(2 + number % 2), record(number)), 2.0)
    assert len(machine.book) <= 20
    assert {peer(2), peer(3), peer(4)} <= {known.peer for known in machine.book.all()}
    assert sum(known.source == peer(2) for known in machine.book.all()) <= 8
    assert machine.judge(peer(2), record(500), 2.0) is Verdict.IGNORE  # and gossip does not carry the flood on
    assert of(Up, machine.handle(HelloReceived(peer(5), hello(5)), 3.0)) == [Up(peer(5))]  # who comes itself finds room
    assert machine.record(peer(5)) is not None


# --- dialling


def test_a_small_swarm_becomes_a_full_mesh_and_a_large_one_does_not() -> None:
    for size, expected in ((64, 63), (300, 16)):
        machine = joined(1, dials_max=100)
        for number in range(2, size + 1):
            machine.book.learn(machine._open(record(number)), 0.0, peer(2), ())
        machine.handle(Tick(), 1.0)
        assert len(machine._dialling) == expected


def test_dials_back_off_with_jitter_and_prefer_who_was_heard_of_last() -> None:
    machine = joined(1, 9)
    times: list[float] = []
    machine.handle(Found(peer(2), (addr(peer(2)),)), 0.0)
    machine.handle(DialFailed(peer(2)), 0.0)
    for step in range(1, 2000):
        now_s = step * 0.1
        if step % 50 == 0:
            machine.handle(Found(peer(2), (addr(peer(2)),)), now_s)  # the DHT keeps naming it
        for dial in of(Dial, machine.handle(Tick(), now_s)):
            times.append(now_s)
            machine.handle(DialFailed(dial.peer), now_s)
    waits = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert 5 <= len(waits) <= 8
    assert all(2**n * 0.9 <= wait <= 2**n * 3.2 for n, wait in enumerate(waits))

    machine = joined(1, 9, dials_max=1)
    machine._links.clear()
    machine.book.learn(machine._open(record(3)), 0.0, peer(9), ())
    machine.book.learn(machine._open(record(4)), 100.0, peer(9), ())
    machine.book.learn(machine._open(record(9, seq=2**31)), 0.0, peer(9), ())
    assert of(Dial, machine.handle(Tick(), 101.0))[0].peer == peer(4)


def test_a_peer_that_leaves_is_down_and_dialled_again() -> None:
    machine = joined(1, 2)
    assert Down(peer(2)) in machine.handle(Disconnected(peer(2)), 1.0)
    assert of(Dial, machine.handle(Tick(), 3.0)) == [Dial(peer(2), (addr(peer(2)),))]


# --- standing


def test_misbehaviour_leads_to_a_ban_that_ends_and_the_next_is_longer() -> None:
    machine = joined(1, 2)
    bans: list[Ban] = []
    effects: list[Effect] = []
    for _ in range(10):
        effects += machine.handle(Misbehaved(peer(2), "gossip-1/R2"), 1.0)
    bans += of(Ban, effects)
    assert of(Down, effects) == [Down(peer(2))]
    assert of(Disconnect, effects)
    assert machine.standing.score(peer(2), 2.0) == 0
    assert of(Disconnect, machine.handle(Connected(peer(2)), 2.0))
    (answer,) = of(Answer, machine.handle(HelloReceived(peer(2), hello(2)), 3.0))
    assert answer.answer.reason == Reason.BANNED
    assert not of(Dial, machine.handle(Tick(), 100.0))
    assert of(Up, machine.handle(HelloReceived(peer(2), hello(2)), 700.0))
    bans += of(Ban, machine.handle(Misbehaved(peer(2), "gossip-1/R2", 100), 700.0))
    assert [ban.until_s for ban in bans] == [1.0 + 600.0, 700.0 + 1200.0]


def test_points_are_forgiven() -> None:
    standing = Standing(StandingLimits())
    for second in range(0, 1000, 100):
        assert standing.misbehaved(peer(1), float(second)) is None
    assert standing.score(peer(1), 2000.0) == 100


def test_the_tables_of_standing_are_bounded() -> None:
    standing = Standing(StandingLimits(peers_max=10, bans_max=10))
    for number in range(100):
        standing.misbehaved(peer(number), 0.0)
        standing.misbehaved(peer(1000 + number), 0.0, 100)
    assert len(standing._accounts) == 10
    assert len(standing.bans(1.0)) == 10


# --- everything together


class Swarm:
    """Members that really dial, greet and gossip, over links that fail."""

    def __init__(self, seed: int, size: int, swarms: int = 1) -> None:
        self.net = Network(seed, delay_s=(0.005, 0.05))
        self.net.perform, self.net.arrive, self.net.tick = self.perform, self.arrive, Tick
        self.connections: set[frozenset[PeerId]] = set()
        self.events: Counter[str] = Counter()
        self.heard: defaultdict[PeerId, dict[bytes, None]] = defaultdict(dict)  # records gossip would still hold
        for number in range(1, size + 1):
            self.start(number, SWARM if number % swarms == 0 else OTHER_SWARM)

    def start(self, number: int, swarm: bytes = SWARM, session: int = 1) -> None:
        clock_s = UNIX_S + self.net.rng.choice([0.0, 3600.0, -3600.0])
        self.net.machines[peer(number)] = member(number, swarm, clock_s=clock_s, session=session)
        self.net.crashed.discard(peer(number))
        self.net.handle(peer(number), Tick())

    def membership(self, name: PeerId) -> Membership:
        machine = self.net.machines[name]
        assert isinstance(machine, Membership)
        return machine

    def crash(self, name: PeerId) -> None:
        self.net.crashed.add(name)
        for link in [link for link in self.connections if name in link]:
            self.close(link)

    def close(self, link: frozenset[PeerId]) -> None:
        self.connections.discard(link)
        for name in sorted(link):
            (other,) = link - {name}
            self.net.after(0.1, lambda name=name, other=other: self.net.handle(name, Disconnected(other)))  # type: ignore[misc]

    def perform(self, name: PeerId, effect: Effect) -> None:
        self.events[type(effect).__name__] += 1
        match effect:
            case Dial(other, _):
                self.net.after(0.05, lambda: self.connect(name, other))
            case SendHello(other, hello_):
                self.net.send(name, other, hello_)
            case Answer(other, answer):
                self.net.send(name, other, answer)
            case Disconnect(other, _):
                self.net.after(0.1, lambda: self.close(frozenset((name, other))))
            case PublishRecord(raw):
                self.pass_on(name, raw)
            case Up(other):
                for raw in self.heard[name]:
                    self.net.send(name, other, raw)

    def pass_on(self, name: PeerId, raw: bytes) -> None:
        self.heard[name][raw] = None
        for other in self.membership(name).up:
            self.net.send(name, other, raw)

    def connect(self, name: PeerId, other: PeerId) -> None:
        if other in self.net.crashed or other not in self.net.machines:
            self.net.handle(name, DialFailed(other))
            return
        self.connections.add(frozenset((name, other)))
        self.net.handle(name, Connected(other))

    def arrive(self, name: PeerId, sender: PeerId, payload: Any) -> None:
        if isinstance(payload, Hello):
            self.net.handle(name, HelloReceived(sender, payload))
        elif isinstance(payload, HelloAnswer):
            self.net.handle(name, HelloAnswered(sender, payload))
        elif self.membership(name).judge(sender, payload, self.net.now_s) is Verdict.ACCEPT:
            self.net.handle(name, RecordReceived(sender, payload))
            self.pass_on(name, payload)

    def meshed(self, names: list[PeerId]) -> bool:
        return all(set(self.membership(name).up) == set(names) - {name} for name in names)


@pytest.mark.parametrize("seed", seeds(150))
def test_members_that_know_one_peer_end_as_a_full_mesh_whatever_crashes(seed: int) -> None:
    with replayable(seed):
        rng = random.Random(seed)
        size = rng.randint(2, 9)
        swarm = Swarm(seed, size)
        for number in range(2, size + 1):
            swarm.net.handle(peer(number), Found(peer(1), (addr(peer(1)),)))
        swarm.net.run(5.0)
        assert swarm.meshed(list(swarm.net.machines))
        victim = rng.randint(1, size)
        swarm.crash(peer(victim))
        swarm.net.run(rng.choice([0.5, 60.0, 400.0]))
        swarm.start(victim, session=2)
        friend = rng.choice([number for number in range(1, size + 1) if number != victim])
        swarm.net.handle(peer(victim), Found(peer(friend), (addr(peer(friend)),)))
        swarm.net.run(15.0)
        assert swarm.meshed(list(swarm.net.machines))


def test_two_swarms_that_meet_stay_two_and_say_so() -> None:
    swarm = Swarm(3, 8, swarms=2)
    for number in range(2, 9):
        swarm.net.handle(peer(number), Found(peer(1), (addr(peer(1)),)))
        swarm.net.handle(peer(number), Found(peer(2), (addr(peer(2)),)))
    swarm.net.run(30.0)
    for parity in (0, 1):
        assert swarm.meshed([peer(number) for number in range(1, 9) if number % 2 == parity])
    assert swarm.events["Refused"] >= 2


def test_32_members_mesh_within_two_seconds_and_hardly_dial_twice() -> None:
    swarm = Swarm(4, 32)
    for number in range(2, 33):
        swarm.net.handle(peer(number), Found(peer(1), (addr(peer(1)),)))
    swarm.net.run(2.0)
    assert swarm.meshed(list(swarm.net.machines))
    print(f"32 members: {swarm.events['Dial']} dials for {32 * 31 // 2} links")
    assert swarm.events["Dial"] < 1.2 * 32 * 31 // 2


names = st.integers(1, 5).map(peer)
raws = st.one_of(
    st.binary(max_size=40),
    st.builds(record, st.integers(1, 6), st.integers(0, 2**63 - 1), st.sampled_from([SWARM, OTHER_SWARM])),
)
hellos = st.builds(
    Hello,
    st.integers(0, 3),
    st.sampled_from([SWARM, OTHER_SWARM]),
    st.binary(min_size=8, max_size=8),
    st.just(""),
    raws,
)
answers = st.builds(
    HelloAnswer,
    st.integers(0, 1),
    st.integers(0, 5),
    st.integers(0, 3),
    st.binary(min_size=8, max_size=8),
    raws,
    raws,
    st.lists(raws, max_size=3).map(tuple),
)
events = st.one_of(
    st.just(Tick()),
    st.builds(Connected, names),
    st.builds(Disconnected, names),
    st.builds(DialFailed, names),
    st.builds(HelloReceived, names, hellos),
    st.builds(HelloAnswered, names, answers),
    st.builds(RecordReceived, names, raws),
    st.builds(Found, names, st.lists(st.binary(max_size=300), max_size=20).map(tuple)),
    st.builds(Misbehaved, names, st.just("gossip-1/R2"), st.integers(0, 60)),
)


@given(st.lists(st.tuples(events, st.floats(0.0, 100.0)), max_size=40))
def test_up_and_down_alternate_and_every_effect_can_be_sent_whatever_happens(script: list[tuple[Any, float]]) -> None:
    machine, now_s = member(1), 0.0
    up: set[PeerId] = set()
    for event, wait_s in script:
        now_s += wait_s
        for effect in machine.handle(event, now_s):
            match effect:
                case Up(name):
                    assert name not in up
                    up.add(name)
                case Down(name):
                    up.remove(name)
                case SendHello(_, said):
                    encode(said)
                case Answer(_, answer):
                    encode(answer)
        assert set(machine.up) == up
        assert len(machine.book) <= 6
