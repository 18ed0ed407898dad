"""The messages of the streams between groups: bundles, parts, columns, rosters. Contract: protocols/bundles-1.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from p2pnet.wire.codec import Count, Digest, Message, Range, Size, Uint32
from p2pnet.wire.exchange import Proof
from p2pnet.wire.round import (
    GROUP_COMMITS_MAX,
    GROUPS_MAX,
    PARTS_MAX,
    WIDE_PART_MAX,
    View,
)  # fmt: skip

PROTOCOL = "bundles/1"
ROW_BYTES_MAX = 2 * GROUP_COMMITS_MAX  # q + 1 of each member of a group

Group = Annotated[int, Range(0, GROUPS_MAX - 1)]
WidePart = Annotated[int, Range(0, WIDE_PART_MAX - 1)]
ColumnNumber = Annotated[int, Range(0, PARTS_MAX - 1)]


@dataclass(frozen=True, slots=True)
class BundledSlice(Message):
    """The proof of one slice, or of one leaf of it, against its sender's commit; its bytes follow in a frame."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 19
    place: Annotated[int, Range(0, GROUP_COMMITS_MAX - 1)]  # of the sender in its group
    proof: Proof


@dataclass(frozen=True, slots=True)
class Bundle(Message):
    """Here are my group's slices of this part, each in a frame. Answered by `WideReduced` and its bytes."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 20
    swarm: Digest
    round: Uint32
    view: View
    roster: Digest  # of the WideRoster
    part: WidePart
    group: Group
    slices: Annotated[tuple[BundledSlice, ...], Count(0, GROUP_COMMITS_MAX)]  # by place, rising


@dataclass(frozen=True, slots=True)
class AwaitColumn(Message):
    """I have no slice of this column, and wait for it. Answered by its `Listing`, and a frame for each part."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 21
    swarm: Digest
    round: Uint32
    view: View
    roster: Digest
    column: ColumnNumber


@dataclass(frozen=True, slots=True)
class GetColumn(Message):
    """Give me the column with this digest. Answered by its `Listing`, or an empty frame; `LackedParts` follows."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 22
    swarm: Digest
    round: Uint32
    digest: Digest  # of its listing


@dataclass(frozen=True, slots=True)
class LackedParts(Message):
    """Of the column that you named I lack the bytes of these parts. Answered by a frame for each."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 23
    groups: Annotated[tuple[Group, ...], Count(0, GROUPS_MAX)]  # rising


@dataclass(frozen=True, slots=True)
class GetGroupRoster(Message):
    """Give me the roster of a group with this digest. Answered by a frame with the signed bytes, or an empty one."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 24
    swarm: Digest
    round: Uint32
    digest: Digest


@dataclass(frozen=True, slots=True)
class GetWideLeaf(Message):
    """Show me what you made a leaf of this part from. Answered by `GroupLeaves` of each group, or an empty frame."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 25
    swarm: Digest
    round: Uint32
    view: View
    part: WidePart
    leaf: Uint32  # within the part


@dataclass(frozen=True, slots=True)
class GroupLeaves(Message):
    """What I took from one group; its leaves follow in frames, after those of the last group the norms of the part."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 26
    factors: Annotated[bytes, Size(0, ROW_BYTES_MAX)]  # its row
    leaves: Annotated[tuple[BundledSlice, ...], Count(0, GROUP_COMMITS_MAX)]  # of those that are not missing, by place


REQUESTS: tuple[type[Message], ...] = (Bundle, AwaitColumn, GetColumn, GetGroupRoster, GetWideLeaf)
MESSAGES: tuple[type[Message], ...] = (*REQUESTS, BundledSlice, LackedParts, GroupLeaves)
