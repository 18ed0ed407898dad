"""The simulated network: one clock, one heap, every peer's round machine; delay, loss, crashes, freezes, partitions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass

from p2pnet.core import events as ev
from p2pnet.core.parts import Part
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.sim.clock import Clock
from p2pnet.sim.liar import Liar
from p2pnet.sim.peer import SimPeer
from p2pnet.sim.signatures import open_message
from p2pnet.wire.manifest import Policy

POLICY = Policy(5, 40, 60_000, 500, 5_000, 1_000_000, 950_000, 64, 100, 3, 2, 10, 0)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a simulated network is like."""

    peers: int = 4
    founders: int | None = None  # the first so many; all when None
    leaves: int = 8
    delay_s: tuple[float, float] = (0.005, 0.05)  # of one message, drawn evenly: later ones may overtake
    loss: float = 0.0  # share of messages lost
    train_s: tuple[float, float] = (0.5, 1.5)
    detect_s: float = 0.1  # from a crash to the others' PeerDown; a freeze is not detected
    policy: Policy = POLICY


class Simulation(Clock):
    """All peers, one clock, one heap of what is to happen."""

    def __init__(self, setting: Setting, seed: int, liars: int = 0) -> None:
        """liars: so many of the founders do what they like, until `repent`."""
        super().__init__()
        self.setting = setting
        self.seed = seed
        self.rng = random.Random(seed)
        self.values: dict[int, tuple[bytes, ...]] = {}  # what each round was decided to be, and where it led
        self.lies: set[bytes] = set()  # roots of parts that are not what they are said to be
        self._cut: set[frozenset[PeerId]] = set()
        ids = sorted(PeerId(hashlib.sha256(b"peer%d" % i).digest()) for i in range(setting.peers))
        founders = tuple(ids[: setting.founders or setting.peers])
        swarm = hashlib.sha256(b"swarm%d" % seed).digest()
        state = SwarmState(
            swarm, setting.policy, 0, hashlib.sha256(b"g" + swarm).digest(), hashlib.sha256(b"b" + swarm).digest(),
            founders, {}, frozenset(founders),
        )  # fmt: skip
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

    def freeze(self, peer: PeerId) -> None:
        """Stop a process that others still hold for alive."""
        self.peers[peer].frozen = self.peers[peer].frozen or []

    def thaw(self, peer: PeerId) -> None:
        """Let a frozen process go on: all that came meanwhile comes at once."""
        frozen, self.peers[peer].frozen = self.peers[peer].frozen or [], None
        for event in frozen:
            self.peers[peer].take(event)

    def cut(self, side: Iterable[PeerId]) -> None:
        """Partition the network: nothing passes between these peers and the others."""
        inside = set(side)
        self._cut = {frozenset((a, b)) for a in inside for b in self.peers if b not in inside}

    def heal(self) -> None:
        """End the partition; both sides see each other come up."""
        cut, self._cut = self._cut, set()
        for a, b in (sorted(pair) for pair in sorted(cut, key=sorted)):
            self.peers[a].take(ev.PeerUp(b))
            self.peers[b].take(ev.PeerUp(a))

    def repent(self) -> None:
        """The liars follow the protocol from now on."""
        for peer in self.peers.values():
            if isinstance(peer, Liar):
                peer.lies = False

    def linked(self, a: PeerId, b: PeerId) -> bool:
        """Tell whether two peers can reach each other."""
        return frozenset((a, b)) not in self._cut

    def rounds_done(self) -> int:
        """Rounds that every live honest peer has decided."""
        alive = (peer for peer in self.peers.values() if peer.alive and peer.honest)
        return min((peer.disk.state.round for peer in alive if peer.disk.state), default=0)

    def decided(self, peer: PeerId, number: int, found: tuple[bytes, ...]) -> None:
        """The safety invariant: one value per round, and with it one lineage and one theta."""
        if self.values.setdefault(number, found) != found:
            raise AssertionError(f"two decisions in round {number}, at {peer[:2].hex()}")

    def carry(self, sender: PeerId, to: PeerId, raw: bytes, signed: bool) -> None:
        """Carry one message, unless it is lost."""
        if sender == to or to not in self.peers or not self.linked(sender, to) or self.rng.random() < self.setting.loss:
            return
        self.at(self._delay(), self._deliver, sender, to, raw, signed)

    def scatter(self, sender: SimPeer, effect: ev.Scatter, part: Part, to: PeerId) -> None:
        """Carry a slice; the stream waits for the answer."""
        target = self.peers[to]
        key = (effect.round, effect.view, part.index)

        def arrive() -> None:
            if not target.alive or not self.linked(sender.peer, to) or self.rng.random() < self.setting.loss:
                sender.take(ev.ScatterFailed(effect.round, effect.view, part.index, to))
                return
            target.slices.setdefault(key, set()).add(sender.peer)
            target.waiting.setdefault(key, set()).add(sender.peer)
            if key[:2] in target.exchanges:
                target.take(ev.SliceArrived(effect.round, effect.view, part.index, sender.peer))

        self.at(self._delay(), arrive)

    def hand_over(self, sender: PeerId, to: PeerId, root: bytes, raw: bytes, number: int) -> None:
        """Carry a reduced part back on the stream its slice came on."""
        if self.rng.random() >= self.setting.loss and self.linked(sender, to):
            self.at(self._delay(), self._receive_part, sender, to, root, raw, number)

    def gather(self, asker: SimPeer, number: int, root: bytes, sources: tuple[PeerId, ...]) -> None:
        """Fetch a part from the first source that has it."""

        def answer() -> None:
            for source in sources:
                holder = self.peers[source]
                reachable = holder.alive and holder.frozen is None and self.linked(asker.peer, source)
                if reachable and root in holder.memory | holder.disk.parts:
                    asker.memory.add(root)
                    asker.take(ev.Gathered(number, root))
                    return
            asker.take(ev.GatherFailed(number, root))

        self.at(2 * self._delay(), answer)

    def _delay(self) -> float:
        return self.rng.uniform(*self.setting.delay_s)

    def _deliver(self, sender: PeerId, to: PeerId, raw: bytes, signed: bool) -> None:
        self.peers[to].take(ev.Heard(sender, open_message(raw, signed)))

    def _receive_part(self, sender: PeerId, to: PeerId, root: bytes, raw: bytes, number: int) -> None:
        target = self.peers[to]
        if target.alive:
            target.memory.add(root)
            self._deliver(sender, to, raw, True)
            target.take(ev.Gathered(number, root))

    def _see_down(self, other: SimPeer, peer: PeerId) -> None:
        if not self.peers[peer].alive:
            other.take(ev.PeerDown(peer))
