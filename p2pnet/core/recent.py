"""What gossip remembers: recent messages with who holds them, ids seen, ids refused. Every table has a bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from p2pnet.identity import PeerId


@dataclass(frozen=True, slots=True)
class Memory:
    """Bounds of what is remembered. Guesses, save where the page gives a reason (protocols/gossip-1.md)."""

    messages_max: int = 4096
    message_bytes_max: int = 16 << 20
    message_s: float = 120.0  # twice the time between two records of one peer, so that a joiner hears of everybody
    ids_max: int = 65536
    id_s: float = 600.0
    refused_max: int = 4096
    ignore_s: float = 1.0


@dataclass(slots=True)
class Entry:
    """One accepted message, kept to answer whoever lacks it."""

    id: bytes
    topic: str
    data: bytes = field(repr=False)
    lane: int
    hops: int  # how many peers lay between its publisher and us; -1: we published it
    at_s: float
    parent: PeerId | None  # who gave it to us first
    senders: dict[PeerId, None] = field(default_factory=dict)  # who sent us the message itself
    holders: dict[PeerId, None] = field(default_factory=dict)  # who told us that it has it
    told: dict[PeerId, tuple[int, float]] = field(default_factory=dict)  # how often we told it of this; when to again
    announced: int = 0
    coming: dict[PeerId, int] = field(default_factory=dict)  # copies that each was asked for and has not sent yet

    def holds(self, peer: PeerId) -> bool:
        """Tell whether the peer is known to have it."""
        return peer in self.senders or peer in self.holders

    def forget(self, peer: PeerId) -> None:
        """Drop what was known about a peer: it may come back with nothing."""
        self.senders.pop(peer, None)
        self.holders.pop(peer, None)
        self.told.pop(peer, None)
        self.coming.pop(peer, None)


class Recent:
    """Messages of the last minutes by id, oldest first, and which ids need no second look."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._entries: dict[bytes, Entry] = {}
        self._bytes = 0
        self._seen: dict[bytes, float] = {}  # id -> when it was accepted
        self._refused: dict[bytes, None] = {}
        self._ignored: dict[bytes, float] = {}  # id -> when it may come again

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def data_bytes(self) -> int:
        """How many bytes of messages are held."""
        return self._bytes

    def get(self, message_id: bytes) -> Entry | None:
        """Return the message, or None when it is not held (any more)."""
        return self._entries.get(message_id)

    def seen(self, message_id: bytes) -> bool:
        """Tell whether it was accepted before, even if it is no longer held."""
        return message_id in self._seen

    def refused(self, message_id: bytes) -> bool:
        """Tell whether the validator rejected it."""
        return message_id in self._refused

    def ignored(self, message_id: bytes, now_s: float) -> bool:
        """Tell whether the validator ignored it a moment ago."""
        return self._ignored.get(message_id, now_s) > now_s

    def uninteresting(self, message_id: bytes, now_s: float) -> bool:
        """Tell whether there is no reason to ask anybody for it."""
        return message_id in self._seen or message_id in self._refused or self.ignored(message_id, now_s)

    def add(self, entry: Entry) -> None:
        """Remember an accepted message; the oldest ones make room."""
        self._seen.pop(entry.id, None)  # published again: youngest again
        self._seen[entry.id] = entry.at_s
        self._ignored.pop(entry.id, None)
        self._entries[entry.id] = entry
        self._bytes += len(entry.data)
        while len(self._seen) > self.memory.ids_max:
            del self._seen[next(iter(self._seen))]
        while len(self._entries) > self.memory.messages_max or self._bytes > self.memory.message_bytes_max:
            self._drop_oldest()

    def refuse(self, message_id: bytes) -> None:
        """Remember a rejected message."""
        self._refused[message_id] = None
        if len(self._refused) > self.memory.refused_max:
            del self._refused[next(iter(self._refused))]

    def ignore(self, message_id: bytes, now_s: float) -> None:
        """Remember for a moment that a message is of no use now."""
        self._ignored.pop(message_id, None)
        self._ignored[message_id] = now_s + self.memory.ignore_s
        if len(self._ignored) > self.memory.refused_max:
            del self._ignored[next(iter(self._ignored))]

    def newest(self, count: int) -> Iterator[Entry]:
        """Return up to `count` messages, the newest first."""
        return islice(reversed(self._entries.values()), count)

    def forget_peer(self, peer: PeerId) -> None:
        """Drop what was known about who holds what."""
        for entry in self._entries.values():
            entry.forget(peer)

    def expire(self, now_s: float) -> None:
        """Drop what is too old."""
        while self._entries and next(iter(self._entries.values())).at_s + self.memory.message_s <= now_s:
            self._drop_oldest()
        while self._seen and next(iter(self._seen.values())) + self.memory.id_s <= now_s:
            del self._seen[next(iter(self._seen))]
        while self._ignored and next(iter(self._ignored.values())) <= now_s:
            del self._ignored[next(iter(self._ignored))]

    def _drop_oldest(self) -> None:
        entry = self._entries.pop(next(iter(self._entries)))
        self._bytes -= len(entry.data)
