"""The hours of the day in which a node may work: "22-07", by the clock on the wall of the machine it runs on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final, Self

_PATTERN: Final = re.compile(r"(\d{1,2})(?::([0-5]\d))?-(\d{1,2})(?::([0-5]\d))?")


@dataclass(frozen=True, slots=True)
class Hours:
    """From `start` to `stop`, each day, over midnight when `stop` is the earlier one.

    The wall clock decides and no span of time is ever added up: when the clocks are set forward or back, a night is an
    hour shorter or longer, and begins and ends when people expect it.
    """

    start: time
    stop: time  # the first minute outside

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "22-07" or "21:30-6:15"; 24 is midnight. `ValueError` for anything else, and for hours without end."""
        found = _PATTERN.fullmatch(text.strip())
        if found is None:
            raise ValueError("not hours")
        first, last = (60 * int(hour) + int(minute or 0) for hour, minute in (found.group(1, 2), found.group(3, 4)))
        if max(first, last) > 24 * 60 or first % (24 * 60) == last % (24 * 60):
            raise ValueError("no hours of a day, or all of them")
        start, stop = (time(minutes // 60 % 24, minutes % 60) for minutes in (first, last))
        return cls(start, stop)

    def include(self, now: datetime) -> bool:
        """Tell whether this moment, in local time, is within the hours."""
        moment = now.time()
        if self.start < self.stop:
            return self.start <= moment < self.stop
        return moment >= self.start or moment < self.stop

    def next_start(self, now: datetime) -> datetime:
        """Return when the hours begin next, in local time as the wall shows it."""
        begin = datetime.combine(now.date(), self.start)
        return begin if begin > now.replace(tzinfo=None) else begin + timedelta(days=1)

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.stop:%H:%M}"
