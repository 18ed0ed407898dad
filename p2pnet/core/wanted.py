"""Messages that others say they have and we lack: whom to ask for each, and when. Bounded per peer and in all."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from p2pnet.identity import PeerId


@dataclass(frozen=True, slots=True)
class Asking:
    """Bounds of asking; `wait_s` doubles with every try, since the message may be large and the line thin."""

    ids_max: int = 8192
    ids_per_peer_max: int = 1024
    announcers_max: int = 64
    tries_max: int = 6
    wait_s: float = 1.0


@dataclass(slots=True)
class _Wish:
    due_s: float
    graft: bool
    owner: PeerId  # who announced it first: it counts against its share of the table
    announcers: list[PeerId]
    asked: PeerId | None = None
    tries: int = 0


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

    def arrived(self, message_id: bytes) -> PeerId | None:
        """Forget a message that came, or that is of no use; returns who was asked for it last."""
        wish = self._wishes.pop(message_id, None)
        if wish is None:
            return None
        self._disown(wish.owner)
        return wish.asked

    def due(self, now_s: float, up: Container[PeerId]) -> tuple[list[Request], list[PeerId]]:
        """Return whom to ask now, and who was asked in vain (once per message)."""
        requests: list[Request] = []
        silent: list[PeerId] = []
        while self._heap and self._heap[0][0] <= now_s:
            due_s, message_id = heapq.heappop(self._heap)
            if not self._is_current(due_s, message_id):
                continue
            wish = self._wishes[message_id]
            if wish.asked is not None and wish.asked in up:
                silent.append(wish.asked)
            peer = next((peer for peer in wish.announcers if peer in up), None)
            if peer is None or wish.tries >= self.asking.tries_max:
                self.arrived(message_id)
                continue
            wish.announcers.remove(peer)  # to the end of the queue: the next try asks another one
            wish.announcers.append(peer)
            wish.asked, wish.due_s = peer, now_s + self.asking.wait_s * 2**wish.tries
            wish.tries += 1
            self._push(wish.due_s, message_id)
            requests.append(Request(peer, message_id, wish.graft))
        return requests, silent

    def _disown(self, owner: PeerId) -> None:
        self._owned[owner] -= 1
        if self._owned[owner] <= 0:
            del self._owned[owner]

    def _is_current(self, due_s: float, message_id: bytes) -> bool:
        wish = self._wishes.get(message_id)
        return wish is not None and wish.due_s == due_s

    def _push(self, due_s: float, message_id: bytes) -> None:
        heapq.heappush(self._heap, (due_s, message_id))
        if len(self._heap) > 4 * (self.asking.ids_max + 1):  # mostly stale: whatever came leaves its pair behind
            self._heap = [(wish.due_s, wanted) for wanted, wish in self._wishes.items()]
            heapq.heapify(self._heap)
