"""One simulated peer: the node's own round machine on a played learner, disk and network."""

from __future__ import annotations

import functools
import hashlib
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2pnet.core import events as ev
from p2pnet.core import group_events as gev
from p2pnet.core.course import DEPTH_MAX, Course, Resumed
from p2pnet.core.docket import Docket
from p2pnet.core.evidence import Ground, examine
from p2pnet.core.pace import Pace
from p2pnet.core.parts import CHUNKS_PER_LEAF
from p2pnet.core.rounds import Rounds
from p2pnet.core.slots import Context, Restored
from p2pnet.core.state import HashChain, SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.sim.bundles import Bundles
from p2pnet.sim.disk import Disk, Key, Site
from p2pnet.sim.signatures import fake_sign, fake_verify, open_message
from p2pnet.wire.codec import encode
from p2pnet.wire.membership import Reach
from p2pnet.wire.round import WideDecision, WideReduced, decode_outcome, outcome_digest
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from p2pnet.sim.network import Simulation

SERVE_MAX = 16  # decisions sent in answer to one ask
AUDIT_CATCHES = 0.5  # share of audits of a wrong part that hit a wrong leaf
REDUCE_S, APPLY_S = 0.02, 0.01


@functools.lru_cache(maxsize=1 << 14)
def chain_of(peer: PeerId, swarm: bytes) -> HashChain:
    """The hash chain of a peer in a line, short, as its rounds are few."""
    return HashChain(hashlib.sha256(b"chain" + peer + swarm).digest(), 256)


class SimPeer:
    """One simulated peer: the real round machine on a played learner, disk and network."""

    def __init__(self, simulation: Simulation, peer: PeerId, state: SwarmState) -> None:
        self.simulation = simulation
        self.peer = peer
        self.disk = Disk(state=state)
        self.branches: list[Disk] = []  # that it is in, each from the one before it: on its disk too
        self.feedback: frozenset[bytes] = frozenset()  # updates in its error feedback, by root; likewise
        self.alive = False
        self.sites = {state.swarm: Site(self.disk)}
        self.at = self.sites[state.swarm]  # the line for which something is performed
        self.depth_max = DEPTH_MAX
        self.frozen: list[tuple[ev.Event, bytes | None]] | None = None  # events kept while frozen
        self.pending: deque[tuple[bytes, ev.Effect]] = deque()  # effects not performed yet, by line
        self.epoch = 0  # of this process; what an earlier one scheduled is void
        self.notes: list[ev.Note] = []
        self.honest = True
        self.fuse: int | None = None  # effects until this process is killed
        self.clock_s = 0.0  # what its monotonic clock shows beyond the simulation's: a node's counts from its boot
        self.disk_is_full = False  # the next write ends the process
        self.says_reach = Reach.PUBLIC  # what it says of itself; a private one reduces nothing while enough others can
        self.stuck_round: int | None = None  # in which it starts to reduce and does not get done
        self.watch: Callable[[SimPeer, ev.Event | ev.Effect, bool], None] | None = None  # before, and once performed
        self.swarm = state.swarm

    @property
    def rounds(self) -> Rounds:
        """The final chain."""
        return self.course.final

    @property
    def memory(self) -> set[bytes]:
        """The parts that it holds, of the line at hand."""
        return self.at.memory

    @property
    def exchanges(self) -> dict[tuple[int, int], ev.Exchange]:
        """The exchanges of the line at hand, by round and view."""
        return self.at.exchanges

    @property
    def slices(self) -> dict[Key, set[PeerId]]:
        """Whose slices are here, of the line at hand."""
        return self.at.slices

    @property
    def waiting(self) -> dict[Key, set[PeerId]]:
        """Who waits for a part, of the line at hand."""
        return self.at.waiting

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
        self.bundles = Bundles(self)
        self.course = self._restore()
        for other in simulation.peers.values():
            if other is not self and other.alive and simulation.talks(self.peer, other.peer):
                self.take(ev.PeerUp(other.peer))
                other.take(ev.PeerUp(self.peer))
        self.take(ev.Tick())

    def _restore(self) -> Course:
        """The machine, as what is on the disk lets it go on."""
        disks = [self.disk, *self.branches]
        self.trained_s: float | None = None  # with overlap: when what is trained beside the exchange will be done
        self.tick_s = -math.inf  # when the next Tick is due; at most one is on its way that is not too late
        self.sites, lines = {}, []
        for disk in disks:
            if disk.state is None:
                raise ValueError("a peer starts from a state")
            self.sites[disk.state.swarm] = Site(disk)
            number, forked = disk.state.round, disk.forked
            restored = Restored(disk.slots.get(number, {}), disk.held.get(number, ()))
            stood = (forked.started, forked.update) if forked is not None else (None, None)
            lines.append(Resumed(disk.state, restored, disk.certificate, *stood))
        self.at = self.sites[self.swarm]
        return Course(self._context, lines, self.now_s, self.depth_max)

    def _context(self, swarm: bytes) -> Context:
        evidence, is_final = self.disk.evidence.values(), swarm == self.swarm
        docket = Docket(one for one, _ in evidence) if is_final else Docket(held_max=0)
        return Context(
            self.peer, lambda data: fake_sign(self.peer, data), fake_verify, chain_of(self.peer, swarm),
            Pace(), self.simulation.rng, docket=docket, groups=is_final,
        )  # fmt: skip

    def is_running(self) -> bool:
        """Tell whether the process lives and is not frozen."""
        return self.alive and self.frozen is None

    def take(self, event: ev.Event, swarm: bytes | None = None) -> None:
        """Hand an event to the machine and perform what it wants.   swarm: the line it is about; None: the final one.

        Frozen, it keeps the event.
        """
        if self.watch is not None and self.is_running():
            self.watch(self, event, False)
        if self.alive and self.frozen is None:
            if isinstance(event, ev.Encoded):
                line = self.course.find(swarm or self.swarm)
                if line is not None and line.round == event.round:
                    self._submit(event)
                    self._train_on()
            self.pending.extend(self.course.handle(event, self.now_s, swarm or self.swarm))
            self.go_on()
        elif self.alive and self.frozen is not None:
            self.frozen.append((event, swarm))

    def go_on(self) -> None:
        """Perform what the machine wants, in order, for as long as the process runs."""
        while self.pending:
            if self.fuse is not None:
                if self.fuse <= 0:
                    self.fuse = None
                    self.simulation.crash(self.peer)
                    return
                self.fuse -= 1
            if self.watch is not None:
                self.watch(self, self.pending[0][1], False)
                if not self.is_running():
                    return
            swarm, effect = self.pending.popleft()
            if self.disk_is_full and isinstance(effect, ev.Persist | ev.Hold | ev.Decide | ev.Fork | ev.Leave):
                self.simulation.crash(self.peer)  # the node ends and says why
                return
            if swarm in self.sites:  # not of a branch that is left
                self.at = self.sites[swarm]
                self.perform(effect)
            self.at = self.sites[self.swarm]
            if self.watch is not None:
                self.watch(self, effect, True)
            if not self.alive or self.frozen is not None:
                return
        deadline_s = self.course.deadline_s
        if deadline_s is not None and not self.now_s < self.tick_s <= deadline_s:
            self.tick_s = deadline_s
            self._later(deadline_s - self.now_s, ev.Tick())

    def _train_on(self) -> None:
        """With overlap the next round is trained from now on."""
        setting = self.simulation.setting
        if setting.policy.overlap:
            self.trained_s = self.simulation.now_s + self.simulation.rng.uniform(*setting.train_s)

    def later(self, delay_s: float, event: ev.Event) -> None:
        """Take an event later, if this process still runs then."""
        self._later(delay_s, event)

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something later, if this process still runs then."""
        self.simulation.at(delay_s, self._do_if_same, self.epoch, action, arguments)

    def _do_if_same(self, epoch: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self.epoch == epoch and self.alive:
            action(*arguments)

    def _later(self, delay_s: float, event: ev.Event) -> None:
        self.simulation.at(delay_s, self._take_if_same, self.epoch, event, self.line)

    def _take_if_same(self, epoch: int, event: ev.Event, swarm: bytes) -> None:
        if self.epoch == epoch:
            self.take(event, swarm)

    @property
    def line(self) -> bytes:
        """The id of the line at hand."""
        state = self.at.disk.state
        return state.swarm if state is not None else self.swarm

    def _train(self, effect: ev.Train) -> None:
        number = effect.round
        theta = self.at.disk.theta
        checksum = int.from_bytes(theta[:8], "big")
        self._later(0.0, ev.Started(number, checksum, theta if effect.state_wanted else b""))
        about = self.peer, number.to_bytes(4, "big"), bytes([self.epoch]), theta
        root = hashlib.sha256(b"".join(about)).digest()
        simulation = self.simulation
        train_s = 0.0 if self.trained_s is not None else simulation.rng.uniform(*simulation.setting.train_s)
        self._later(train_s, ev.Encoded(number, root, 40, True, int(self.says_reach), 0, 0))

    def perform(self, effect: ev.Effect) -> None:
        """Do what the machine wants done."""
        match effect:
            case ev.Train():
                self._train(effect)
            case ev.Persist(round=number, slot=slot, raw=raw):
                before = self.at.disk.slots.setdefault(number, {}).setdefault(slot, raw)
                if before != raw:
                    raise AssertionError(f"{self.peer[:2].hex()} signed twice in slot {slot.hex()}")
            case ev.Hold(round=number, outcome=outcome, commits=commits, roots=roots):
                self.at.disk.held.setdefault(number, []).append((outcome, commits))
                self.at.disk.parts.update(roots)
            case ev.Decide():
                self._decide(effect)
            case ev.Fork():
                self.simulation.branches += 1
                self.branches.append(self.at.disk.fork(effect))
                self.sites[effect.branch] = Site(self.branches[-1])
                self.sites[effect.branch].memory |= self.memory
            case ev.Leave():
                self._leave(effect)
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
        if self.line == self.swarm and self.bundles.perform(effect):
            return  # of many groups, which a branch has not
        match effect:
            case ev.Broadcast(raw=raw, signed=signed):
                for peer in simulation.peers:
                    simulation.carry(self.peer, peer, raw, signed)
            case ev.Send(to=to, raw=raw, signed=signed):
                simulation.carry(self.peer, to, raw, signed)
            case ev.Exchange():
                self._exchange(effect)
            case ev.Scatter(part=part, to=to):
                simulation.scatter(self, effect, part, to)
            case ev.Reduce():
                self._reduce(effect)
            case ev.Answer(part=index):
                for waiter in sorted(self.waiting.pop((effect.round, effect.view, index), ())):
                    simulation.hand_over(self, waiter, effect)
            case ev.Gather(root=root, sources=sources):
                simulation.gather(self, effect.round, root, sources)
            case ev.Audit(root=root):
                caught = root in simulation.lies and simulation.rng.random() < AUDIT_CATCHES
                self._later(0.01, ev.Audited(effect.round, root, not caught))
            case ev.Serve(to=to, round=start):
                first = self.at.disk.certificate.round if self.at.disk.certificate is not None else 0
                for decision in self.at.disk.log[max(0, start - first) :][:SERVE_MAX]:
                    simulation.carry(self.peer, to, encode(decision), False)

    def _exchange(self, effect: ev.Exchange) -> None:
        self.exchanges[effect.round, effect.view] = effect
        if self.line == self.swarm:
            self.bundles.exchange(effect)
        for part in effect.parts:
            for sender in sorted(self.slices.get((effect.round, effect.view, part.index), ())):
                self._later(0.0, ev.SliceArrived(effect.round, effect.view, part.index, sender))

    def judge(self, raw: bytes) -> ev.Proven | None:
        """Judge evidence as a node does; there are no payloads here, so that what is about leaves proves nothing."""
        ground = Ground(self.swarm, CHUNKS_PER_LEAF * self.simulation.setting.leaves, 1)
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

    def tell_digest(self, signed: Signed[WideReduced]) -> Signed[WideReduced]:
        """What it tells who sent a bundle of the part that it made of it."""
        return signed

    def reduce_part_s(self, effect: gev.ReducePart) -> float:  # noqa: ARG002 - as below
        """How long it takes to reduce a part of many groups."""
        return REDUCE_S

    def _reduce_s(self, effect: ev.Reduce) -> float:  # noqa: ARG002 - it depends on it where machines are played closer
        return REDUCE_S

    def _apply_s(self, effect: ev.Decide) -> float:  # noqa: ARG002
        return APPLY_S

    def _leave(self, effect: ev.Leave) -> None:
        """Go back to where the learner left this line; what the branches have learnt beyond it is said again."""
        last, disk = self.sites[effect.branches[-1]].disk, self.at.disk
        self.feedback |= last.work - disk.work
        for branch in effect.branches:
            del self.sites[branch]
            self.branches.pop()
        self.trained_s, disk.forked = None, None

    def _decide(self, effect: ev.Decide) -> None:
        disk = self.at.disk
        if not effect.void:
            disk.theta = hashlib.sha256(disk.theta + b"".join(effect.roots)).digest()
            self._account(effect)
        disk.log.append(effect.decision)
        disk.parts.update(effect.roots)
        disk.state = effect.after
        if self.honest:
            value = outcome_digest(effect.decision.outcome)
            found = value, effect.after.lineage, disk.theta
            self.simulation.decided(self.peer, effect.round, found, effect.after.swarm)
            self.simulation.excluded(effect.round, effect.after.excluded)
        beside_s = 0.0 if self.trained_s is None else self.trained_s - self.simulation.now_s
        self._later(max(self._apply_s(effect), beside_s), ev.Applied(effect.round))

    def _submit(self, event: ev.Encoded) -> None:
        """An update is there: until a result takes it in, it is owed."""
        self.feedback |= {event.payload_root}
        self.simulation.work.setdefault(event.payload_root, self.feedback)
        self.simulation.authors[event.payload_root] = self

    def _account(self, effect: ev.Decide) -> None:
        """Whose whole payload the result took in: it is in theta now, and not owed any more."""
        decision = effect.decision
        if isinstance(decision, WideDecision):
            self.simulation.is_wide = True
            return
        reduced = [open_message(raw, True).message.inputs for raw in decode_outcome(decision.outcome).reduced]  # type: ignore[union-attr]
        for place, raw in enumerate(decision.commits):
            commit = open_message(raw, True)
            content = self.simulation.work.get(commit.message.payload_root, frozenset())  # type: ignore[union-attr]
            if all(inputs[place] for inputs in reduced):
                self.at.disk.work |= content
                if commit.peer == self.peer:  # type: ignore[union-attr]
                    self.feedback -= content
