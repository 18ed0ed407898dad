"""Judge what a proposer proposes: does it follow from the roster, and is all of it held? Contract: protocols/round-1.md."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnet.core.exchange import RosterExchange
from p2pnet.core.parts import Part, assign_parts
from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.round import REDUCED_RAW_MAX, Commit, Outcome, Reduced, outcome_digest, roster_digest
from p2pnet.wire.signing import Signed, Verify, open_signed


@dataclass(slots=True)
class Candidate:
    """An outcome whose shape is right; it is valid once its parts are held and the audit found nothing."""

    value: bytes
    raw: bytes
    outcome: Outcome
    commits: tuple[Signed[Commit], ...]
    parts: tuple[Part, ...]
    reduced: tuple[Signed[Reduced], ...]
    checked: bool = False
    audited: bool = False
    audit_asked: bool = False
    gathers: set[bytes] = field(default_factory=set)  # roots asked for and not yet here

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
    leaves: int,
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
    parts: tuple[Part, ...] = ()
    if commits:
        parts = assign_parts(leaves, commits, state.beacon, outcome.view, state.policy.reducers_min)
    if len(parts) != len(reduced) or (outcome.void and outcome.view):
        raise WireError("round-1/R42", f"{len(reduced)} of {len(parts)} parts")
    for part, signed in zip(parts, reduced, strict=True):
        message = signed.message
        if (message.swarm, message.round, message.view, message.part, message.roster) != (
            state.swarm, state.round, outcome.view, part.index, outcome.roster,
        ):  # fmt: skip
            raise WireError("round-1/R42", "a reduced digest of something else")
        if signed.peer not in (part.reducer, part.backup) or len(message.inputs) != len(commits) or not any(message.inputs):
            raise WireError("round-1/R31", "a reduced digest by somebody else")
    follows = state.outcome(outcome.roster, outcome.view, outcome.reduced, commits, outcome.state)
    if follows != outcome:
        raise WireError("round-1/R43", "electorate or beacon do not follow")
    return Candidate(outcome_digest(raw), raw, outcome, commits, parts, reduced, audited=outcome.void)


def from_exchange(exchange: RosterExchange) -> tuple[bytes, ...] | None:
    """The signed digests of a finished exchange, in part order; None while one is missing."""
    result = exchange.result()
    return None if result is None else tuple(signed.raw for signed in result)
