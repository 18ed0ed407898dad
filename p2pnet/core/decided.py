"""Read a decided round from what is kept of it: roster, parts, where it leads; of one group or of many. Pure.

Contract: protocols/history-1.md and protocols/groups-1.md. What is kept of the roster are the signed commits; of many
groups the encoded listings of its groups, then those of its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pnet.core.candidates import judge_exclusions
from p2pnet.core.columns import Column, Plan, judge_column, plan_columns, taken_masks
from p2pnet.core.outcomes import judge_wide, lead_on
from p2pnet.core.parts import Part
from p2pnet.core.state import SwarmState
from p2pnet.core.wide_rosters import assemble
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.codec import decode, encode
from p2pnet.wire.round import (
    COMMIT_RAW_MAX,
    REDUCED_RAW_MAX,
    WIDE_REDUCED_RAW_MAX,
    Commit,
    Decision,
    Listing,
    Outcome,
    Quorum,
    Reduced,
    WideDecision,
    WideOutcome,
    WideReduced,
    decode_value,
    roster_digest,
)
from p2pnet.wire.signing import Signed, Verify, open_signed


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a decided result whose bytes there are."""

    part: Part
    root: bytes  # 32 bytes, over the leaves of its bytes


@dataclass(frozen=True, slots=True)
class Decided:
    """A decided round; what it says was checked before it was kept."""

    outcome: Outcome | WideOutcome
    commits: tuple[Signed[Commit], ...]
    spans: tuple[Span, ...]  # by leaf, rising; parts that are void are left out
    columns: tuple[Column, ...]  # of many groups
    plan: Plan | None  # of many groups
    after: SwarmState

    @property
    def void(self) -> bool:
        """Tell whether the round was decided without a result."""
        return self.outcome.void


@dataclass(frozen=True, slots=True)
class Wide:
    """A decided round of many groups, opened."""

    plan: Plan
    columns: tuple[Column, ...]
    after: SwarmState


def read_decided(state: SwarmState, raw: bytes, kept: Sequence[bytes]) -> Decided:
    """Read the decided round that this state is before, as a ledger keeps it; raises WireError when it is damaged.

    raw: the outcome.   kept: see above. Signatures are not checked again.
    """
    outcome = decode_value(raw)
    if isinstance(outcome, WideOutcome):
        groups, columns = split_listings(outcome, kept)
        wide = open_wide(state, raw, outcome, groups, columns, _sealed)
        spans = tuple(spans_of(wide.columns, wide.plan))
        return Decided(outcome, wide.plan.commits, spans, wide.columns, wide.plan, wide.after)
    if not outcome.void and roster_digest(tuple(kept)) != outcome.roster:
        raise WireError("round-1/R41", "not this roster")
    commits = tuple(open_signed((Commit,), each, _sealed, COMMIT_RAW_MAX) for each in kept)
    parts = state.parts(commits, outcome.view) if commits else ()
    roots = (open_signed((Reduced,), each, _sealed, REDUCED_RAW_MAX).message.root for each in outcome.reduced)
    spans = tuple(Span(part, root) for part, root in zip(parts, roots, strict=True))
    return Decided(outcome, commits, spans, (), None, state.advance(raw, outcome, commits))


def split_listings(outcome: WideOutcome, kept: Sequence[bytes]) -> tuple[tuple[Listing, ...], tuple[Listing, ...]]:
    """What is kept of a round of many groups: the commits of each group, the signed digests of each column."""
    listings = tuple(decode((Listing,), each) for each in kept)
    count = len(listings) - len(outcome.columns)
    return listings[:count], listings[count:]


def open_wide(
    state: SwarmState,
    raw: bytes,
    outcome: WideOutcome,
    groups: tuple[Listing, ...],
    columns: tuple[Listing, ...],
    verify: Verify,
) -> Wide:
    """Check that an outcome of many groups follows from its roster, its columns and this state; raises WireError."""
    whole = assemble(state, groups, verify)
    if whole.digest != outcome.roster:
        raise WireError("round-1/R41", "not this roster")
    plan = plan_columns(state, whole.digest, whole.commits, outcome.view)
    judge_wide(state, outcome, plan)
    judge_exclusions(state, outcome.excluded)
    if len(columns) != len(outcome.columns):
        raise WireError("groups-1/R30", f"{len(columns)} of {len(outcome.columns)} columns")
    judged = tuple(judge_column(plan, number, each.items, verify) for number, each in enumerate(columns))
    if tuple(column.digest for column in judged) != outcome.columns:
        raise WireError("groups-1/R30", "columns with other digests")
    return Wide(plan, judged, lead_on(state, raw, outcome, plan, judged))


def spans_of(columns: Sequence[Column], plan: Plan) -> list[Span]:
    """The parts of columns that are not void, by leaf, rising."""
    found = []
    for column in columns:
        for part, signed in zip(plan.parts_of(column.index), column.reduced, strict=True):
            if part is not None and signed is not None:
                found.append(Span(part, signed.message.root))
    return found


def takes(plan: Plan, columns: Sequence[Column], peer: PeerId) -> list[bool]:
    """Whether a member's slice is among the inputs, for each part of these columns that is not void."""
    group, place = plan.places[peer]
    found = []
    for column in columns:
        mask = taken_masks(plan, column, group)[place]
        found += [bool(mask >> number & 1) for number, signed in enumerate(column.reduced) if signed is not None]
    return found


def listed_spans(column: Listing) -> list[tuple[int, int, bytes] | None]:
    """From and to which leaf each part of a column goes, and its root; None: it is void.

    What is listed was checked before.
    """
    messages = (open_signed((WideReduced,), raw, _sealed, WIDE_REDUCED_RAW_MAX).message if raw else None
                for raw in column.items)  # fmt: skip
    return [None if each is None else (each.start, each.stop, each.root) for each in messages]


def kept_of(decision: Decision | WideDecision) -> tuple[bytes, ...]:
    """What is kept of a decision beside its outcome and its certificate."""
    if isinstance(decision, WideDecision):
        return tuple(encode(each) for each in (*decision.groups, *decision.columns))
    return decision.commits


def decision_from(certificate: Quorum, outcome: bytes, kept: tuple[bytes, ...]) -> Decision | WideDecision:
    """The decision, out of what is kept of it; raises WireError when that is damaged."""
    message = decode_value(outcome)
    if isinstance(message, WideOutcome):
        return WideDecision(certificate, outcome, *split_listings(message, kept))
    return Decision(certificate, outcome, kept)


def roots_of(outcome: bytes, kept: Sequence[bytes], roots: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The roots of the parts of a result.   roots: as the machine names them, of many groups the columns' digests."""
    message = decode_value(outcome)
    if not isinstance(message, WideOutcome):
        return roots
    columns = split_listings(message, kept)[1]
    return tuple(span[2] for column in columns for span in listed_spans(column) if span is not None)


def _sealed(_peer: PeerId, _data: bytes, _signature: bytes) -> bool:
    return True
