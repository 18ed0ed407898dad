"""One round as one peer sees it: commit, roster, exchange, decide. Pure. Contract: protocols/round-1.md."""

from __future__ import annotations

from p2pnet.core.assembling import assembly_of, tend, tend_s
from p2pnet.core.candidates import Candidates, Proposed
from p2pnet.core.certificates import certifies, unbundle
from p2pnet.core.commits import Commits
from p2pnet.core.deciding import VIEWS_AHEAD, Deciding
from p2pnet.core.events import Broadcast, Decide, Effect, Encoded, Note, Skipped, Started
from p2pnet.core.exchange import RosterExchange
from p2pnet.core.group_events import Tell
from p2pnet.core.judging import deadlines_s, give_up_s, judge
from p2pnet.core.leading import lead, void_due_s
from p2pnet.core.outcomes import open_value
from p2pnet.core.reports import hold_given, noted
from p2pnet.core.restoring import restore
from p2pnet.core.rosters import VIEWS_KEPT, Rosters
from p2pnet.core.settling import adopt_wide, decide_wide
from p2pnet.core.slots import Context, Restored, Slots
from p2pnet.core.state import SwarmState
from p2pnet.core.voting import act
from p2pnet.core.wide import WideExchange
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.round import (
    Commit,
    Decision,
    GroupRoster,
    Phase,
    Proposal,
    Quorum,
    Reduced,
    Roster,
    Skip,
    Vote,
    WideDecision,
    decode_value,
    outcome_digest,
)  # fmt: skip
from p2pnet.wire.signing import Signed


class Round:
    """The state machine of one round."""

    def __init__(self, context: Context, state: SwarmState, now_s: float, restored: Restored | None = None) -> None:
        self.context = context
        self.state = state
        self.grace_s = state.policy.grace_ms / 1000
        self.commits = Commits(state, context.verify, now_s)
        self.assembly = assembly_of(state, context.me) if context.groups else None
        self.exchanges: dict[int, RosterExchange | WideExchange] = {}
        self.rosters = Rosters(self.commits)
        self.proposals: dict[int, Proposed] = {}
        self.candidates = Candidates(context, state, now_s, self.assembly.whole if self.assembly else None)
        self.deciding = Deciding(state.electorate, context.me, self.grace_s)
        self.slots = Slots(context, state.round, restored.slots if restored else {})
        self.decided: Decide | None = None
        self.checksum: int | None = None
        self.my_state: bytes | None = None
        self.commit_over_s: float | None = None
        self.progress_s = now_s  # when something last moved
        self.awaited: frozenset[PeerId] = frozenset()
        self.newcomers: frozenset[PeerId] = frozenset()
        self.down: frozenset[PeerId] = frozenset()
        self.suspects: frozenset[PeerId] = frozenset()  # who failed in the round before and is silent since
        self.skips: set[PeerId] = set()  # of those awaited: who has no update this round
        self.from_decision = False  # decided by a whole decision that somebody sent, not by votes
        self.contributes = False
        self.view_s = now_s  # when this view was entered
        self._stirred = True
        self.certificate: Quorum | None = None
        self.certified_s: float | None = None  # when votes made it
        if restored:
            restore(self, restored)

    def started(self, event: Started, now_s: float) -> list[Effect]:
        """The learner stands at the start of the round."""
        self.checksum, self.my_state = event.checksum, event.state
        return self.advance(now_s)

    def encoded(self, event: Encoded, now_s: float) -> list[Effect]:
        """My payload is ready: commit to it, and only then show it."""
        member = self.state.members.get(self.context.me)
        preimage = self.context.chain.reveal(member.tip or None if member else None)
        if preimage is None:
            return [Note(self.state.round, "no-preimage", "my hash chain is used up or not the one the swarm knows")]
        message = Commit(
            self.state.swarm, self.state.round, self.state.lineage, event.payload_root, event.samples, preimage,
            self.checksum or 0, int(event.assigned), event.reach, event.up_kbps, event.down_kbps,
        )  # fmt: skip
        signed, effects = self.slots.sign(message)
        self.contributes = signed.message.payload_root == event.payload_root
        self.commits.add(signed, now_s)
        self.progress_s = now_s
        return [*effects, self.share(signed.raw), *self.advance(now_s)]

    def share(self, raw: bytes) -> Effect:
        """Show my commit, or that I have none: to all, or in a large swarm to the stewards of my group."""
        return Broadcast(raw, True) if self.assembly is None else Tell(self.assembly.commits_to(), raw)

    def commit(self, signed: Signed[Commit], now_s: float) -> list[Effect]:
        """Somebody's commit."""
        if self.assembly is not None and not self.assembly.takes(signed.peer):
            return []
        if signed.peer in self.commits.held or self.commits.add(signed, now_s) is not None:
            return []
        self.progress_s = now_s
        effects: list[Effect] = []
        if self.checksum is not None and signed.message.checksum != self.checksum:
            why = "started the round from other parameters"
            effects.append(Note(self.state.round, "diverged", why, (signed.peer,)))
        return [*effects, *self.advance(now_s)]

    def skipped(self, event: Skipped, now_s: float) -> list[Effect]:
        """I have no update: tell the others, who would wait for it, and do not wait for myself."""
        note = Note(self.state.round, "skipped", event.reason, (self.context.me,))
        if self.decided is not None:
            return [note]
        signed, effects = self.slots.sign(Skip(self.state.swarm, self.state.round, self.state.lineage))
        return [*effects, note, self.share(signed.raw), *self.skip(signed, now_s)]

    def skip(self, signed: Signed[Skip], now_s: float) -> list[Effect]:
        """Somebody has no update: it is not waited for any more."""
        if signed.message.lineage != self.state.lineage or signed.peer not in self.awaited | self.newcomers:
            return []
        self.skips.add(signed.peer)
        return self.advance(now_s)

    def roster(self, signed: Signed[Roster], now_s: float) -> list[Effect]:
        """The proposer's roster for a view: take part unless it leaves out too many; the first one counts."""
        message, view = signed.message, signed.message.view
        if signed.peer != self.state.proposer(view) or message.lineage != self.state.lineage:
            return []
        if not self.rosters.awaits(signed, self.deciding.view):
            return []
        try:
            listed = self.rosters.open(signed, self.checksum, now_s)
        except WireError as error:
            return [Note(self.state.round, "refused-roster", str(error), (signed.peer,))]
        effects: list[Effect] = []
        if listed.omits:
            detail = "round-1/R15: it omits commits it must have"
            effects.append(Note(self.state.round, "refused-roster", detail, (signed.peer,)))
        elif view == self.deciding.view and not self.repeats(view):
            effects += self._exchange(signed, listed.commits, now_s)
        return [*effects, *self.advance(now_s)]

    def reduced(self, signed: Signed[Reduced], now_s: float) -> list[Effect]:
        """A reducer's digest of one part."""
        exchange = self.exchanges.get(signed.message.view)
        if exchange is None:
            if signed.message.view >= self.deciding.view:
                self.rosters.keep(signed)
            return []
        if isinstance(exchange, WideExchange) or exchange.judge(signed) is not None:
            return []
        effects = exchange.add(signed, signed.message.root in self.candidates.held)
        return [*noted(self, effects), *self.advance(now_s)]

    def proposal(self, signed: Signed[Proposal], now_s: float) -> list[Effect]:
        """What the proposer of a view wants decided; the first one counts."""
        view = signed.message.view
        if signed.peer != self.state.proposer(view) or view in self.proposals:
            return []
        if not self.deciding.view <= view <= self.deciding.view + VIEWS_AHEAD:
            return []
        self.progress_s = now_s
        effects: list[Effect] = []
        value = outcome_digest(signed.message.outcome)
        try:
            outcome = open_value(signed.message.outcome)
        except WireError as error:
            outcome = None
            effects += self.refuse(value, str(error), signed.peer, now_s)
        self.proposals[view] = Proposed(signed, value, outcome)
        valid_view = signed.message.valid_view - 1 if signed.message.valid_view else None
        effects += act(self, self.deciding.propose(view, value, valid_view, now_s), now_s)
        return [*effects, *self.advance(now_s)]

    def vote(self, signed: Signed[Vote], now_s: float) -> list[Effect]:
        """Somebody's prepare or seal."""
        message = signed.message
        if len(message.value) not in (0, 32):
            return []  # R52
        phase = Phase(message.phase)
        actions = self.deciding.vote(signed.peer, message.view, phase, message.value, signed.signature, now_s)
        return [*act(self, actions, now_s), *self.advance(now_s)] if actions or self.commit_over_s is None else []

    def quorum(self, message: Quorum, now_s: float) -> list[Effect]:
        """A bundle of votes: it counts when every signature in it is right."""
        phase = Phase(message.phase)
        known = self.deciding.endorsements(message.view, phase, message.value)
        endorsements = unbundle(message, self.state, known, self.context.verify)
        if endorsements is None or endorsements.keys() <= known.keys():
            return []
        actions = self.deciding.bundle(message.view, phase, message.value, endorsements, now_s)
        return [*act(self, actions, now_s, bundled=True), *self.advance(now_s)]

    def decision(self, message: Decision | WideDecision, now_s: float) -> list[Effect]:
        """A whole decided round: check the certificate against the electorate, then fetch what is missing."""
        if self.decided is not None or not certifies(message, self.state, self.context.verify):
            return []
        if message.certificate.value not in self.candidates.found:
            try:
                if isinstance(message, WideDecision):
                    adopt_wide(self, message)
                else:
                    commits = self.commits.open_roster(message.commits) if message.commits else ()
                    self.candidates.adopt(message.outcome, decode_value(message.outcome), commits)
            except WireError as error:  # certified and yet wrong: more than 1/3 of the voters lie, or we have a bug
                return [Note(self.state.round, "impossible-decision", str(error))]
        self.certificate = message.certificate
        self.from_decision = True
        return self.advance(now_s)

    def advance(self, now_s: float) -> list[Effect]:
        """Do whatever the round now allows; called after every event."""
        self._stirred = True
        effects: list[Effect] = []
        if self.decided is not None:
            return effects
        if self.commit_over_s is None and (now_s >= self._commit_due_s() or self.deciding.begun()):
            self.commit_over_s = now_s
        exchange = self.exchanges.get(self.deciding.view)
        if exchange is not None:
            effects += self._tick(exchange, now_s)
        effects += judge(self, now_s)
        if self.assembly is not None and not self.from_decision:
            effects += tend(self, now_s)
        if self.certificate is None:
            effects += lead(self, now_s)
            effects += act(self, self.deciding.tick(now_s), now_s)
            due_s = give_up_s(self)
            if self.deciding.step == 0 and due_s is not None and now_s >= due_s:
                effects += act(self, self.deciding.expire(now_s), now_s)
        return [*effects, *self._decide()]

    def deadline_s(self, now_s: float) -> float | None:
        """When `advance` wants to be called next, if nothing is heard before."""
        if self.decided is not None:
            return None
        times: list[float | None] = deadlines_s(self, now_s)
        if self.certificate is None:
            times += tend_s(self)
            exchange = self.exchanges.get(self.deciding.view)
            times.append(self.deciding.deadline_s)
            if self.commit_over_s is None:
                times.append(self._commit_due_s())
            if self.deciding.step == 0:
                times.append(give_up_s(self))
            if exchange is not None:
                times += [exchange.deadline_s(), void_due_s(self, exchange)]
        return min((time for time in times if time is not None), default=None)

    def phase(self) -> str:
        """One word for a person: train, roster, exchange, decide, apply."""
        if self.decided is not None:
            return "apply"
        if self.deciding.step > 0 or self.deciding.view in self.proposals:
            return "decide"
        if self.deciding.view in self.exchanges:
            return "exchange"
        return "roster" if self.commit_over_s is not None else "train"

    def group_roster(self, digest: bytes) -> Signed[GroupRoster] | None:
        """The roster of a group that is here, by its digest."""
        return self.assembly.found.get(digest) if self.assembly is not None else None

    @property
    def undecided_certificate(self) -> Quorum | None:
        """A certificate whose outcome is not here: the round is decided and this peer has to ask for it."""
        return self.certificate if self.decided is None else None

    @property
    def is_fetching(self) -> bool:
        """Whether a large round is decided, and only columns are on their way: a whole decision would hold none."""
        certificate = self.undecided_certificate
        return self.assembly is not None and certificate is not None and certificate.value in self.candidates.found

    def check(self, value: bytes, is_valid: bool, now_s: float) -> list[Effect]:
        """Let the vote count know whether an outcome is held and right."""
        return act(self, self.deciding.check(value, is_valid, now_s), now_s)

    def refuse(self, value: bytes, why: str, author: PeerId, now_s: float) -> list[Effect]:
        """Vote against an outcome in every view."""
        self.candidates.refused.add(value)
        return [Note(self.state.round, "refused-proposal", why, (author,)), *self.check(value, False, now_s)]

    def _exchange(self, signed: Signed[Roster], commits: tuple[Signed[Commit], ...], now_s: float) -> list[Effect]:
        """Take part in the exchange of this view's roster."""
        view = self.deciding.view
        for commit in commits:
            self.commits.add(commit, now_s)
        weights = tuple(self.state.weight(commit.message) for commit in commits)
        parts = self.state.parts(commits, view)
        timeout_s = self.context.pace.timeout_s(self.grace_s, self.state.volume, commits, parts, view)
        timeout_s *= self.deciding.growth()
        resting = self.state.resting(view)
        exchange = RosterExchange(self.context.me, signed, commits, parts, weights, timeout_s, now_s, resting)
        self.exchanges[view] = exchange
        self.progress_s = now_s
        mine = self.commits.held.get(self.context.me)
        listed = mine is not None and mine[0].raw in signed.message.commits
        effects = exchange.begin(listed and self.contributes)
        if mine is not None and not (listed and self.contributes):
            why = "my payload is not the one I committed to before a restart" if listed else "my commit is not in it"
            effects.append(Note(self.state.round, "left-out", why, (self.context.me,)))
        return [*effects, *self._replay(now_s)]

    def _replay(self, now_s: float) -> list[Effect]:
        """Take up what came before what it builds on."""
        roster, early = self.rosters.replay(self.deciding.view)
        effects = self.roster(roster, now_s) if roster is not None else []
        for signed in early:
            effects += self.reduced(signed, now_s)
        return effects

    def repeats(self, view: int) -> bool:
        """Tell whether the proposal of this view rests on an earlier exchange, or on none."""
        proposed = self.proposals.get(view)
        return proposed is not None and proposed.outcome is not None and proposed.outcome.view != view

    def stir(self) -> None:
        """Something was changed on which a deadline depends."""
        self._stirred = True

    def is_still(self) -> bool:
        """Tell whether since this was asked last nothing was looked at, nor any deadline of many groups changed."""
        still, self._stirred = not self._stirred and self.assembly is not None, False
        for exchange in self.exchanges.values():
            if not isinstance(exchange, WideExchange) or not exchange.stages.is_still():
                still = False
        return still

    def _commit_due_s(self) -> float:
        proposer = self.state.proposer(self.deciding.view)
        is_mine = proposer == self.context.me or proposer in self.suspects  # else its roster may wait for them: so do I
        excused = self.skips | self.suspects if is_mine else self.skips
        awaited, newcomers = self.awaited - excused, self.newcomers - excused
        if self.skips and not awaited and not newcomers and not self.commits.held:
            return self.commits.start_s  # nobody has anything this round
        due_s = self.commits.deadline_s(awaited, newcomers)
        if self.assembly is not None and not self.assembly.is_steward:
            return max(due_s, self.commits.everybody_s(awaited))  # it sees no commit but its own
        return due_s

    def _tick(self, exchange: RosterExchange | WideExchange, now_s: float) -> list[Effect]:
        """Act on what is late in an exchange."""
        was_late = exchange.is_late
        effects = exchange.tick(now_s, self.down)
        hold_given(self, effects, now_s)
        if exchange.is_late and not was_late:
            self.context.pace.missed(*exchange.lacking(self.down))
        return effects

    def enter(self, view: int, now_s: float) -> list[Effect]:
        """A new view began: drop what views long past left, and take up what came early."""
        self.view_s = self.progress_s = now_s
        before = view - VIEWS_KEPT
        self.exchanges = {view: kept for view, kept in self.exchanges.items() if view >= before}
        self.proposals = {view: kept for view, kept in self.proposals.items() if view >= before}
        self.rosters.forget(before)
        if self.assembly is not None:
            self.assembly.enter(before)
        return self._replay(now_s)

    def _decide(self) -> list[Effect]:
        """Once the certificate and all it certifies are here, the round is over."""
        if self.certificate is None or self.decided is not None:
            return []
        candidate = self.candidates.found.get(self.certificate.value)
        if candidate is None or self.candidates.missing(candidate):
            return []
        mine = self.commits.held.get(self.context.me)
        if candidate.plan is not None:
            self.decided = decide_wide(self, candidate, self.certificate)
            return [self.decided]
        raws = tuple(commit.raw for commit in candidate.commits)
        contributed = self.contributes and mine is not None and mine[0].raw in raws
        self.decided = Decide(
            self.state.round,
            Decision(self.certificate, candidate.raw, raws),
            candidate.outcome.void,
            candidate.roots,
            tuple((part.start, part.stop) for part in candidate.parts),
            candidate.accepted(self.context.me) if contributed else (False,) * len(candidate.parts),
            self.state.advance(candidate.raw, candidate.outcome, candidate.commits),
        )
        return [self.decided]
