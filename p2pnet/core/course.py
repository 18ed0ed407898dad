"""Follow the final chain of a swarm and, where its round has no quorum, the branches that go on from there. Pure.

`Course.handle(event, now_s, swarm)` is the whole peer as far as deciding goes. A branch is a swarm of its own: its id
stands in all its messages, so that no vote of a branch is one of the final chain. The stalled round goes on being heard
beside it, and a decision of it ends the branch. Contract: protocols/branch-1.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from p2pnet.core.answers import PEERS_MAX
from p2pnet.core.events import (
    FREIGHT,
    About,
    Broadcast,
    Decide,
    Effect,
    Encoded,
    Event,
    Fork,
    Heard,
    Leave,
    Note,
    PeerDown,
    PeerUp,
    RoundTrip,
    Send,
    Skipped,
    Started,
    Tick,
    Train,
)  # fmt: skip
from p2pnet.core.forming import Forming, certifies_branch, rank
from p2pnet.core.rounds import ASK_EVERY_S, Rounds
from p2pnet.core.slots import Context, Restored
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.branch import Branch, BranchCertificate
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Ask, Decision, WideDecision
from p2pnet.wire.signing import Signed

DEPTH_MAX = 8  # branches of branches
KNOWN_MAX = 16  # certificates that are kept until this peer is stalled too, the best ones
EARLY_MAX = 256  # messages that are kept of branches that this peer is not in yet, the latest
LEFT_MAX = 1024  # ids of branches that are not entered again

_OF_LEARNER = (Started, Encoded, Skipped)
Tagged = tuple[bytes, Effect]  # the id of the line, and what it wants done


@dataclass(frozen=True, slots=True)
class Resumed:
    """A line that a stopped process was in."""

    state: SwarmState
    restored: Restored = field(default_factory=Restored)
    certificate: BranchCertificate | None = None  # None: the final chain
    started: Started | None = None  # where the learner stood when it left this line for the next one
    update: Encoded | None = None  # and the update that it had


@dataclass(slots=True, eq=False)
class Line:
    """The final chain or a branch, as far as this peer knows it."""

    rounds: Rounds
    certificate: BranchCertificate | None = None
    started: Started | None = None  # what the learner said of a round, which may be over
    update: Encoded | Skipped | None = None
    asked: int = -1  # the round that the learner was told to train

    @property
    def id(self) -> bytes:
        """What stands for the swarm in its messages, 32 bytes."""
        return self.rounds.state.swarm

    @property
    def round(self) -> int:
        """The round that it is in."""
        return self.rounds.state.round


class Course:
    """One peer's state machine over the final chain and its branches."""

    def __init__(
        self, context_of: Callable[[bytes], Context], lines: Sequence[Resumed], now_s: float, depth_max: int = DEPTH_MAX
    ) -> None:
        """context_of: for the id of a line.   lines: the final chain, then branches, each from the one before it.

        depth_max: branches at most; 0: it never goes on without a quorum.
        """
        self._context_of, self._depth_max = context_of, depth_max
        self.lines = [
            Line(
                Rounds(context_of(one.state.swarm), one.state, now_s, one.restored),
                one.certificate,
                one.started,
                one.update,
            )
            for one in lines
        ]
        self._me = self.lines[0].rounds.context.me
        self._up: set[PeerId] = set()
        self._forming: Forming | None = None
        self._known: dict[bytes, BranchCertificate] = {}  # by id, not entered
        self._early: deque[Heard] = deque(maxlen=EARLY_MAX)
        self._left: dict[bytes, None] = {}
        self._shown_s: dict[PeerId, float] = {}

    @property
    def final(self) -> Rounds:
        """The final chain."""
        return self.lines[0].rounds

    @property
    def active(self) -> Rounds:
        """The line in which the learner trains."""
        return self.lines[-1].rounds

    @property
    def deadline_s(self) -> float | None:
        """When a `Tick` is wanted, at the latest."""
        if len(self.lines) == 1 and self._forming is None:
            return self.final.deadline_s
        times = [line.rounds.deadline_s for line in self.lines]
        times.append(self._forming.deadline_s if self._forming else None)
        return min((time for time in times if time is not None), default=None)

    def find(self, swarm: bytes) -> Line | None:
        """The line with this id."""
        for line in self.lines:
            if line.rounds.state.swarm == swarm:
                return line
        return None

    def handle(self, event: Event | About, now_s: float, swarm: bytes | None = None) -> list[Tagged]:
        """Take one event and say what is to be done.

        swarm: the line that a report, evidence or its absence is about, unless it says so itself; None for what comes
        from the network.
        """
        told, about = (event.event, event.swarm) if isinstance(event, About) else (event, swarm)
        if isinstance(told, FREIGHT):
            line = self.find(about or b"")
            return self._feed(line, told, now_s) if line is not None else []
        return [*self._handle(told, now_s, about), *self._settle(now_s)]

    def _handle(self, event: Event, now_s: float, swarm: bytes | None) -> list[Tagged]:
        match event:
            case Heard(sender, Signed(message=Branch())):
                return self._hear_proposal(event, now_s)
            case Heard(sender, BranchCertificate() as certificate):
                return self._hear_certificate(sender, certificate, now_s)
            case Heard():
                return self._hear(event, now_s)
            case PeerUp(peer):
                self._up.add(peer)
                return [*self._feed_all(event, now_s), *self._show(self.lines[1:], peer)]
            case PeerDown(peer):
                self._up.discard(peer)
                return self._feed_all(event, now_s)
            case Tick() | RoundTrip():
                return self._feed_all(event, now_s)
        line = self.find(swarm or b"")
        if line is None:
            return []  # of a branch that is left
        if not isinstance(event, _OF_LEARNER):
            return self._feed(line, event, now_s)
        if isinstance(event, Started):
            line.started, line.update = event, None
        else:
            line.update = event
        shared = [line, *self.forked_at(line, event.round)]
        return [tagged for each in shared for tagged in self._feed(each, event, now_s)]

    def forked_at(self, line: Line, number: int) -> Iterator[Line]:
        """The lines that go on from this one, one from the other, and are all still in this round."""
        for above in self.lines[self.lines.index(line) + 1 :]:
            if above.certificate is None or above.certificate.round != number or above.round != number:
                return
            yield above

    def give_up(self, swarm: bytes) -> list[Tagged]:
        """Leave a branch that this peer cannot follow: nobody has the results any more."""
        at = next((at for at, line in enumerate(self.lines) if line.id == swarm), 0)
        return self._leave(self.lines[at - 1], "nobody has its results any more") if at else []

    # The lines ------------------------------------------------------------------------------------------------------

    def _feed_all(self, event: Event, now_s: float) -> list[Tagged]:
        return [tagged for line in reversed(self.lines) for tagged in self._feed(line, event, now_s)]

    def _feed(self, line: Line, event: Event, now_s: float) -> list[Tagged]:
        """Hand an event to one line. A decision of a line that others go on from ends those."""
        if line not in self.lines:
            return []  # a decision has just ended it
        found: list[Tagged] = []
        for effect in line.rounds.handle(event, now_s):
            match effect:
                case Train():
                    found += self._train(line, effect, now_s)
                case Decide():
                    found += [*self._leave(line, f"round {line.round} is decided"), (line.id, effect)]
                case _:
                    found.append((line.id, effect))
        return found

    def _train(self, line: Line, effect: Train, now_s: float) -> list[Tagged]:
        """Have a round trained, unless it was trained on the line that this one comes from: the update is the same."""
        source, below = line, self._below(line)
        while source.certificate is not None and source.certificate.round == effect.round and below is not None:
            source, below = below, self._below(below)
        if source.started is not None and source.started.round == effect.round:
            found = self._feed(line, source.started, now_s)
            has_update = source.update is not None and source.update.round == effect.round
            return [*found, *self._feed(line, source.update, now_s)] if has_update and source.update else found
        if source.asked == effect.round:
            return []
        source.asked = effect.round
        return [(source.id, effect)]

    def _below(self, line: Line) -> Line | None:
        at = self.lines.index(line)
        return self.lines[at - 1] if at else None

    def _fork(self, certificate: BranchCertificate, now_s: float) -> list[Tagged]:
        """Go on from the stalled round as this branch."""
        base, branch = self.lines[-1], certificate.branch_id()
        gone = set(base.rounds.gone)
        genesis = base.rounds.state.fork(branch, certificate.voters)
        line = Line(Rounds(self._context_of(branch), genesis, now_s), certificate)
        self.lines.append(line)
        self._forming = None
        self._known.clear()
        started = base.started if base.started is not None and base.started.round == base.round else None
        update = base.update if isinstance(base.update, Encoded) and base.update.round == base.round else None
        fork = Fork(base.round, certificate, branch, genesis, started, update)
        detail = f"{len(certificate.voters)} of {len(base.rounds.state.electorate)} voters go on by themselves"
        found: list[Tagged] = [(base.id, fork), (base.id, Note(base.round, "branch", detail, certificate.voters))]
        for peer in sorted(gone - self._up):
            found += self._feed(line, PeerDown(peer), now_s)
        for peer in sorted(self._up):
            found += self._feed(line, PeerUp(peer), now_s)
        early, self._early = self._early, deque(maxlen=EARLY_MAX)
        found += self._feed(line, Tick(), now_s)
        for heard in early:
            found += self._hear(heard, now_s)
        return found

    def _leave(self, line: Line, why: str) -> list[Tagged]:
        """Go back to a line from those that go on from it."""
        above = self.lines[self.lines.index(line) + 1 :]
        if not above:
            return []
        del self.lines[-len(above) :]
        self._forming = None
        self._known.clear()
        self._left |= dict.fromkeys(each.id for each in above)
        if not isinstance(line.update, Encoded) or line.update.round != line.round:
            line.started, line.asked = None, -1  # the learner comes back without an update, and trains it again
        while len(self._left) > LEFT_MAX:
            del self._left[next(iter(self._left))]
        rounds = above[-1].round - line.round
        note = Note(line.round, "branch-left", f"{why}; the work of {rounds} rounds is kept")
        return [(line.id, Leave(line.round, tuple(each.id for each in above))), (line.id, note)]

    # Branches -------------------------------------------------------------------------------------------------------

    def _settle(self, now_s: float) -> list[Tagged]:
        """Where the line that is trained in has no quorum: enter a branch, or look for one."""
        line = self.lines[-1]
        if not line.rounds.gone or line.round == 0:  # before the first decision a swarm has not begun
            self._forming = None
            return []
        entered = line.certificate
        if entered is not None and entered.round == line.round and self._me not in entered.voters:
            return self._leave(self.lines[-2], "nobody is there")  # it was over before this peer came
        if len(self.lines) > self._depth_max:
            return []
        state = line.rounds.state
        known = [one for one in self._known.values() if (one.round, one.lineage) == (state.round, state.lineage)]
        if known:
            return self._fork(min(known, key=rank), now_s)
        if self._me not in state.electorate or state.bars(self._me):
            return []
        if self._forming is None or self._forming.state is not state:
            self._forming = Forming(line.rounds.context, state)
        up = self._up.intersection(state.electorate)
        proposed = self._forming.propose(up.difference(line.rounds.gone), up, now_s)
        found: list[Tagged] = [(line.id, effect) for effect in proposed]
        certificate = self._forming.certificate(now_s)
        if certificate is None:
            return found
        return [*found, (line.id, Broadcast(encode(certificate), False)), *self._fork(certificate, now_s)]

    def _hear_proposal(self, heard: Heard, now_s: float) -> list[Tagged]:
        """A voter would go on without others; that it says so shows that it is there."""
        message = heard.message
        assert isinstance(message, Signed)
        assert isinstance(message.message, Branch)
        line = self.find(message.message.swarm)
        if line is None:
            return []
        if line is not self.lines[-1]:
            above = self.lines[self.lines.index(line) + 1]
            return self._show([above], heard.sender) if self._may_show(heard.sender, now_s) else []
        line.rounds.see(message.peer, now_s)
        if self._forming is not None:
            self._forming.hear(message)
            return []
        return [(line.id, effect) for effect in line.rounds.ask(message.peer, now_s)]  # by it it sees that I am there

    def _hear_certificate(self, sender: PeerId, certificate: BranchCertificate, now_s: float) -> list[Tagged]:
        """A branch exists: it is entered once this peer is stalled too; a better one than its own at once."""
        line = self.find(certificate.swarm)
        if line is None or len(certificate.hears) != len(certificate.nonces):
            return []
        branch = certificate.branch_id()
        if branch in self._left or branch in self._known or self.find(branch) is not None:
            return []
        if not certifies_branch(certificate, line.rounds.state, line.rounds.context.verify):
            return []
        at = self.lines.index(line)
        if line is self.lines[-1]:
            self._known = {known: one for known, one in self._known.items() if one.round == line.round}
            self._known[branch] = certificate
            if len(self._known) > KNOWN_MAX:
                del self._known[max(self._known, key=lambda each: rank(self._known[each]))]
            return []
        mine = self.lines[at + 1].certificate
        assert mine is not None
        if rank(mine) < rank(certificate):
            return self._show([self.lines[at + 1]], sender) if self._may_show(sender, now_s) else []
        return [*self._leave(line, "a larger branch goes on from there"), *self._fork(certificate, now_s)]

    def _hear(self, heard: Heard, now_s: float) -> list[Tagged]:
        """A message of a round: for the line that it names. Who is stalled there is shown the branch from there."""
        message = heard.message.message if isinstance(heard.message, Signed) else heard.message
        first = message.certificate if isinstance(message, Decision | WideDecision) else message
        line = self.find(first.swarm)
        if line is None:
            if self._forming is not None and self.final.state.knows(heard.sender):
                self._early.append(heard)  # of one that others have entered a moment before me, perhaps
            return []
        found = self._feed(line, heard, now_s)
        if isinstance(message, Ask) and message.round == line.round and line in self.lines[:-1]:
            above = self.lines[self.lines.index(line) + 1]
            found += self._show([above], heard.sender) if self._may_show(heard.sender, now_s) else []
        return found

    def _show(self, lines: Iterable[Line], peer: PeerId) -> list[Tagged]:
        """Send a peer the certificates of these branches."""
        return [
            (line.id, Send(peer, encode(line.certificate), False)) for line in lines if line.certificate is not None
        ]

    def _may_show(self, peer: PeerId, now_s: float) -> bool:
        """Tell whether a peer was shown a certificate long enough ago, and note that it is shown one."""
        if now_s - self._shown_s.get(peer, -ASK_EVERY_S) < ASK_EVERY_S:
            return False
        if len(self._shown_s) >= PEERS_MAX:
            self._shown_s.clear()
        self._shown_s[peer] = now_s
        return True
