"""Bring a fault on one peer at the moment when it, in its role, reaches a phase of a round."""

from __future__ import annotations

import enum
import hashlib
import random

from p2pnet.core import events as ev
from p2pnet.sim.network import Simulation
from p2pnet.sim.peer import SimPeer
from p2pnet.sim.signatures import open_message
from p2pnet.wire.membership import Reach
from p2pnet.wire.round import Phase as VotePhase
from p2pnet.wire.round import Vote
from p2pnet.wire.signing import Signed

BACK_S = 0.7  # a daemon, or a process that is started again at once, needs so long
SLOW = (0.1, 0.4), (0.5, 5.0)  # seconds more for a message and for a slice: bearable, hopeless


class Role(enum.Enum):
    """What the victim does in the round."""

    CONTRIBUTOR = "contributor"  # and nothing else: it cannot be dialled
    REDUCER = "reducer"
    BACKUP = "backup reducer"  # of a part whose reducer does not get done
    PROPOSER = "proposer"  # of view 0


class Phase(enum.Enum):
    """Where in the round the fault hits."""

    TRAIN = "train"
    COMMIT = "commit"
    ROSTER = "roster"
    SCATTER = "scatter"
    REDUCE = "reduce"
    GATHER = "gather"
    SEAL = "seal"
    APPLY = "apply"


class Fault(enum.Enum):
    """What happens to the victim."""

    CRASH = "crash"
    FREEZE = "freeze"
    SLOW = "slow link"
    MUTE = "one-way link: nothing of what it says arrives"
    DEAF = "one-way link: it hears nothing"
    ONE_WAY = "one-way link to one other peer"
    HALF_OPEN = "half-open connections"
    RESTART = "restart within the round"
    DAEMON = "daemon crash"
    DISK = "disk full"


ENDS_BY_ITSELF = {Fault.RESTART, Fault.DAEMON}


class Ambush:
    """Waits for the victim to come along, and strikes once."""

    def __init__(
        self, simulation: Simulation, role: Role, phase: Phase, fault: Fault, number: int, seed: int, more: int = 0
    ) -> None:
        """number: the round.   more: so many others are hit with the victim."""
        self.role, self.phase, self.fault, self.number = role, phase, fault, number
        self.victim: SimPeer | None = None  # known once the round has begun
        self.hit: list[SimPeer] = []  # it, and the others
        self.struck_s: float | None = None
        self._simulation, self._more = simulation, more
        self._rng = random.Random(f"{role} {phase} {fault} {seed}")
        self._stop = self._rng.choice(_STOPS.get((phase, role)) or _STOPS[phase, None])  # what the victim is at
        for peer in simulation.peers.values():
            peer.watch = self._look

    @property
    def spared(self) -> list[SimPeer]:
        """The peers that nothing happened to."""
        return [peer for peer in self._simulation.peers.values() if peer not in self.hit]

    def strike(self) -> None:
        """Bring the fault on the victim, and on others with it."""
        assert self.victim is not None
        self.struck_s = self._simulation.now_s
        others = [peer for peer in self._simulation.peers.values() if peer is not self.victim]
        self.hit = [self.victim, *self._rng.sample(others, self._more)]
        for peer in self.hit:
            self._hit(peer)

    def _hit(self, victim: SimPeer) -> None:
        simulation, me = self._simulation, victim.peer
        others = [peer for peer in sorted(simulation.peers) if peer != me]
        match self.fault:
            case Fault.CRASH:
                simulation.crash(me)
            case Fault.FREEZE:
                simulation.freeze(me)
            case Fault.SLOW:
                simulation.slow(me, *self._rng.choice(SLOW))
            case Fault.MUTE:
                for other in others:
                    simulation.mute(me, other)
            case Fault.DEAF:
                for other in others:
                    simulation.mute(other, me)
            case Fault.ONE_WAY:
                other = self._rng.choice(others)
                simulation.mute(*self._rng.choice([(me, other), (other, me)]))
            case Fault.HALF_OPEN:
                simulation.half_open(me)
            case Fault.RESTART:
                simulation.crash(me)
                simulation.at(self._rng.choice([0.05, BACK_S]), victim.start)  # before and after others notice
            case Fault.DAEMON:
                simulation.drop(me, BACK_S)
            case Fault.DISK:
                victim.disk_is_full = True

    def end(self) -> None:
        """End the fault: all processes run, have space, and are connected both ways."""
        self._simulation.unhinder()
        self._simulation.heal()
        for peer in self.hit:
            peer.disk_is_full = False
            if not peer.alive:
                peer.start()
            elif peer.frozen is not None:
                self._simulation.thaw(peer.peer)

    def _look(self, peer: SimPeer, what: ev.Event | ev.Effect, is_done: bool) -> None:
        if isinstance(what, ev.Train) and what.round == self.number and self.victim is None:
            self._cast(peer)
        if peer is not self.victim or self.struck_s is not None or peer.rounds.state.round != self.number:
            return
        if (_name(what), is_done) == self._stop and self._is_mine(what):
            self.strike()

    def _cast(self, first: SimPeer) -> None:
        """Give the roles of the round that begins: they follow from its beacon."""
        simulation, state = self._simulation, first.rounds.state
        proposer = state.proposer(0)
        order = sorted(simulation.peers, key=lambda peer: hashlib.sha256(state.beacon + bytes(4) + peer).digest())
        if self.role is Role.PROPOSER:
            self.victim = simulation.peers[proposer]
            return
        place = self._rng.choice([place for place, peer in enumerate(order) if peer != proposer])
        self.victim = simulation.peers[order[place]]
        if self.role is Role.CONTRIBUTOR:
            self.victim.says_reach = Reach.PRIVATE
        if self.role is Role.BACKUP:
            simulation.peers[order[place - 1]].stuck_round = self.number

    def _is_mine(self, what: ev.Event | ev.Effect) -> bool:
        """Tell whether an effect of the exchange has to do with the victim's role."""
        if self.role is not Role.BACKUP:
            return True
        assert self.victim is not None
        me = self.victim.peer
        match what:
            case ev.Scatter(part=part, to=to):
                return part.reducer != me == part.backup == to
            case ev.Reduce(part=part):
                return part.reducer != me == part.backup
            case ev.Answer(part=index):
                exchange = self.victim.exchanges[what.round, what.view]
                return exchange.parts[index].reducer != me
        return True


def _name(what: ev.Event | ev.Effect) -> str:
    """What a peer is at: the effect; of what is signed and made durable, the message; of what arrives, the event."""
    match what:
        case ev.Persist(raw=raw):
            opened = open_message(raw, True)
            assert isinstance(opened, Signed)
            message = opened.message
            return VotePhase(message.phase).name.lower() if isinstance(message, Vote) else type(message).__name__
        case ev.Heard(message=Signed(message=message)):
            return f"heard {type(message).__name__}"
    return type(what).__name__


_BEFORE, _AFTER = False, True
_STOPS: dict[tuple[Phase, Role | None], list[tuple[str, bool]]] = {
    (Phase.TRAIN, None): [("Train", _BEFORE), ("Train", _AFTER), ("Encoded", _BEFORE)],
    (Phase.COMMIT, None): [("Commit", _BEFORE), ("Commit", _AFTER), ("Broadcast", _AFTER)],
    (Phase.ROSTER, None): [("heard Roster", _BEFORE), ("Exchange", _BEFORE), ("Exchange", _AFTER)],
    (Phase.ROSTER, Role.PROPOSER): [("Roster", _BEFORE), ("Roster", _AFTER), ("Exchange", _AFTER)],
    (Phase.SCATTER, None): [("Scatter", _BEFORE), ("Scatter", _AFTER)],
    (Phase.REDUCE, None): [("Reduce", _BEFORE), ("Reduce", _AFTER), ("Reduced", _BEFORE), ("Reduced", _AFTER)],
    (Phase.REDUCE, Role.BACKUP): [("Reduce", _BEFORE), ("Reduce", _AFTER)],
    (Phase.REDUCE, Role.CONTRIBUTOR): [("heard Reduced", _BEFORE)],
    (Phase.GATHER, None): [("Answer", _BEFORE), ("Answer", _AFTER), ("Gathered", _BEFORE)],
    (Phase.GATHER, Role.BACKUP): [("Answer", _BEFORE), ("Answer", _AFTER)],
    (Phase.GATHER, Role.CONTRIBUTOR): [("Gathered", _BEFORE)],
    (Phase.SEAL, None): [
        ("Hold", _BEFORE), ("prepare", _BEFORE), ("prepare", _AFTER), ("seal", _BEFORE), ("seal", _AFTER),
    ],
    (Phase.SEAL, Role.PROPOSER): [
        ("Proposal", _BEFORE), ("Proposal", _AFTER), ("prepare", _BEFORE), ("prepare", _AFTER),
        ("seal", _BEFORE), ("seal", _AFTER),
    ],
    (Phase.APPLY, None): [("Decide", _BEFORE), ("Decide", _AFTER)],
}  # fmt: skip
