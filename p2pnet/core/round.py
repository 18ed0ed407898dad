"""One round as one peer sees it: commit, roster, exchange, decide. Pure. Contract: protocols/round-1.md."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from p2pnet.core import deciding as votes
from p2pnet.core.candidates import Candidate, from_exchange, judge_outcome
from p2pnet.core.commits import Commits
from p2pnet.core.deciding import Deciding
from p2pnet.core.events import (
    Audit, Audited, Broadcast, Decide, Effect, Encoded, Gather, Gathered, GatherFailed, Hold, Note, Persist, ReduceDone,
    Root, ScatterFailed, Send, SliceArrived, Started,
)  # fmt: skip
from p2pnet.core.exchange import LATE_PROPOSAL, RosterExchange
from p2pnet.core.parts import assign_parts
from p2pnet.core.state import HashChain, SwarmState, quorum
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.round import (
    Commit, Decision, Endorsement, Outcome, Phase, Proposal, Quorum, Reduced, Roster, Vote, decode_outcome,
    outcome_digest, slot_of,
)  # fmt: skip
from p2pnet.wire.signing import Sign, Signed, Verify, open_signed, sign_message

M = TypeVar("M", bound=Message)
EARLY_MAX = 512  # messages kept because what they build on is not here yet
VOID_AT = 2.0  # in exchange time-outs: a proposer without a result proposes VOID, before the view is given up


@dataclass(frozen=True, slots=True)
class Context:
    """What a peer brings into every round."""

    me: PeerId
    sign: Sign
    verify: Verify
    chain: HashChain
    leaves: int  # of the payload, and so of the result
    exchange_s: float  # the time-out of an exchange in view 0: grace and what the bytes take on a slow link
    rng: random.Random
    audits: bool = True


@dataclass(frozen=True, slots=True)
class Restored:
    """What a stopped process of ours left behind in this round."""

    slots: Mapping[bytes, bytes] = field(default_factory=dict)  # slot -> signed message
    held: Sequence[tuple[bytes, tuple[bytes, ...]]] = ()  # outcome and its roster's commits, all parts stored


class Round:
    """The state machine of one round."""

    def __init__(self, context: Context, state: SwarmState, now_s: float, restored: Restored | None = None) -> None:
        self.context = context
        self.state = state
        self.commits = Commits(state, context.verify, now_s)
        self.exchanges: dict[int, RosterExchange] = {}
        self.grace_s = state.policy.grace_ms / 1000
        self.deciding = Deciding(state.electorate, context.me, self.grace_s)
        self.decided: Decide | None = None
        self.checksum: int | None = None
        self.progress_s = now_s  # when something last moved
        self.awaited: frozenset[PeerId] = frozenset()
        self.down: frozenset[PeerId] = frozenset()
        self._my_state: bytes | None = None
        self._contributes = False
        self._commit_over_s: float | None = None
        self._view_s = now_s  # when this view was entered
        self._held: set[Root] = set()
        self._gather_again_s = now_s
        self._candidates: dict[bytes, Candidate] = {}
        self._refused: set[bytes] = set()
        self._proposals: dict[int, Signed[Proposal]] = {}
        self._certificate: Quorum | None = None
        self._early: list[Signed[Roster] | Signed[Reduced]] = []
        self._slots: dict[bytes, bytes] = {}
        if restored:
            self._restore(restored)

    # What is heard --------------------------------------------------------------------------------------------------

    def started(self, event: Started, now_s: float) -> list[Effect]:
        """The learner stands at the start of the round."""
        self.checksum, self._my_state = event.checksum, event.state
        return self.advance(now_s)

    def encoded(self, event: Encoded, now_s: float) -> list[Effect]:
        """My payload is ready: commit to it, and only then show it."""
        member = self.state.members.get(self.context.me)
        preimage = self.context.chain.reveal(member.tip if member else None)
        if preimage is None:
            return [Note(self.state.round, "no-preimage", "my hash chain is used up or not the one the swarm knows")]
        message = Commit(
            self.state.swarm, self.state.round, self.state.lineage, event.payload_root, event.samples, preimage,
            self.checksum or 0, int(event.assigned), event.reach, event.up_kbps, event.down_kbps,
        )  # fmt: skip
        signed, effects = self._sign(message)
        self._contributes = signed.message.payload_root == event.payload_root
        self.commits.add(signed, now_s)
        self.progress_s = now_s
        return [*effects, Broadcast(signed.raw, True), *self.advance(now_s)]

    def commit(self, signed: Signed[Commit], now_s: float) -> list[Effect]:
        """Somebody's commit."""
        fresh = signed.peer not in self.commits.held
        if self.commits.add(signed, now_s) is not None or not fresh:
            return []
        self.progress_s = now_s
        effects: list[Effect] = []
        if self.checksum is not None and signed.message.checksum != self.checksum:
            effects.append(Note(self.state.round, "diverged", "started the round from other parameters", (signed.peer,)))
        return [*effects, *self.advance(now_s)]

    def roster(self, signed: Signed[Roster], now_s: float) -> list[Effect]:
        """The proposer's roster for a view: take part unless it leaves out too many."""
        message, view = signed.message, signed.message.view
        if signed.peer != self.state.proposer(view) or message.lineage != self.state.lineage or view in self.exchanges:
            return []
        if view != self.deciding.view:
            if view > self.deciding.view:
                self._keep_early(signed)
            return []
        try:
            commits = self.commits.open_roster(message.commits)
        except WireError as error:
            return [Note(self.state.round, "refused-roster", str(error), (signed.peer,))]
        if self.commits.omitted_too_many(message, commits, now_s):
            return [Note(self.state.round, "refused-roster", "round-1/R15: it omits commits it must have", (signed.peer,))]
        for commit in commits:
            self.commits.add(commit, now_s)
        weights = tuple(self.state.weight(commit.message) for commit in commits)
        parts = assign_parts(self.context.leaves, commits, self.state.beacon, view, self.state.policy.reducers_min)
        timeout_s = self.context.exchange_s * self.deciding.growth()
        exchange = RosterExchange(self.context.me, signed, commits, parts, weights, timeout_s, now_s)
        self.exchanges[view] = exchange
        self.progress_s = now_s
        mine = self.commits.held.get(self.context.me)
        contribute = self._contributes and mine is not None and mine[0] in commits
        effects = exchange.begin(contribute)
        if mine is not None and not contribute:
            effects.append(Note(self.state.round, "left-out", "my commit is not in the roster", (self.context.me,)))
        early, self._early = self._early, []
        for later in early:
            effects += self.early(later, now_s)
        return [*effects, *self.advance(now_s)]

    def early(self, signed: Signed[Roster] | Signed[Reduced], now_s: float) -> list[Effect]:
        """Take up a message again that came before what it builds on."""
        if isinstance(signed.message, Roster):
            return self.roster(signed, now_s)  # type: ignore[arg-type]
        return self.reduced(signed, now_s)  # type: ignore[arg-type]

    def reduced(self, signed: Signed[Reduced], now_s: float) -> list[Effect]:
        """A reducer's digest of one part."""
        exchange = self.exchanges.get(signed.message.view)
        if exchange is None:
            if signed.message.view >= self.deciding.view:
                self._keep_early(signed)
            return []
        if exchange.judge(signed) is not None:
            return []
        return [*exchange.add(signed, signed.message.root in self._held), *self.advance(now_s)]

    def proposal(self, signed: Signed[Proposal], now_s: float) -> list[Effect]:
        """What the proposer of a view wants decided."""
        view = signed.message.view
        if signed.peer != self.state.proposer(view) or view in self._proposals or view < self.deciding.view:
            return []
        if view > self.deciding.view + votes.VIEWS_AHEAD:
            return []
        self._proposals[view] = signed
        self.progress_s = now_s
        valid_view = signed.message.valid_view - 1 if signed.message.valid_view else None
        value = outcome_digest(signed.message.outcome)
        return [*self._act(self.deciding.propose(view, value, valid_view, now_s), now_s), *self.advance(now_s)]

    def vote(self, signed: Signed[Vote], now_s: float) -> list[Effect]:
        """Somebody's prepare or seal."""
        message = signed.message
        phase = Phase(message.phase)
        actions = self.deciding.vote(signed.peer, message.view, phase, message.value, signed.signature, now_s)
        return [*self._act(actions, now_s), *self.advance(now_s)]

    def quorum(self, message: Quorum, now_s: float) -> list[Effect]:
        """A bundle of votes: each signature is checked, then each counts as if it had come alone."""
        data = message.vote_bytes()
        effects: list[Effect] = []
        known = self.deciding.endorsements(message.view, Phase(message.phase), message.value)
        for each in message.endorsements:
            if each.peer in self.deciding.electorate and each.peer not in known:
                if not self.context.verify(each.peer, data, each.signature):
                    return effects
                phase = Phase(message.phase)
                acts = self.deciding.vote(each.peer, message.view, phase, message.value, each.signature, now_s)
                effects += self._act(acts, now_s)
        return [*effects, *self.advance(now_s)]

    def decision(self, message: Decision, now_s: float) -> list[Effect]:
        """A whole decided round: check the certificate against the electorate, then fetch what is missing."""
        if self.decided is not None or not certifies(message, self.state, self.context.verify):
            return []
        value = message.certificate.value
        if value not in self._candidates:
            try:
                commits = self.commits.open_roster(message.commits) if message.commits else ()
                self._adopt(message.outcome, decode_outcome(message.outcome), commits)
            except WireError as error:  # certified and yet wrong: more than 1/3 of the voters lie, or we have a bug
                return [Note(self.state.round, "impossible-decision", str(error))]
        self._certificate = message.certificate
        return self.advance(now_s)

    # What the shell reports -----------------------------------------------------------------------------------------

    def slice_arrived(self, event: SliceArrived, now_s: float) -> list[Effect]:
        """A slice for a part that I reduce."""
        exchange = self.exchanges.get(event.view)
        return exchange.arrived(event.part, event.peer, self.down) if exchange else []

    def reduce_done(self, event: ReduceDone, now_s: float) -> list[Effect]:
        """My reduction is done: sign it, answer those who wait, tell everybody."""
        exchange = self.exchanges.get(event.view)
        if exchange is None:
            return []
        self._held.add(event.root)
        message = Reduced(
            self.state.swarm, self.state.round, event.view, event.part, exchange.digest, event.inputs, event.root
        )
        signed, effects = self._sign(message)
        if signed.message.root != event.root:  # signed another one before a restart: that one stands
            return []
        effects += exchange.answer(event, signed)
        return [*effects, Broadcast(signed.raw, True), *self.advance(now_s)]

    def scatter_failed(self, event: ScatterFailed, now_s: float) -> list[Effect]:
        """A reducer cannot be reached."""
        exchange = self.exchanges.get(event.view)
        return exchange.scatter_failed(event.part, event.to) if exchange else []

    def gathered(self, event: Gathered, now_s: float) -> list[Effect]:
        """The bytes of a part are here."""
        self._held.add(event.root)
        self.progress_s = now_s
        for candidate in self._candidates.values():
            candidate.gathers.discard(event.root)
        return self.advance(now_s)

    def gather_failed(self, event: GatherFailed, now_s: float) -> list[Effect]:
        """Nobody gave the bytes of a part: they are asked for again a little later."""
        self._gather_again_s = now_s + self.grace_s / 2
        for candidate in self._candidates.values():
            candidate.gathers.discard(event.root)
        return []

    def audited(self, event: Audited, now_s: float) -> list[Effect]:
        """One leaf was recomputed."""
        effects: list[Effect] = []
        for candidate in self._candidates.values():
            if event.root in candidate.roots and not candidate.checked:
                candidate.audited = True
                if not event.honest:
                    author = candidate.reduced[candidate.roots.index(event.root)].peer
                    effects.append(Note(self.state.round, "wrong-part", "a leaf does not follow from its inputs", (author,)))
                    effects += self._act(self.deciding.check(candidate.value, False, now_s), now_s)
        return [*effects, *self.advance(now_s)]

    # What follows ---------------------------------------------------------------------------------------------------

    def advance(self, now_s: float) -> list[Effect]:
        """Do whatever the round now allows; called after every event."""
        effects: list[Effect] = []
        if self.decided is not None:
            return effects
        if self._commit_over_s is None and now_s >= self.commits.deadline_s(self.awaited):
            self._commit_over_s = now_s
        exchange = self.exchanges.get(self.deciding.view)
        if exchange is not None:
            effects += exchange.tick(now_s, self.down)
        effects += self._judge_proposals(now_s)
        effects += self._check_candidates(now_s)
        if self._certificate is None:
            effects += self._lead(now_s)
            effects += self._act(self.deciding.tick(now_s), now_s)
            due_s = self._propose_due_s()
            if self.deciding.step == 0 and due_s is not None and now_s >= due_s:
                effects += self._act(self.deciding.expire(now_s), now_s)
        return [*effects, *self._decide(now_s)]

    def deadline_s(self) -> float | None:
        """When `advance` wants to be called next, if nothing is heard before."""
        if self.decided is not None:
            return None
        times = [self.deciding.deadline_s]
        if any(not c.gathers.issuperset(r for r in c.roots if r not in self._held) for c in self._candidates.values()):
            times.append(self._gather_again_s)
        if self._commit_over_s is None:
            times.append(self.commits.deadline_s(self.awaited))
        if self.deciding.step == 0:
            times.append(self._propose_due_s())
        exchange = self.exchanges.get(self.deciding.view)
        if exchange is not None:
            times += [exchange.deadline_s(), self._void_due_s(exchange) if self._leads() else None]
        return min((time for time in times if time is not None), default=None)

    def answer_ask(self) -> list[bytes]:
        """My own messages of this round, for a peer that asks: (commit, roster, reduced, proposal, votes)."""
        view = self.deciding.view
        exchange, proposal = self.exchanges.get(view), self._proposals.get(view)
        raws = [commit.raw for commit, _ in self.commits.held.values()] if exchange is None else [exchange.roster.raw]
        if exchange is not None:
            raws += [found[self.context.me].raw for found in exchange.reduced.values() if self.context.me in found]
        if proposal is not None:
            raws.append(proposal.raw)
        return raws + [self._slots[slot_of(self._vote(*own))] for own in self.deciding.own_votes()]

    def prepared_quorum(self) -> Quorum | None:
        """The proof for the value that more than 2/3 prepared last, if any."""
        if self.deciding.valid is None:
            return None
        view, value = self.deciding.valid
        found = self.deciding.endorsements(view, Phase.PREPARE, value)
        return self._bundle(view, Phase.PREPARE, value, found) if len(found) >= self.deciding.needed else None

    def phase(self) -> str:
        """One word for a person: train, roster, exchange, decide, apply."""
        if self.decided is not None:
            return "apply"
        if self.deciding.step > 0 or self.deciding.view in self._proposals:
            return "decide"
        if self.deciding.view in self.exchanges:
            return "exchange"
        return "roster" if self._commit_over_s is not None else "train"

    # Inside ---------------------------------------------------------------------------------------------------------

    def _leads(self) -> bool:
        return self.context.me == self.state.proposer(self.deciding.view)

    def _propose_due_s(self) -> float | None:
        """When this view is given up without a proposal that I can prepare."""
        if self._commit_over_s is None:
            return None
        start_s = max(self._commit_over_s, self._view_s)
        exchange = self.exchanges.get(self.deciding.view)
        if exchange is not None:
            return exchange.start_s + LATE_PROPOSAL * exchange.timeout_s
        gone = self.state.proposer(self.deciding.view) in self.down
        patience_s = self.grace_s * self.deciding.growth()
        if self.deciding.view in self._proposals:
            patience_s += LATE_PROPOSAL * self.context.exchange_s
        return start_s + (patience_s / 4 if gone else patience_s)

    def _void_due_s(self, exchange: RosterExchange) -> float | None:
        if self.deciding.view == 0 or self.deciding.view in self._proposals:
            return None
        return exchange.start_s + VOID_AT * exchange.timeout_s

    def _lead(self, now_s: float) -> list[Effect]:
        """The proposer's duties: a roster, then a proposal; the value that 2/3 prepared before, if there is one."""
        view = self.deciding.view
        if not self._leads() or view in self._proposals or self.deciding.step != 0 or self._my_state is None:
            return []
        if self.deciding.valid is not None:
            valid_view, value = self.deciding.valid
            return self._propose(self._candidates[value].raw, valid_view + 1, now_s)
        exchange = self.exchanges.get(view)
        if exchange is None:
            if self._commit_over_s is None:
                return []
            raws = self.commits.roster()
            if not raws:
                return self._propose_void(now_s) if view > 0 else []
            signed, effects = self._sign(Roster(self.state.swarm, self.state.round, view, self.state.lineage, raws))
            return [*effects, Broadcast(signed.raw, True), *self.roster(signed, now_s)]
        reduced = from_exchange(exchange)
        if reduced is not None:
            outcome = self.state.outcome(exchange.digest, view, reduced, exchange.commits, self._my_state)
            return self._propose(encode(outcome), 0, now_s)
        due_s = self._void_due_s(exchange)
        return self._propose_void(now_s) if due_s is not None and now_s >= due_s else []

    def _propose_void(self, now_s: float) -> list[Effect]:
        outcome = self.state.outcome(b"", 0, (), (), self._my_state or b"")
        return self._propose(encode(outcome), 0, now_s)

    def _propose(self, outcome: bytes, valid_view: int, now_s: float) -> list[Effect]:
        message = Proposal(self.state.swarm, self.state.round, self.deciding.view, valid_view, outcome)
        signed, effects = self._sign(message)
        proof = self.prepared_quorum() if valid_view else None
        if proof is not None:
            effects.append(Broadcast(encode(proof), False))
        return [*effects, Broadcast(signed.raw, True), *self.proposal(signed, now_s)]

    def _judge_proposals(self, now_s: float) -> list[Effect]:
        """Turn proposals into candidates, as soon as the roster they name is here."""
        effects: list[Effect] = []
        for signed in list(self._proposals.values()):
            raw = signed.message.outcome
            value = outcome_digest(raw)
            if value in self._candidates or value in self._refused or self._my_state is None:
                continue
            try:
                outcome = decode_outcome(raw)
                exchange = self.exchanges.get(outcome.view)
                if not outcome.void and (exchange is None or exchange.digest != outcome.roster):
                    continue  # its roster may still come
                if outcome.state != self._my_state:
                    raise WireError("round-1/R44", "another state than mine")
                self._adopt(raw, outcome, exchange.commits if exchange and not outcome.void else ())
            except WireError as error:
                self._refused.add(value)
                effects.append(Note(self.state.round, "refused-proposal", str(error), (signed.peer,)))
                effects += self._act(self.deciding.check(value, False, now_s), now_s)
        return effects

    def _adopt(self, raw: bytes, outcome: Outcome, commits: tuple[Signed[Commit], ...]) -> None:
        candidate = judge_outcome(self.state, raw, outcome, commits, self.context.leaves, self.context.verify)
        candidate.audited = candidate.audited or not self.context.audits
        self._candidates[candidate.value] = candidate

    def _check_candidates(self, now_s: float) -> list[Effect]:
        """Fetch what a candidate lacks; prepare only what is held and checked, and hold it durably first."""
        effects: list[Effect] = []
        for candidate in list(self._candidates.values()):
            if candidate.checked:
                continue
            if candidate.outcome.void:
                complete = any(c.checked and not c.outcome.void for c in self._candidates.values())
                if self.deciding.view > 0 and not complete:
                    effects += self._checked(candidate, now_s)
                continue
            missing = [s for s in candidate.reduced if s.message.root not in self._held]
            if now_s >= self._gather_again_s:
                effects += [gather for signed in missing if (gather := self._gather(candidate, signed)) is not None]
            if missing:
                continue
            if candidate.audited:
                effects += self._checked(candidate, now_s)
            elif not candidate.audit_asked:
                candidate.audit_asked = True
                effects.append(self._audit(candidate))
        return effects

    def _gather(self, candidate: Candidate, signed: Signed[Reduced]) -> Gather | None:
        root, part = signed.message.root, candidate.parts[signed.message.part]
        if root in candidate.gathers:
            return None
        candidate.gathers.add(root)
        others = [commit.peer for commit in candidate.commits if commit.peer not in (signed.peer, self.context.me)]
        self.context.rng.shuffle(others)
        endorsed = [each.peer for each in self._certificate.endorsements] if self._certificate else []
        sources = tuple(dict.fromkeys([signed.peer, *others, *endorsed]))
        return Gather(
            self.state.round, root, part.stop - part.start, tuple(peer for peer in sources if peer != self.context.me)
        )

    def _audit(self, candidate: Candidate) -> Audit:
        """Choose one leaf at random: who lies in one of n leaves is caught by one of v voters with odds of v/n."""
        part = self.context.rng.choice(candidate.parts)
        signed = candidate.reduced[part.index]
        leaf = self.context.rng.randrange(part.stop - part.start)
        view, inputs = candidate.outcome.view, signed.message.inputs
        return Audit(self.state.round, view, part, leaf, signed.message.root, inputs, signed.peer)

    def _checked(self, candidate: Candidate, now_s: float) -> list[Effect]:
        candidate.checked = True
        self.progress_s = now_s
        hold = Hold(
            self.state.round, candidate.value, candidate.raw, tuple(c.raw for c in candidate.commits), candidate.roots
        )
        return [hold, *self._act(self.deciding.check(candidate.value, True, now_s), now_s)]

    def _act(self, actions: list[votes.Action], now_s: float) -> list[Effect]:
        """Turn what the vote count wants into effects."""
        effects: list[Effect] = []
        pending = list(actions)
        while pending:
            match pending.pop(0):
                case votes.Cast(view, phase, value):
                    signed, sent = self._sign(self._vote(view, phase, value))
                    proposer = self.state.proposer(view)
                    effects += sent
                    if not value:
                        effects.append(Broadcast(signed.raw, True))
                    elif proposer != self.context.me:
                        effects.append(Send(proposer, signed.raw, True))
                    pending += self.deciding.vote(self.context.me, view, phase, value, signed.signature, now_s)
                case votes.Prepared(view, value, endorsements):
                    if self._leads():
                        bundle = self._bundle(view, Phase.PREPARE, value, endorsements)
                        effects.append(Broadcast(encode(bundle), False))
                case votes.Sealed(view, value, endorsements):
                    self._certificate = self._bundle(view, Phase.SEAL, value, endorsements)
                    effects.append(Broadcast(encode(self._certificate), False))
                case votes.Entered():
                    self._view_s = self.progress_s = now_s
                    early, self._early = self._early, []
                    for signed_early in early:
                        effects += self.early(signed_early, now_s)
        return effects

    def _decide(self, now_s: float) -> list[Effect]:
        """Once the certificate and all it certifies are here, the round is over."""
        if self._certificate is None or self.decided is not None:
            return []
        candidate = self._candidates.get(self._certificate.value)
        if candidate is None or any(root not in self._held for root in candidate.roots):
            return []
        raws = tuple(commit.raw for commit in candidate.commits)
        after = self.state.advance(candidate.raw, candidate.outcome, candidate.commits)
        self.decided = Decide(
            self.state.round,
            Decision(self._certificate, candidate.raw, raws),
            candidate.outcome.void,
            candidate.roots,
            tuple((part.start, part.stop) for part in candidate.parts),
            candidate.accepted(self.context.me) if self._contributes else (False,) * len(candidate.parts),
            after,
        )
        return [self.decided]

    @property
    def undecided_certificate(self) -> Quorum | None:
        """A certificate whose outcome is not here: the round is decided and this peer has to ask for it."""
        return self._certificate if self.decided is None else None

    def _sign(self, message: M) -> tuple[Signed[M], list[Effect]]:
        """Sign once per slot; what was signed there before, also by a process that stopped, is used again."""
        slot = slot_of(message)
        if slot in self._slots:
            return open_signed((type(message),), self._slots[slot], self.context.verify), []
        signed = sign_message(message, self.context.me, self.context.sign)
        self._slots[slot] = signed.raw
        return signed, [Persist(self.state.round, slot, signed.raw)]

    def _vote(self, view: int, phase: Phase, value: bytes) -> Vote:
        return Vote(self.state.swarm, self.state.round, view, int(phase), value)

    def _bundle(self, view: int, phase: Phase, value: bytes, endorsements: Mapping[PeerId, bytes]) -> Quorum:
        listed = tuple(Endorsement(peer, endorsements[peer]) for peer in sorted(endorsements))
        return Quorum(self.state.swarm, self.state.round, view, int(phase), value, listed)

    def _keep_early(self, signed: Signed[Roster] | Signed[Reduced]) -> None:
        if len(self._early) < EARLY_MAX:
            self._early.append(signed)

    def _restore(self, restored: Restored) -> None:
        """Take up the slots that are taken and the values that are held, so that nothing is signed twice."""
        own: dict[tuple[int, Phase], bytes] = {}
        mine: list[Signed[Vote]] = []
        for slot, raw in restored.slots.items():
            self._slots[slot] = raw
            signed = open_signed((Commit, Roster, Reduced, Proposal, Vote), raw, self.context.verify)
            if isinstance(signed.message, Vote):
                own[(signed.message.view, Phase(signed.message.phase))] = signed.message.value
                mine.append(signed)  # type: ignore[arg-type]
        self.deciding.restore(own)
        for vote in mine:
            self.vote(vote, self.progress_s)
        for outcome, raws in restored.held:
            commits = self.commits.open_roster(raws) if raws else ()
            self._adopt(outcome, decode_outcome(outcome), commits)
            self._held.update(self._candidates[outcome_digest(outcome)].roots)


def certifies(decision: Decision, state: SwarmState, verify: Verify) -> bool:
    """Tell whether a decision's certificate holds: more than 2/3 of this state's electorate sealed this outcome."""
    certificate = decision.certificate
    if (certificate.swarm, certificate.round, certificate.phase) != (state.swarm, state.round, int(Phase.SEAL)):
        return False
    if certificate.value != outcome_digest(decision.outcome):
        return False
    peers = [each.peer for each in certificate.endorsements]
    if peers != sorted(set(peers)) or not set(peers) <= set(state.electorate) or len(peers) < quorum(len(state.electorate)):
        return False
    data = certificate.vote_bytes()
    return all(verify(each.peer, data, each.signature) for each in certificate.endorsements)
