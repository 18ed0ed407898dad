"""The messages that carry small news to a whole swarm. Contract: protocols/gossip-1.md."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Final

from p2pnet.wire.codec import MESSAGE_BYTES_MAX, Count, Flag, Message, Range, Size

TOPIC_BYTES_MAX: Final = 64
DATA_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 256  # a frame with the longest topic still fits in MESSAGE_BYTES_MAX
ID_BYTES: Final = 20
HAVE_IDS_MAX: Final = 512
WANT_IDS_MAX: Final = 128
LANES: Final = 256
HOPS_MAX: Final = 255

Topic = Annotated[str, Size(1, TOPIC_BYTES_MAX)]
MessageId = Annotated[bytes, Size(ID_BYTES)]
Lane = Annotated[int, Range(0, LANES - 1)]


def message_id(topic: str, data: bytes) -> bytes:
    """Return what makes two messages the same: 20 bytes of SHA-256 over the topic's length (1 byte), topic and data."""
    name = topic.encode()
    return hashlib.sha256(bytes([len(name)]) + name + data).digest()[:ID_BYTES]


@dataclass(frozen=True, slots=True)
class Data(Message):
    """Here is a message (protocols/gossip-1.md, message 1)."""

    protocol, kind = "gossip/1", 1
    lane: Lane
    hops: Annotated[int, Range(0, HOPS_MAX)]
    topic: Topic
    data: Annotated[bytes, Size(0, DATA_BYTES_MAX)] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Have(Message):
    """I hold these messages; `now`: nobody is about to push them to you, ask at once (message 2)."""

    protocol, kind = "gossip/1", 2
    now: Flag
    ids: Annotated[tuple[MessageId, ...], Count(1, HAVE_IDS_MAX)]


@dataclass(frozen=True, slots=True)
class Want(Message):
    """Send me these; `graft`: and push to me whatever comes in their lanes from now on (message 3)."""

    protocol, kind = "gossip/1", 3
    graft: Flag
    ids: Annotated[tuple[MessageId, ...], Count(1, WANT_IDS_MAX)]


@dataclass(frozen=True, slots=True)
class Graft(Message):
    """Push to me what comes in these lanes: who did it before is gone (message 4)."""

    protocol, kind = "gossip/1", 4
    lanes: Annotated[tuple[Lane, ...], Count(1, LANES)]


@dataclass(frozen=True, slots=True)
class Prune(Message):
    """Do not push to me in this lane: somebody else is faster; tell me what you have instead (message 5)."""

    protocol, kind = "gossip/1", 5
    lane: Lane


MESSAGES: Final[tuple[type[Message], ...]] = (Data, Have, Want, Graft, Prune)
