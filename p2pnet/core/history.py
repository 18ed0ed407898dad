"""Follow decided rounds from their bytes alone, as somebody who was not there. Pure.

Contract: protocols/history-1.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnet.core.candidates import judge_outcome
from p2pnet.core.certificates import certifies
from p2pnet.core.commits import Commits
from p2pnet.core.decided import open_wide, spans_of
from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.codec import decode
from p2pnet.wire.history import DECISION_BYTES_MAX
from p2pnet.wire.round import Decision, WideDecision, WideOutcome, decode_outcome, decode_value
from p2pnet.wire.signing import Verify


@dataclass(frozen=True, slots=True)
class Step:
    """One decided round, checked, and where it leads."""

    decision: Decision | WideDecision
    roots: tuple[bytes, ...]  # 32 bytes for each part of the result that is not void
    after: SwarmState


def follow(state: SwarmState, raw: bytes, verify: Verify) -> Step:
    """Check that these bytes are the decision of the round that this state is before, and take it.

    raw: an encoded Decision or WideDecision.   Raises WireError with the rule broken.

    The seals are checked, and that everything follows from what they seal. The signatures inside are not checked once
    more: each is part of what more than 2/3 of the electorate has sealed, and they would be nearly all of the work.
    """
    decision = decode((Decision, WideDecision), raw, DECISION_BYTES_MAX)
    assert isinstance(decision, Decision | WideDecision)
    if not certifies(decision, state, verify):
        raise WireError("history-1/R3", f"no quorum of round {state.round}'s electorate sealed this")
    if isinstance(decision, WideDecision):
        return _follow_wide(state, decision)
    outcome = decode_outcome(decision.outcome)
    commits = Commits(state, _sealed, 0.0).open_roster(decision.commits)
    candidate = judge_outcome(state, decision.outcome, outcome, commits, _sealed)
    return Step(decision, candidate.roots, state.advance(decision.outcome, outcome, commits))


def _follow_wide(state: SwarmState, decision: WideDecision) -> Step:
    outcome = decode_value(decision.outcome)
    if not isinstance(outcome, WideOutcome):
        raise WireError("groups-1/R30", "not an outcome of many groups")
    wide = open_wide(state, decision.outcome, outcome, decision.groups, decision.columns, _sealed)
    return Step(decision, tuple(span.root for span in spans_of(wide.columns, wide.plan)), wide.after)


def _sealed(_peer: PeerId, _data: bytes, _signature: bytes) -> bool:
    return True
