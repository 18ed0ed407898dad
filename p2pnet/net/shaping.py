"""Keep a node's traffic below what its operator allows: a token bucket each way, over all streams together.

What is counted is what the line carries: stream bytes and an allowance for what is put around them. Sending waits
before each piece. Receiving is slowed by reading later: then the daemon's buffers fill, yamux's window closes, and the
sender waits. So the first megabyte of a stream (measured: .8 to 1.4) may come faster; what follows pays for it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import trio

from p2pnet.net.framing import BUFFER_BYTES, Traffic, Transport

OVERHEAD: Final = (
    1.06  # Ethernet, TCP/IP, noise, yamux, acknowledgements; measured on a veth without offload: 1.053-1.067
)
PIECE_S: Final = 1 / 16  # a bulk stream sends or reads what passes in this time, then it is another's turn
PIECE_BYTES: Final = (1024, 65_536)
URGENT_BYTES: Final = BUFFER_BYTES  # votes, rosters, gossip: what is smaller does not wait for bulk
URGENT_DEBT_S: Final = 1.0  # so much may be sent before its time, and bulk waits until it is paid
METER_S: Final = 10


class Bucket:
    """A token bucket that may owe: who takes more than there is makes the next ones wait. Pure: time is an argument."""

    def __init__(self, rate_bps: int, now_s: float) -> None:
        """rate_bps: bits per second, at least 1.   now_s: seconds of any clock that does not go back."""
        self.bytes_per_s: Final = rate_bps / 8
        self._level = 0.0  # bytes that may pass; below zero: owed
        self._seen_s = now_s

    @property
    def piece_bytes(self) -> int:
        """What one stream takes at a time, so that all get on."""
        low, high = PIECE_BYTES
        return max(low, min(high, int(self.bytes_per_s * PIECE_S)))

    def spend(self, count: float, now_s: float) -> None:
        """Let `count` bytes pass; negative: they did not pass after all."""
        depth = max(self.piece_bytes, self.bytes_per_s * PIECE_S)  # what a busy moment missed is made up for
        self._level = min(depth, self._level + (now_s - self._seen_s) * self.bytes_per_s) - count
        self._seen_s = now_s

    def wait_s(self, now_s: float, urgent: bool = False) -> float:
        """Return how long the next piece has to wait; 0 when it may go."""
        self.spend(0, now_s)
        floor = -URGENT_DEBT_S * self.bytes_per_s if urgent else 0.0
        owed = floor - self._level
        return owed / self.bytes_per_s if owed > 0.5 else 0.0  # less than a byte is rounding: no clock shows its time


class Gate:
    """A bucket at which streams wait: bulk in the order in which it came, urgent pieces past it."""

    def __init__(self, rate_bps: int) -> None:
        """rate_bps: bits per second on the wire; 0: always open."""
        self._bucket = Bucket(rate_bps, trio.current_time()) if rate_bps else None
        self._turn = trio.Lock()

    async def wait(self, size: int) -> int:
        """Wait for a turn; returns how many of `size` bytes to send or read now."""
        bucket = self._bucket
        if bucket is None:
            return size
        if size <= URGENT_BYTES:
            await self._sleep(bucket, urgent=True)
            return size
        async with self._turn:
            await self._sleep(bucket, urgent=False)
        return min(size, bucket.piece_bytes)

    def spend(self, count: int) -> None:
        """So many stream bytes have passed, or have not, when negative."""
        if self._bucket is not None:
            self._bucket.spend(OVERHEAD * count, trio.current_time())

    async def _sleep(self, bucket: Bucket, urgent: bool) -> None:
        while (wait_s := bucket.wait_s(trio.current_time(), urgent)) > 0:  # noqa: ASYNC110 - time is what it waits for
            await trio.sleep(wait_s)


class Shaper:
    """The two gates of a node."""

    def __init__(self, up_bps: int = 0, down_bps: int = 0) -> None:
        """Bits per second; 0: no cap. Made where trio runs."""
        self.up_bps, self.down_bps = up_bps, down_bps
        self.up, self.down = Gate(up_bps), Gate(down_bps)

    def own_s(self, up_bytes: int, down_bytes: int) -> float:
        """Return what these bytes take under the caps alone: nobody else is to blame for that time."""
        takes = ((up_bytes, self.up_bps), (down_bytes, self.down_bps))
        return sum(8 * OVERHEAD * count / rate_bps for count, rate_bps in takes if rate_bps)

    def shape(self, transport: Transport) -> Transport:
        """Return the transport under these caps; itself when there are none."""
        return ShapedTransport(transport, self) if self.up_bps or self.down_bps else transport


class ShapedTransport:
    """A transport whose bytes wait for their turn."""

    def __init__(self, transport: Transport, shaper: Shaper) -> None:
        self._transport, self._up, self._down = transport, shaper.up, shaper.down

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Transport`. The turn is waited for first: a call that is cancelled has read nothing."""
        size = await self._down.wait(len(buffer))
        count = await self._transport.receive_into(buffer[:size])
        self._down.spend(count)
        return count

    async def send_some(self, head: bytes, data: memoryview) -> int:
        """See `Transport`."""
        size = await self._up.wait(len(head) + len(data))
        self._up.spend(size)  # before it is sent, or all who wait would go at once
        sent = 0
        try:
            sent = await self._transport.send_some(head, data[: max(0, size - len(head))])
        finally:
            self._up.spend(sent - size)
        return sent

    def close(self) -> None:
        """See `Transport`."""
        self._transport.close()


@dataclass(slots=True)
class Meter:
    """The rates of the last seconds, for people; `watch` looks at the counters once a second."""

    samples: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=METER_S + 1))

    async def watch(self, traffic: Traffic) -> None:
        """Follow a host's traffic until cancelled."""
        while True:
            self.note(trio.current_time(), traffic.bytes_up, traffic.bytes_down)
            await trio.sleep(1)

    def note(self, now_s: float, bytes_up: int, bytes_down: int) -> None:
        """Take a sample of the two counters."""
        self.samples.append((now_s, bytes_up, bytes_down))

    def rates_bps(self) -> tuple[int, int]:
        """Return bits per second of stream data, up and down, over the last METER_S seconds."""
        if len(self.samples) < 2:
            return 0, 0
        (first_s, first_up, first_down), (last_s, last_up, last_down) = self.samples[0], self.samples[-1]
        span_s = max(last_s - first_s, 1e-9)
        return round(8 * (last_up - first_up) / span_s), round(8 * (last_down - first_down) / span_s)
