"""The events that wait for the round machine."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import fields

import trio

from p2pnet.core import events as ev
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message
from p2pnet.wire.signing import Signed

PEER_BYTES_MAX = 2 << 20  # of messages that one peer handed over and that wait; a flood is its own loss alone
TAKEN_MAX = 64  # events that are taken in one go
OBJECT_BYTES = 40  # of Python, for a bytes object and its place in a tuple
MESSAGE_BYTES = 512  # what a message takes besides its larger fields, about


class Inbox:
    """A queue of events; there before the machine is, so that nothing is lost while the swarm is being opened.

    What happens here is always taken, what others say as long as they do not say too much at once.
    """

    def __init__(self) -> None:
        self._events: deque[ev.Event | ev.About] = deque([ev.Tick()])
        self._waiting: Counter[PeerId] = Counter()  # bytes of messages, by who handed them over
        self._news = trio.Event()

    def put(self, event: ev.Event | ev.About) -> None:
        """Queue an event."""
        if isinstance(event, ev.Heard):
            if self._waiting[event.sender] + size_of(event) > PEER_BYTES_MAX:
                return
            self._waiting[event.sender] += size_of(event)
        self._events.append(event)
        self._news.set()

    async def take(self, deadline_s: float | None) -> ev.Event | ev.About:
        """Return the next event; a Tick at the deadline, also when others never stop talking."""
        due_s = math.inf if deadline_s is None else deadline_s
        if not self._events:
            self._news = trio.Event()
            with trio.move_on_at(due_s):
                await self._news.wait()
        if not self._events or trio.current_time() >= due_s:
            return ev.Tick()
        return self._pop()

    def take_waiting(self) -> list[ev.Event | ev.About]:
        """Return what waits now, all at once but in bounds."""
        return [self._pop() for _ in range(min(len(self._events), TAKEN_MAX))]

    def _pop(self) -> ev.Event | ev.About:
        event = self._events.popleft()
        if isinstance(event, ev.Heard):
            self._waiting[event.sender] -= size_of(event)
            if self._waiting[event.sender] <= 0:
                del self._waiting[event.sender]
        return event


def size_of(heard: ev.Heard) -> int:
    """About how many bytes of memory a message takes, of whatever kind."""
    message = heard.message.message if isinstance(heard.message, Signed) else heard.message
    return MESSAGE_BYTES + 2 * _bytes_in(message)  # the signed bytes hold it once more


def _bytes_in(value: object) -> int:
    """What the fields of a message take, and each message in it MESSAGE_BYTES besides."""
    if isinstance(value, bytes):
        return len(value) + OBJECT_BYTES
    if isinstance(value, tuple):
        return sum(map(_bytes_in, value)) + sum(MESSAGE_BYTES for each in value if isinstance(each, Message))
    if isinstance(value, Message):
        inside = (getattr(value, each.name) for each in fields(value))  # type: ignore[arg-type]  # each kind is a dataclass
        return sum(map(_bytes_in, inside))
    return 0
