"""A seeded discrete-event network of many round machines: delay, loss, reordering, crashes, freezes, partitions.

The state machines are the node's own (`core.rounds`); the network, the clock, the learner and the signatures are
played. One seed is one run: `Simulation(Setting(...), seed=7)` always does the same.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from p2pnet.core import events as ev
from p2pnet.core.parts import Part
from p2pnet.core.round import Context, Restored
from p2pnet.core.rounds import Rounds
from p2pnet.core.state import HashChain, SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.codec import decode, encode
from p2pnet.wire.manifest import Policy
from p2pnet.wire.round import SIGNED, UNSIGNED, Decision, outcome_digest
from p2pnet.wire.signing import open_signed

SERVE_MAX = 16  # decisions sent in answer to one ask
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


@dataclass(slots=True)
class Disk:
    """What a crash leaves: signed slots, held values, decided rounds, parts."""

    slots: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    held: dict[int, list[tuple[bytes, tuple[bytes, ...]]]] = field(default_factory=dict)
    log: list[Decision] = field(default_factory=list)
    parts: set[bytes] = field(default_factory=set)
    state: SwarmState | None = None
    theta: bytes = bytes(32)


class SimPeer:
    """One simulated peer: the real round machine on a played learner, disk and network."""

    def __init__(self, simulation: Simulation, peer: PeerId, state: SwarmState) -> None:
        self.simulation = simulation
        self.peer = peer
        self.disk = Disk(state=state)
        self.alive = False
        self.frozen: list[ev.Event] | None = None  # events kept while frozen
        self.epoch = 0  # of this process; what an earlier one scheduled is void
        self.notes: list[ev.Note] = []
        self.diverges = False
        self.chain = HashChain(hashlib.sha256(b"chain" + peer).digest(), 256)

    def start(self) -> None:
        """Start or restart the process from its disk."""
        simulation, disk = self.simulation, self.disk
        state = disk.state
        if state is None:
            raise ValueError("a peer starts from a state")
        self.alive, self.frozen = True, None
        self.epoch += 1
        self.tick_s = -1.0  # when the next Tick is due; at most one is on its way that is not too late
        self.memory = set(disk.parts)
        self.exchanges: dict[tuple[int, int], ev.Exchange] = {}
        self.slices: dict[tuple[int, int, int], set[PeerId]] = {}
        self.waiting: dict[tuple[int, int, int], set[PeerId]] = {}
        context = Context(
            self.peer, lambda data: fake_sign(self.peer, data), fake_verify, self.chain,
            simulation.setting.leaves, 1.0, simulation.rng,
        )  # fmt: skip
        restored = Restored(disk.slots.get(state.round, {}), disk.held.get(state.round, ()))
        self.rounds = Rounds(context, state, simulation.now_s, restored)
        for other in simulation.peers.values():
            if other is not self and other.alive and simulation.linked(self.peer, other.peer):
                self.take(ev.PeerUp(other.peer))
                other.take(ev.PeerUp(self.peer))
        self.take(ev.Tick())

    def take(self, event: ev.Event) -> None:
        """Hand an event to the machine and perform what it wants."""
        if not self.alive:
            return
        if self.frozen is not None:
            self.frozen.append(event)
            return
        for effect in self.rounds.handle(event, self.simulation.now_s):
            self._perform(effect)
        deadline_s = self.rounds.deadline_s
        if deadline_s is not None and not self.simulation.now_s < self.tick_s <= deadline_s:
            self.tick_s = deadline_s
            self._later(deadline_s - self.simulation.now_s, ev.Tick())

    def _later(self, delay_s: float, event: ev.Event) -> None:
        epoch = self.epoch
        self.simulation.at(delay_s, lambda: self.take(event) if self.epoch == epoch else None)

    def _perform(self, effect: ev.Effect) -> None:
        simulation = self.simulation
        match effect:
            case ev.Train(round=number):
                checksum = int.from_bytes(self.disk.theta[:8], "big")
                self._later(0.0, ev.Started(number, checksum, self.disk.theta if effect.state_wanted else b""))
                root = hashlib.sha256(self.peer + number.to_bytes(4, "big") + bytes([self.epoch])).digest()
                train_s = simulation.rng.uniform(*simulation.setting.train_s)
                self._later(train_s, ev.Encoded(number, root, 40, True, 1, 0, 0))
            case ev.Persist(round=number, slot=slot, raw=raw):
                before = self.disk.slots.setdefault(number, {}).setdefault(slot, raw)
                if before != raw:
                    raise AssertionError(f"{self.peer[:1].hex()} signed twice in slot {slot.hex()}")
            case ev.Broadcast(raw=raw, signed=signed):
                for peer in simulation.peers:
                    simulation.carry(self.peer, peer, raw, signed)
            case ev.Send(to=to, raw=raw, signed=signed):
                simulation.carry(self.peer, to, raw, signed)
            case ev.Exchange():
                self.exchanges[effect.round, effect.view] = effect
                for part in effect.parts:
                    for sender in sorted(self.slices.get((effect.round, effect.view, part.index), ())):
                        self._later(0.0, ev.SliceArrived(effect.round, effect.view, part.index, sender))
            case ev.Scatter(part=part, to=to):
                simulation.scatter(self, effect, part, to)
            case ev.Reduce():
                self._reduce(effect)
            case ev.Answer(part=index, root=root, raw=raw):
                for waiter in sorted(self.waiting.pop((effect.round, effect.view, index), ())):
                    simulation.hand_over(self.peer, waiter, root, raw, effect.round)
            case ev.Gather(root=root, sources=sources):
                simulation.gather(self, effect.round, root, sources)
            case ev.Audit(root=root):
                self._later(0.01, ev.Audited(effect.round, root, True))
            case ev.Hold(round=number, outcome=outcome, commits=commits, roots=roots):
                self.disk.held.setdefault(number, []).append((outcome, commits))
                self.disk.parts.update(roots)
            case ev.Decide():
                self._decide(effect)
            case ev.Serve(to=to, round=start):
                for decision in self.disk.log[start : start + SERVE_MAX]:
                    simulation.carry(self.peer, to, encode(decision), False)
            case ev.Note():
                self.notes.append(effect)

    def _reduce(self, effect: ev.Reduce) -> None:
        exchange = self.exchanges[effect.round, effect.view]
        peers = [commit.peer for commit in exchange.commits]
        inputs = tuple(257 if peer in effect.senders else 0 for peer in peers)
        slices = b"".join(c.message.payload_root for c in exchange.commits if c.peer in effect.senders)
        root = hashlib.sha256(b"part" + effect.part.start.to_bytes(4, "big") + slices).digest()
        self.memory.add(root)
        self._later(0.02, ev.ReduceDone(effect.round, effect.view, effect.part.index, inputs, root))

    def _decide(self, effect: ev.Decide) -> None:
        value = outcome_digest(effect.decision.outcome)
        self.simulation.decided(self.peer, effect.round, value)
        self.disk.log.append(effect.decision)
        self.disk.parts.update(effect.roots)
        self.disk.state = effect.after
        if not effect.void:
            self.disk.theta = hashlib.sha256(self.disk.theta + b"".join(effect.roots)).digest()
        self._later(0.01, ev.Applied(effect.round))


class Simulation:
    """All peers, one clock, one heap of what is to happen."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        self.seed = seed
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.values: dict[int, bytes] = {}  # what each round was decided to be
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._cut: set[frozenset[PeerId]] = set()
        ids = sorted(PeerId(hashlib.sha256(b"peer%d" % i).digest()) for i in range(setting.peers))
        founders = tuple(ids[: setting.founders or setting.peers])
        swarm = hashlib.sha256(b"swarm%d" % seed).digest()
        state = SwarmState(
            swarm, setting.policy, 0, hashlib.sha256(b"g" + swarm).digest(), hashlib.sha256(b"b" + swarm).digest(),
            founders, {}, frozenset(founders),
        )  # fmt: skip
        self.peers = {peer: SimPeer(self, peer, state) for peer in ids}

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._count), action))

    def start(self, peers: Iterable[PeerId] | None = None) -> None:
        """Start peers, all by default."""
        for peer in peers if peers is not None else list(self.peers):
            self.peers[peer].start()

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Run until something holds or the simulated time is over; tells whether it holds."""
        end_s = self.now_s + limit_s
        while not until():
            if not self._heap or self._heap[0][0] > end_s:
                self.now_s = end_s
                return until()
            self.now_s, _, action = heapq.heappop(self._heap)
            action()
        return True

    def crash(self, peer: PeerId) -> None:
        """End a process at once: what was not on its disk is gone."""
        self.peers[peer].alive = False
        self.peers[peer].epoch += 1
        for other in self.peers.values():
            if other.alive:
                self.at(self.setting.detect_s, lambda other=other: self._see_down(other, peer))  # type: ignore[misc]

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

    def linked(self, a: PeerId, b: PeerId) -> bool:
        """Tell whether two peers can reach each other."""
        return frozenset((a, b)) not in self._cut

    def rounds_done(self) -> int:
        """Rounds that every live peer has decided."""
        return min((p.disk.state.round for p in self.peers.values() if p.alive and p.disk.state), default=0)

    def decided(self, peer: PeerId, number: int, value: bytes) -> None:
        """The safety invariant: one value per round."""
        if self.values.setdefault(number, value) != value:
            raise AssertionError(f"seed {self.seed}: two decisions in round {number}, at {peer[:2].hex()}")

    def carry(self, sender: PeerId, to: PeerId, raw: bytes, signed: bool) -> None:
        """Carry one message, unless it is lost."""
        if sender == to or to not in self.peers or not self.linked(sender, to) or self.rng.random() < self.setting.loss:
            return
        self.at(self._delay(), lambda: self._deliver(sender, to, raw, signed))

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
            self.at(self._delay(), lambda: self._receive_part(sender, to, root, raw, number))

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
        if signed:
            message = open_signed(SIGNED, raw, fake_verify)
            self.peers[to].take(ev.Heard(sender, message))  # type: ignore[arg-type]
        else:
            self.peers[to].take(ev.Heard(sender, decode(UNSIGNED, raw)))  # type: ignore[arg-type]

    def _receive_part(self, sender: PeerId, to: PeerId, root: bytes, raw: bytes, number: int) -> None:
        target = self.peers[to]
        if target.alive:
            target.memory.add(root)
            self._deliver(sender, to, raw, True)
            target.take(ev.Gathered(number, root))

    def _see_down(self, other: SimPeer, peer: PeerId) -> None:
        if not self.peers[peer].alive:
            other.take(ev.PeerDown(peer))


def fake_sign(peer: PeerId, data: bytes) -> bytes:
    """Stand in for Ed25519 where thousands of runs are wanted: anyone could forge it, and no simulated peer does."""
    return hashlib.sha512(peer + data).digest()


def fake_verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Check a played signature."""
    return fake_sign(peer, data) == signature
