"""Cut the result of many groups into columns, and a column into a part for each group. Contract: protocols/groups-1.md.

Column j is reduced by member j of each group: that of group s reduces part (j, s) over all members of all groups.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from p2pnet.core.groups import count_groups
from p2pnet.core.parts import SHARE_MAX, Part, halve_rate, line_rates
from p2pnet.core.remember import remember
from p2pnet.core.shares import Rate, share_leaves
from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire import merkle
from p2pnet.wire.membership import Reach
from p2pnet.wire.round import PARTS_MAX, WIDE_REDUCED_RAW_MAX, Commit, WideReduced, listing_digest
from p2pnet.wire.signing import Signed, Verify, open_signed

FACTOR_BYTES = 2  # q + 1 of one member in a row, big-endian; 0: missing


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Who reduces what of a roster of many groups, in one view."""

    swarm: bytes
    round: int
    view: int
    roster: bytes  # its digest
    commits: tuple[Signed[Commit], ...]  # by peer, rising
    weights: tuple[int, ...]
    groups: tuple[tuple[PeerId, ...], ...]  # the members of each group: its reducers by column, then the others
    places: Mapping[PeerId, tuple[int, int]]  # group, place in it
    columns: tuple[tuple[Part, ...], ...]  # for each group, its columns: who collects its slices, and who stands in
    parts: tuple[Part | None, ...]  # part (j, s) at j * groups + s; None: the column has too few leaves
    beacon: bytes
    commits_by: Mapping[PeerId, Signed[Commit]]
    members: tuple[frozenset[PeerId], ...]  # of each group, as a set
    starts: tuple[int, ...]  # by group, the number of its first member, when they are counted group by group

    def group_of(self, peer: PeerId) -> int:
        """The group of a peer; who is not in the roster takes its result from one all the same."""
        known = self.places.get(peer)
        if known is not None:
            return known[0]
        return int.from_bytes(_draw(self.beacon, self.view, peer)[:4], "big") % len(self.groups)

    def parts_of(self, column: int) -> tuple[Part | None, ...]:
        """The parts of a column, by group."""
        count = len(self.groups)
        return self.parts[column * count : (column + 1) * count]


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """The signed digests of one column, checked."""

    index: int
    digest: bytes
    listing: tuple[bytes, ...]  # signed, by group; empty: that part is void
    reduced: tuple[Signed[WideReduced] | None, ...]
    digests: int  # how many there are: parts that are not void


@remember(16)
def plan_columns(state: SwarmState, roster: bytes, commits: tuple[Signed[Commit], ...], view: int) -> Plan:
    """Deal the members of a roster into groups of like lines, and the leaves to their columns.

    The reducers, fastest first, fill column after column; who is in which group of a column is drawn. So a column's
    members have lines of like rates, and its share follows from the slowest of them by parts-1.
    """
    count = count_groups(len(commits), state.policy.group_size_max)
    halvings = {peer: row.halvings for peer, row in state.members.items() if row.halvings}
    known = line_rates(commits)
    rates = {peer: halve_rate(rate, halvings.get(peer, 0)) for peer, rate in known.items()}
    drawn = {commit.peer: _draw(state.beacon, view, commit.peer) for commit in commits}
    reducers = _eligible(commits, state.resting(view), max(count, state.policy.reducers_min))
    order = sorted(reducers, key=lambda peer: (-rates[peer].up_kbps, -rates[peer].down_kbps, drawn[peer]))
    ranks = min(len(order) // count, PARTS_MAX)
    rows = [sorted(order[at * count : (at + 1) * count], key=drawn.__getitem__) for at in range(ranks)]
    slowest = tuple(Rate(min(rates[p].up_kbps for p in row), min(rates[p].down_kbps for p in row)) for row in rows)
    leaves = state.volume.leaves
    size = -(-len(commits) // count)
    shares = share_leaves(state.volume, size, slowest, -(-SHARE_MAX * leaves // ranks))
    having = [(row, share) for row, share in zip(rows, shares, strict=True) if share]
    taken = {peer for row, _ in having for peer in row}
    others = sorted((commit.peer for commit in commits if commit.peer not in taken), key=drawn.__getitem__)
    groups = tuple(
        (*(row[number] for row, _ in having), *others[number::count]) for number in range(count)
    )  # fmt: skip
    places = {peer: (number, place) for number, group in enumerate(groups) for place, peer in enumerate(group)}
    spans, start = [], 0
    for _, share in having:
        spans.append((start, start + share))
        start += share
    weights = bound_weights([state.weight(commit.message) for commit in commits], state.volume.weights_max)
    columns = tuple(
        tuple(Part(j, *span, groups[g][j], _beside(groups, len(spans), g, j)) for j, span in enumerate(spans))
        for g in range(count)
    )
    return Plan(
        state.swarm, state.round, view, roster, commits, weights, groups, places, columns,
        _cut(groups, spans), state.beacon, {commit.peer: commit for commit in commits},
        tuple(map(frozenset, groups)), tuple(itertools.accumulate(map(len, groups[:-1]), initial=0)),
    )  # fmt: skip


def bound_weights(weights: Sequence[int], total_max: int) -> tuple[int, ...]:
    """Bring weights closer together, from 1 up, so that they sum to no more than this; 0: no bound.

    With more members than that nobody can weigh less than 1, and the sum stays too large.
    """
    total, count = sum(weights), len(weights)
    if not total_max or total <= total_max:
        return tuple(weights)
    room = max(0, total_max - count)
    return tuple(1 + (weight - 1) * room // (total - count) if weight > 1 else 1 for weight in weights)


def _eligible(commits: Sequence[Signed[Commit]], resting: Collection[PeerId], least: int) -> list[PeerId]:
    """Who reduces: who can be dialled and does not rest, as long as there are enough of them (parts-1, Reducers)."""
    everybody = [commit.peer for commit in commits]
    dialled = [commit.peer for commit in commits if commit.message.reach != Reach.PRIVATE]
    awake = [peer for peer in dialled if peer not in resting]
    return next((some for some in (awake, dialled) if len(some) >= min(least, len(everybody))), everybody)


def _cut(groups: Sequence[Sequence[PeerId]], spans: Sequence[tuple[int, int]]) -> tuple[Part | None, ...]:
    """Cut each column into a part for each group, as even as whole leaves allow."""
    count = len(groups)
    parts: list[Part | None] = []
    for j, (start, stop) in enumerate(spans):
        for s in range(count):
            low, high = (start + (stop - start) * at // count for at in (s, s + 1))
            backup = _beside(groups, len(spans), s, j)
            parts.append(Part(j * count + s, low, high, groups[s][j], backup) if low < high else None)
    return tuple(parts)


def _beside(groups: Sequence[Sequence[PeerId]], columns: int, group: int, column: int) -> PeerId:
    """Who stands in for member `column` of a group: its next one; with one column that of the next group."""
    if columns > 1:
        return groups[group][(column + 1) % columns]
    return groups[(group + 1) % len(groups)][0]


@remember(1024)
def _judged(plan: Plan, index: int, digest: bytes) -> list[Column]:  # noqa: ARG001 - they say which column
    """Where the one column with this digest is kept, once it was judged."""
    return []


@remember(1 << 14)
def column_digest(listing: tuple[bytes, ...]) -> bytes:
    """The digest of a column; it is hashed once for all that hold the same object."""
    return listing_digest(listing)


def judge_column(plan: Plan, index: int, listing: tuple[bytes, ...], verify: Verify) -> Column:
    """Check the signed digests of a column; raises WireError with the rule broken."""
    digest = column_digest(listing)
    kept = _judged(plan, index, digest)
    if not kept:
        parts = plan.parts_of(index)
        if len(listing) != len(parts):
            raise WireError("groups-1/R20", f"{len(listing)} digests of {len(parts)} parts")
        reduced = tuple(_open(plan, part, raw, verify) for part, raw in zip(parts, listing, strict=True))
        kept.append(Column(index, digest, listing, reduced, sum(map(bool, listing))))
    return kept[0]


@remember(16)
def void_columns(plan: Plan, verify: Verify) -> tuple[Column, ...]:
    """The columns of a plan with no digest at all."""
    nothing = (b"",) * len(plan.groups)
    return tuple(judge_column(plan, number, nothing, verify) for number in range(len(plan.columns[0])))


def _open(plan: Plan, part: Part | None, raw: bytes, verify: Verify) -> Signed[WideReduced] | None:
    if not raw:
        return None
    signed = open_signed((WideReduced,), raw, verify, WIDE_REDUCED_RAW_MAX)
    if part is None or (rule := judge_reduced(plan, signed)) is not None or signed.message.part != part.index:
        raise WireError(rule if part is not None and rule else "groups-1/R20", "in a column")
    return signed


def judge_reduced(plan: Plan, signed: Signed[WideReduced]) -> str | None:
    """Name the rule that the digest of a part breaks, if any."""
    message = signed.message
    if (message.swarm, message.round, message.view, message.roster) != (plan.swarm, plan.round, plan.view, plan.roster):
        return "groups-1/R20"
    part = plan.parts[message.part] if message.part < len(plan.parts) else None
    if part is None or (message.start, message.stop) != (part.start, part.stop):
        return "groups-1/R20"
    if signed.peer not in (part.reducer, part.backup):
        return "groups-1/R21"
    return None if not message.missing or _may_lack(plan, message.missing) else "groups-1/R22"


def row_of(members: Sequence[PeerId], factors: Mapping[PeerId, int]) -> bytes:
    """The row of one group: q + 1 of each of its members in order, 0 for who is missing."""
    return b"".join(factors.get(peer, 0).to_bytes(FACTOR_BYTES, "big") for peer in members)


@functools.lru_cache(maxsize=256)
def rows_root(rows: tuple[bytes, ...]) -> bytes:
    """The root over the rows of all groups, 32 bytes: `WideReduced.inputs`."""
    return merkle.root([merkle.leaf_hash(row) for row in rows])


@remember(256)
def missing_of(plan: Plan, rows: tuple[bytes, ...]) -> bytes:
    """Who is missing in the rows of all groups: `WideReduced.missing`."""
    bits = bytearray(-(-len(plan.commits) // 8))
    for start, row in zip(plan.starts, rows, strict=True):
        for place in _missing(row):
            bits[(start + place) // 8] |= 0x80 >> (start + place) % 8
    return bytes(bits).rstrip(b"\0")


@functools.lru_cache(maxsize=4096)
def _missing(row: bytes) -> tuple[int, ...]:
    """The places of a row that are 0."""
    return tuple(at // FACTOR_BYTES for at in range(0, len(row), FACTOR_BYTES) if not any(row[at : at + FACTOR_BYTES]))


@remember(1024)
def _may_lack(plan: Plan, missing: bytes) -> bool:
    """Tell whether these are members of the roster, and not all, written as short as can be."""
    everybody, size = len(plan.commits), -(-len(plan.commits) // 8)
    if len(missing) > size or missing.endswith(b"\0"):
        return False
    bits = int.from_bytes(missing.ljust(size, b"\0"), "big")
    return bits.bit_count() < everybody and not bits & ((1 << 8 * size - everybody) - 1)


@remember(1 << 14)
def taken_masks(plan: Plan, column: Column, group: int) -> tuple[int, ...]:
    """For each member of a group, by its place: bit s is set when part s of the column has its slice."""
    whole, lacking = 0, []  # parts that are not void; the few places of the group that are missing in them
    for number, signed in enumerate(column.reduced):
        if signed is not None:
            whole |= 1 << number
            if signed.message.missing:
                lacking += [(place, number) for place in _lacking(plan, signed.message.missing, group)]
    masks = [whole] * len(plan.groups[group])
    for place, number in lacking:
        masks[place] &= ~(1 << number)
    return tuple(masks)


@remember(1 << 14)
def _lacking(plan: Plan, missing: bytes, group: int) -> tuple[int, ...]:
    """The places of a group whose bits are set."""
    start, size = plan.starts[group], len(plan.groups[group])
    return tuple(
        at - start for at in range(start, min(start + size, 8 * len(missing))) if missing[at // 8] & 0x80 >> at % 8
    )


def _draw(beacon: bytes, view: int, peer: PeerId) -> bytes:
    return hashlib.sha256(beacon + view.to_bytes(4, "big") + peer).digest()
