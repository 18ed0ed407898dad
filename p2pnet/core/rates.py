"""Measure what a line carries, from transfers that happen anyway. Pure: time is an argument.

A sample is what a busy time has shown: the bytes that had arrived by some moment, over the time since its first
transfer began, at the best moment of those when half of its transfers or more were over. So a few slow peers at the
other ends do not make it small, nor a few that hang up as if they had their bytes make it large. Too little to send
makes it too small. Nothing is taken from what a buffer took: a transfer counts when the other end has it.
Contract: protocols/parts-1.md, Rates.
"""

from __future__ import annotations

import math
from collections import deque

from p2pnet.core.pace import SLOW_BYTES_PER_S

LATENCY_S = 0.005  # that a transfer takes besides its bytes: few bytes in no time say little
QUICK_S = 0.25  # a line on which payload and result take no longer is as good as any
SAMPLE_BYTES_MIN = 1 << 16  # fewer in a busy time are no sample
SAMPLES = 8  # the latest so many count
SILENT_ROUNDS = 8  # without a sample, until the oldest one is forgotten
LATE_GROWTH = 1.05  # from round to round, of what a line is held for after something came too late
BUSY_MAX_S = 60.0  # a line that is never idle gives a sample all the same
TRANSFERS_MAX = 1024  # of one busy time


class Line:
    """One direction of this peer's line."""

    def __init__(self, total_bytes: int, cap_bps: int = 0) -> None:
        """total_bytes: of a payload and a result.   cap_bps: what the operator allows, bits per second; 0: no cap."""
        self._enough_kbps = max(1, int(8 * total_bytes / QUICK_S / 1000))
        self._cap_kbps = cap_bps // 1000
        self._samples: deque[float] = deque(maxlen=SAMPLES)  # bytes per second
        self._active = 0  # transfers under way
        self._start_s = 0.0  # of this busy time
        self._ends: list[tuple[float, int]] = []  # of its transfers: seconds after its start, bytes
        self._silent = 0  # rounds
        self._at_most = math.inf  # bytes per second: more than that came too late

    def begin(self, now_s: float) -> None:
        """A transfer begins; the line was idle when it is the only one."""
        if self._active == 0:
            self._open(now_s)
        self._active += 1

    def end(self, now_s: float, count: int) -> None:
        """A transfer is over, and so many bytes of it have arrived; 0 when it failed."""
        self._active -= 1
        taken_s = now_s - self._start_s
        if count:
            self._ends.append((taken_s, count))
        if self._active == 0 or taken_s > BUSY_MAX_S or len(self._ends) >= TRANSFERS_MAX:
            self._close()
            self._open(now_s)

    def late(self, count: int, taken_s: float) -> None:
        """So many bytes were sent and had not arrived after this time: the line carries no more.

        That is all that who does not reduce learns of its uplink. Below half of a slow link it makes no difference.
        """
        self._at_most = min(self._at_most, max(count / (taken_s + LATENCY_S), SLOW_BYTES_PER_S / 2))

    def next_round(self) -> None:
        """A round is over: a line that carried nothing for long is slowly forgotten, and what came too late too."""
        self._at_most *= LATE_GROWTH
        self._silent += 1
        if self._silent >= SILENT_ROUNDS and self._samples:
            self._samples.popleft()
            self._silent = 0

    @property
    def kbps(self) -> int:
        """What the line carries as far as is known, kilobits per second; 0: not known.

        The second best of the latest samples, as one may be luck, and two digits of it in binary; never above what is
        enough, or machines that are busy would look like slow lines; never above the cap, and the cap while nothing is
        known.
        """
        known = [self._cap_kbps] if self._cap_kbps else []
        if 8 * self._at_most / 1000 < self._enough_kbps:
            known.append(int(8 * self._at_most / 1000))
        if self._samples:
            measured = max(1, int(sorted(self._samples)[-2:][0] * 8 / 1000))
            known.append(measured & ~0 << max(0, measured.bit_length() - 2))
        return min(*known, self._enough_kbps) if known else 0

    def _open(self, now_s: float) -> None:
        self._start_s, self._ends = now_s, []

    def _close(self) -> None:
        """Take the sample of this busy time, if it is one."""
        arrived, best = 0, 0.0
        for place, (taken_s, count) in enumerate(self._ends, 1):
            arrived += count
            if 2 * place >= len(self._ends) and arrived >= SAMPLE_BYTES_MIN:
                best = max(best, arrived / (taken_s + LATENCY_S))
        if best:
            self._samples.append(best)
            self._silent = 0
