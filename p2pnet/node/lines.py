"""Move the frames of bulk data and measure what this node's line carries meanwhile."""

from __future__ import annotations

import trio

from p2pnet.core.pace import SLOW_BYTES_PER_S
from p2pnet.core.rates import Line
from p2pnet.net.host import Stream

ANSWER_S = 10.0  # what a deadline allows besides


class Lines:
    """Both directions of a node's line."""

    def __init__(self, total_bytes: int, caps_bps: tuple[int, int] = (0, 0)) -> None:
        """total_bytes: of a payload and a result.   caps_bps: what the operator allows, up and down; 0: no cap."""
        self._up, self._down = (Line(total_bytes, cap_bps) for cap_bps in caps_bps)

    @property
    def kbps(self) -> tuple[int, int]:
        """What the line carries as far as is known, up and down, kilobits per second; 0: not known."""
        return self._up.kbps, self._down.kbps

    def next_round(self) -> None:
        """A round is over."""
        self._up.next_round()
        self._down.next_round()

    def late(self, sent_bytes: int, taken_s: float) -> None:
        """What was sent had not arrived after this time."""
        self._up.late(sent_bytes, taken_s)

    async def send(self, stream: Stream, *frames: bytes) -> None:
        """Send the last frames of a stream to somebody who may not read them, and wait until it has closed it.

        Who has its answer closes the stream: so it is known when the bytes are there, not when a buffer took them.
        """
        size, arrived = sum(map(len, frames)), 0
        self._up.begin(trio.current_time())
        try:
            with trio.fail_after(ANSWER_S + 2 * size / SLOW_BYTES_PER_S):
                for frame in frames:
                    await stream.send_frame(frame)
            await stream.finish()
            arrived = size
        finally:
            self._up.end(trio.current_time(), arrived)

    async def receive(self, stream: Stream, bytes_max: int) -> bytes:
        """Receive a frame that is on its way."""
        frame = b""
        self._down.begin(trio.current_time())
        try:
            frame = await stream.receive_frame(bytes_max)
        finally:
            self._down.end(trio.current_time(), len(frame))
        return frame
