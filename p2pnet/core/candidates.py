"""Judge what proposers propose: does it follow from the roster, is it all held, is it honest? Pure.

Contract: protocols/round-1.md, R40 to R46.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from p2pnet.core.events import Audit, Effect, Gather, Hold, Note, Root
from p2pnet.core.parts import Part
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
    outcome_digest,
    roster_digest,
)
from p2pnet.wire.signing import Signed, Verify, open_signed


@dataclass(frozen=True, slots=True)
class Proposed:
    """A proposal, opened."""

    signed: Signed[Proposal]
    value: bytes
    outcome: Outcome | None  # None: not an outcome at all


@dataclass(slots=True)
class Candidate:
    """An outcome whose shape is right; it is valid once its parts are held and the audit found nothing."""

    value: bytes
    raw: bytes
    outcome: Outcome
    commits: tuple[Signed[Commit], ...]
    parts: tuple[Part, ...]
    reduced: tuple[Signed[Reduced], ...]
    checked: bool = False  # held and audited: it may be prepared
    audited: bool = False
    audit_asked: bool = False

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The root of each part."""
        return tuple(signed.message.root for signed in self.reduced)

    def accepted(self, peer: PeerId) -> tuple[bool, ...]:
        """By part, whether this peer's slice is among the inputs."""
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

    def __init__(self, context: Context, state: SwarmState, now_s: float) -> None:
        self.context = context
        self.state = state
        self.found: dict[bytes, Candidate] = {}
        self.refused: set[bytes] = set()
        self.held: set[Root] = set()
        self._again_s = now_s  # not before: parts that nobody gave are asked for again
        self._asked: set[Root] = set()  # on their way
        self._nowhere: set[Root] = set()  # nobody had them when they were asked for last

    def adopt(self, raw: bytes, outcome: Outcome, commits: tuple[Signed[Commit], ...]) -> Candidate:
        """Take an outcome whose shape is right; raises WireError with the rule broken."""
        candidate = judge_outcome(self.state, raw, outcome, commits, self.context.verify)
        candidate.audited = candidate.audited or not self.context.audits
        self.found[candidate.value] = candidate
        return candidate

    def hold(self, root: Root) -> None:
        """The bytes of a part are here."""
        self.held.add(root)
        self._asked.discard(root)
        self._nowhere.discard(root)

    def gather_failed(self, root: Root, again_s: float) -> None:
        """Nobody gave the bytes of a part: they are asked for again a little later."""
        self._again_s = again_s
        self._asked.discard(root)
        self._nowhere.add(root)

    def lost(self, candidate: Candidate) -> bool:
        """Tell whether a part of this outcome is nowhere: its author and everybody else were asked for it in vain."""
        return any(signed.message.root in self._nowhere for signed in self.missing(candidate))

    def asked(self, gather: Gather) -> Gather:
        """Note that a part is on its way."""
        self._asked.add(gather.root)
        return gather

    def missing(self, candidate: Candidate) -> list[Signed[Reduced]]:
        """The parts of an outcome whose bytes are not here."""
        return [signed for signed in candidate.reduced if signed.message.root not in self.held]

    def again_s(self, candidate: Candidate, expected: Collection[Root]) -> float | None:
        """When a part of this outcome wants to be asked for again; None when all are here or on their way."""
        roots = {signed.message.root for signed in self.missing(candidate)}
        return self._again_s if roots.difference(self._asked, expected) else None

    def gather(
        self, candidate: Candidate, endorsers: Iterable[PeerId], expected: Collection[Root], now_s: float
    ) -> list[Effect]:
        """Fetch what is missing: from its author, then from anyone in the roster, then from who voted for it.

        expected: parts that are on their way on the streams that took our slices.
        """
        effects: list[Effect] = []
        for signed in self.missing(candidate) if now_s >= self._again_s else ():
            root, part = signed.message.root, candidate.parts[signed.message.part]
            if root in self._asked or root in expected:
                continue
            others = [commit.peer for commit in candidate.commits]
            self.context.rng.shuffle(others)
            sources = dict.fromkeys([signed.peer, *others, *endorsers])
            sources.pop(self.context.me, None)
            effects.append(self.asked(Gather(self.state.round, root, part, tuple(sources))))
        return effects

    def audit(self, candidate: Candidate) -> list[Effect]:
        """Choose one leaf at random: who lies in one of n leaves is caught by one of v voters with odds of v/n."""
        if candidate.audit_asked:
            return []
        candidate.audit_asked = True
        part = self.context.rng.choice(candidate.parts)
        signed = candidate.reduced[part.index]
        leaf = self.context.rng.randrange(part.stop - part.start)
        outcome, message = candidate.outcome, signed.message
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
            if root not in candidate.roots or candidate.audited or not candidate.audit_asked:
                continue
            if honest:
                candidate.audited = True
            elif value not in self.refused:
                self.refused.add(value)
                lies.append(candidate)
                author = candidate.reduced[candidate.roots.index(root)].peer
                why = "a leaf does not follow from its inputs"
                effects.append(Note(self.state.round, "wrong-part", why, (author,)))
        return lies, effects

    def check(self, candidate: Candidate) -> Hold:
        """Call an outcome right; the effect keeps it durably, and must come before any vote for it."""
        candidate.checked = True
        return self.keep(candidate)

    def keep(self, candidate: Candidate) -> Hold:
        """Keep an outcome durably whose parts are all here."""
        raws = tuple(commit.raw for commit in candidate.commits)
        return Hold(self.state.round, candidate.value, candidate.raw, raws, candidate.roots)

    def result(self) -> Candidate | None:
        """An outcome with a result that is held and right, of the latest roster; None when there is none."""
        right = (candidate for candidate in self.found.values() if candidate.checked and not candidate.outcome.void)
        return max(right, key=lambda candidate: (candidate.outcome.view, candidate.value), default=None)
