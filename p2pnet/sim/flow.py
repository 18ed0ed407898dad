"""Links with a rate for very large swarms: a message or a piece of bulk passes a line whole, one event for each end.

`p2pnet.sim.lines` plays segments: bulk streams take turns, and what is small waits for a segment. Here bulk goes one
after the other, in the order in which it was sent or its last byte arrives, which is as soon done as taking turns for
all together; what is small passes between the packets of bulk, which is done so much later. What arrives is received
while it is still being sent, as far as the receiver's line is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from p2pnet.sim.lines import SEGMENT_BYTES, Air, Station


class Pipe:
    """One direction of one peer's link: until when it is busy."""

    __slots__ = ("bulk_s", "bytes_per_s", "carried_bytes", "small_s")

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.carried_bytes = 0
        self.bulk_s = self.small_s = 0.0

    def clear(self) -> int:
        """Forget what is on its way; who sent it or was to receive it sees that when it would have passed."""
        self.bulk_s = self.small_s = 0.0
        return 0

    def take(self, from_s: float, takes_s: float, bulk: bool) -> float:
        """Let something pass from a time on; returns when it has."""
        if bulk:
            start_s = self.bulk_s if self.bulk_s > from_s else max(from_s, self.small_s)
            self.bulk_s = start_s + takes_s
            return self.bulk_s
        self.small_s = max(self.small_s, from_s) + takes_s
        if self.bulk_s > from_s:
            self.bulk_s += takes_s
        return self.small_s


class Flow(Air):
    """What lies between the stations, as `Air`; no segments."""

    def line(self, bytes_per_s: float, is_up: bool) -> Any:  # noqa: ARG002 - both ends are alike
        """One direction of a link."""
        return Pipe(bytes_per_s)

    def send(
        self, source: Station, target: Station, size_bytes: int, bulk: bool, extra_s: float,
        action: Callable[..., None], *arguments: Any,
    ) -> None:  # fmt: skip
        """See `Air`."""
        now_s, pipe = self.clock.now_s, source.up
        takes_s = size_bytes / pipe.bytes_per_s
        latency_s = source.latency_s + target.latency_s + extra_s
        if source.loss:
            lost = sum(self.draw() < source.loss for _ in range(math.ceil(size_bytes / SEGMENT_BYTES)))
            again_bytes = min(lost * SEGMENT_BYTES, size_bytes)
            self.tally.sent += again_bytes
            self.tally.lost += again_bytes
            takes_s += again_bytes / pipe.bytes_per_s
            latency_s += 2 * latency_s if lost else 0.0
        left_s = pipe.take(now_s, takes_s, bulk)
        self.clock.at(left_s - now_s + latency_s, self._come, source, source.epoch, left_s, target, target.epoch,
                      size_bytes, bulk, takes_s, action, arguments)  # fmt: skip

    def collect(
        self, target: Station, pieces: list[tuple[Station, int]], request_bytes: int, action: Callable[..., None],
        *arguments: Any,
    ) -> None:  # fmt: skip
        """Send something small from many that were just asked for it; when all of it is there, the action happens.

        request_bytes: what asking each one took.   What is on its way is not lost with its sender.
        """
        now_s = come_s = self.clock.now_s
        for source, size_bytes in pieces:
            latency_s = source.latency_s + target.latency_s
            left_s = source.up.take(now_s, size_bytes / source.up.bytes_per_s, False)
            come_s = max(come_s, left_s + latency_s)
            source.up.carried_bytes += size_bytes
        total_bytes = sum(size_bytes for _, size_bytes in pieces)
        self.tally.sent += total_bytes + request_bytes * len(pieces)
        self.tally.received += request_bytes * len(pieces)
        passed_s = target.down.take(now_s, total_bytes / target.down.bytes_per_s, False)
        self.clock.at(max(come_s, passed_s) - now_s, self._pass, target, target.epoch, total_bytes, action, arguments)

    def _come(
        self, source: Station, source_epoch: int, left_s: float, target: Station, target_epoch: int, size_bytes: int,
        bulk: bool, took_s: float, action: Callable[..., None], arguments: tuple[Any, ...],
    ) -> None:  # fmt: skip
        """The last byte has come to the receiver's line."""
        if source.epoch != source_epoch and source.ended_s < left_s:
            return  # the process ended before it was sent
        source.up.carried_bytes += size_bytes
        self.tally.sent += size_bytes
        if target.epoch != target_epoch or source.side != target.side:
            self.tally.undelivered += size_bytes
            return
        now_s, pipe = self.clock.now_s, target.down
        passed_s = pipe.take(now_s - took_s, size_bytes / pipe.bytes_per_s, bulk)
        if passed_s > now_s:
            self.clock.at(passed_s - now_s, self._pass, target, target_epoch, size_bytes, action, arguments)
        else:
            self._pass(target, target_epoch, size_bytes, action, arguments)

    def _pass(
        self, target: Station, target_epoch: int, size_bytes: int, action: Callable[..., None],
        arguments: tuple[Any, ...],
    ) -> None:  # fmt: skip
        """It has passed the receiver's line."""
        if target.epoch != target_epoch:
            self.tally.undelivered += size_bytes
            return
        target.down.carried_bytes += size_bytes
        self.tally.received += size_bytes
        action(*arguments)
