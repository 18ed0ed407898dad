"""Decide who reduces what: whole leaves shared out over the roster, in integers. Contract: protocols/round-1.md."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from p2pnet.identity import PeerId
from p2pnet.wire.membership import Reach
from p2pnet.wire.round import Commit
from p2pnet.wire.signing import Signed

CHUNKS_PER_LEAF = 16
SHARE_MAX = 4  # no reducer owns more than 4/n of the leaves
RATE_RANGE = 1 << 10  # the fastest reducer counts at most this many times the slowest


@dataclass(frozen=True, slots=True)
class Part:
    """Leaves `start` to `stop` (not included), reduced by one peer; the backup's result counts when it is late."""

    index: int
    start: int
    stop: int
    reducer: PeerId
    backup: PeerId


def assign_parts(
    leaves: int, commits: Sequence[Signed[Commit]], beacon: bytes, view: int, reducers_min: int
) -> tuple[Part, ...]:
    """Cut `leaves` leaves into parts for the reducers of this roster and view.

    Peers that cannot be dialled do not reduce unless fewer than `reducers_min` others exist. Shares are proportional to
    the slower of a peer's two rates, at most 4/n each; a part is never empty, so there can be fewer parts than peers.
    """
    order = sorted(commits, key=lambda c: hashlib.sha256(beacon + view.to_bytes(4, "big") + c.peer).digest())
    dialled = [commit for commit in order if commit.message.reach != Reach.PRIVATE]
    reducers = dialled if len(dialled) >= min(reducers_min, len(order)) else order
    shares = _shares(leaves, _rates(reducers))
    parts: list[Part] = []
    start = 0
    for position, share in enumerate(shares):
        if share:
            backup = reducers[(position + 1) % len(reducers)].peer
            parts.append(Part(len(parts), start, start + share, reducers[position].peer, backup))
            start += share
    return tuple(parts)


def _rates(reducers: Sequence[Signed[Commit]]) -> list[int]:
    """What each reducer can carry; who does not know counts as the median of those that do."""
    rates = [min(c.message.up_kbps, c.message.down_kbps) for c in reducers]
    known = sorted(rate for rate in rates if rate)
    if not known:
        return [1] * len(rates)
    median = known[(len(known) - 1) // 2]
    floor = max(1, known[-1] // RATE_RANGE)
    return [max(rate or median, floor) for rate in rates]


def _shares(leaves: int, rates: list[int]) -> list[int]:
    """Whole leaves in proportion to the rates, at most 4/n of all each (rounded up), by largest remainder."""
    cap = -(-SHARE_MAX * leaves // len(rates))
    total = sum(rates)
    shares = [min(cap, leaves * rate // total) for rate in rates]
    rest = [(-(leaves * rate % total), position) for position, rate in enumerate(rates)]
    while (missing := leaves - sum(shares)) > 0:
        open_ = [position for _, position in sorted(rest) if shares[position] < cap]
        for position in open_[:missing]:
            shares[position] += 1
    return shares
