"""Judge what proposers propose: does it follow from the roster, is it all held, is it honest? Pure.

Contract: protocols/round-1.md, R40 to R46.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from p2pnet.core.columns import Column, Plan, plan_columns, void_columns
from p2pnet.core.events import Audit, Effect, Gather, Hold, Note
from p2pnet.core.group_events import Root
from p2pnet.core.outcomes import Assembled, encode_listings, judge_wide
from p2pnet.core.parts import Part, Piece
from p2pnet.core.slots import Context
from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.round import (
    REDUCED_RAW_MAX,
    Commit,
    Exclusion,
    Outcome,
    Proposal,
    Reduced,
    WideOutcome,
    outcome_digest,
    roster_digest,
)
from p2pnet.wire.signing import Signed, Verify, open_signed

HOLDERS_MAX = 16  # of a column that an outcome names, of each kind, that are asked for it


@dataclass(frozen=True, slots=True)
class Proposed:
    """A proposal, opened."""

    signed: Signed[Proposal]
    value: bytes
    outcome: Outcome | WideOutcome | None  # None: not an outcome at all


@dataclass(slots=True)
class Candidate:
    """An outcome whose shape is right; it is valid once its parts are held and the audit found nothing."""

    value: bytes
    raw: bytes
    outcome: Outcome | WideOutcome
    commits: tuple[Signed[Commit], ...]
    parts: tuple[Part, ...]  # of many groups the columns
    reduced: tuple[Signed[Reduced], ...]  # of many groups none: its columns hold them
    plan: Plan | None = None  # of many groups
    checked: bool = False  # held and audited: it may be prepared
    audited: bool = False
    audit_asked: bool = False
    suspect: tuple[Root, PeerId] | None = None  # which part is audited, and who reduced it

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The root of each part."""
        if isinstance(self.outcome, WideOutcome):
            return self.outcome.columns
        return tuple(signed.message.root for signed in self.reduced)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What it says of each part."""
        authors = [signed.peer for signed in self.reduced] if self.plan is None else [None] * len(self.parts)
        return tuple(Piece(*each) for each in zip(self.roots, self.parts, authors, strict=True))

    def accepted(self, peer: PeerId) -> tuple[bool, ...]:
        """By part, whether this peer's slice is among the inputs; not of many groups."""
        peers = [commit.peer for commit in self.commits]
        if peer not in peers:
            return (False,) * len(self.parts)
        place = peers.index(peer)
        return tuple(signed.message.inputs[place] > 0 for signed in self.reduced)


def judge_outcome(
    state: SwarmState,
    raw: bytes,
    outcome: Outcome,
    commits: tuple[Signed[Commit], ...],
    verify: Verify,
) -> Candidate:
    """Check that an outcome follows from its roster and this state; raises WireError with the rule broken.

    commits: the roster's, opened; empty for VOID. Whether the reduced bytes are right is not known here.
    """
    if outcome.swarm != state.swarm or outcome.round != state.round or outcome.lineage != state.lineage:
        raise WireError("round-1/R40", "another swarm, round or lineage")
    if outcome.void != (not commits) or (commits and roster_digest(tuple(c.raw for c in commits)) != outcome.roster):
        raise WireError("round-1/R41", "not this roster")
    reduced = tuple(open_signed((Reduced,), each, verify, REDUCED_RAW_MAX) for each in outcome.reduced)
    parts = state.parts(commits, outcome.view) if commits else ()
    if len(parts) != len(reduced) or (outcome.void and outcome.view):
        raise WireError("round-1/R42", f"{len(reduced)} of {len(parts)} parts")
    for part, signed in zip(parts, reduced, strict=True):
        message = signed.message
        about = (message.swarm, message.round, message.view, message.part, message.start, message.stop, message.roster)
        if about != (state.swarm, state.round, outcome.view, part.index, part.start, part.stop, outcome.roster):
            raise WireError("round-1/R42", "a reduced digest of something else")
        if signed.peer not in (part.reducer, part.backup):
            raise WireError("round-1/R31", "a reduced digest by somebody else")
        if len(message.inputs) != len(commits) or not any(message.inputs):
            raise WireError("round-1/R32", f"{len(message.inputs)} inputs of {len(commits)} commits")
    judge_exclusions(state, outcome.excluded)
    follows = state.outcome(outcome.roster, outcome.view, outcome.reduced, commits, outcome.state, outcome.excluded)
    if follows != outcome:
        raise WireError("round-1/R43", "electorate or beacon do not follow")
    return Candidate(outcome_digest(raw), raw, outcome, commits, parts, reduced, audited=outcome.void)


def judge_exclusions(state: SwarmState, excluded: tuple[Exclusion, ...]) -> None:
    """Check whom an outcome excludes, without the evidence; raises WireError with the rule broken."""
    peers = [each.peer for each in excluded]
    if peers != sorted(set(peers)):
        raise WireError("round-1/R47", "the excluded are not rising")
    if not all(state.may_exclude(peer) for peer in peers):
        raise WireError("round-1/R47", "excludes somebody unknown, or excluded already")
    if set(state.electorate) <= set(peers):
        raise WireError("round-1/R47", "excludes every voter")


class Candidates:
    """The outcomes of one round that may be decided, and the reduced parts that this peer holds."""

    def __init__(
        self, context: Context, state: SwarmState, now_s: float, whole: Mapping[bytes, Assembled] | None = None
    ) -> None:
        """whole: the rosters of many groups that are here, by digest."""
        self.context = context
        self.state = state
        self.whole: Mapping[bytes, Assembled] = {} if whole is None else whole
        self.found: dict[bytes, Candidate] = {}
        self.refused: set[bytes] = set()
        self.held: set[Root] = set()
        self.columns: dict[Root, Column] = {}  # of many groups, by digest
        self._again_s = now_s  # not before: parts that nobody gave are asked for again
        self._asked: set[Root] = set()  # on their way
        self._nowhere: set[Root] = set()  # nobody had them when they were asked for last

    def adopt(self, raw: bytes, outcome: Outcome | WideOutcome, commits: tuple[Signed[Commit], ...]) -> Candidate:
        """Take an outcome whose shape is right; raises WireError with the rule broken.

        commits: of the roster that it names; of many groups they are found by this name.
        """
        if isinstance(outcome, WideOutcome):
            candidate = self._judge_wide(raw, outcome)
        else:
            candidate = judge_outcome(self.state, raw, outcome, commits, self.context.verify)
        candidate.audited = candidate.audited or not self.context.audits
        self.found[candidate.value] = candidate
        return candidate

    def hold(self, root: Root) -> None:
        """The bytes of a part are here."""
        self.held.add(root)
        self._asked.discard(root)
        self._nowhere.discard(root)

    def hold_column(self, column: Column) -> None:
        """The bytes of a column's parts are here, and its digests are right."""
        self.columns[column.digest] = column
        self.hold(column.digest)

    def columns_of(self, candidate: Candidate) -> tuple[Column, ...]:
        """The columns of an outcome of many groups; none while one is missing."""
        found = tuple(self.columns[root] for root in candidate.roots if root in self.columns)
        return found if candidate.plan is not None and len(found) == len(candidate.roots) else ()

    def gather_failed(self, root: Root, again_s: float) -> None:
        """Nobody gave the bytes of a part: they are asked for again a little later."""
        self._again_s = again_s
        self._asked.discard(root)
        self._nowhere.add(root)

    def lost(self, candidate: Candidate) -> bool:
        """Tell whether a part of this outcome is nowhere: its author and everybody else were asked for it in vain."""
        return any(piece.root in self._nowhere for piece in self.missing(candidate))

    def asked(self, gather: Gather) -> Gather:
        """Note that a part is on its way."""
        self._asked.add(gather.root)
        return gather

    def missing(self, candidate: Candidate) -> list[Piece]:
        """The parts of an outcome whose bytes are not here."""
        if self.held.issuperset(candidate.roots):
            return []
        return [piece for piece in candidate.pieces if piece.root not in self.held]

    def again_s(self, candidate: Candidate, expected: Collection[Root]) -> float | None:
        """When a part of this outcome wants to be asked for again; None when all are here or on their way."""
        roots = {piece.root for piece in self.missing(candidate)}
        return self._again_s if roots.difference(self._asked, expected) else None

    def gather(
        self, candidate: Candidate, endorsers: Iterable[PeerId], expected: Collection[Root], now_s: float
    ) -> list[Effect]:
        """Fetch what is missing: from its author, then from anyone in the roster, then from who voted for it.

        expected: parts that are on their way on the streams that took our slices.
        """
        effects: list[Effect] = []
        for piece in self.missing(candidate) if now_s >= self._again_s else ():
            root, part = piece.root, piece.part
            if root in self._asked or root in expected:
                continue
            if piece.author:
                others = [commit.peer for commit in candidate.commits]
                self.context.rng.shuffle(others)
            else:
                others = self._holders(candidate, part)
            sources = dict.fromkeys([*([piece.author] if piece.author else []), *others, *endorsers])
            sources.pop(self.context.me, None)
            effects.append(self.asked(Gather(self.state.round, root, part, tuple(sources), candidate.plan)))
        return effects

    def _holders(self, candidate: Candidate, part: Part) -> list[PeerId]:
        """Who may hold a column as an outcome has it: some of the proposer's group, then who collects it in others."""
        plan = candidate.plan
        assert plan is not None
        near = plan.groups[plan.group_of(self.state.proposer(plan.view))]
        far = [columns[part.index].reducer for columns in plan.columns]
        some = (self.context.rng.sample(each, min(HOLDERS_MAX, len(each))) for each in (near, far))
        return [peer for each in some for peer in each]

    def audit(self, candidate: Candidate) -> list[Effect]:
        """Choose one leaf at random: who lies in one of n leaves is caught by one of v voters with odds of v/n."""
        if candidate.audit_asked:
            return []
        candidate.audit_asked = True
        if candidate.plan is not None:
            return self._audit_wide(candidate, candidate.plan)
        part = self.context.rng.choice(candidate.parts)
        signed = candidate.reduced[part.index]
        leaf = self.context.rng.randrange(part.stop - part.start)
        outcome, message = candidate.outcome, signed.message
        candidate.suspect = message.root, signed.peer
        return [
            Audit(
                self.state.round, outcome.view, outcome.roster, part, leaf, message.root, message.inputs, signed.peer,
                message.norms, signed.raw, self.state.policy.grace_ms / 2000,
            )
        ]  # fmt: skip

    def audited(self, root: Root, honest: bool) -> tuple[list[Candidate], list[Effect]]:
        """Take what an audit found; returns the outcomes in which it found a lie."""
        lies: list[Candidate] = []
        effects: list[Effect] = []
        for value, candidate in self.found.items():
            if candidate.suspect is None or root != candidate.suspect[0] or candidate.audited:
                continue
            if honest:
                candidate.audited = True
            elif value not in self.refused:
                self.refused.add(value)
                lies.append(candidate)
                why = "a leaf does not follow from its inputs"
                effects.append(Note(self.state.round, "wrong-part", why, (candidate.suspect[1],)))
        return lies, effects

    def check(self, candidate: Candidate) -> Hold:
        """Call an outcome right; the effect keeps it durably, and must come before any vote for it."""
        candidate.checked = True
        return self.keep(candidate)

    def keep(self, candidate: Candidate) -> Hold:
        """Keep an outcome durably whose parts are all here."""
        if candidate.plan is not None:
            whole, columns = self.whole[candidate.plan.roster], self.columns_of(candidate)
            raws = encode_listings(candidate.plan, whole, candidate.raw, columns)
        else:
            raws = tuple(commit.raw for commit in candidate.commits)
        return Hold(self.state.round, candidate.value, candidate.raw, raws, candidate.roots)

    def _judge_wide(self, raw: bytes, outcome: WideOutcome) -> Candidate:
        """See `adopt`; of columns that are void altogether nothing needs to be held."""
        whole = self.whole.get(outcome.roster)
        if whole is None:
            raise WireError("round-1/R41", "a roster of many groups that is not here")
        plan = plan_columns(self.state, outcome.roster, whole.commits, outcome.view)
        judge_wide(self.state, outcome, plan)
        judge_exclusions(self.state, outcome.excluded)
        for column in void_columns(plan, self.context.verify):
            self.hold_column(column)
        value = outcome_digest(raw)
        return Candidate(value, raw, outcome, whole.commits, plan.columns[0], (), plan)

    def _audit_wide(self, candidate: Candidate, plan: Plan) -> list[Effect]:
        """See `audit`; one part of one column."""
        listed = [each for column in self.columns_of(candidate) for each in column.reduced if each is not None]
        if not listed:
            candidate.audited = True  # all is void: nothing can be wrong
            return []
        signed = self.context.rng.choice(listed)
        message, part = signed.message, plan.parts[signed.message.part]
        assert part is not None
        leaf = self.context.rng.randrange(part.stop - part.start)
        candidate.suspect = message.root, signed.peer
        return [
            Audit(
                self.state.round, plan.view, plan.roster, part, leaf, message.root, (), signed.peer, message.norms,
                signed.raw, self.state.policy.grace_ms / 2000,
            )
        ]  # fmt: skip

    def result(self) -> Candidate | None:
        """An outcome with a result that is held and right, of the latest roster; None when there is none."""
        right = (candidate for candidate in self.found.values() if candidate.checked and not candidate.outcome.void)
        return max(right, key=lambda candidate: (candidate.outcome.view, candidate.value), default=None)
