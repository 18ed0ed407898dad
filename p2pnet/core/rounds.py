"""Go from round to round: who is there, who is ahead, who is stalled, what a stopped process left. Pure.

`Rounds.handle(event, now_s)` is the whole peer as far as deciding goes; the node performs the effects it returns.
Contract: protocols/round-1.md.
"""

from __future__ import annotations

from p2pnet.core.answers import answer_ask, own_messages
from p2pnet.core.events import (
    Accuse,
    Applied,
    Audited,
    Broadcast,
    Decide,
    Effect,
    Encoded,
    Event,
    Gathered,
    GatherFailed,
    Heard,
    Note,
    PeerDown,
    PeerUp,
    Proven,
    ReduceDone,
    Report,
    RoundTrip,
    ScatterFailed,
    Send,
    Serve,
    Skipped,
    SliceArrived,
    Started,
    Tick,
    Train,
    Unproven,
)  # fmt: skip
from p2pnet.core.evidence import Offence, accuse_of_two
from p2pnet.core.exchange import LATE_REDUCE
from p2pnet.core.newcomers import Newcomers
from p2pnet.core.round import Round
from p2pnet.core.slots import Context, Restored
from p2pnet.core.state import SwarmState
from p2pnet.core.witness import Witness
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.round import Ask, Commit, Decision, Proposal, Quorum, Reduced, Roster, Skip, Vote
from p2pnet.wire.signing import Signed

AHEAD_MAX = 512  # messages of the next round kept until this one is applied
AHEAD_PER_PEER = 16  # of one author
DECISIONS_AHEAD = 16  # later rounds whose decision is kept, of at most DECISIONS_PER_ROUND senders
DECISIONS_PER_ROUND = 3
ASK_EVERY_S = 0.5  # to one peer, and answers to one peer
ASKED_AT_ONCE = 4  # peers that a stalled one asks each time it wakes
RESEND_MAX_S = 5.0
TICK_MIN_S = 0.01  # ticks come no faster than this, whatever a deadline says
PEERS_MAX = 4096  # rows of what is remembered about peers


class Rounds:
    """One peer's state machine over all rounds of one swarm."""

    def __init__(self, context: Context, state: SwarmState, now_s: float, restored: Restored | None = None) -> None:
        self.context = context
        self.state = state
        self.round = Round(context, state, now_s, restored)
        self.witness = Witness()
        self.up: dict[PeerId, float] = {}  # since when
        self.stalled_s: float | None = None
        self.missing: tuple[PeerId, ...] = ()
        self._down: set[PeerId] = set()
        self._here: set[PeerId] = set()  # peers that are up and have said something: their learner stands at a round
        self._newcomers = Newcomers()
        self._heard_s: dict[PeerId, float] = {}  # voters
        self._expected = state.expected()
        self._later: set[PeerId] = set()  # voters heard in a later round
        self._caught_up = True  # the last round was decided by votes, not by a decision that others had made before
        self._decisions: dict[int, dict[PeerId, Heard]] = {}
        self._asked_s: dict[PeerId, float] = {}
        self._answered_s: dict[PeerId, float] = {}
        self._ahead: dict[PeerId, list[tuple[Heard, float]]] = {}  # by author, with the time of each
        self._now_s = now_s
        self._trains = False
        self._train_s: float | None = now_s
        self._resend_s = now_s + self.round.grace_s
        self._resend_after_s = self.round.grace_s
        self._look_around()

    @property
    def deadline_s(self) -> float | None:
        """When a `Tick` is wanted, at the latest."""
        if self.round.decided is not None:
            return None
        train_s = None if self._trains or self.round.certificate else self._train_s
        times = [self.round.deadline_s(self._now_s), self._resend_s, train_s]
        return max(min(time for time in times if time is not None), self._now_s + TICK_MIN_S)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take one event and say what is to be done."""
        self._now_s = now_s
        effects = self._handle(event, now_s)
        effects += self._train(now_s)
        effects += self._watch(now_s)
        if any(isinstance(effect, Decide) for effect in effects):
            effects += self._unstall(now_s)
        return effects

    def behind(self) -> bool:
        """Tell whether others are in a later round: over 1/3 of the voters say so, or the last decision shows it."""
        voters = self.round.deciding
        return not self._caught_up or len(self._later) > len(voters.electorate) - voters.needed

    def _handle(self, event: Event, now_s: float) -> list[Effect]:
        match event:
            case Tick():
                return self.round.advance(now_s)
            case Heard():
                return self._hear(event, now_s)
            case PeerUp(peer):
                self.up[peer] = now_s
                self._down.discard(peer)
                self._look_around()
                return [*self._ask(peer, now_s), *self.round.advance(now_s)]
            case PeerDown(peer):
                self.up.pop(peer, None)
                self._here.discard(peer)
                self._see_down(peer)
                self._look_around()
                return self.round.advance(now_s)
            case RoundTrip(peer, after_s):
                self.context.pace.answered(peer, after_s)
                return []
            case Applied():
                return self._next(now_s) if event.round == self.state.round else []
            case Proven(offence, raw):
                return self._accuse(offence, raw, now_s)
            case Unproven(digest, worthless):
                self.context.docket.failed(digest, worthless, now_s + self.round.grace_s / 2)
                return self.round.advance(now_s)
            case _:
                return self._report(event, now_s) if event.round == self.state.round else []

    def _accuse(self, offence: Offence, raw: bytes, now_s: float) -> list[Effect]:
        """Somebody was proved to lie: keep the proof and pass it on, the first one against each."""
        docket = self.context.docket
        if not docket.wants(offence, self.state):
            return []
        docket.hold(offence)
        note = Note(offence.round, "evidence", offence.what, (offence.peer,))
        return [Accuse(offence, raw), note, *self.round.advance(now_s)]

    def _bear_witness(self, heard: Heard, now_s: float) -> list[Effect]:
        """See whether somebody has now signed two things for one slot."""
        effects: list[Effect] = []
        for found in self.witness.observe(heard.message, self.round):
            offence, raw = accuse_of_two(found)
            effects += self._accuse(offence, raw, now_s)
        return effects

    def _report(self, event: Report, now_s: float) -> list[Effect]:
        """What the shell reports about the current round."""
        match event:
            case Started():
                return self.round.started(event, now_s)
            case Encoded():
                return self.round.encoded(event, now_s) if self.round.decided is None else []
            case Skipped():
                return self.round.skipped(event, now_s)
            case SliceArrived():
                return self.round.slice_arrived(event, now_s)
            case ReduceDone():
                return self.round.reduce_done(event, now_s)
            case ScatterFailed():
                return self.round.scatter_failed(event, now_s)
            case Gathered():
                return self.round.gathered(event, now_s)
            case GatherFailed():
                return self.round.gather_failed(event, now_s)
            case Audited():
                return self.round.audited(event, now_s)

    def _hear(self, heard: Heard, now_s: float) -> list[Effect]:
        message = heard.message.message if isinstance(heard.message, Signed) else heard.message
        first = message.certificate if isinstance(message, Decision) else message
        if first.swarm != self.state.swarm:
            return []  # R1
        self._remember(heard, message, now_s)
        self._see_here(heard.sender)
        if isinstance(message, Ask):
            return self._answer(heard.sender, message, now_s)
        if first.round > self.state.round:
            self._keep(heard, message, first.round)
            return self._ask(heard.sender, now_s) if self.round.decided is None else []
        if first.round < self.state.round:
            return []
        if self.round.decided is not None:
            return self._bear_witness(heard, now_s)
        if not self._caught_up and isinstance(message, Commit):
            self._caught_up = True  # others are in this very round: train, and do not wait for a decision of it
            self._train_s = self._train_s if self.behind() else now_s
        return [*self._dispatch(heard, now_s), *self._bear_witness(heard, now_s)]

    def _remember(self, heard: Heard, message: Message, now_s: float) -> None:
        """Note that a voter is alive: who hands something over, and who says what nobody repeats for it."""
        voters = self.round.deciding.electorate
        if heard.sender in voters:
            self._heard_s[heard.sender] = now_s
        if isinstance(message, Vote | Reduced) and isinstance(heard.message, Signed):
            author = heard.message.peer
            if author in voters:
                self._heard_s[author] = now_s
                if message.round > self.state.round:
                    self._later.add(author)

    def _keep(self, heard: Heard, message: Message, number: int) -> None:
        """Keep what is of a later round, in bounds: decisions of the next rounds, other messages of the very next."""
        if isinstance(message, Decision):
            if number <= self.state.round + DECISIONS_AHEAD:
                kept = self._decisions.setdefault(number, {})
                if len(kept) < DECISIONS_PER_ROUND:
                    kept.setdefault(heard.sender, heard)
        elif number == self.state.round + 1:
            author = heard.message.peer if isinstance(heard.message, Signed) else heard.sender
            if not self.state.knows(author) and sum(map(len, self._ahead.values())) >= AHEAD_MAX:
                return
            messages = self._ahead.setdefault(author, [])
            if len(messages) < AHEAD_PER_PEER:
                messages.append((heard, self._now_s))

    def _dispatch(self, heard: Heard, now_s: float) -> list[Effect]:
        """Hand a message of the current round to it."""
        round_, message = self.round, heard.message
        if isinstance(message, Decision):
            return round_.decision(message, now_s)
        if isinstance(message, Quorum):
            effects = round_.quorum(message, now_s)
            wants = round_.undecided_certificate is not None
            return [*effects, *(self._ask(heard.sender, now_s) if wants else [])]
        match message:
            case Signed(message=Commit()):
                return round_.commit(message, now_s)  # type: ignore[arg-type]
            case Signed(message=Roster()):
                return round_.roster(message, now_s)  # type: ignore[arg-type]
            case Signed(message=Reduced()):
                return round_.reduced(message, now_s)  # type: ignore[arg-type]
            case Signed(message=Proposal()):
                return round_.proposal(message, now_s)  # type: ignore[arg-type]
            case Signed(message=Vote()):
                return round_.vote(message, now_s)  # type: ignore[arg-type]
            case Signed(message=Skip()):
                return round_.skip(message, now_s)  # type: ignore[arg-type]
        return []

    def _look_around(self) -> None:
        """Tell the round whose commits are waited for: the last roster's, and shortly those that have just come."""
        down = frozenset(self._down)
        self.round.awaited = frozenset(peer for peer in self._expected | {self.context.me} if not self.state.bars(peer))
        self.round.awaited -= down
        self.round.newcomers = self._newcomers.awaited(self.up.keys(), self.state)
        self.round.down = down

    def _see_here(self, peer: PeerId) -> None:
        """A peer that was only connected, perhaps fetching the state, now takes part: it is waited for."""
        if peer in self.up and peer not in self._here:
            self._here.add(peer)
            if peer not in self._expected:
                self._newcomers.add(peer)
            self._look_around()

    def _see_down(self, peer: PeerId) -> None:
        if len(self._down) >= PEERS_MAX:  # names are free: forget those that no roster has shown
            self._down = {other for other in self._down if self.state.knows(other)}
        self._down.add(peer)

    def _next(self, now_s: float) -> list[Effect]:
        """The decided round is applied: on to the next one."""
        decided = self.round.decided
        if decided is None:
            return []
        before, self.state = self.state, decided.after
        self.context.docket.forget(self.state)
        self._caught_up = not self.round.from_decision
        present = {peer for peer, member in self.state.members.items() if member.last == before.round}
        self._expected = self.state.expected()
        self._newcomers.next_round(present, self._here)
        voters = set(self.state.electorate)
        self._heard_s = {peer: heard_s for peer, heard_s in self._heard_s.items() if peer in voters}
        self._later.clear()
        certified_s, update_s = self.round.certified_s, self.round.commits.held.get(self.context.me, (None, now_s))[1]
        self.context.pace.next_round(self.context.pace.longest_s(self.round.grace_s, self.state.volume))
        self.round, self.witness = Round(self.context, self.state, now_s), Witness()
        if self.state.policy.overlap:  # it is trained since my update to the last one was there
            self.round.commits.begin(update_s)
        elif certified_s is not None:  # of a decision that came whole nobody knows when it was made
            self.round.commits.begin(certified_s)
        self._look_around()
        self._trains = False
        self._train_s = now_s + (self.round.grace_s if self.behind() else 0.0)
        self._resend_after_s = self.round.grace_s
        self._resend_s = now_s + self._resend_after_s
        return self._take_up(now_s)

    def _take_up(self, now_s: float) -> list[Effect]:
        """Hear again what came too early."""
        ahead, self._ahead = self._ahead, {}
        self._decisions = {number: kept for number, kept in self._decisions.items() if number >= self.state.round}
        effects: list[Effect] = []
        decisions = self._decisions.pop(self.state.round, {})
        for heard in decisions.values():
            effects += self._hear(heard, now_s)
        for heard, at_s in (one for kept in ahead.values() for one in kept):
            effects += self._hear(heard, now_s)
            if self.round.certified_s == now_s:  # this made it: the next round began when it came, not when I was ready
                self.round.certified_s = at_s
        if not self._caught_up and self.round.undecided_certificate is None and self.round.decided is None:
            for sender in decisions or list(self._asked_s)[-1:]:
                effects += self._ask(sender, now_s)
        return effects

    def _train(self, now_s: float) -> list[Effect]:
        """Start training, unless the round is already decided elsewhere: then its decision is on the way."""
        if self._trains or self._train_s is None or now_s < self._train_s or self.round.certificate is not None:
            return []
        self._trains = True
        wanted = self.state.round % self.state.policy.snapshot_rounds == 0
        return [Train(self.state.round, self.state.beacon, wanted, self.round.commits.end_s)]

    def _ask(self, peer: PeerId, now_s: float) -> list[Effect]:
        if peer == self.context.me or now_s - self._asked_s.get(peer, -ASK_EVERY_S) < ASK_EVERY_S:
            return []
        if len(self._asked_s) >= PEERS_MAX:
            self._asked_s.clear()
        self._asked_s[peer] = now_s
        return [Send(peer, encode(Ask(self.state.swarm, self.state.round, self.round.deciding.view)), False)]

    def _answer(self, peer: PeerId, ask: Ask, now_s: float) -> list[Effect]:
        """Tell a peer that asks what it lacks, and ask back when it is ahead."""
        if ask.round > self.state.round:
            return self._ask(peer, now_s)
        if now_s - self._answered_s.get(peer, -ASK_EVERY_S) < ASK_EVERY_S / 2:
            return []
        if len(self._answered_s) >= PEERS_MAX:
            self._answered_s.clear()
        self._answered_s[peer] = now_s
        if ask.round < self.state.round or self.round.decided is not None:
            return [Serve(peer, ask.round)]
        came_s = self.up.get(peer)
        return answer_ask(self.round, peer, ask.view, came_s is not None and now_s - came_s < self.round.grace_s)

    def _watch(self, now_s: float) -> list[Effect]:
        """When nothing moves: send my votes again, ask around, and say who is missing."""
        if self.round.decided is not None or now_s < self._resend_s:
            return []
        quiet_s = now_s - self.round.progress_s
        training = self.round.phase() == "train" and not self.behind()
        if training or quiet_s < self.round.grace_s:
            self._resend_after_s = self.round.grace_s
            self._resend_s = now_s + self._resend_after_s
            return self._unstall(now_s)
        self._resend_after_s = min(2 * self._resend_after_s, max(RESEND_MAX_S, self.round.grace_s))
        self._resend_s = now_s + self._resend_after_s
        effects: list[Effect] = [Broadcast(raw, True) for raw in own_messages(self.round)]
        up = sorted(self.up)
        exchange = self.round.exchanges.get(self.round.deciding.view)
        if exchange is None or now_s >= exchange.start_s + LATE_REDUCE * exchange.timeout_s:
            # Before, it is bytes that are waited for: an answer would be roster and proposal, 50 kB of what is here.
            for peer in self.context.rng.sample(up, min(ASKED_AT_ONCE, len(up))):
                effects += self._ask(peer, now_s)
        return [*effects, *self._stall(quiet_s, now_s)]

    def _stall(self, quiet_s: float, now_s: float) -> list[Effect]:
        stall_s = self.state.policy.stall_ms / 1000
        if quiet_s < stall_s:
            return []
        silent = tuple(
            peer
            for peer in self.state.electorate
            if peer != self.context.me and (peer in self._down or now_s - self._heard_s.get(peer, -stall_s) >= stall_s)
        )
        voters, deciding = len(self.state.electorate), self.round.deciding
        what = "are here"
        if voters - len(silent) >= deciding.needed:  # enough are heard, and do not hear us, or cannot vote
            voted = deciding.voters()
            silent = tuple(peer for peer in self.state.electorate if peer != self.context.me and peer not in voted)
            what = f"have voted in view {deciding.view}"
        if self.stalled_s is not None and silent == self.missing:
            return []
        self.stalled_s = self.stalled_s if self.stalled_s is not None else now_s - quiet_s
        self.missing = silent
        detail = f"{voters - len(silent)} of {voters} voters {what}, {deciding.needed} are needed"
        return [Note(self.state.round, "stalled", detail, silent)]

    def _unstall(self, now_s: float) -> list[Effect]:
        if self.stalled_s is None:
            return []
        detail = f"after {now_s - self.stalled_s:.1f} s"
        self.stalled_s, self.missing = None, ()
        return [Note(self.state.round, "resumed", detail)]
