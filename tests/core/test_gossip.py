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
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message, decode, encode
from p2pnet.wire.gossip import MESSAGES, Data, Graft, Have, Prune, Want, message_id
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
        self.bytes_sent = 0
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
                self.bytes_sent += len(message.data) if isinstance(message, Data) else 24
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
    for warm_up in range(3):
        for number in range(64):
            swarm.publish(peer(number), b"round %d by %d" % (warm_up, number))
        swarm.net.run(5.0)
    before, start_s = swarm.data_received, swarm.net.now_s
    print(swarm.bytes_sent, sum(swarm.gossip(n).counts.announced for n in swarm.alive()))
    for number in range(64):
        swarm.publish(peer(number), b"measured, by %d" % number)
    swarm.net.run(5.0)
    late = [time_s - start_s for (_, data), time_s in swarm.delivered_s.items() if data.startswith(b"measured")]
    assert len(late) == 64 * 63
    redundancy = (swarm.data_received - before) / (64 * 63)
    print(swarm.bytes_sent, sum(swarm.gossip(n).counts.announced for n in swarm.alive()))
    print(f"64 members: {redundancy:.3f} copies each, median {statistics.median(late) / 0.05:.2f} hops, "
          f"slowest {max(late) / 0.05:.2f}")
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
        print(f"1000 members: {redundancy:.3f} copies each, median {statistics.median(late) / 0.05:.2f} hops, "
              f"slowest {max(late) / 0.05:.2f}")
        assert not any(swarm.lacking(peer(5), b"roster %d" % number) for number in range(6))
        assert redundancy < 1.2
        assert max(late) < 0.6


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
