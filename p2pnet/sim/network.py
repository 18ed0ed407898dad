"""The simulated network: one clock, one heap, every peer's round machine; delay, loss, crashes, freezes, partitions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2pnet.core import events as ev
from p2pnet.core.evidence import Offence
from p2pnet.core.parts import Part
from p2pnet.core.shares import Volume
from p2pnet.core.state import Member, SwarmState
from p2pnet.identity import PeerId
from p2pnet.sim.clock import Clock
from p2pnet.sim.liar import Liar
from p2pnet.sim.peer import SimPeer, chain_of
from p2pnet.sim.signatures import open_message
from p2pnet.wire.manifest import Policy

LEAF_BYTES = 13_000  # with 8 leaves, half a second is the most that an exchange is given besides grace
POLICY = Policy(5, 40, 60_000, 500, 5_000, 1_000_000, 950_000, 64, 100, 3, 2, 10, 0, 0, 20)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a simulated network is like."""

    peers: int = 4
    founders: int | None = None  # the first so many; all when None
    grown: bool = False  # all peers were in a roster before: a swarm that has come to its size
    leaves: int = 8
    leaf_bytes: tuple[int, int] = (LEAF_BYTES, 2 * LEAF_BYTES)  # of a payload, of a result
    delay_s: tuple[float, float] = (0.005, 0.05)  # of one message, drawn evenly: later ones may overtake
    loss: float = 0.0  # share of messages lost
    train_s: tuple[float, float] = (0.5, 1.5)
    detect_s: float = 0.1  # from a crash to the others' PeerDown; a freeze is not detected
    policy: Policy = POLICY


def grown_rows(peers: Iterable[PeerId], policy: Policy, swarm: bytes) -> dict[PeerId, Member]:
    """The rows of peers that were in rosters before the first round that is played."""
    return {peer: Member(chain_of(peer, swarm).end, policy.service_rounds, -1, -1) for peer in peers}


class Simulation(Clock):
    """All peers, one clock, one heap of what is to happen."""

    def __init__(self, setting: Setting, seed: int, liars: int = 0) -> None:
        """liars: so many of the founders do what they like, until `repent`."""
        super().__init__()
        self.setting = setting
        self.seed = seed
        self.rng = random.Random(seed)
        self.values: dict[tuple[int, bytes], tuple[bytes, ...]] = {}  # by round and line: what was decided, and led to
        self.work: dict[bytes, frozenset[bytes]] = {}  # by root of a payload: the updates that are in it
        self.lies: set[bytes] = set()  # roots of parts that are not what they are said to be
        self.listings: dict[bytes, tuple[bytes, ...]] = {}  # of columns, by digest
        self.authors: dict[bytes, SimPeer] = {}  # of the payloads
        self.is_wide = False  # a round was decided by many groups: whose updates are where is not followed there
        self.branches = 0  # that peers have entered
        self._cut: set[frozenset[PeerId]] = set()
        self._mute: set[tuple[PeerId, PeerId]] = set()  # nothing passes from the first to the second
        self._slow: dict[PeerId, tuple[float, float]] = {}  # seconds more for a message, for a slice or a part
        ids = sorted(PeerId(hashlib.sha256(b"peer%d" % i).digest()) for i in range(setting.peers))
        founders = tuple(ids[: setting.founders or setting.peers])
        swarm = hashlib.sha256(b"swarm%d" % seed).digest()
        rows = grown_rows(ids, setting.policy, swarm) if setting.grown else {}
        state = SwarmState(
            swarm, setting.policy, 0, hashlib.sha256(b"g" + swarm).digest(), hashlib.sha256(b"b" + swarm).digest(),
            founders, rows, frozenset(founders), Volume(setting.leaves, *setting.leaf_bytes),
        )  # fmt: skip
        self.swarm, self.has_liars = swarm, liars > 0
        lying = set(self.rng.sample(founders, liars))
        self.peers = {peer: self._make_peer(peer, state, peer in lying) for peer in ids}

    def _make_peer(self, peer: PeerId, state: SwarmState, lies: bool) -> SimPeer:
        return (Liar if lies else SimPeer)(self, peer, state)

    def start(self, peers: Iterable[PeerId] | None = None) -> None:
        """Start peers, all by default."""
        for peer in peers if peers is not None else list(self.peers):
            self.peers[peer].start()

    def crash(self, peer: PeerId) -> None:
        """End a process at once: what was not on its disk is gone."""
        self.peers[peer].alive = False
        self.peers[peer].epoch += 1
        for other in self.peers.values():
            if other.alive:
                self.at(self.setting.detect_s, self._see_down, other, peer)
        self._break_streams(peer)

    def freeze(self, peer: PeerId) -> None:
        """Stop a process that others still hold for alive."""
        self.peers[peer].frozen = self.peers[peer].frozen or []

    def thaw(self, peer: PeerId) -> None:
        """Let a frozen process go on: all that came meanwhile comes at once."""
        frozen, self.peers[peer].frozen = self.peers[peer].frozen or [], None
        self.peers[peer].go_on()
        for event, swarm in frozen:
            self.peers[peer].take(event, swarm)

    def cut(self, side: Iterable[PeerId], is_noticed: bool = False) -> None:
        """Partition the network: nothing passes between these peers and the others.

        is_noticed: that their connections are gone; else each may believe that the others train.
        """
        self.heal()
        inside = set(side)
        self._cut = {frozenset((a, b)) for a in inside for b in self.peers if b not in inside}
        for a, b in (sorted(pair) for pair in sorted(self._cut, key=sorted) if is_noticed):
            self.at(self.setting.detect_s, self._notice_cut, a, b)

    def heal(self) -> None:
        """End the partition; both sides see each other come up."""
        cut, self._cut = self._cut, set()
        for a, b in (sorted(pair) for pair in sorted(cut, key=sorted)):
            self.peers[a].take(ev.PeerUp(b))
            self.peers[b].take(ev.PeerUp(a))

    def drop(self, peer: PeerId, back_s: float) -> None:
        """End all connections of a peer, as when its libp2p daemon dies; they are back after so many seconds."""
        pairs = {frozenset((peer, other)) for other in self.peers if other != peer}
        self._cut |= pairs
        self._break_streams(peer)

        def see(event: type[ev.PeerUp | ev.PeerDown]) -> None:
            if event is ev.PeerUp:
                self._cut -= pairs
            for other in self.peers:
                if other != peer and (event is ev.PeerDown or (self.peers[other].alive and self.peers[peer].alive)):
                    self.peers[peer].take(event(other))
                    self.peers[other].take(event(peer))

        self.at(0.0, lambda: see(ev.PeerDown))
        self.at(back_s, lambda: see(ev.PeerUp))

    def half_open(self, peer: PeerId) -> None:
        """Nothing passes between a peer and the others; they have seen the connections end, it believes in them."""
        self._cut |= {frozenset((peer, other)) for other in self.peers if other != peer}
        for other in self.peers.values():
            if other.peer != peer:
                self.at(self.setting.detect_s, lambda other=other: other.take(ev.PeerDown(peer)))

    def mute(self, sender: PeerId, to: PeerId) -> None:
        """Let nothing pass from one peer to the other; the connection stands, the other way it carries."""
        self._mute.add((sender, to))

    def slow(self, peer: PeerId, message_s: float, bulk_s: float) -> None:
        """Make a peer's link slow, both ways: seconds more for each message, and for each slice or reduced part."""
        self._slow[peer] = message_s, bulk_s

    def unhinder(self) -> None:
        """Links carry both ways again, and at their usual speed."""
        self._mute.clear()
        self._slow.clear()

    def repent(self) -> None:
        """The liars follow the protocol from now on."""
        for peer in self.peers.values():
            if isinstance(peer, Liar):
                peer.lies = False

    def carries(self, sender: PeerId, to: PeerId) -> bool:
        """Tell whether anything gets from one peer to the other."""
        return frozenset((sender, to)) not in self._cut and (sender, to) not in self._mute

    def talks(self, a: PeerId, b: PeerId) -> bool:
        """Tell whether two peers can ask each other: a connection is made, and a stream opened, by both."""
        return self.carries(a, b) and self.carries(b, a)

    def rounds_done(self) -> int:
        """Rounds that every live honest peer has decided."""
        alive = (peer for peer in self.peers.values() if peer.alive and peer.honest)
        return min((peer.disk.state.round for peer in alive if peer.disk.state), default=0)

    def decided(self, peer: PeerId, number: int, found: tuple[bytes, ...], swarm: bytes) -> None:
        """The safety invariant: one value per round, and with it one lineage and one theta.

        In a branch, too, unless somebody lies: it may be so small that a liar is a third of it.
        """
        if swarm != self.swarm and self.has_liars:
            return
        if self.values.setdefault((number, swarm), found) != found:
            raise AssertionError(f"two decisions in round {number}, at {peer[:2].hex()}")

    def excluded(self, number: int, peers: Iterable[PeerId]) -> None:
        """The other invariant of evidence: nobody honest is ever excluded."""
        if framed := [peer[:2].hex() for peer in peers if self._is_honest(peer)]:
            raise AssertionError(f"round {number} excludes {framed}, who are honest")

    def carry(self, sender: PeerId, to: PeerId, raw: bytes, signed: bool) -> None:
        """Carry one message, unless it is lost."""
        if (
            sender == to
            or to not in self.peers
            or not self.carries(sender, to)
            or self.rng.random() < self.setting.loss
        ):
            return
        self.at(self.delay_s(sender, to), self._deliver, sender, to, raw, signed)

    def scatter(self, sender: SimPeer, effect: ev.Scatter, part: Part, to: PeerId) -> None:
        """Carry a slice; the stream waits for the answer."""
        target, swarm = self.peers[to], sender.line
        key = (effect.round, effect.view, part.index)

        def arrive() -> None:
            is_lost = not target.alive or not self.carries(sender.peer, to) or self.rng.random() < self.setting.loss
            if is_lost or swarm not in target.sites:
                sender.take(ev.ScatterFailed(effect.round, effect.view, part.index, to), swarm)
                return
            site = target.sites[swarm]
            site.waiting.setdefault(key, set()).add(sender.peer)
            if swarm == self.swarm:
                target.bundles.listen(key, sender.peer)
            if effect.listens:
                return
            site.slices.setdefault(key, set()).add(sender.peer)
            if key[:2] in site.exchanges:
                target.take(ev.SliceArrived(effect.round, effect.view, part.index, sender.peer), swarm)

        self.at(self.delay_s(sender.peer, to, is_bulk=True), arrive)

    def hand_over(self, sender: SimPeer, to: PeerId, answer: ev.Answer) -> None:
        """Carry a reduced part back on the stream its slice came on."""
        if self.rng.random() >= self.setting.loss and self.carries(sender.peer, to):
            delay_s = self.delay_s(sender.peer, to, is_bulk=True)
            self.at(delay_s, self._receive_part, sender.peer, to, answer, sender.line)

    def gather(self, asker: SimPeer, number: int, root: bytes, sources: tuple[PeerId, ...]) -> None:
        """Fetch a part from the first source that has it."""
        swarm = asker.line

        def answer() -> None:
            for source in sources:
                holder = self.peers[source]
                reachable = holder.alive and holder.frozen is None and self.talks(asker.peer, source)
                site = holder.sites.get(swarm) if reachable else None
                if site is not None and root in site.memory | site.disk.parts and swarm in asker.sites:
                    asker.sites[swarm].memory.add(root)
                    asker.take(ev.Gathered(number, root), swarm)
                    return
            asker.take(ev.GatherFailed(number, root), swarm)

        first = sources[0] if sources else asker.peer
        self.at(self.delay_s(asker.peer, first) + self.delay_s(first, asker.peer, is_bulk=True), answer)

    def passes(self, sender: PeerId, to: PeerId) -> bool:
        """Tell whether what is sent now arrives."""
        return self.carries(sender, to) and self.rng.random() >= self.setting.loss

    def trip_s(self, asker: PeerId, sources: Sequence[PeerId]) -> float:
        """How long it takes to ask the first of several and be answered."""
        first = sources[0] if sources else asker
        return self.delay_s(asker, first) + self.delay_s(first, asker, is_bulk=True)

    def carry_evidence(self, sender: PeerId, to: PeerId, raw: bytes) -> None:
        """Carry evidence to one peer, which judges it before anything else."""
        if sender != to and self.carries(sender, to) and self.rng.random() >= self.setting.loss:
            self.at(self.delay_s(sender, to), lambda: self._judge(self.peers[to], raw))

    def fetch_evidence(self, asker: SimPeer, digest: bytes, sources: tuple[PeerId, ...]) -> None:
        """Fetch evidence from the first source that has it."""
        swarm = asker.line

        def answer() -> None:
            for source in sources:
                if source not in self.peers:
                    continue  # a name that a liar made up
                holder = self.peers[source]
                reachable = holder.alive and holder.frozen is None and self.talks(asker.peer, source)
                if reachable and digest in holder.disk.evidence:
                    self._judge(asker, holder.disk.evidence[digest][1])
                    return
            asker.take(ev.Unproven(digest, False), swarm)

        first = sources[0] if sources and sources[0] in self.peers else asker.peer
        self.at(self.delay_s(asker.peer, first) + self.delay_s(first, asker.peer), answer)

    def accused(self, by: PeerId, offence: Offence) -> None:
        """The invariant of evidence: nobody honest is ever proved to have lied."""
        if self._is_honest(offence.peer):
            raise AssertionError(f"{by[:2].hex()} has evidence that {offence.peer[:2].hex()} {offence.what}")

    def _is_honest(self, peer: PeerId) -> bool:
        """Tell whether a peer keeps to the protocol; names that liars made up do not."""
        return peer in self.peers and self.peers[peer].honest

    def _judge(self, peer: SimPeer, raw: bytes) -> None:
        if peer.alive and (proven := peer.judge(raw)) is not None:
            peer.take(proven)

    def delay_s(self, sender: PeerId, to: PeerId, is_bulk: bool = False) -> float:
        """How long something takes from one peer to another."""
        more_s = sum(self._slow[peer][is_bulk] for peer in {sender, to} if peer in self._slow)
        return self.rng.uniform(*self.setting.delay_s) + more_s

    def _break_streams(self, peer: PeerId) -> None:
        """Let those know, soon, whose slices wait for an answer on a stream to or from this peer."""
        for holder in self.peers.values():
            if holder.epoch:
                holder.bundles.broken(peer)
        sites = [(holder, swarm, site) for holder in self.peers.values() for swarm, site in holder.sites.items()]
        for holder, swarm, site in sites:
            for (number, view, part), waiting in site.waiting.items():
                broken = sorted(waiting) if holder.peer == peer else [peer] if peer in waiting else []
                waiting.difference_update(broken)
                for sender in broken:
                    failed = ev.ScatterFailed(number, view, part, holder.peer)
                    if sender != holder.peer:
                        self.at(self.setting.detect_s, self._take, sender, failed, swarm)

    def _notice_cut(self, a: PeerId, b: PeerId) -> None:
        if frozenset((a, b)) in self._cut:
            self.peers[a].take(ev.PeerDown(b))
            self.peers[b].take(ev.PeerDown(a))

    def _take(self, peer: PeerId, event: ev.Event, swarm: bytes) -> None:
        self.peers[peer].take(event, swarm)

    def _deliver(self, sender: PeerId, to: PeerId, raw: bytes, signed: bool) -> None:
        self.peers[to].take(ev.Heard(sender, open_message(raw, signed)))

    def _receive_part(self, sender: PeerId, to: PeerId, answer: ev.Answer, swarm: bytes) -> None:
        target = self.peers[to]
        if target.alive and swarm in target.sites:
            target.sites[swarm].memory.add(answer.root)
            self._deliver(sender, to, answer.raw, True)
            target.take(ev.Gathered(answer.round, answer.root), swarm)

    def _see_down(self, other: SimPeer, peer: PeerId) -> None:
        if not self.peers[peer].alive:
            other.take(ev.PeerDown(peer))
