"""The events that wait for the round machine."""

from __future__ import annotations

import math
from collections import deque

import trio

from p2pnet.core import events as ev

EVENTS_MAX = 65_536  # beyond it messages of others are dropped, never what happens here


class Inbox:
    """A queue of events; there before the machine is, so that nothing is lost while the swarm is being opened."""

    def __init__(self) -> None:
        self._events: deque[ev.Event] = deque([ev.Tick()])
        self._news = trio.Event()

    def put(self, event: ev.Event) -> None:
        """Queue an event."""
        if len(self._events) >= EVENTS_MAX and isinstance(event, ev.Heard):
            return
        self._events.append(event)
        self._news.set()

    async def take(self, deadline_s: float | None) -> ev.Event:
        """Return the next event, a Tick when none comes before the deadline."""
        if not self._events:
            self._news = trio.Event()
            with trio.move_on_at(math.inf if deadline_s is None else deadline_s):
                await self._news.wait()
        return self._events.popleft() if self._events else ev.Tick()
