"""Links with a rate: what one peer sends or receives passes one line, in segments, and takes bytes / rate.

A line is one direction of one peer's link. Small messages go before bulk at the next segment, since packets of a small
stream do not wait for all of a large one; bulk streams take turns, a segment each, as TCP streams share a link. What
leaves the sender's line arrives after the latency at the receiver's. A segment that is lost is sent again a round trip
later: streams lose no bytes. How TCP slows down when it loses packets is not played.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from p2pnet.sim.clock import Clock

SEGMENT_S = 0.01  # of a line, at least SEGMENT_BYTES: how long a small message waits for bulk
SEGMENT_BYTES = 1 << 16


class Parcel:
    """A message or a piece of bulk on its way."""

    __slots__ = (
        "action", "arguments", "bulk", "extra_s", "left_bytes", "source", "source_epoch", "target", "target_epoch",
    )  # fmt: skip

    def __init__(
        self, source: Station, target: Station, size_bytes: int, bulk: bool, extra_s: float,
        action: Callable[..., None], *arguments: Any,
    ) -> None:  # fmt: skip
        """action: what happens when all of it is there."""
        self.source, self.target = source, target
        self.source_epoch, self.target_epoch = source.epoch, target.epoch
        self.left_bytes = size_bytes  # to be received
        self.bulk, self.extra_s = bulk, extra_s
        self.action, self.arguments = action, arguments


@dataclass(slots=True)
class Tally:
    """Where bytes went, all peers together; sent = received + lost + undelivered, once nothing is on its way."""

    sent: int = 0
    received: int = 0
    lost: int = 0  # and sent again
    undelivered: int = 0  # to who was gone, or beyond a cut
    by_kind: Counter[str] = field(default_factory=Counter)  # handed to the lines, each byte once

    def copy(self) -> Tally:
        """What it is now."""
        return Tally(self.sent, self.received, self.lost, self.undelivered, Counter(self.by_kind))


class Line:
    """One direction of one peer's link."""

    __slots__ = ("_bulk", "_busy", "_clock", "_pass_on", "_small", "bytes_per_s", "carried_bytes", "segment_bytes")

    def __init__(
        self, clock: Clock, bytes_per_s: float, pass_on: Callable[[Parcel, int], None], segment_s: float = SEGMENT_S
    ) -> None:
        """pass_on: takes what has passed, a parcel and how many bytes of it."""
        self._clock, self._pass_on = clock, pass_on
        self.bytes_per_s, self.segment_bytes = bytes_per_s, max(SEGMENT_BYTES, round(segment_s * bytes_per_s))
        self.carried_bytes = 0
        self._small: deque[tuple[Parcel, int]] = deque()
        self._bulk: deque[tuple[Parcel, int]] = deque()
        self._busy = False

    def put(self, parcel: Parcel, size_bytes: int) -> None:
        """Queue so many bytes of a parcel."""
        (self._bulk if parcel.bulk else self._small).append((parcel, size_bytes))
        if not self._busy:
            self._next()

    def clear(self) -> int:
        """Drop what waits; returns how many bytes that were."""
        dropped = sum(size for _, size in self._small) + sum(size for _, size in self._bulk)
        self._small.clear()
        self._bulk.clear()
        return dropped

    def _next(self) -> None:
        if self._small:
            parcel, size = self._small.popleft()
        else:
            parcel, size = self._bulk.popleft()
            if size > self.segment_bytes:
                self._bulk.append((parcel, size - self.segment_bytes))  # the others' turn
                size = self.segment_bytes
        self._busy = True
        self._clock.at(size / self.bytes_per_s, self._passed, parcel, size)

    def _passed(self, parcel: Parcel, size_bytes: int) -> None:
        self.carried_bytes += size_bytes
        self._busy = False
        if self._small or self._bulk:
            self._next()
        self._pass_on(parcel, size_bytes)


class Station:
    """One peer's link: a line up, a line down; what is sent to a process that has gone since does not arrive."""

    def __init__(self, air: Air, up_bytes_per_s: float, down_bytes_per_s: float, latency_s: float, loss: float) -> None:
        """latency_s: its share of the way, one way.   loss: share of the segments that it sends."""
        self._air = air
        self.latency_s, self.loss = latency_s, loss
        self.epoch = 0  # counts the processes that ran here
        self.on = False
        self.side = 0  # of a cut: only equal sides hear each other
        self.ended_s = 0.0  # when the last one of them did
        self.up, self.down = air.line(up_bytes_per_s, True), air.line(down_bytes_per_s, False)

    def reaches(self, other: Station) -> bool:
        """Tell whether what is sent now would arrive."""
        return other.on and self.side == other.side

    def turn_on(self) -> None:
        """A process starts here."""
        self.on, self.epoch = True, self.epoch + 1

    def turn_off(self) -> None:
        """The process here ends, and its connections with it."""
        self.on, self.epoch, self.ended_s = False, self.epoch + 1, self._air.clock.now_s
        self._air.tally.undelivered += self.down.clear()
        self.up.clear()  # never sent


class Air:
    """What lies between the stations: latency, loss, cuts; and the count of all bytes."""

    def __init__(self, clock: Clock, draw: Callable[[], float], segment_s: float = SEGMENT_S) -> None:
        """draw: gives a number from 0 to 1, evenly.   segment_s: see SEGMENT_S; longer ones are fewer events."""
        self.clock = clock
        self.segment_s = segment_s
        self.tally = Tally()
        self.draw = draw

    def line(self, bytes_per_s: float, is_up: bool) -> Any:
        """One direction of a link."""
        return Line(self.clock, bytes_per_s, self.leave if is_up else self.arrived, self.segment_s)

    def send(
        self, source: Station, target: Station, size_bytes: int, bulk: bool, extra_s: float,
        action: Callable[..., None], *arguments: Any,
    ) -> None:  # fmt: skip
        """Send so many bytes; when all are there, and both processes still run, the action happens.

        extra_s: latency beside the two stations' own.
        """
        parcel = Parcel(source, target, size_bytes, bulk, extra_s, action, *arguments)
        source.up.put(parcel, size_bytes)

    def latency_s(self, source: Station, target: Station) -> float:
        """How long the first bit is on its way."""
        return source.latency_s + target.latency_s

    def leave(self, parcel: Parcel, size_bytes: int) -> None:
        """A segment has left its sender's line."""
        source = parcel.source
        self.tally.sent += size_bytes
        latency_s = self.latency_s(source, parcel.target) + parcel.extra_s
        if source.loss and self.draw() < source.loss:
            self.tally.lost += size_bytes
            self.clock.at(2 * latency_s, self._again, parcel, size_bytes)
            return
        self.clock.at(latency_s, self._reach, parcel, size_bytes)

    def _again(self, parcel: Parcel, size_bytes: int) -> None:
        if parcel.source.epoch == parcel.source_epoch:
            parcel.source.up.put(parcel, size_bytes)

    def _reach(self, parcel: Parcel, size_bytes: int) -> None:
        target = parcel.target
        if target.epoch != parcel.target_epoch or parcel.source.side != target.side:
            self.tally.undelivered += size_bytes
        else:
            target.down.put(parcel, size_bytes)

    def arrived(self, parcel: Parcel, size_bytes: int) -> None:
        """A segment has passed its receiver's line."""
        if parcel.target.epoch != parcel.target_epoch:
            self.tally.undelivered += size_bytes
            return
        self.tally.received += size_bytes
        parcel.left_bytes -= size_bytes
        if parcel.left_bytes <= 0:
            parcel.action(*parcel.arguments)
