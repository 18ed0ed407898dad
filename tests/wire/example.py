"""The protocol of the example on the page wire-1: two messages with every kind of field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from p2pnet.wire.codec import Count, Key, Message, Range, Size


@dataclass(frozen=True, slots=True)
class Ping(Message):
    protocol, kind = "example/1", 1
    nonce: Annotated[bytes, Size(8)]
    sent_ms: Annotated[int, Range(0, 2**40)]


@dataclass(frozen=True, slots=True)
class Note(Message):
    protocol, kind = "example/1", 2
    text: Annotated[str, Size(0, 64)]
    peers: Annotated[tuple[Key, ...], Count(0, 4)]
    change: Annotated[int, Range(-(2**31), 2**31 - 1)]
    first: Ping
    more: Annotated[tuple[Ping, ...], Count(0, 3)]


MESSAGES: Final[tuple[type[Message], ...]] = (Ping, Note)
