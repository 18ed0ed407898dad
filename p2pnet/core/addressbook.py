"""Who is in the swarm and where, as far as heard: a bounded table that flatters nobody new. Contract: membership-1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pnet.identity import PeerId
from p2pnet.wire.membership import ADDR_BYTES_MAX, ADDRS_MAX, PeerRecord
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    import random


@dataclass(frozen=True, slots=True)
class BookLimits:
    """Parameters of the table and of dialling (protocols/membership-1.md gives the reasons)."""

    peers_max: int = 4096
    peers_per_source_max: int = 1024
    record_s: float = 180.0
    record_interval_s: float = 5.0
    forgotten_max: int = 8192
    backoff_s: float = 1.0
    backoff_s_max: float = 300.0
    yield_s: float = 0.5
    recent_s: float = 30.0


@dataclass(slots=True)
class Known:
    """One peer of the table."""

    peer: PeerId
    addrs: tuple[bytes, ...]
    record: Signed[PeerRecord] | None
    first_s: float
    heard_s: float  # when it last said something new; by our clock, whatever the record claims
    source: PeerId | None  # who told us, None for itself or the DHT
    met: bool = False  # it was connected once
    failures: int = 0
    retry_s: float = float("-inf")
    spread_seq: int = -1  # of the last record that came by gossip; a hello may have told us more already
    spread_s: float = float("-inf")

    @property
    def seq(self) -> int:
        """The number of the record held, -1 without one."""
        return -1 if self.record is None else self.record.message.seq


class AddressBook:
    """Peers by id. A peer that was met stays before one that was only heard of, an old one before a new one."""

    def __init__(self, me: PeerId, rng: random.Random, limits: BookLimits) -> None:
        self._me, self._rng, self.limits = me, rng, limits
        self._known: dict[PeerId, Known] = {}
        self._sources: Counter[PeerId] = Counter()  # peers never met, by who told us of them
        self._forgotten: dict[PeerId, int] = {}  # seq of records aged out: they must not come back to life

    def __len__(self) -> int:
        return len(self._known)

    def get(self, peer: PeerId) -> Known | None:
        """Return what is known about a peer."""
        return self._known.get(peer)

    def all(self) -> tuple[Known, ...]:
        """Return everybody."""
        return tuple(self._known.values())

    def is_news(self, signed: Signed[PeerRecord], now_s: float, source: PeerId) -> bool:
        """Tell whether gossip should pass a record on: no older than what is known, and not soon after the last one.

        What a hello told us counts as news all the same: others wait for us to pass it on.
        """
        peer, seq = signed.peer, signed.message.seq
        known = self._known.get(peer)
        if known is None:
            return seq > self._forgotten.get(peer, -1) and self._has_room(now_s, source)
        rested = now_s >= known.spread_s + self.limits.record_interval_s / 2
        return rested and seq > known.spread_seq and seq >= known.seq

    def spread(self, signed: Signed[PeerRecord], now_s: float) -> None:
        """Note that gossip passed a record on."""
        known = self._known.get(signed.peer)
        if known is not None:
            known.spread_seq, known.spread_s = signed.message.seq, now_s

    def learn(self, signed: Signed[PeerRecord], now_s: float, source: PeerId | None, up: Container[PeerId]) -> bool:
        """Take over a record that is newer than what is known; returns whether it was. `source`: None for itself."""
        peer, record = signed.peer, signed.message
        if peer == self._me or (source is not None and record.seq <= self._forgotten.get(peer, -1)):
            return False
        known = self._known.get(peer)
        if known is None:
            known = self._add(peer, now_s, source, up)
            if known is None:
                return False
        elif record.seq <= known.seq:
            return False
        if known.record is None or known.addrs != record.addrs:
            known.failures, known.retry_s = 0, now_s  # it moved: what failed before says nothing
            if source is not None and peer < self._me:
                known.retry_s = now_s + self.limits.yield_s  # both heard of each other: the lower one dials first
        known.record, known.addrs, known.heard_s = signed, record.addrs, now_s
        return True

    def found(self, peer: PeerId, addrs: tuple[bytes, ...], now_s: float, up: Container[PeerId]) -> None:
        """Note addresses that the DHT gave; they are worth less than the peer's own record."""
        usable = tuple(addr for addr in addrs if 0 < len(addr) <= ADDR_BYTES_MAX)[:ADDRS_MAX]
        known = self._known.get(peer)
        if peer == self._me or not usable:
            return
        if known is None:
            known = self._add(peer, now_s, None, up)
        if known is not None and known.record is None:
            known.addrs, known.heard_s = usable, now_s

    def met(self, peer: PeerId, now_s: float) -> None:
        """Note that it is a member and reachable."""
        known = self._known.get(peer)
        if known is not None:
            self._unsource(known)
            known.met, known.failures, known.heard_s, known.source = True, 0, now_s, None

    def left(self, peer: PeerId, now_s: float) -> None:
        """Note that its connection ended; dial again soon, but not all at the same moment."""
        known = self._known.get(peer)
        if known is not None:
            known.heard_s = now_s
            known.retry_s = now_s + self._jitter(self.limits.backoff_s)

    def failed(self, peer: PeerId, now_s: float, wait_s: float = 0.0) -> None:
        """Note that dialling it failed; the next attempt waits twice as long, at least `wait_s`."""
        known = self._known.get(peer)
        if known is not None:
            backoff_s = min(self.limits.backoff_s_max, self.limits.backoff_s * 2.0 ** min(known.failures, 30))
            known.failures += 1
            known.retry_s = now_s + max(wait_s, self._jitter(backoff_s))

    def expire(self, now_s: float, up: Container[PeerId]) -> None:
        """Drop who was not heard of for `record_s` and is not connected."""
        old_s = now_s - self.limits.record_s
        for known in [known for known in self._known.values() if known.heard_s <= old_s and known.peer not in up]:
            self._remove(known)

    def to_dial(self, count: int, now_s: float, busy: Container[PeerId]) -> list[Known]:
        """Return up to `count` peers worth dialling: those that failed least, then those heard of last."""
        ready = [
            known for known in self._known.values() if known.addrs and known.retry_s <= now_s and known.peer not in busy
        ]
        self._rng.shuffle(ready)  # equals in any order, or everybody would dial the same few
        ready.sort(
            key=lambda known: (known.failures, known.record is None, (now_s - known.heard_s) // self.limits.recent_s)
        )
        return ready[:count]

    def sample(self, count: int, now_s: float, up: Container[PeerId], but: PeerId) -> tuple[bytes, ...]:
        """Return records of members to tell another one of: those connected first, then those heard of last."""
        shown = [
            known for known in self._known.values() if known.record is not None and known.peer != but and known.addrs
        ]
        self._rng.shuffle(shown)
        shown.sort(key=lambda known: (known.peer not in up, (now_s - known.heard_s) // self.limits.recent_s))
        return tuple(known.record.raw for known in shown[:count] if known.record is not None)

    def _add(self, peer: PeerId, now_s: float, source: PeerId | None, up: Container[PeerId]) -> Known | None:
        if source is not None and self._sources[source] >= self.limits.peers_per_source_max:
            return None
        if len(self._known) >= self.limits.peers_max:
            victim = self._victim(now_s, up, by_itself=peer in up)
            if victim is None:
                return None
            self._remove(victim)
        known = self._known[peer] = Known(peer, (), None, now_s, now_s, source)
        if source is not None:
            self._sources[source] += 1
        return known

    def _has_room(self, now_s: float, source: PeerId) -> bool:
        """Tell whether a peer never met could be added: if not, gossip need not carry its record either."""
        if self._sources[source] >= self.limits.peers_per_source_max:
            return False
        return len(self._known) < self.limits.peers_max or self._victim(now_s, (), by_itself=False) is not None

    def _victim(self, now_s: float, up: Container[PeerId], by_itself: bool) -> Known | None:
        """Return who makes room: one never met before one met, the youngest first; nobody fresh for a mere rumour."""
        idle = [known for known in self._known.values() if known.peer not in up]
        if not by_itself:  # or a flood of new identities would wash out those that are known
            idle = [known for known in idle if known.failures or known.heard_s <= now_s - self.limits.record_s / 2]
        return max(idle, key=lambda known: (not known.met, known.failures, known.first_s), default=None)

    def _remove(self, known: Known) -> None:
        del self._known[known.peer]
        self._unsource(known)
        if known.record is not None:
            self._forgotten.pop(known.peer, None)
            self._forgotten[known.peer] = known.seq
            if len(self._forgotten) > self.limits.forgotten_max:
                del self._forgotten[next(iter(self._forgotten))]

    def _unsource(self, known: Known) -> None:
        if known.source is not None:
            self._sources[known.source] -= 1
            if self._sources[known.source] <= 0:
                del self._sources[known.source]

    def _jitter(self, wait_s: float) -> float:
        return wait_s * (0.5 + self._rng.random())
