"""The messages by which members of a swarm get to know each other. Contract: protocols/membership-1.md."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Annotated, Final

from p2pnet.wire.codec import Count, Digest, Flag, Message, Range, Size, Uint63

VERSION: Final = 1  # of the whole protocol family: members of one swarm must agree on it
TOPIC: Final = "record"  # under which signed records travel by gossip
ADDRS_MAX: Final = 16
ADDR_BYTES_MAX: Final = 256
RECORD_BYTES_MAX: Final = 4608  # 16 addresses of 256 bytes with their headers, the other fields, key and signature
ANSWER_RECORDS_MAX: Final = 16
AGENT_BYTES_MAX: Final = 64
BPS_MAX: Final = 10**15

RawRecord = Annotated[bytes, Size(0, RECORD_BYTES_MAX)]


class Reach(enum.IntEnum):
    """Whether others can dial a peer, as far as it knows itself."""

    UNKNOWN = 0
    PUBLIC = 1
    PRIVATE = 2  # behind a NAT: only through a relay, if at all


class Reason(enum.IntEnum):
    """Why a hello was refused."""

    NONE = 0
    OTHER_SWARM = 1
    OTHER_VERSION = 2
    BANNED = 3
    FULL = 4
    BAD_RECORD = 5


@dataclass(frozen=True, slots=True)
class PeerRecord(Message):
    """Who I am in this swarm and where I can be dialled (protocols/membership-1.md, message 1); always signed."""

    protocol, kind = "membership/1", 1
    swarm: Digest
    seq: Uint63  # a higher one replaces a lower one; starts at the author's unix time
    addrs: Annotated[tuple[Annotated[bytes, Size(1, ADDR_BYTES_MAX)], ...], Count(0, ADDRS_MAX)]  # binary multiaddrs
    reach: Annotated[int, Range(0, 2)]
    agent: Annotated[str, Size(0, AGENT_BYTES_MAX)]
    up_bps: Annotated[int, Range(0, BPS_MAX)]  # bits per second, 0: not measured
    down_bps: Annotated[int, Range(0, BPS_MAX)]
    issued_s: Uint63  # unix seconds by the author's clock: for people to read, nothing depends on it


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The first thing a peer says on a new connection (message 2)."""

    protocol, kind = "membership/1", 2
    version: Annotated[int, Range(0, 2**16 - 1)]
    swarm: Digest
    session: Annotated[bytes, Size(8)]  # random per process: shows a restart that no broken connection showed
    agent: Annotated[str, Size(0, AGENT_BYTES_MAX)]
    record: RawRecord = field(repr=False)  # the sender's own, signed


@dataclass(frozen=True, slots=True)
class HelloAnswer(Message):
    """Yes or no to a hello, and why (message 3)."""

    protocol, kind = "membership/1", 3
    accepted: Flag
    reason: Annotated[int, Range(0, len(Reason) - 1)]
    version: Annotated[int, Range(0, 2**16 - 1)]
    session: Annotated[bytes, Size(8)]
    record: RawRecord = field(repr=False)  # the answerer's own, signed; empty in a refusal
    newer: RawRecord = field(repr=False)  # the asker's own record, when the answerer knows a newer one; else empty
    others: Annotated[tuple[RawRecord, ...], Count(0, ANSWER_RECORDS_MAX)] = field(repr=False)  # members to dial next


MESSAGES: Final[tuple[type[Message], ...]] = (PeerRecord, Hello, HelloAnswer)
