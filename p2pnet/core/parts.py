"""Decide who reduces what: whole leaves shared out over the roster, in integers. Contract: protocols/parts-1.md."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from p2pnet.core.shares import Rate, Volume, share_leaves
from p2pnet.identity import PeerId
from p2pnet.wire.membership import Reach
from p2pnet.wire.round import Commit
from p2pnet.wire.signing import Signed

CHUNKS_PER_LEAF = 16
SHARE_MAX = 4  # no reducer owns more than 4/n of the leaves
RATE_RANGE = 1 << 10  # a rate counts as at most so many times the median, and at least so small a part of it
HALVINGS_MAX = 10  # of a rate, for missed deadlines
RATE_UNKNOWN_KBPS = 10_000  # of everybody, while nobody knows a rate


@dataclass(frozen=True, slots=True)
class Part:
    """Leaves `start` to `stop` (not included), reduced by one peer; the backup's result counts when it is late."""

    index: int
    start: int
    stop: int
    reducer: PeerId
    backup: PeerId


@dataclass(frozen=True, slots=True)
class Piece:
    """What an outcome says of one part: the root of its bytes, and who reduced it."""

    root: bytes  # 32 bytes; of a column of many groups its digest
    part: Part
    author: PeerId | None  # None: a column has many


def assign_parts(
    volume: Volume,
    commits: Sequence[Signed[Commit]],
    beacon: bytes,
    view: int,
    reducers_min: int,
    halvings: Mapping[PeerId, int],
    resting: Collection[PeerId] = (),
) -> tuple[Part, ...]:
    """Cut the leaves into parts for the reducers of this roster and view, so that the slowest peer is done soonest.

    Peers that cannot be dialled do not reduce unless fewer than `reducers_min` others exist. Nobody has more than 4/n
    of the leaves; a part is never empty, so there can be fewer parts than peers. A backup has a part of its own, where
    more than one peer has.   halvings: of a peer's rates, for deadlines that it missed (`Member.halvings`).   resting:
    do not reduce either, while so many others can.
    """
    order = sorted(commits, key=lambda c: hashlib.sha256(beacon + view.to_bytes(4, "big") + c.peer).digest())
    dialled = [commit for commit in order if commit.message.reach != Reach.PRIVATE]
    awake = [commit for commit in dialled if commit.peer not in resting]
    reducers = next((some for some in (awake, dialled) if len(some) >= min(reducers_min, len(order))), order)
    known = line_rates(commits)
    rates = tuple(halve_rate(known[commit.peer], halvings.get(commit.peer, 0)) for commit in reducers)
    shares = share_leaves(volume, len(commits), rates, -(-SHARE_MAX * volume.leaves // len(reducers)))
    having = [(commit.peer, share) for commit, share in zip(reducers, shares, strict=True) if share]
    backups = [peer for peer, _ in having] if len(having) > 1 else [commit.peer for commit in reducers]
    parts: list[Part] = []
    start = 0
    for reducer, share in having:
        backup = backups[(backups.index(reducer) + 1) % len(backups)]
        parts.append(Part(len(parts), start, start + share, reducer, backup))
        start += share
    return tuple(parts)


def line_rates(commits: Sequence[Signed[Commit]]) -> dict[PeerId, Rate]:
    """What each peer of a roster is taken to carry: what it says, within bounds that half of them set."""
    ups = _limited([commit.message.up_kbps for commit in commits])
    downs = _limited([commit.message.down_kbps for commit in commits])
    return {commit.peer: Rate(up, down) for commit, up, down in zip(commits, ups, downs, strict=True)}


def _limited(rates: Sequence[int]) -> list[int]:
    """Rates of one direction; who does not know counts as the lower median of those that do."""
    known = sorted(rate for rate in rates if rate)
    if not known:
        return [RATE_UNKNOWN_KBPS] * len(rates)
    median = known[(len(known) - 1) // 2]
    return [min(max(rate or median, median // RATE_RANGE, 1), median * RATE_RANGE) for rate in rates]


def halve_rate(rate: Rate, times: int) -> Rate:
    """What a peer's rates count for after so many missed deadlines."""
    return Rate(max(1, rate.up_kbps >> times), max(1, rate.down_kbps >> times))
