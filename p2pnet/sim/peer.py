"""One simulated peer: the node's own round machine on a played learner, disk and network."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2pnet.core import events as ev
from p2pnet.core.docket import Docket
from p2pnet.core.evidence import Ground, Offence, examine
from p2pnet.core.pace import Pace
from p2pnet.core.parts import CHUNKS_PER_LEAF
from p2pnet.core.rounds import Rounds
from p2pnet.core.slots import Context, Restored
from p2pnet.core.state import HashChain, SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.sim.signatures import fake_sign, fake_verify
from p2pnet.wire.codec import encode
from p2pnet.wire.membership import Reach
from p2pnet.wire.round import Decision, outcome_digest

if TYPE_CHECKING:
    from p2pnet.sim.network import Simulation

SERVE_MAX = 16  # decisions sent in answer to one ask
AUDIT_CATCHES = 0.5  # share of audits of a wrong part that hit a wrong leaf
REDUCE_S, APPLY_S = 0.02, 0.01


@dataclass(slots=True)
class Disk:
    """What a crash leaves: signed slots, held values, decided rounds, parts."""

    slots: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    held: dict[int, list[tuple[bytes, tuple[bytes, ...]]]] = field(default_factory=dict)
    log: list[Decision] = field(default_factory=list)
    parts: set[bytes] = field(default_factory=set)
    state: SwarmState | None = None
    theta: bytes = bytes(32)
    evidence: dict[bytes, tuple[Offence, bytes]] = field(default_factory=dict)  # by digest


class SimPeer:
    """One simulated peer: the real round machine on a played learner, disk and network."""

    def __init__(self, simulation: Simulation, peer: PeerId, state: SwarmState) -> None:
        self.simulation = simulation
        self.peer = peer
        self.disk = Disk(state=state)
        self.alive = False
        self.waiting: dict[tuple[int, int, int], set[PeerId]] = {}  # whose slice came, and waits for its part
        self.frozen: list[ev.Event] | None = None  # events kept while frozen
        self.pending: deque[ev.Effect] = deque()  # effects not performed yet; some are left when frozen in mid-way
        self.epoch = 0  # of this process; what an earlier one scheduled is void
        self.notes: list[ev.Note] = []
        self.honest = True
        self.fuse: int | None = None  # effects until this process is killed
        self.clock_s = 0.0  # what its monotonic clock shows beyond the simulation's: a node's counts from its boot
        self.disk_is_full = False  # the next write ends the process
        self.says_reach = Reach.PUBLIC  # what it says of itself; a private one reduces nothing while enough others can
        self.stuck_round: int | None = None  # in which it starts to reduce and does not get done
        self.watch: Callable[[SimPeer, ev.Event | ev.Effect, bool], None] | None = None  # before, and once performed
        self.chain = HashChain(hashlib.sha256(b"chain" + peer).digest(), 256)

    @property
    def now_s(self) -> float:
        """What its monotonic clock shows."""
        return self.simulation.now_s + self.clock_s

    def start(self) -> None:
        """Start or restart the process from its disk."""
        simulation = self.simulation
        self.alive, self.frozen = True, None
        self.pending.clear()
        self.epoch += 1
        self.exchanges: dict[tuple[int, int], ev.Exchange] = {}
        self.slices: dict[tuple[int, int, int], set[PeerId]] = {}
        self.waiting = {}
        self.rounds = self._restore()
        for other in simulation.peers.values():
            if other is not self and other.alive and simulation.talks(self.peer, other.peer):
                self.take(ev.PeerUp(other.peer))
                other.take(ev.PeerUp(self.peer))
        self.take(ev.Tick())

    def _restore(self) -> Rounds:
        """The round machine, as what is on the disk lets it go on."""
        simulation, disk = self.simulation, self.disk
        state = disk.state
        if state is None:
            raise ValueError("a peer starts from a state")
        self.trained_s: float | None = None  # with overlap: when what is trained beside the exchange will be done
        self.tick_s = -math.inf  # when the next Tick is due; at most one is on its way that is not too late
        self.memory = set(disk.parts)
        context = Context(
            self.peer, lambda data: fake_sign(self.peer, data), fake_verify, self.chain,
            Pace(), simulation.rng, docket=Docket(one for one, _ in disk.evidence.values()),
        )  # fmt: skip
        restored = Restored(disk.slots.get(state.round, {}), disk.held.get(state.round, ()))
        return Rounds(context, state, self.now_s, restored)

    def is_running(self) -> bool:
        """Tell whether the process lives and is not frozen."""
        return self.alive and self.frozen is None

    def take(self, event: ev.Event) -> None:
        """Hand an event to the machine and perform what it wants."""
        if self.is_running():
            self._watched(event, False)
        if self.is_running():
            if isinstance(event, ev.Encoded) and self.rounds.state.round == event.round:
                self._train_on()
            self.pending.extend(self.rounds.handle(event, self.now_s))
            self.go_on()
        elif self.alive and self.frozen is not None:
            self.frozen.append(event)

    def go_on(self) -> None:
        """Perform what the machine wants, in order, for as long as the process runs."""
        while self.pending:
            if self.fuse is not None:
                if self.fuse <= 0:
                    self.fuse = None
                    self.simulation.crash(self.peer)
                    return
                self.fuse -= 1
            self._watched(self.pending[0], False)
            if not self.is_running():
                return
            effect = self.pending.popleft()
            if self.disk_is_full and isinstance(effect, ev.Persist | ev.Hold | ev.Decide):
                self.simulation.crash(self.peer)  # the node ends and says why
                return
            self.perform(effect)
            self._watched(effect, True)
            if not self.is_running():
                return
        deadline_s = self.rounds.deadline_s
        if deadline_s is not None and not self.now_s < self.tick_s <= deadline_s:
            self.tick_s = deadline_s
            self._later(deadline_s - self.now_s, ev.Tick())

    def _watched(self, what: ev.Event | ev.Effect, is_done: bool) -> None:
        if self.watch is not None:
            self.watch(self, what, is_done)

    def _train_on(self) -> None:
        """With overlap the next round is trained from now on."""
        setting = self.simulation.setting
        if setting.policy.overlap:
            self.trained_s = self.simulation.now_s + self.simulation.rng.uniform(*setting.train_s)

    def _later(self, delay_s: float, event: ev.Event) -> None:
        self.simulation.at(delay_s, self._take_if_same, self.epoch, event)

    def _take_if_same(self, epoch: int, event: ev.Event) -> None:
        if self.epoch == epoch:
            self.take(event)

    def _train(self, effect: ev.Train) -> None:
        number = effect.round
        checksum = int.from_bytes(self.disk.theta[:8], "big")
        self._later(0.0, ev.Started(number, checksum, self.disk.theta if effect.state_wanted else b""))
        root = hashlib.sha256(self.peer + number.to_bytes(4, "big") + bytes([self.epoch])).digest()
        simulation = self.simulation
        train_s = 0.0 if self.trained_s is not None else simulation.rng.uniform(*simulation.setting.train_s)
        self._later(train_s, ev.Encoded(number, root, 40, True, int(self.says_reach), 0, 0))

    def perform(self, effect: ev.Effect) -> None:
        """Do what the machine wants done."""
        match effect:
            case ev.Train():
                self._train(effect)
            case ev.Persist(round=number, slot=slot, raw=raw):
                before = self.disk.slots.setdefault(number, {}).setdefault(slot, raw)
                if before != raw:
                    raise AssertionError(f"{self.peer[:2].hex()} signed twice in slot {slot.hex()}")
            case ev.Hold(round=number, outcome=outcome, commits=commits, roots=roots):
                self.disk.held.setdefault(number, []).append((outcome, commits))
                self.disk.parts.update(roots)
            case ev.Decide():
                self._decide(effect)
            case ev.Accuse(offence=offence, raw=raw):
                self.disk.evidence[offence.digest] = offence, raw
                self.simulation.accused(self.peer, offence)
                for peer in self.simulation.peers:
                    self.simulation.carry_evidence(self.peer, peer, raw)
            case ev.FetchEvidence(digest=digest, sources=sources):
                self.simulation.fetch_evidence(self, digest, sources)
            case ev.Note():
                self.notes.append(effect)
            case _:
                self._talk(effect)

    def _talk(self, effect: ev.Effect) -> None:
        """Perform what the network plays a part in."""
        simulation = self.simulation
        match effect:
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
                caught = root in simulation.lies and simulation.rng.random() < AUDIT_CATCHES
                self._later(0.01, ev.Audited(effect.round, root, not caught))
            case ev.Serve(to=to, round=start):
                for decision in self.disk.log[start : start + SERVE_MAX]:
                    simulation.carry(self.peer, to, encode(decision), False)

    def judge(self, raw: bytes) -> ev.Proven | None:
        """Judge evidence as a node does; there are no payloads here, so that what is about leaves proves nothing."""
        ground = Ground(self.rounds.state.swarm, CHUNKS_PER_LEAF * self.simulation.setting.leaves, 1)
        try:
            offence, claim = examine(raw, ground, fake_verify)
        except WireError:
            return None
        return ev.Proven(offence, raw) if claim is None else None

    def _reduce(self, effect: ev.Reduce) -> None:
        exchange = self.exchanges[effect.round, effect.view]
        peers = [commit.peer for commit in exchange.commits]
        inputs = tuple(257 if peer in effect.senders else 0 for peer in peers)
        slices = b"".join(c.message.payload_root for c in exchange.commits if c.peer in effect.senders)
        root = hashlib.sha256(b"part" + effect.part.start.to_bytes(4, "big") + slices).digest()
        self.memory.add(root)
        if effect.round == self.stuck_round:
            return
        self._later(
            self._reduce_s(effect), ev.ReduceDone(effect.round, effect.view, effect.part.index, inputs, root, root)
        )

    def _reduce_s(self, effect: ev.Reduce) -> float:  # noqa: ARG002 - it depends on it where machines are played closer
        return REDUCE_S

    def _apply_s(self, effect: ev.Decide) -> float:  # noqa: ARG002
        return APPLY_S

    def _decide(self, effect: ev.Decide) -> None:
        if not effect.void:
            self.disk.theta = hashlib.sha256(self.disk.theta + b"".join(effect.roots)).digest()
        self.disk.log.append(effect.decision)
        self.disk.parts.update(effect.roots)
        self.disk.state = effect.after
        if self.honest:
            value = outcome_digest(effect.decision.outcome)
            self.simulation.decided(self.peer, effect.round, (value, effect.after.lineage, self.disk.theta))
            self.simulation.excluded(effect.round, effect.after.excluded)
        beside_s = 0.0 if self.trained_s is None else self.trained_s - self.simulation.now_s
        self._later(max(self._apply_s(effect), beside_s), ev.Applied(effect.round))
