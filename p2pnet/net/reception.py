"""Receive the streams that others open: find the handler, bound what one peer can take, report who breaks rules."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import trio

from p2pnet.errors import P2pnetError, PeerError, WireError
from p2pnet.identity import PeerId, peer_id_text
from p2pnet.net.framing import FramedStream
from p2pnet.net.host import Handler, Limits, Misbehaviour, check_protocol

log = logging.getLogger(__name__)

E = TypeVar("E", bound=Exception)
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class _Entry:
    handler: Handler
    concurrency_per_peer: int


class Reception:
    """The handlers of one host and the streams they serve; shared by both hosts."""

    def __init__(self, limits: Limits, on_misbehaviour: Misbehaviour) -> None:
        """on_misbehaviour: told (peer, rule) for every broken rule; must not block."""
        self.limits = limits
        self.refused = 0  # streams over a bound, reset
        self.served = 0
        self.misbehaved = 0
        self._on_misbehaviour = on_misbehaviour
        self._entries: dict[str, _Entry] = {}
        self.open_streams = 0  # inbound streams being handled
        self._open: Counter[PeerId] = Counter()
        self._handled: Counter[tuple[PeerId, str]] = Counter()

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols with a handler."""
        return tuple(self._entries)

    def add(self, protocol: str, handler: Handler, concurrency_per_peer: int) -> None:
        """Register a handler; `ValueError` for a bad name, a bound below 1 or a second handler."""
        check_protocol(protocol)
        if concurrency_per_peer < 1:
            raise ValueError(f"{protocol}: concurrency_per_peer is at least 1, not {concurrency_per_peer}")
        if protocol in self._entries:
            raise ValueError(f"{protocol} has a handler already")
        self._entries[protocol] = _Entry(handler, concurrency_per_peer)

    def admits(self, peer: PeerId, protocol: str) -> bool:
        """Say whether one more stream is within the bounds, and count it: as open until `serve` ends, or as refused."""
        entry = self._entries.get(protocol)
        admitted = (
            entry is not None
            and self.open_streams < self.limits.streams_max
            and self._open[peer] < self.limits.streams_per_peer_max
            and self._handled[peer, protocol] < entry.concurrency_per_peer
        )
        if admitted:
            self.open_streams += 1
            self._open[peer] += 1
            self._handled[peer, protocol] += 1
        else:
            self.refused += 1
            log.debug("refused a stream of %s for %s", peer_id_text(peer), protocol)
        return admitted

    async def serve(self, stream: FramedStream) -> None:
        """Run the handler of an admitted stream to its end; the stream is closed afterwards.

        Errors that are neither the remote's nor the network's pass: they are ours.
        """
        peer, protocol = stream.peer, stream.protocol
        self.served += 1
        try:
            async with stream:
                try:
                    await self._handle(stream)
                    await stream.finish()
                except* PeerError as group:
                    for error in _leaves(group):
                        self._report(error.peer, error.rule, error)
                except* WireError as wrong:
                    for flaw in _leaves(wrong):
                        self._report(peer, flaw.rule, flaw)
                except* (P2pnetError, trio.TooSlowError) as others:
                    for other in _leaves(others):
                        log.info("%s of %s ended: %s", protocol, peer_id_text(peer), str(other) or "too slow")
        finally:
            self.open_streams -= 1
            _decrease(self._open, peer)

    async def _handle(self, stream: FramedStream) -> None:
        try:
            await self._entries[stream.protocol].handler(stream)
        finally:
            # Not after `finish`: who asks one thing after the other would be refused for ends that are under way.
            _decrease(self._handled, (stream.peer, stream.protocol))

    def _report(self, peer: PeerId, rule: str, error: Exception) -> None:
        self.misbehaved += 1
        log.warning("%s misbehaved: %s", peer_id_text(peer), error)
        self._on_misbehaviour(peer, rule)


def _decrease(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
