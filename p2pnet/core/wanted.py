"""Messages that others say they have and we lack: whom to ask for each, and when. Bounded per peer and in all."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field

from p2pnet.identity import PeerId


@dataclass(frozen=True, slots=True)
class Asking:
    """Bounds of asking; `wait_s` doubles with every try, since the message may be large and the line thin.

    A peer that sends one thing after the other is waited for longer: `patience` times as long.
    """

    ids_max: int = 8192
    ids_per_peer_max: int = 1024
    announcers_max: int = 64
    tries_max: int = 6
    wait_s: float = 1.0
    patience: float = 4.0
    late_s: float = 0.25  # a time-out that is seen so much later: it was this peer that did not listen


@dataclass(slots=True)
class _Wish:
    due_s: float
    graft: bool
    owner: PeerId  # who announced it first: it counts against its share of the table
    announcers: list[PeerId]
    asked: PeerId | None = None
    asked_s: float = 0.0  # when
    tries: int = 0
    times: dict[PeerId, int] = field(default_factory=dict)  # that each was asked


@dataclass(frozen=True, slots=True)
class Request:
    """Ask this peer for this message."""

    peer: PeerId
    message_id: bytes
    graft: bool


class Wanted:
    """The messages we know of by name only."""

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self._wishes: dict[bytes, _Wish] = {}
        self._owned: Counter[PeerId] = Counter()
        self._gave_s: dict[PeerId, float] = {}  # when each last sent what it was asked for
        self._heap: list[tuple[float, bytes]] = []  # may hold stale pairs; the wish knows its own time

    def __len__(self) -> int:
        return len(self._wishes)

    @property
    def deadline_s(self) -> float | None:
        """When `due` should be called next, or None while nothing is wanted."""
        while self._heap and not self._is_current(*self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def announce(self, message_id: bytes, peer: PeerId, due_s: float, graft: bool) -> None:
        """Note that a peer has a message; ask for it at `due_s` unless it comes by itself."""
        wish = self._wishes.get(message_id)
        if wish is None:
            if len(self._wishes) < self.asking.ids_max and self._owned[peer] < self.asking.ids_per_peer_max:
                self._wishes[message_id] = _Wish(due_s, graft, peer, [peer])
                self._owned[peer] += 1
                self._push(due_s, message_id)
            return
        if peer not in wish.announcers and len(wish.announcers) < self.asking.announcers_max:
            wish.announcers.append(peer)
        if wish.asked is None and due_s < wish.due_s:
            wish.due_s, wish.graft = due_s, graft
            self._push(due_s, message_id)

    def announcers(self, message_id: bytes) -> tuple[PeerId, ...]:
        """Who said that it has a message that was asked for at once, since it is not new; else nobody."""
        wish = self._wishes.get(message_id)
        return tuple(wish.announcers) if wish is not None and wish.asked is not None and not wish.graft else ()

    def arrived(self, message_id: bytes, peer: PeerId | None = None, now_s: float = 0.0) -> dict[PeerId, int]:
        """Forget a message that came from this peer, or is of no use; returns how often each peer was asked for it."""
        wish = self._wishes.pop(message_id, None)
        if wish is None:
            return {}
        self._owned[wish.owner] -= 1
        if self._owned[wish.owner] <= 0:
            del self._owned[wish.owner]
        if peer is not None and peer in wish.times:
            self._gave_s[peer] = now_s
        return wish.times

    def forget(self, peer: PeerId) -> None:
        """A peer is no neighbour any more."""
        self._gave_s.pop(peer, None)

    def due(self, now_s: float, up: Container[PeerId]) -> tuple[list[Request], set[PeerId]]:
        """Return whom to ask now, and who was asked and sent nothing since."""
        requests: list[Request] = []
        silent: set[PeerId] = set()
        while self._heap and self._heap[0][0] <= now_s:
            due_s, message_id = heapq.heappop(self._heap)
            if not self._is_current(due_s, message_id):
                continue
            wish = self._wishes[message_id]
            if wish.asked is not None and wish.asked in up:
                if (later_s := self._until_s(wish, wish.asked, now_s)) > now_s:
                    wish.due_s = later_s
                    self._push(later_s, message_id)
                    continue
                if self._gave_s.get(wish.asked, float("-inf")) < wish.asked_s:
                    silent.add(wish.asked)
            there = (peer for peer in wish.announcers if peer in up)
            peer = min(there, key=lambda peer: wish.times.get(peer, 0), default=None)
            if peer is None or wish.tries >= self.asking.tries_max:
                self.arrived(message_id)
                continue
            wish.asked, wish.asked_s, wish.due_s = peer, now_s, now_s + self.asking.wait_s * 2**wish.tries
            wish.tries += 1
            wish.times[peer] = wish.times.get(peer, 0) + 1
            self._push(wish.due_s, message_id)
            requests.append(Request(peer, message_id, wish.graft))
        return requests, silent

    def _until_s(self, wish: _Wish, asked: PeerId, now_s: float) -> float:
        """How long to wait for an answer that may be in a queue: behind others, or here, where nobody listened."""
        asking = self.asking
        from_s = now_s if wish.due_s + asking.late_s < now_s else self._gave_s.get(asked, float("-inf"))
        end_s = wish.asked_s + asking.patience * asking.wait_s * float(2 ** (wish.tries - 1))
        return min(from_s + asking.wait_s, end_s)

    def _is_current(self, due_s: float, message_id: bytes) -> bool:
        wish = self._wishes.get(message_id)
        return wish is not None and wish.due_s == due_s

    def _push(self, due_s: float, message_id: bytes) -> None:
        heapq.heappush(self._heap, (due_s, message_id))
        if len(self._heap) > 4 * (self.asking.ids_max + 1):  # mostly stale: whatever came leaves its pair behind
            self._heap = [(wish.due_s, wanted) for wanted, wish in self._wishes.items()]
            heapq.heapify(self._heap)
