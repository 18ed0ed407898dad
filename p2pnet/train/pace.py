"""Whether another step fits into a round: by how long steps take here, and by what is left of the round's window."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

STEPS_SEEN: Final = 3  # the shortest of the latest ones counts: one that took long (a cache, an evaluation) says little


class Pace:
    """The speed of one training loop, as it saw itself. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._steps_s: deque[float] = deque(maxlen=STEPS_SEEN)
        self._mark_s = 0.0
        self._end_s = math.inf
        self._encoding_s = 0.0

    def begin(self, now_s: float, end_s: float) -> None:
        """A round begins; its window ends at `end_s`."""
        self._mark_s, self._end_s = now_s, end_s

    def step(self, now_s: float) -> None:
        """A step has ended, and everything around it."""
        self._steps_s.append(now_s - self._mark_s)
        self._mark_s = now_s

    def encoded(self, took_s: float) -> None:
        """The update was made from what was trained, which is part of the window, too."""
        self._encoding_s = took_s

    def fits(self, now_s: float) -> bool:
        """Tell whether another step would be done, and the update made, before the window is over."""
        return now_s + min(self._steps_s, default=0.0) + self._encoding_s <= self._end_s
