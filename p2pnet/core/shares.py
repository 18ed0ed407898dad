"""Share leaves out so that the slowest peer is done as soon as possible, in integers. Contract: protocols/parts-1.md.

The objective is hivemind's, with a rate for each direction: of n peers, who reduces x of L leaves sends its slices of
the others and its result to the others, and receives theirs,

    up(x) = p (L - x) + (n - 1) r x        down(x) = r (L - x) + (n - 1) p x        p, r: bytes of a leaf, of its result

and takes max(up / its uplink, down / its downlink). Within a time a peer can take an interval of shares, which only
grows with the time: the least time in which the intervals hold a sum of L is found by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

_NS_KBPS = 8_000_000  # bytes * this / kbps = nanoseconds


@dataclass(frozen=True, slots=True)
class Volume:
    """What one payload and one result take."""

    leaves: int
    payload_leaf_bytes: int
    result_leaf_bytes: int
    weights_max: int = 0  # what the weights of a roster may sum to, so that its sums are exact (reduce-1); 0: anything

    @property
    def total_bytes(self) -> int:
        """A payload and a result."""
        return self.leaves * (self.payload_leaf_bytes + self.result_leaf_bytes)


@dataclass(frozen=True, slots=True)
class Rate:
    """What a peer's line carries, kilobits per second, at least 1 each way."""

    up_kbps: int
    down_kbps: int


@dataclass(frozen=True, slots=True)
class _Reducer:
    """The two lines of one peer's traffic over its share: bytes without any share, and more of them for each leaf."""

    rate: Rate
    up_bytes: int
    up_slope: int
    down_bytes: int
    down_slope: int
    cap: int

    def interval(self, time_ns: int) -> tuple[int, int] | None:
        """The least and the largest share that are done within a time; None when none is."""
        low, high = 0, self.cap
        for base, slope, kbps in (
            (self.up_bytes, self.up_slope, self.rate.up_kbps),
            (self.down_bytes, self.down_slope, self.rate.down_kbps),
        ):
            room = time_ns * kbps // _NS_KBPS - base
            if slope > 0:
                high = min(high, room // slope)
            elif slope < 0:
                low = max(low, -(room // -slope))
            elif room < 0:
                return None
        return (low, high) if low <= high else None

    def takes_ns(self, share: int) -> int:
        """How long a share takes, rounded up to a nanosecond."""
        up = self.up_bytes + self.up_slope * share
        down = self.down_bytes + self.down_slope * share
        return max(-(-up * _NS_KBPS // self.rate.up_kbps), -(-down * _NS_KBPS // self.rate.down_kbps))


def takes_ns(volume: Volume, peers: int, rate: Rate, share: int) -> int:
    """How long a peer's transfers take, in nanoseconds, rounded up.

    peers: in the roster.   share: leaves that it reduces; 0: it only sends its slices and receives the result.
    """
    return _reducer(volume, peers, rate, volume.leaves).takes_ns(share)


@lru_cache(maxsize=256)
def share_leaves(volume: Volume, peers: int, rates: tuple[Rate, ...], cap: int) -> tuple[int, ...]:
    """Give each reducer its number of leaves; to the nanosecond, no other shares let the slowest be done sooner.

    peers: in the roster, reducers or not.   rates: of the reducers, in their order, which breaks ties.   cap: leaves of
    one reducer, at most; `ValueError` when they could not take all. A peer that would be the slowest with any share has
    the one with which it is done soonest, and the others are balanced among themselves.
    """
    if cap * len(rates) < volume.leaves:
        raise ValueError(f"{len(rates)} reducers of at most {cap} leaves for {volume.leaves}")
    reducers = [_reducer(volume, peers, rate, min(cap, volume.leaves)) for rate in rates]
    soonest = [_soonest(reducer) for reducer in reducers]
    rest = volume.leaves - sum(share for _, share in soonest)
    if not rest:
        return tuple(share for _, share in soonest)
    end = 1 if rest > 0 else 0  # which end of their intervals must reach far enough

    def reached(time_ns: int) -> list[int]:
        return [
            (reducer.interval(time_ns) or (share, share))[end] if time_ns >= least_ns else share
            for reducer, (least_ns, share) in zip(reducers, soonest, strict=True)
        ]

    def is_enough(time_ns: int) -> bool:
        total = sum(reached(time_ns))
        return total >= volume.leaves if end else total <= volume.leaves

    last_ns = max(reducer.takes_ns(reducer.cap if end else 0) for reducer in reducers)
    time_ns = _least(is_enough, min(least_ns for least_ns, _ in soonest) - 1, last_ns)
    before, after = reached(time_ns - 1), reached(time_ns)
    return _fill(volume.leaves, before, after) if end else _fill(volume.leaves, after, before)


def _reducer(volume: Volume, peers: int, rate: Rate, cap: int) -> _Reducer:
    sent, got = volume.payload_leaf_bytes, volume.result_leaf_bytes
    return _Reducer(
        rate, sent * volume.leaves, (peers - 1) * got - sent, got * volume.leaves, (peers - 1) * sent - got, cap
    )


def _soonest(reducer: _Reducer) -> tuple[int, int]:
    """The least time in which a peer can be done with any share at all, and the least such share."""
    last_ns = min(reducer.takes_ns(0), reducer.takes_ns(reducer.cap))
    if reducer.up_slope >= 0 and reducer.down_slope >= 0:
        return last_ns, 0
    time_ns = _least(lambda time_ns: reducer.interval(time_ns) is not None, -1, last_ns)
    found = reducer.interval(time_ns)
    assert found is not None
    return time_ns, found[0]


def _least(is_enough: Callable[[int], bool], low: int, high: int) -> int:
    """The least number over `low`, at most `high`, from which on something holds."""
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def _fill(leaves: int, shares: Sequence[int], limits: Sequence[int]) -> tuple[int, ...]:
    """Raise shares towards their limits, evenly and in order, until all leaves are given."""
    filled = list(shares)
    while (missing := leaves - sum(filled)) > 0:
        has_room = [place for place, share in enumerate(filled) if share < limits[place]]
        more = max(1, missing // len(has_room))
        for place in has_room[:missing]:
            filled[place] += min(more, limits[place] - filled[place])
    return tuple(filled)
