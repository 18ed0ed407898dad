"""How long an exchange is given, by the rates that its commits say and by what this peer saw of earlier ones. Pure.

Contract: protocols/parts-1.md, Deadlines. Each peer has its own: time-outs need not be the same everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from p2pnet.core.parts import Part, line_rates
from p2pnet.core.shares import Volume, takes_ns
from p2pnet.identity import PeerId
from p2pnet.wire.round import Commit
from p2pnet.wire.signing import Signed

SLOW_BYTES_PER_S = 1_250_000  # 10 Mbit/s: a link that is not cut off, whatever others can do
SLOW_TIMES = 2.0  # what payload and result take on a slow link, so many times and grace: the longest time-out
SAFETY = 2.0  # times what an exchange should take
ROUND_TRIPS = 8  # in a row: roster, stream, slow start of TCP, slice, digest, result
TOOK_KEPT = 0.7  # of the time that the last exchanges took, from round to round
BACK_OFF = 2.0  # when more than a third was missing at the deadline: then it is the deadline that is wrong
BACK_OFF_MAX = 16.0
VIEWS_MAX = 16  # that double a time-out: by then it is the longest
ROUND_TRIP_MAX_S = 0.5  # of one; who answers later does not make all others wait
ROUND_TRIP_GROWTH = 1.25  # a busy moment makes a peer look further away by so much at most
PEERS_MAX = 1024  # whose round trips are kept


class Pace:
    """What one peer has seen of the swarm's exchanges, and the time-out that follows from it."""

    def __init__(self) -> None:
        self._took_s: float | None = None  # of the last exchanges, from the roster to the last slice or result in time
        self._back_off = 1.0
        self._missed = False  # in this round
        self._round_trips_s: dict[PeerId, float] = {}

    def timeout_s(
        self,
        grace_s: float,
        volume: Volume,
        commits: Sequence[Signed[Commit]],
        parts: Sequence[Part],
        view: int = 0,
    ) -> float:
        """The time-out of an exchange, seconds: at least grace, at most `longest_s` and the round trips.

        `longest_s` as long as this peer has seen no exchange through: rates say nothing of busy machines. From view to
        view twice as long, so that peers which saw different things soon come to the same, and wait for each other.
        """
        longest_s = self.longest_s(grace_s, volume)
        if self._took_s is None:
            return longest_s
        expected_s = max(self._took_s, predict_s(volume, commits, parts))
        farthest_s = max((self._round_trips_s.get(commit.peer, 0.0) for commit in commits), default=0.0)
        latency_s = ROUND_TRIPS * min(farthest_s, ROUND_TRIP_MAX_S)
        adapted_s = self._back_off * max(grace_s, SAFETY * expected_s + latency_s)
        return min(longest_s + latency_s, adapted_s * 2.0 ** min(view, VIEWS_MAX))

    def longest_s(self, grace_s: float, volume: Volume) -> float:
        """The longest time-out but for round trips: grace, and what the bytes take on a slow link."""
        return grace_s + SLOW_TIMES * volume.total_bytes / SLOW_BYTES_PER_S

    def arrived(self, after_s: float) -> None:
        """A slice or a result came so long after the roster."""
        self._took_s = max(self._took_s or 0.0, round(after_s, 6))  # clocks that count from elsewhere round otherwise

    def missed(self, missing: int, wanted: int) -> None:
        """At the deadline of an exchange so much was missing. Few are dead or lie, when many are late they are slow."""
        if 3 * missing > wanted and not self._missed:
            self._missed = True
            self._back_off = min(BACK_OFF_MAX, BACK_OFF * self._back_off)

    def next_round(self, longest_s: float) -> None:
        """A round is over: forget some of what was seen.   longest_s: nothing is waited for any longer."""
        if self._took_s is not None:
            self._took_s = TOOK_KEPT * min(self._took_s, longest_s)
        if not self._missed:
            self._back_off = max(1.0, self._back_off / BACK_OFF)
        self._missed = False

    def answered(self, peer: PeerId, after_s: float) -> None:
        """A peer answered a small request so long after it was sent."""
        known_s = self._round_trips_s.pop(peer, after_s)
        if len(self._round_trips_s) >= PEERS_MAX:
            del self._round_trips_s[next(iter(self._round_trips_s))]
        self._round_trips_s[peer] = min(after_s, ROUND_TRIP_GROWTH * known_s)


def predict_s(volume: Volume, commits: Sequence[Signed[Commit]], parts: Collection[Part]) -> float:
    """How long the slowest peer's transfers should take, by the rates in the commits; 0 when none says any."""
    if not any(commit.message.up_kbps or commit.message.down_kbps for commit in commits):
        return 0.0
    shares = {part.reducer: part.stop - part.start for part in parts}
    rates = line_rates(commits)
    return max(takes_ns(volume, len(commits), rate, shares.get(peer, 0)) for peer, rate in rates.items()) / 1e9
