"""The request by which a late or absent peer gets the decided rounds. Contract: protocols/history-1.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from p2pnet.wire.codec import Count, Digest, Message, Size, Uint32

PROTOCOL = "history/1"
PAGE_BYTES_MAX = 1 << 20  # one message (wire-1)
DECISION_BYTES_MAX = PAGE_BYTES_MAX - 64  # of many groups it may fill a page; of one it takes at most 90 kB
DECISIONS_MAX = 256  # in one page


@dataclass(frozen=True, slots=True)
class GetDecisions(Message):
    """Give me the decided rounds from this one on."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 1
    swarm: Digest
    round: Uint32


@dataclass(frozen=True, slots=True)
class Decisions(Message):
    """Here are some, in order and without a gap, as many as fit; none: I have none from there on."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 2
    rounds: Uint32  # how many I have decided
    decisions: Annotated[tuple[Annotated[bytes, Size(1, DECISION_BYTES_MAX)], ...], Count(0, DECISIONS_MAX)]


MESSAGES: tuple[type[Message], ...] = (GetDecisions, Decisions)
