"""The clock of a simulation: what is to happen, by its time; equal times in the order in which they were planned."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """One simulated time in seconds, and a heap of plain tuples of what happens then."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.happened = 0  # events so far
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0

    def at(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something later."""
        self._planned += 1
        heapq.heappush(self._heap, (self.now_s + delay_s, self._planned, action, arguments))

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Run until something holds or the simulated time is over; tells whether it holds."""
        heap, end_s = self._heap, self.now_s + limit_s
        while not until():
            if not heap or heap[0][0] > end_s:
                self.now_s = end_s
                return until()
            self.now_s, _, action, arguments = heapq.heappop(heap)
            self.happened += 1
            action(*arguments)
        return True
