"""Go from round to round: who is there, who is ahead, who is stalled, what a stopped process left. Pure.

`Rounds.handle(event, now_s)` is the whole peer as far as deciding goes; the node performs the effects it returns.
Contract: protocols/round-1.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pnet.core.answers import PEERS_MAX, Spaced, answer_ask, resend
from p2pnet.core.early import Early
from p2pnet.core.events import (
    FREIGHT,
    Accuse,
    Applied,
    Decide,
    Effect,
    Event,
    Heard,
    Note,
    PeerDown,
    PeerUp,
    Proven,
    Report,
    RoundTrip,
    Send,
    Serve,
    Tick,
    Train,
    Unproven,
)  # fmt: skip
from p2pnet.core.evidence import Offence, accuse_of_two
from p2pnet.core.hearing import hear
from p2pnet.core.newcomers import Newcomers
from p2pnet.core.reports import report, told_by
from p2pnet.core.round import Round
from p2pnet.core.slots import Context, Restored
from p2pnet.core.stall import Stall
from p2pnet.core.state import SwarmState
from p2pnet.core.suspects import Suspects
from p2pnet.core.witness import Witness
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.evidence import DoubleSigned
from p2pnet.wire.round import Ask, Commit, Decision, GroupRoster, Quorum, Reduced, Vote, WideDecision, WideRoster
from p2pnet.wire.signing import Signed

ASK_EVERY_S = 0.5  # to one peer, and answers to one peer
ASKED_AT_ONCE = 4  # peers that a stalled one asks each time it wakes
RESEND_MAX_S = 5.0
TICK_MIN_S = 0.01  # ticks come no faster than this, whatever a deadline says


class Rounds:
    """One peer's state machine over all rounds of one swarm."""

    def __init__(self, context: Context, state: SwarmState, now_s: float, restored: Restored | None = None) -> None:
        self.context = context
        self.state = state
        self.round = Round(context, state, now_s, restored)
        self.witness = Witness()
        self.up: dict[PeerId, float] = {}  # since when
        self.stall = Stall(context.me)
        self._down: set[PeerId] = set()
        self._here: set[PeerId] = set()  # peers that are up and have said something: their learner stands at a round
        self._newcomers = Newcomers()
        self._suspects = Suspects(context.me)
        self._expected = state.expected()
        self._later: set[PeerId] = set()  # voters heard in a later round
        self._caught_up = True  # the last round was decided by votes, not by a decision that others had made before
        self._early = Early()
        self._asked, self._answered = Spaced(ASK_EVERY_S), Spaced(ASK_EVERY_S / 2)
        self._now_s = now_s
        self._due_s: float | None = None  # when the round is to be looked at, as far as that is known
        self._due_known = False
        self.looks = 0  # how often the round was looked at: as long as this stays, its deadline does
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
        if not self._due_known:
            self._due_s, self._due_known = self.round.deadline_s(self._now_s), True
        due_s = self._resend_s if self._due_s is None else min(self._due_s, self._resend_s)
        if self._train_s is not None and not self._trains and not self.round.certificate:
            due_s = min(due_s, self._train_s)
        return max(due_s, self._now_s + TICK_MIN_S)

    def _look(self) -> None:
        """The round was looked at: when it wants to be next may have changed."""
        self._due_known = False
        self.looks += 1

    def _round_waits(self, now_s: float) -> bool:
        """Tell whether a large round wants nothing yet, so that a tick is about something else."""
        waits = self._due_known and (self._due_s is None or now_s < self._due_s)
        return waits and self.round.assembly is not None and self.round.decided is None

    @property
    def gone(self) -> tuple[PeerId, ...]:
        """The voters that are silent, when the others are no quorum; else none."""
        gone, deciding = self.stall.gone, self.round.deciding
        return gone if len(deciding.electorate) - len(gone) < deciding.needed else ()

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take one event and say what is to be done."""
        self._now_s = now_s
        if isinstance(event, FREIGHT) and event.round == self.state.round:
            effects = self._report(event, now_s)
            if not effects and self.round.is_still():
                return []
            self._look()
        elif isinstance(event, Tick) and self._round_waits(now_s):
            effects = []
        else:
            effects = self._handle(event, now_s)
            self._look()
        effects += self._train(now_s)
        effects += self._watch(now_s)
        self.round.is_still()  # from here on
        if any(isinstance(effect, Decide) for effect in effects):
            effects += self.stall.end(self.state.round, now_s)
            self._suspect(now_s)
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
                self._suspects.hear({peer}, self.state, now_s)
                self._look_around()
                return [*self.ask(peer, now_s), *self.round.advance(now_s)]
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
        return self._charge(self.witness.observe(heard.message, self.round), now_s)

    def _charge(self, doubles: Iterable[DoubleSigned | None], now_s: float) -> list[Effect]:
        found = [accuse_of_two(double) for double in doubles if double is not None]
        return [effect for offence, raw in found for effect in self._accuse(offence, raw, now_s)]

    def _report(self, event: Report, now_s: float) -> list[Effect]:
        """Take what the shell reports about the current round, and see whether it shows that somebody signed twice."""
        told = told_by(event, self.round)
        effects = report(self.round, event, now_s)
        if not told:
            return effects
        return [*effects, *self._charge([self.witness.see(signed, self.round) for signed in told], now_s)]

    def _hear(self, heard: Heard, now_s: float) -> list[Effect]:
        message = heard.message.message if isinstance(heard.message, Signed) else heard.message
        first = message.certificate if isinstance(message, Decision | WideDecision) else message
        if first.swarm != self.state.swarm:
            return []  # R1
        self._remember(heard, message, now_s)
        if self.round.assembly is not None and heard.sender in self._down:
            self._down.discard(heard.sender)  # it is back, and no neighbour: nobody says PeerUp
            self._look_around()
        self._see_here(heard.sender)
        if isinstance(message, Ask):
            return self._answer(heard.sender, message, now_s)
        if first.round > self.state.round:
            self._early.keep(heard, message, first.round, self.state, now_s)
            wants = self.round.decided is None and not self.round.is_fetching
            return self.ask(heard.sender, now_s) if wants else []
        if first.round < self.state.round:
            return []
        if self.round.decided is not None:
            return self._bear_witness(heard, now_s)
        if not self._caught_up and isinstance(message, Commit | GroupRoster | WideRoster):
            self._caught_up = True  # others are in this very round: train, and do not wait for a decision of it
            self._train_s = self._train_s if self.behind() else now_s
        return [*self._dispatch(heard, now_s), *self._bear_witness(heard, now_s)]

    def _remember(self, heard: Heard, message: Message, now_s: float) -> None:
        """Note who is alive: who hands something over, and who says what nobody repeats for it."""
        author = heard.sender
        if isinstance(message, Vote | Reduced) and isinstance(heard.message, Signed):
            author = heard.message.peer
            if self.see(author, now_s) and message.round > self.state.round:
                self._later.add(author)
        self.see(heard.sender, now_s)
        if self._suspects.hear({heard.sender, author}, self.state, now_s):
            self._look_around()

    def see(self, peer: PeerId, now_s: float) -> bool:
        """Note that a voter is alive; tells whether this is one."""
        return self.stall.see(peer, self.round.deciding.electorate, now_s)

    def _dispatch(self, heard: Heard, now_s: float) -> list[Effect]:
        """Hand a message of the current round to it."""
        round_, message = self.round, heard.message
        if isinstance(message, Decision | WideDecision):
            return round_.decision(message, now_s)
        if isinstance(message, Quorum):
            effects = round_.quorum(message, now_s)
            wants = round_.undecided_certificate is not None and not round_.is_fetching
            return [*effects, *(self.ask(heard.sender, now_s) if wants else [])]
        return hear(round_, message, now_s) if isinstance(message, Signed) else []

    def _look_around(self) -> None:
        """Tell the round whose commits are waited for: the last roster's, and shortly those that have just come."""
        down = frozenset(self._down)
        assembly = self.round.assembly
        expected = self._expected | {self.context.me} if assembly is None else assembly.awaited
        self.round.awaited = frozenset(peer for peer in expected if not self.state.bars(peer)) - down
        self.round.newcomers = self._newcomers.awaited(self.up.keys(), self.state)
        if assembly is not None:
            self.round.newcomers = frozenset(peer for peer in self.round.newcomers if assembly.takes(peer))
        self.round.down = down
        self.round.suspects = (
            self._suspects.peers if assembly is None else frozenset()
        )  # there a silent voter is no sign

    def _see_here(self, peer: PeerId) -> None:
        """A peer that was only connected, perhaps fetching the state, now takes part: it is waited for."""
        if peer in self.up and peer not in self._here:
            self._here.add(peer)
            if peer not in self._expected:
                self._newcomers.add(peer)
            self._look_around()

    def _suspect(self, now_s: float) -> None:
        """The round is decided: see who failed in it. Of one that others decided before, nobody here can tell."""
        decided, deciding = self.round.decided, self.round.deciding
        if decided is None or self.round.from_decision or self.round.assembly is not None:
            return  # in a large swarm nobody hears everybody
        found = self.round.candidates.found[decided.decision.certificate.value]
        missed = {commit.peer for commit in found.commits if not all(found.accepted(commit.peer))}
        self._suspects.judge(self.state, decided.after, deciding.view, missed, deciding.present(), now_s)

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
        present = self.state.present(before.round)
        self._here -= self._expected - present - self.round.skips  # waited for in vain: it has to say something first
        self._expected = self.state.expected()
        self._newcomers.next_round(present, self._here)
        self.stall.forget(set(self.state.electorate))
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
        effects: list[Effect] = []
        decisions, ahead = self._early.take(self.state.round)
        for heard in decisions.values():
            effects += self._hear(heard, now_s)
        for heard, at_s in ahead:
            effects += self._hear(heard, now_s)
            if self.round.certified_s == now_s:  # this made it: the next round began when it came, not when I was ready
                self.round.certified_s = at_s
        if not self._caught_up and self.round.undecided_certificate is None and self.round.decided is None:
            for sender in decisions or list(self._asked.done_s)[-1:]:
                effects += self.ask(sender, now_s)
        return effects

    def _train(self, now_s: float) -> list[Effect]:
        """Start training, unless the round is already decided elsewhere: then its decision is on the way."""
        if self._trains or self._train_s is None or now_s < self._train_s or self.round.certificate is not None:
            return []
        self._trains = True
        wanted = self.state.round % self.state.policy.snapshot_rounds == 0
        return [Train(self.state.round, self.state.beacon, wanted, self.round.commits.end_s)]

    def ask(self, peer: PeerId, now_s: float) -> list[Effect]:
        """Ask a peer for what I lack, unless it was asked a moment ago."""
        if peer == self.context.me or not self._asked.may(peer, now_s):
            return []
        return [Send(peer, encode(Ask(self.state.swarm, self.state.round, self.round.deciding.view)), False)]

    def _answer(self, peer: PeerId, ask: Ask, now_s: float) -> list[Effect]:
        """Tell a peer that asks what it lacks, and ask back when it is ahead."""
        if ask.round > self.state.round:
            return self.ask(peer, now_s)
        if not self._answered.may(peer, now_s):
            return []
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
            return self.stall.end(self.state.round, now_s)
        self._resend_after_s = min(2 * self._resend_after_s, max(RESEND_MAX_S, self.round.grace_s))
        self._resend_s = now_s + self._resend_after_s
        effects = resend(self.round)
        up = sorted(self.up)
        exchange = self.round.exchanges.get(self.round.deciding.view)
        if exchange is None or now_s >= exchange.late_s:
            # Before, it is bytes that are waited for: an answer would be roster and proposal, 50 kB of what is here.
            for peer in self.context.rng.sample(up, min(ASKED_AT_ONCE, len(up))):
                effects += self.ask(peer, now_s)
        deciding = self.round.deciding
        return [*effects, *self.stall.look(self.state, deciding, self._down, quiet_s, now_s)]
