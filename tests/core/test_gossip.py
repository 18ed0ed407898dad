from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.core.gossip import (
    Deliver,
    Effect,
    Event,
    Gossip,
    GossipLimits,
    PeerDown,
    PeerUp,
    Penalise,
    Publish,
    Received,
    Send,
    Tick,
    Verdict,
)
from p2pnet.core.recent import Memory
from p2pnet.core.wanted import Asking
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message, decode, encode
from p2pnet.wire.gossip import DATA_BYTES_MAX, MESSAGES, Data, Graft, Have, Prune, Want, message_id
from tests.core.network import Network, replayable, seeds


def peer(number: int) -> PeerId:
    """Number n's key: its first byte is its lane."""
    return PeerId(bytes([number % 256]) + number.to_bytes(31, "big"))


def judge(_: PeerId, topic: str, data: bytes) -> Verdict:
    if data.startswith(b"lie"):
        return Verdict.REJECT
    return Verdict.IGNORE if data.startswith(b"early") else Verdict.ACCEPT


class Swarm:
    """Members with links between some of them; the links carry bytes."""

    def __init__(self, seed: int, size: int, limits: GossipLimits | None = None, **network: object) -> None:
        self.net = Network(seed, **network)  # type: ignore[arg-type]
        self.net.perform, self.net.arrive, self.net.tick = self.perform, self.arrive, Tick
        self.limits = limits
        self.links: set[frozenset[PeerId]] = set()
        self.delivered: Counter[tuple[PeerId, bytes]] = Counter()
        self.delivered_s: dict[tuple[PeerId, bytes], float] = {}
        self.penalties: list[tuple[PeerId, PeerId, str]] = []
        self.data_received = 0
        for number in range(size):
            self.start(peer(number))

    def start(self, name: PeerId) -> None:
        rng = random.Random(self.net.rng.random())
        self.net.machines[name] = Gossip(name, judge, rng, self.limits)

    def gossip(self, name: PeerId) -> Gossip:
        machine = self.net.machines[name]
        assert isinstance(machine, Gossip)
        return machine

    def connect(self, one: PeerId, other: PeerId) -> None:
        self.links.add(frozenset((one, other)))
        self.net.cut.discard(frozenset((one, other)))
        self.net.handle(one, PeerUp(other))
        self.net.handle(other, PeerUp(one))

    def disconnect(self, one: PeerId, other: PeerId) -> None:
        self.links.discard(frozenset((one, other)))
        self.net.cut.add(frozenset((one, other)))
        self.net.handle(one, PeerDown(other))
        self.net.handle(other, PeerDown(one))

    def connect_all(self) -> None:
        names = list(self.net.machines)
        for i, one in enumerate(names):
            for other in names[:i]:
                self.connect(one, other)

    def connect_randomly(self, degree: int) -> None:
        """Everybody dials degree/2 others, and a ring makes sure that the graph is connected."""
        names = list(self.net.machines)
        for i, one in enumerate(names):
            others = [names[i - 1], *self.net.rng.sample(names, min(len(names), max(0, degree // 2 - 1)))]
            for other in others:
                if one != other and frozenset((one, other)) not in self.links:
                    self.connect(one, other)

    def crash(self, name: PeerId) -> None:
        self.net.crashed.add(name)
        for link in [link for link in self.links if name in link]:
            self.links.discard(link)
            (other,) = link - {name}
            self.net.after(0.5, lambda other=other: self.net.handle(other, PeerDown(name)))  # type: ignore[misc]

    def publish(self, name: PeerId, data: bytes) -> None:
        self.net.handle(name, Publish("test/1", data))

    def perform(self, name: PeerId, effect: Effect) -> None:
        match effect:
            case Send(other, message):
                self.net.send(name, other, message)
            case Deliver(_, data, _):
                self.delivered[name, data] += 1
                self.delivered_s[name, data] = self.net.now_s
            case Penalise(other, rule):
                self.penalties.append((name, other, rule))

    def arrive(self, name: PeerId, sender: PeerId, message: Message) -> None:
        self.data_received += isinstance(message, Data)
        self.net.handle(name, Received(sender, message))

    def alive(self) -> list[PeerId]:
        return [name for name in self.net.machines if name not in self.net.crashed]

    def lacking(self, author: PeerId, data: bytes) -> list[PeerId]:
        return [name for name in self.alive() if name != author and self.delivered[name, data] != 1]


def test_a_message_reaches_everybody_in_one_hop_when_all_are_neighbours() -> None:
    swarm = Swarm(0, 13, delay_s=(0.05, 0.05))
    swarm.connect_all()
    for number in range(13):
        start_s = swarm.net.now_s
        swarm.publish(peer(number), b"commit %d" % number)
        swarm.net.run(1.0)
        assert not swarm.lacking(peer(number), b"commit %d" % number)
        assert all(swarm.delivered_s[name, b"commit %d" % number] - start_s < 0.051 for name in swarm.alive()[:number])


def test_a_group_of_64_settles_on_one_copy_each_within_two_or_three_hops() -> None:
    swarm = Swarm(1, 64, delay_s=(0.045, 0.055))
    swarm.connect_all()
    for warm_up in range(1):
        for number in range(64):
            swarm.publish(peer(number), b"round %d by %d" % (warm_up, number))
        swarm.net.run(2.0)
    before, start_s = swarm.data_received, swarm.net.now_s
    for number in range(64):
        swarm.publish(peer(number), b"measured, by %d" % number)
    swarm.net.run(2.0)
    late = [time_s - start_s for (_, data), time_s in swarm.delivered_s.items() if data.startswith(b"measured")]
    assert len(late) == 64 * 63
    redundancy = (swarm.data_received - before) / (64 * 63)
    print(
        f"64 members: {redundancy:.3f} copies each, median {statistics.median(late) / 0.05:.2f} hops, "
        f"slowest {max(late) / 0.05:.2f}"
    )
    assert redundancy < 1.1
    assert max(late) < 5 * 0.05


@pytest.mark.parametrize("seed", seeds(1, 7))
def test_a_thousand_members_get_everything_with_few_copies(seed: int) -> None:
    with replayable(seed):
        swarm = Swarm(seed, 1000, delay_s=(0.045, 0.055))
        swarm.connect_randomly(12)
        for warm_up in range(3):
            swarm.publish(peer(5), b"warm up %d" % warm_up)
            swarm.net.run(4.0)
        before, start_s = swarm.data_received, swarm.net.now_s
        for number in range(6):
            swarm.publish(peer(5), b"roster %d" % number)
            swarm.net.run(2.0)
        redundancy = (swarm.data_received - before) / (6 * 999)
        late = [swarm.delivered_s[name, b"roster 0"] - start_s for name in swarm.alive() if name != peer(5)]
        print(
            f"1000 members: {redundancy:.3f} copies each, median {statistics.median(late) / 0.05:.2f} hops, "
            f"slowest {max(late) / 0.05:.2f}"
        )
        assert not any(swarm.lacking(peer(5), b"roster %d" % number) for number in range(6))
        assert redundancy < 1.2
        assert max(late) < 0.6


@pytest.mark.parametrize("seed", seeds(5))
def test_a_third_crashing_at_once_costs_the_others_a_moment(seed: int) -> None:
    with replayable(seed):
        swarm = Swarm(seed, 60)
        swarm.connect_randomly(12)
        for warm_up in range(3):
            swarm.publish(peer(0), b"warm up %d" % warm_up)
            swarm.net.run(2.0)
        for name in swarm.net.rng.sample(swarm.alive()[1:], 20):
            swarm.crash(name)
        start_s = swarm.net.now_s
        swarm.publish(peer(0), b"after")  # half a second before anybody notices who is gone
        swarm.net.run(10.0)
        assert not swarm.lacking(peer(0), b"after")
        late = [swarm.delivered_s[name, b"after"] - start_s for name in swarm.alive()[1:]]
        print(f"20 of 60 crashed: median {statistics.median(late):.2f} s, slowest {max(late):.2f} s")
        assert max(late) < 3.0


def one_run(seed: int) -> None:
    """A few members, a random graph, loss, crashes and flapping links; in the end all that live have everything."""
    rng = random.Random(seed)
    size = rng.randint(2, 9)
    limits = GossipLimits(eager_degree=rng.choice([1, 2, 4, 12]), push_bytes_max=rng.choice([0, 20, 1000]))
    loss = rng.choice([0.0, 0.0, 0.05, 0.2])
    swarm = Swarm(seed, size, limits, loss=loss, delay_s=(0.001, rng.choice([0.01, 0.2])))
    swarm.connect_randomly(rng.choice([2, 4, 8]))
    expected: list[tuple[PeerId, bytes]] = []
    for number in range(rng.randint(1, 6)):
        author, data = rng.choice(swarm.alive()), b"news %d %s" % (number, b"x" * rng.choice([0, 50]))
        expected.append((author, data))
        swarm.publish(author, data)
        fault = rng.random()
        if fault < 0.15 and swarm.links:  # a link breaks for two seconds
            one, other = sorted(rng.choice(sorted(sorted(link) for link in swarm.links)))
            swarm.disconnect(one, other)
            swarm.net.after(2.0, lambda one=one, other=other: swarm.connect(one, other))  # type: ignore[misc]
        elif fault < 0.25:
            swarm.publish(author, b"lie %d" % number)
        swarm.net.run(rng.choice([0.0, 0.01, 0.3]))
    swarm.net.run(8.0)
    swarm.net.loss = 0.0  # and then the network is well for a while
    swarm.net.run(10.0)
    for author, data in expected:
        assert not swarm.lacking(author, data), (author[0], data)
    assert not any(data.startswith(b"lie") for _, data in swarm.delivered)
    assert all(rule == "gossip-1/R2" for _, _, rule in swarm.penalties), swarm.penalties


@pytest.mark.parametrize("block", range(10))
def test_everybody_gets_each_accepted_message_exactly_once_whatever_the_seed(block: int) -> None:
    for seed in seeds(200, 200 * block):
        with replayable(seed):
            one_run(seed)


# --- one machine


A, B, C, ME = peer(1), peer(2), peer(3), peer(9)


def machine(*up: PeerId, limits: GossipLimits | None = None) -> Gossip:
    gossip = Gossip(ME, judge, random.Random(0), limits)
    for name in up:
        assert gossip.handle(PeerUp(name), 0.0) == []
    return gossip


def data(text: bytes, hops: int = 0, lane: int = 1) -> Data:
    return Data(lane, hops, "test/1", text)


def name_of(text: bytes) -> bytes:
    return message_id("test/1", text)


def asked_for(effects: list[Effect]) -> int:
    """How many messages were asked for."""
    return sum(len(want.ids) for _peer, want in sent(effects, Want))  # type: ignore[union-attr]


def sent(effects: list[Effect], kind: type[Message]) -> list[tuple[PeerId, Message]]:
    return [
        (effect.peer, effect.message)
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, kind)
    ]


def test_a_message_is_judged_before_it_is_passed_on() -> None:
    gossip = machine(A, B)
    assert gossip.handle(Received(A, data(b"lie")), 0.0) == [Penalise(A, "gossip-1/R2")]
    assert gossip.handle(Received(A, data(b"early")), 0.0) == []
    effects = gossip.handle(Received(A, data(b"truth")), 0.0)
    assert effects == [Deliver("test/1", b"truth", A), Send(B, data(b"truth", hops=1))]


def test_whoever_repeats_a_rejected_message_pays_too_and_the_validator_is_asked_once() -> None:
    asked: list[bytes] = []

    def count(_: PeerId, topic: str, text: bytes) -> Verdict:
        asked.append(text)
        return Verdict.REJECT

    gossip = Gossip(ME, count, random.Random(0))
    for name in (A, B, A):
        gossip.handle(PeerUp(name), 0.0)
        assert gossip.handle(Received(name, data(b"lie")), 0.0) == [Penalise(name, "gossip-1/R2")]
    assert asked == [b"lie"]


def test_an_ignored_message_may_come_again() -> None:
    verdicts = iter([Verdict.IGNORE, Verdict.ACCEPT])
    gossip = Gossip(ME, lambda *_: next(verdicts), random.Random(0))
    gossip.handle(PeerUp(A), 0.0)
    assert gossip.handle(Received(A, data(b"x")), 0.0) == []
    assert gossip.handle(Received(A, data(b"x")), 0.5) == []  # not at once, or it would cost a signature each time
    assert gossip.handle(Received(A, Have(1, (name_of(b"x"),))), 2.0) == [Send(A, Want(0, (name_of(b"x"),)))]
    assert gossip.handle(Received(A, data(b"x")), 2.1) == [Deliver("test/1", b"x", A)]


def test_a_duplicate_is_pruned_and_the_publisher_itself_is_kept() -> None:
    gossip = machine(A, B, C)
    gossip.handle(Received(A, data(b"x", hops=1)), 0.0)
    assert gossip.handle(Received(B, data(b"x", hops=2)), 0.01) == [Send(B, Prune(1))]
    assert gossip.handle(Received(C, data(b"x", hops=0)), 0.02) == [Send(A, Prune(1))]
    assert sent(gossip.handle(Received(C, data(b"y")), 1.0), Data) == []  # both said they have it elsewhere


def test_a_pruned_link_is_announced_to_and_grafted_when_something_is_missing() -> None:
    gossip = machine(A, B)
    gossip.handle(Received(B, Prune(1)), 0.0)
    assert not sent(gossip.handle(Received(A, data(b"x")), 0.0), Data)
    assert gossip.handle(Tick(), 0.1) == [Send(B, Have(0, (name_of(b"x"),)))]
    assert gossip.handle(Received(B, Want(1, (name_of(b"x"),))), 0.5) == [Send(B, data(b"x", hops=1))]
    assert sent(gossip.handle(Received(A, data(b"y")), 1.0), Data) == [(B, data(b"y", hops=1))]


def test_what_is_announced_is_waited_for_then_asked_of_one_after_the_other() -> None:
    gossip, ids = machine(A, B), (name_of(b"x"),)
    assert gossip.handle(Received(A, Have(0, ids)), 0.0) == []
    assert gossip.handle(Received(B, Have(0, ids)), 0.1) == []
    assert gossip.deadline_s == pytest.approx(0.3)
    assert gossip.handle(Tick(), 0.3) == [Send(A, Want(1, ids))]
    assert gossip.handle(Tick(), 1.3) == [Send(B, Want(1, ids))]
    assert gossip.handle(Tick(), 3.3) == [Send(A, Want(1, ids))]
    gossip.handle(Received(A, data(b"x")), 4.0)
    assert not sent(gossip.handle(Tick(), 9.0), Want)


def test_a_reconnecting_peer_is_told_at_once_what_it_missed() -> None:
    gossip = machine(A, B)
    gossip.handle(Publish("test/1", b"commit"), 0.0)
    gossip.handle(PeerDown(B), 1.0)
    gossip.handle(Publish("test/1", b"roster"), 1.0)
    assert gossip.handle(PeerUp(B), 2.0) == [Send(B, Have(1, (name_of(b"roster"), name_of(b"commit"))))]
    assert gossip.handle(PeerUp(C), 200.0) == []  # but not of yesterday


def test_when_a_tree_link_breaks_another_peer_takes_its_place() -> None:
    gossip = machine(A, B)
    gossip.handle(Received(A, data(b"x")), 0.0)
    assert gossip.handle(PeerDown(A), 1.0) == [Send(B, Graft((1,)))]


def test_a_large_message_is_announced_and_fetched_once() -> None:
    gossip, large = machine(A, B, C), b"x" * 100_000
    assert gossip.handle(Publish("test/1", large), 0.0) == [
        Send(name, Have(1, (name_of(large),))) for name in (A, B, C)
    ]
    assert gossip.handle(Received(B, Want(0, (name_of(large),))), 0.1) == [Send(B, Data(9, 0, "test/1", large))]


def test_an_audit_is_answered_with_what_is_held() -> None:
    gossip = machine(A)
    gossip.handle(Publish("test/1", b"x"), 0.0)
    ids = (name_of(b"x"), name_of(b"y"))
    effects = gossip.handle(Received(A, Have(1, ids)), 0.5)
    assert effects == [Send(A, Have(0, ids[:1])), Send(A, Want(0, ids[1:]))]


def test_publishing_beyond_the_limits_is_our_own_mistake() -> None:
    for topic, text in (("", b""), ("t" * 65, b""), ("test/1", bytes(1 << 20))):
        with pytest.raises(ValueError, match="a topic has"):
            machine().handle(Publish(topic, text), 0.0)
    encode(Data(0, 0, "t" * 64, bytes(DATA_BYTES_MAX)))
    assert len(encode(Data(255, 255, "t" * 64, bytes(DATA_BYTES_MAX)))) <= 1 << 20


# --- hostile peers


def flood(gossip: Gossip, messages: Iterable[Message], now_s: float = 0.0) -> list[Effect]:
    return [effect for message in messages for effect in gossip.handle(Received(A, message), now_s)]


def ids(count: int, first: int = 0) -> tuple[bytes, ...]:
    return tuple(number.to_bytes(20, "big") for number in range(first, first + count))


@pytest.mark.parametrize(
    ("rule", "messages"),
    [
        ("gossip-1/R4", [data(b"truth")] * 100),
        ("gossip-1/R5", [Have(0, ids(512, 512 * n)) for n in range(40)]),
        ("gossip-1/R6", [Want(1, ids(128)) for _ in range(100)]),
        ("gossip-1/R7", [Prune(n % 256) for n in range(3000)]),
        ("gossip-1/R7", [Graft(tuple(range(256)))] * 3000),
        ("gossip-1/R8", [data(b"early %d" % n) for n in range(3000)]),
    ],
)
def test_a_flood_is_penalised_once_per_window(rule: str, messages: list[Message]) -> None:
    gossip = machine(A, B)
    for window in range(2):
        effects = flood(gossip, messages, 20.0 * window)
        assert [effect for effect in effects if isinstance(effect, Penalise)] == [Penalise(A, rule)]


def test_asking_for_the_same_message_over_and_over_is_answered_a_few_times() -> None:
    gossip = machine(A)
    gossip.handle(Publish("test/1", b"x" * 60_000), 0.0)
    effects = flood(gossip, [Want(0, (name_of(b"x" * 60_000),))] * 100)
    assert len(sent(effects, Data)) == GossipLimits().answers_max
    assert Penalise(A, "gossip-1/R4") in effects


def test_answers_are_bounded_in_bytes() -> None:
    gossip = machine(A, limits=GossipLimits(answer_bytes_max=1 << 20))
    texts = [bytes([n]) * 400_000 for n in range(8)]
    for text in texts:
        gossip.handle(Publish("test/1", text), 0.0)
    assert len(sent(flood(gossip, [Want(0, tuple(map(name_of, texts)))]), Data)) == 2


def test_who_announces_and_never_delivers_is_penalised() -> None:
    gossip, effects = machine(A), []
    for number, name in enumerate(ids(100)):
        effects += gossip.handle(Received(A, Have(1, (name,))), number / 100)
    for tick in range(200):
        effects += gossip.handle(Tick(), tick / 100)
    assert Penalise(A, "gossip-1/R9") in effects


def test_who_has_much_to_send_on_a_thin_line_is_neither_blamed_nor_asked_again() -> None:
    gossip, texts = machine(A), [b"late %d" % number for number in range(300)]
    effects = gossip.handle(Received(A, Have(1, tuple(map(name_of, texts[:150])))), 0.0)
    effects += gossip.handle(Received(A, Have(1, tuple(map(name_of, texts[150:])))), 0.0)
    for number, text in enumerate(texts):  # three seconds of an answer, which is longer than wait_s
        effects += gossip.handle(Tick(), 0.01 * number)
        effects += gossip.handle(Received(A, data(text)), 0.01 * number)
    assert sum(isinstance(effect, Deliver) for effect in effects) == len(texts)
    assert asked_for(effects) == len(texts)
    assert not [effect for effect in effects if isinstance(effect, Penalise)]


def test_who_drips_holds_nobody_up_for_long() -> None:
    gossip, effects = machine(A, B), []
    texts = [b"drip %d" % number for number in range(100)]
    for peer in (A, B):
        effects += gossip.handle(Received(peer, Have(1, tuple(map(name_of, texts)))), 0.0)
    for tick in range(100):  # one in half a second
        effects += gossip.handle(Tick(), 0.1 * tick)
        if tick % 5 == 0:
            effects += gossip.handle(Received(A, data(texts[tick // 5])), 0.1 * tick)
    asked = [peer for peer, _want in sent(effects, Want)]
    assert asked[0] == A
    assert B in asked


def test_who_did_not_listen_for_a_while_blames_nobody_and_asks_nobody_again_at_once() -> None:
    gossip, texts = machine(A), [b"waiting %d" % number for number in range(100)]
    effects = [effect for text in texts for effect in gossip.handle(Received(A, Have(1, (name_of(text),))), 0.0)]
    effects += gossip.handle(Tick(), 3.0)  # a freeze ends, and time-outs come before what lies in the socket
    effects += flood(gossip, [data(text) for text in texts], 3.01)
    assert asked_for(effects) == len(texts) == sum(isinstance(effect, Deliver) for effect in effects)
    assert not [effect for effect in effects if isinstance(effect, Penalise)]


def test_copies_that_were_asked_for_are_no_repeats() -> None:
    gossip, texts = machine(A), [b"twice %d" % number for number in range(100)]
    effects = gossip.handle(Received(A, Have(1, tuple(map(name_of, texts)))), 0.0)
    effects += gossip.handle(Tick(), 1.1)
    assert asked_for(effects) == 2 * len(texts)
    assert not [e for e in flood(gossip, [data(text) for text in texts * 2], 1.2) if isinstance(e, Penalise)]
    assert Penalise(A, "gossip-1/R4") in flood(gossip, [data(text) for text in texts], 1.3)  # a third was not


def test_memory_is_bounded_whatever_a_peer_sends() -> None:
    limits = GossipLimits(
        memory=Memory(messages_max=50, message_bytes_max=10_000, ids_max=100, refused_max=30),
        asking=Asking(ids_max=60, ids_per_peer_max=40),
    )
    gossip = machine(A, B, limits=limits)
    for n in range(1000):
        now_s = n * 0.01
        for text in (b"truth %d" % n, b"lie %d" % n, b"early %d" % n, b"%d" % n * 500):
            gossip.handle(Received(A, data(text, lane=n % 256)), now_s)
        gossip.handle(Received(A, Have(0, ids(512, 512 * n))), now_s)
        gossip.handle(Received(B, Have(1, ids(5, 512 * n))), now_s)
    recent, wanted = gossip._recent, gossip._wanted
    assert len(recent) <= 50
    assert recent.data_bytes <= 10_000
    assert (len(recent._seen), len(recent._refused), len(recent._ignored)) <= (100, 30, 30)
    assert len(wanted) <= 60
    assert sum(wish.owner == A for wish in wanted._wishes.values()) <= 40
    assert len(wanted._heap) <= 4 * 61
    assert len(gossip._unannounced) <= 50
    gossip.handle(PeerDown(A), 20.0)
    gossip.handle(Tick(), 1000.0)
    assert len(recent) == len(recent._seen) == 0


def test_a_message_that_left_memory_is_still_not_delivered_twice() -> None:
    gossip = machine(A)
    gossip.handle(Received(A, data(b"x")), 0.0)
    assert not [e for e in gossip.handle(Received(A, data(b"x")), 500.0) if isinstance(e, Deliver)]


bodies = st.sampled_from([b"truth", b"lie", b"early", b"other", b"x" * 70_000])
id_lists = st.lists(st.one_of(bodies.map(name_of), st.binary(min_size=20, max_size=20)), min_size=1, max_size=8).map(
    tuple
)
lanes = st.integers(0, 255)
hostile = st.one_of(
    st.builds(Data, lanes, st.integers(0, 255), st.just("test/1"), bodies),
    st.builds(Have, st.integers(0, 1), id_lists),
    st.builds(Want, st.integers(0, 1), id_lists),
    st.builds(Graft, st.lists(lanes, min_size=1, max_size=9).map(tuple)),
    st.builds(Prune, lanes),
)
events = st.one_of(
    st.builds(Received, st.sampled_from([A, B, C]), hostile),
    st.builds(PeerUp, st.sampled_from([A, B, C])),
    st.builds(PeerDown, st.sampled_from([A, B, C])),
    st.builds(Publish, st.just("test/1"), bodies),
    st.just(Tick()),
)


@given(st.lists(st.tuples(events, st.floats(0.0, 3.0)), max_size=60))
def test_nothing_a_peer_sends_breaks_it_delivers_twice_or_passes_on_a_lie(script: list[tuple[Event, float]]) -> None:
    gossip, now_s = machine(), 0.0
    delivered: Counter[bytes] = Counter()
    up: set[PeerId] = set()
    for event, wait_s in script:
        now_s += wait_s
        if isinstance(event, Publish) and event.data in (b"lie", b"early"):
            continue
        up.add(event.peer) if isinstance(event, PeerUp) else up.discard(event.peer) if isinstance(
            event, PeerDown
        ) else None
        for effect in gossip.handle(event, now_s):
            match effect:
                case Send(name, message):
                    assert name in up
                    assert decode(MESSAGES, encode(message)) == message
                    assert not isinstance(message, Data) or message.data not in (b"lie", b"early")
                case Deliver(_, text, _):
                    delivered[text] += 1
        assert gossip.deadline_s is None or gossip.deadline_s < now_s + 60
    assert all(count == 1 for count in delivered.values())


def test_who_joins_pushes_nothing_of_the_last_minutes_to_those_who_told_it_of_that() -> None:
    swarm = Swarm(3, 24, delay_s=(0.05, 0.05))
    swarm.connect_all()
    for number in range(23):
        swarm.publish(peer(number), b"before, by %d" % number)
    swarm.net.run(3.0)
    joiner = peer(100)
    swarm.start(joiner)
    before = swarm.data_received
    for number in range(24):
        swarm.connect(joiner, peer(number))
    swarm.net.run(10.0)
    assert sum(swarm.delivered[joiner, b"before, by %d" % number] for number in range(23)) == 23
    assert swarm.data_received - before <= 2 * 23
