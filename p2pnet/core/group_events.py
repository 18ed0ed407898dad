"""What a machine is told of an exchange of many groups, and what it wants done (see `events`)."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnet.core.parts import Part
from p2pnet.identity import PeerId
from p2pnet.wire.round import GroupRoster, WideReduced
from p2pnet.wire.signing import Signed

Root = bytes  # 32 bytes: RFC 6962 root over the leaves of one reduced part


@dataclass(frozen=True, slots=True)
class Fetched:
    """A group roster that was asked for is here; None: nobody gave it."""

    round: int
    digest: bytes
    roster: Signed[GroupRoster] | None  # its signature is right


@dataclass(frozen=True, slots=True)
class BundleArrived:
    """The slices of one group for a part that this peer reduces are here and follow from their commits."""

    round: int
    view: int
    part: int  # of all groups
    group: int
    peer: PeerId  # who collected them
    members: frozenset[PeerId]  # whose they are


@dataclass(frozen=True, slots=True)
class PartReduced:
    """A part was reduced over all groups; the output is held under its root."""

    round: int
    view: int
    part: int
    rows: tuple[bytes, ...]  # for each group, q + 1 of each of its members in 2 bytes, 0 missing
    root: Root
    norms: bytes  # 32 bytes: root over the norms that the clip factors follow from


@dataclass(frozen=True, slots=True)
class PartReturned:
    """A part came back for my bundle; its bytes are held, and their root is right."""

    round: int
    view: int
    signed: Signed[WideReduced]


@dataclass(frozen=True, slots=True)
class ForwardFailed:
    """The bundle did not reach this reducer, or no part came back on its stream."""

    round: int
    view: int
    part: int
    to: PeerId


@dataclass(frozen=True, slots=True)
class ColumnArrived:
    """A column is here, its bytes held and their roots right: it came on the stream of my slice, or was asked for."""

    round: int
    view: int
    roster: bytes  # its digest: a proposer may have called two in one view
    column: int
    listing: tuple[bytes, ...]  # signed digests, by group; empty: void


@dataclass(frozen=True, slots=True)
class Tell:
    """Give this message to these members, whether they are neighbours or not."""

    to: tuple[PeerId, ...]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch the group roster with this digest from the first of these that gives it."""

    round: int
    digest: bytes
    sources: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Forward:
    """Send my group's slices of a part to its reducer (or backup), and take the part back on the same stream."""

    round: int
    view: int
    part: Part
    to: PeerId
    group: int  # mine
    members: frozenset[PeerId]  # whose slices came


@dataclass(frozen=True, slots=True)
class ReducePart:
    """Reduce this part from the slices of these senders, group by group."""

    round: int
    view: int
    part: Part
    senders: tuple[frozenset[PeerId], ...]


@dataclass(frozen=True, slots=True)
class Give:
    """Give this column to all in my group that wait for it on their streams."""

    round: int
    view: int
    column: int
    digest: bytes
    listing: tuple[bytes, ...]  # signed digests, by group; empty: void


GroupEvent = Fetched | BundleArrived | PartReduced | PartReturned | ForwardFailed | ColumnArrived
GroupEffect = Tell | Fetch | Forward | ReducePart | Give
