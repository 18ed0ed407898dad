"""Build and judge the outcome of many groups, and what it leads to. Pure. Contract: protocols/groups-1.md."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from p2pnet.core.columns import Column, Plan
from p2pnet.core.remember import remember
from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Commit, Exclusion, Listing, Outcome, WideOutcome, decode_value
from p2pnet.wire.signing import Signed

VOID_SHARE_MAX = 10  # an outcome may call void one in ten of the parts whose digest a voter holds


@dataclass(frozen=True, slots=True, eq=False)
class Assembled:
    """A roster of many groups, whole."""

    digest: bytes
    listings: tuple[Listing, ...]  # signed commits, for each group
    commits: tuple[Signed[Commit], ...]  # of all, by peer, rising


@functools.lru_cache(maxsize=16)
def open_value(raw: bytes) -> Outcome | WideOutcome:
    """Decode an outcome once for all that are given the same bytes; raises WireError."""
    return decode_value(raw)


def wide_outcome(
    state: SwarmState, plan: Plan, columns: Sequence[bytes], my_state: bytes, excluded: tuple[Exclusion, ...]
) -> WideOutcome:
    """Build the outcome that a proposer proposes.   columns: their digests."""
    electorate, beacon = _next(state, plan, excluded)
    return WideOutcome(
        state.swarm, state.round, state.lineage, plan.roster, plan.view, tuple(columns), electorate, beacon, my_state,
        excluded,
    )  # fmt: skip


def judge_wide(state: SwarmState, outcome: WideOutcome, plan: Plan) -> None:
    """Check that an outcome follows from its roster and this state, but for its columns; raises WireError."""
    if outcome.swarm != state.swarm or outcome.round != state.round or outcome.lineage != state.lineage:
        raise WireError("round-1/R40", "another swarm, round or lineage")
    if outcome.roster != plan.roster or outcome.view != plan.view:
        raise WireError("round-1/R41", "not this roster")
    if len(outcome.columns) != len(plan.columns[0]):
        raise WireError("groups-1/R30", f"{len(outcome.columns)} of {len(plan.columns[0])} columns")
    if (outcome.electorate, outcome.beacon) != _next(state, plan, outcome.excluded):
        raise WireError("round-1/R43", "electorate or beacon do not follow")


@remember(16)
def _next(state: SwarmState, plan: Plan, excluded: tuple[Exclusion, ...]) -> tuple[tuple[PeerId, ...], bytes]:
    """Electorate and beacon of the next round."""
    peers = [commit.peer for commit in plan.commits]
    return state.next_electorate(peers, {each.peer for each in excluded}), state.next_beacon(plan.commits)


def calls_void(columns: Sequence[Column], held: Sequence[Column | None]) -> bool:
    """Tell whether columns leave out too many of the digests that are held here."""
    left_out = wanted = 0
    for column, mine in zip(columns, held, strict=True):
        wanted += mine.digests if mine is not None else 0
        if mine is not None and mine is not column:
            left_out += sum(bool(here) and not raw for raw, here in zip(column.listing, mine.listing, strict=True))
    return left_out * VOID_SHARE_MAX > wanted


def lead_on(state: SwarmState, raw: bytes, outcome: WideOutcome, plan: Plan, columns: Sequence[Column]) -> SwarmState:
    """The state after a decided outcome of many groups."""
    kept = _states_after(state, plan, raw)
    if not kept:
        authors = [
            (part, signed.peer if signed is not None else None)
            for column in columns
            for part, signed in zip(plan.parts_of(column.index), column.reduced, strict=True)
            if part is not None
        ]
        kept.append(state.advance(raw, outcome, plan.commits, authors))
    return kept[0]


@remember(8)
def _states_after(state: SwarmState, plan: Plan, raw: bytes) -> list[SwarmState]:  # noqa: ARG001 - they say which
    """Where the one state after an outcome is kept."""
    return []


def list_columns(plan: Plan, raw: bytes, columns: Sequence[Column]) -> tuple[Listing, ...]:
    """The columns of an outcome as they travel."""
    kept = _listings(plan, raw)
    if not kept:
        kept.append(tuple(Listing(column.listing) for column in columns))
    return kept[0]


@remember(8)
def _listings(plan: Plan, raw: bytes) -> list[tuple[Listing, ...]]:  # noqa: ARG001
    return []


def encode_listings(plan: Plan, whole: Assembled, raw: bytes, columns: Sequence[Column]) -> tuple[bytes, ...]:
    """All that an outcome rests on, to be kept: the listings of its groups, then those of its columns."""
    kept = _encoded(plan, raw)
    if not kept:
        kept.append(tuple(encode(each) for each in (*whole.listings, *list_columns(plan, raw, columns))))
    return kept[0]


@remember(8)
def _encoded(plan: Plan, raw: bytes) -> list[tuple[bytes, ...]]:  # noqa: ARG001
    return []
