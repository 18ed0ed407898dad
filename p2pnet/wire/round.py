"""The messages of one round: commit, roster, reduced, proposal, votes, decision. Contract: protocols/round-1.md."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar

from p2pnet.identity import PeerId
from p2pnet.wire.codec import Count, Digest, Flag, Message, Range, Size, Uint32, Uint64, decode, encode
from p2pnet.wire.signing import Signed, domain_tag

PROTOCOL = "round/1"
GROUPS_PROTOCOL = "groups/1"  # of the messages that only swarms of many groups have; on the same streams
GROUP_SIZE_MAX = 64  # members of one averaging group
VOTERS_MAX = 100
PARTS_MAX = GROUP_SIZE_MAX
VIEW_MAX = 2**32 - 1
COMMIT_RAW_MAX = 512  # a signed commit has about 330 bytes
REDUCED_RAW_MAX = 640  # 64 inputs of at most 3 bytes, two digests, the signature
GROUPS_MAX = 1024  # groups of one swarm: 65,536 members
GROUP_COMMITS_MAX = 2 * GROUP_SIZE_MAX  # in the roster of a group, so that newcomers find room until the next deal
WIDE_PART_MAX = PARTS_MAX * GROUPS_MAX
MISSING_BYTES_MAX = WIDE_PART_MAX // 8  # a bit for each of 65,536 members
WIDE_REDUCED_RAW_MAX = REDUCED_RAW_MAX + MISSING_BYTES_MAX
EXCLUDED_MAX = 8  # members that one round may exclude: each names evidence that every voter has to hold
OUTCOME_BYTES_MAX = 64 * REDUCED_RAW_MAX + VOTERS_MAX * 34 + 1024
WEIGHT_MAX = 8

View = Annotated[int, Range(0, VIEW_MAX)]
Value = Annotated[bytes, Size(0, 32)]  # SHA-256 of an outcome; empty: nil, no value in this view
Signature = Annotated[bytes, Size(64)]


class Phase(IntEnum):
    """The two votes of a view: a prepare says I hold and have checked it, a seal says more than 2/3 prepared it."""

    PREPARE = 1
    SEAL = 2


@dataclass(frozen=True, slots=True)
class Commit(Message):
    """I finished this round; my payload has this root, and I cannot change it any more."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 1
    swarm: Digest
    round: Uint32
    lineage: Digest
    payload_root: Digest
    samples: Uint32  # trained on; the weight 1..8 follows from it
    preimage: Digest  # the next value down my hash chain
    checksum: Uint64  # of theta at the start of the round, numerics.outer
    assigned: Flag  # 1: the samples were the beacon's, so that anyone can replay them
    reach: Annotated[int, Range(0, 2)]
    up_kbps: Uint32  # measured, kilobits per second; 0: not known
    down_kbps: Uint32


@dataclass(frozen=True, slots=True)
class Roster(Message):
    """These commits take part in this view; the proposer's."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 2
    swarm: Digest
    round: Uint32
    view: View
    lineage: Digest
    commits: Annotated[tuple[Annotated[bytes, Size(1, COMMIT_RAW_MAX)], ...], Count(1, GROUP_SIZE_MAX)]

    def digest(self) -> bytes:
        """SHA-256 over the commits alone, 32 bytes: the same roster in another view has the same digest."""
        return roster_digest(self.commits)


@dataclass(frozen=True, slots=True)
class Reduced(Message):
    """I reduced this part from these inputs, and the output has this root; a reducer's."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 3
    swarm: Digest
    round: Uint32
    view: View
    part: Annotated[int, Range(0, PARTS_MAX - 1)]
    start: Uint32  # the leaves of the part, so that what it says can be checked without the state of its round
    stop: Uint32  # not included
    roster: Digest
    inputs: Annotated[tuple[Annotated[int, Range(0, 257)], ...], Count(1, GROUP_SIZE_MAX)]  # 0: missing, else q + 1
    root: Digest  # RFC 6962 over the leaves of the output
    norms: Digest  # RFC 6962 over the rows of norms behind the clip factors (exchange-1)


@dataclass(frozen=True, slots=True)
class Exclusion(Message):
    """A member is excluded, for what this evidence proves (evidence-1)."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 12
    peer: PeerId
    evidence: Digest  # of the evidence's bytes


@dataclass(frozen=True, slots=True)
class Outcome(Message):
    """The value that is decided: a result or, with an empty roster, VOID."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 4
    swarm: Digest
    round: Uint32
    lineage: Digest  # before this round
    roster: Annotated[bytes, Size(0, 32)]
    view: View  # of the roster; decides who reduces what
    reduced: Annotated[tuple[Annotated[bytes, Size(1, REDUCED_RAW_MAX)], ...], Count(0, PARTS_MAX)]  # in part order
    electorate: Annotated[tuple[PeerId, ...], Count(1, VOTERS_MAX)]  # of the next round, sorted
    beacon: Digest  # of the next round
    state: Annotated[bytes, Size(0, 32)]  # SHA-256 of the parameters this round started from, every snapshot_rounds
    excluded: Annotated[tuple[Exclusion, ...], Count(0, EXCLUDED_MAX)]  # from the next round on; by peer, rising

    @property
    def void(self) -> bool:
        """Tell whether the round was decided without a result."""
        return not self.roster


@dataclass(frozen=True, slots=True)
class Proposal(Message):
    """Let us decide this; the proposer's of the view."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 5
    swarm: Digest
    round: Uint32
    view: View
    valid_view: Annotated[int, Range(0, VIEW_MAX + 1)]  # 0: new; else 1 + the view in which more than 2/3 prepared it
    outcome: Annotated[bytes, Size(1, OUTCOME_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Vote(Message):
    """My one vote in this phase of this view."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 6
    swarm: Digest
    round: Uint32
    view: View
    phase: Annotated[int, Range(1, 2)]
    value: Value


@dataclass(frozen=True, slots=True)
class Endorsement(Message):
    """One voter's signature under a vote whose body everybody can rebuild."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 7
    peer: PeerId
    signature: Signature


@dataclass(frozen=True, slots=True)
class Quorum(Message):
    """More than 2/3 of the electorate cast this vote; with seals it is the round's certificate."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 8
    swarm: Digest
    round: Uint32
    view: View
    phase: Annotated[int, Range(1, 2)]
    value: Digest
    endorsements: Annotated[tuple[Endorsement, ...], Count(1, VOTERS_MAX)]  # by peer, rising

    def vote_bytes(self) -> bytes:
        """The bytes under each signature, domain tag included."""
        vote = Vote(self.swarm, self.round, self.view, self.phase, self.value)
        return domain_tag(PROTOCOL) + encode(vote)


@dataclass(frozen=True, slots=True)
class Decision(Message):
    """A decided round, whole: what was decided, by whom, over which commits. Checkable from bytes alone."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 9
    certificate: Quorum
    outcome: Annotated[bytes, Size(1, OUTCOME_BYTES_MAX)]
    commits: Annotated[tuple[Annotated[bytes, Size(1, COMMIT_RAW_MAX)], ...], Count(0, GROUP_SIZE_MAX)]


@dataclass(frozen=True, slots=True)
class Ask(Message):
    """I am in this view of this round and nothing moves: send me what I lack."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 10
    swarm: Digest
    round: Uint32
    view: View


@dataclass(frozen=True, slots=True)
class Skip(Message):
    """I have no update this round: do not wait for my commit."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 11
    swarm: Digest
    round: Uint32
    lineage: Digest


@dataclass(frozen=True, slots=True)
class GroupRoster(Message):
    """These commits of my group take part in this view; a steward's (groups-1)."""

    protocol: ClassVar[str] = GROUPS_PROTOCOL
    kind: ClassVar[int] = 13
    swarm: Digest
    round: Uint32
    view: View
    lineage: Digest
    group: Annotated[int, Range(0, GROUPS_MAX - 1)]
    commits: Annotated[tuple[Annotated[bytes, Size(1, COMMIT_RAW_MAX)], ...], Count(1, GROUP_COMMITS_MAX)]

    def digest(self) -> bytes:
        """SHA-256 over the commits alone, 32 bytes."""
        return roster_digest(self.commits)


@dataclass(frozen=True, slots=True)
class WideRoster(Message):
    """The commits of these group rosters take part in this view; the proposer's (groups-1)."""

    protocol: ClassVar[str] = GROUPS_PROTOCOL
    kind: ClassVar[int] = 14
    swarm: Digest
    round: Uint32
    view: View
    lineage: Digest
    groups: Annotated[tuple[Annotated[bytes, Size(0, 32)], ...], Count(2, GROUPS_MAX)]  # digests; empty: gave none

    def digest(self) -> bytes:
        """SHA-256 over the groups' digests, 32 bytes: the same roster in another view has the same digest."""
        return listing_digest(self.groups)


@dataclass(frozen=True, slots=True)
class WideReduced(Message):
    """I reduced this part from all groups, and the output has this root; a reducer's (groups-1)."""

    protocol: ClassVar[str] = GROUPS_PROTOCOL
    kind: ClassVar[int] = 15
    swarm: Digest
    round: Uint32
    view: View
    part: Annotated[int, Range(0, WIDE_PART_MAX - 1)]
    start: Uint32
    stop: Uint32  # not included
    roster: Digest
    inputs: Digest  # RFC 6962 over a row for each group: q + 1 of each of its members in 2 bytes, 0 missing
    missing: Annotated[bytes, Size(0, MISSING_BYTES_MAX)]  # a bit for each member, group by group
    root: Digest  # RFC 6962 over the leaves of the output
    norms: Digest  # RFC 6962 over the rows of norms behind the clip factors (exchange-1)


@dataclass(frozen=True, slots=True)
class WideOutcome(Message):
    """A result of many groups; VOID is an `Outcome` all the same (groups-1)."""

    protocol: ClassVar[str] = GROUPS_PROTOCOL
    kind: ClassVar[int] = 16
    swarm: Digest
    round: Uint32
    lineage: Digest  # before this round
    roster: Digest
    view: View  # of the roster; decides who reduces what
    columns: Annotated[tuple[Digest, ...], Count(1, PARTS_MAX)]  # of the listings of signed digests, in order
    electorate: Annotated[tuple[PeerId, ...], Count(1, VOTERS_MAX)]  # of the next round, sorted
    beacon: Digest  # of the next round
    state: Annotated[bytes, Size(0, 32)]
    excluded: Annotated[tuple[Exclusion, ...], Count(0, EXCLUDED_MAX)]

    @property
    def void(self) -> bool:
        """Tell whether the round was decided without a result: never this way."""
        return False


@dataclass(frozen=True, slots=True)
class Listing(Message):
    """Signed messages in their order: the commits of a group, or the reduced digests of a column; empty: void."""

    protocol: ClassVar[str] = GROUPS_PROTOCOL
    kind: ClassVar[int] = 17
    items: Annotated[tuple[Annotated[bytes, Size(0, WIDE_REDUCED_RAW_MAX)], ...], Count(0, GROUPS_MAX)]


@dataclass(frozen=True, slots=True)
class WideDecision(Message):
    """A round decided with the result of many groups, whole. Checkable from bytes alone (groups-1)."""

    protocol: ClassVar[str] = GROUPS_PROTOCOL
    kind: ClassVar[int] = 18
    certificate: Quorum
    outcome: Annotated[bytes, Size(1, OUTCOME_BYTES_MAX)]
    groups: Annotated[tuple[Listing, ...], Count(2, GROUPS_MAX)]  # signed commits, by peer, rising, for each group
    columns: Annotated[tuple[Listing, ...], Count(1, PARTS_MAX)]

    @property
    def commits(self) -> tuple[bytes, ...]:
        """The signed commits of all groups, in no order."""
        return tuple(raw for listing in self.groups for raw in listing.items)


SIGNED: tuple[type[Message], ...] = (
    Commit, Roster, Reduced, Proposal, Vote, Skip, GroupRoster, WideRoster, WideReduced,
)  # fmt: skip
UNSIGNED: tuple[type[Message], ...] = (Quorum, Decision, Ask, WideDecision)  # certified by what they hold, or harmless
WIDE: tuple[type[Message], ...] = (GroupRoster, WideRoster, WideReduced, WideOutcome, Listing, WideDecision)
MESSAGES: tuple[type[Message], ...] = (
    Commit, Roster, Reduced, Proposal, Vote, Skip, Outcome, Endorsement, Exclusion, Quorum, Decision, Ask,
)  # fmt: skip


def roster_digest(commits: tuple[bytes, ...]) -> bytes:
    """SHA-256 of the signed commits, each after its length as 4 bytes big-endian."""
    return _digest(b"p2pnet/roster/1\n", commits)


def listing_digest(items: tuple[bytes, ...]) -> bytes:
    """SHA-256 of items, each after its length as 4 bytes big-endian: digests of groups, signed digests of a column."""
    return _digest(b"p2pnet/listing/1\n", items)


def _digest(tag: bytes, items: tuple[bytes, ...]) -> bytes:
    return hashlib.sha256(tag + b"".join([len(item).to_bytes(4, "big") + item for item in items])).digest()


def outcome_digest(outcome: bytes) -> bytes:
    """The value that voters sign, 32 bytes."""
    return hashlib.sha256(b"p2pnet/outcome/1\n" + outcome).digest()


def next_lineage(lineage: bytes, value: bytes) -> bytes:
    """The hash chain of decided results: H(lineage, decided value), 32 bytes."""
    return hashlib.sha256(b"p2pnet/lineage/1\n" + lineage + value).digest()


def decode_outcome(data: bytes) -> Outcome:
    """Decode an outcome of one group, or VOID; raises WireError."""
    return decode((Outcome,), data, OUTCOME_BYTES_MAX)


def decode_value(data: bytes) -> Outcome | WideOutcome:
    """Decode an outcome, of one group or of many; raises WireError."""
    return decode((Outcome, WideOutcome), data, OUTCOME_BYTES_MAX)  # type: ignore[return-value]


def slot_of(message: Message) -> bytes:
    """Name what may be signed only once: (kind, round, view, part or phase), 13 bytes. The swarm is the store's own."""
    view = sub = 0  # of a commit and a skip: one payload a round
    match message:
        case Commit() | Skip():
            pass
        case Reduced() | WideReduced():
            view, sub = message.view, message.part
        case Vote():
            view, sub = message.view, message.phase
        case Roster() | Proposal() | GroupRoster() | WideRoster():
            view = message.view
        case _:
            raise ValueError(f"{type(message).__name__} is not signed")
    numbers: tuple[int, ...] = (message.round, view, sub)
    return bytes([message.kind]) + b"".join(number.to_bytes(4, "big") for number in numbers)


SignedRound = (
    Signed[Commit] | Signed[Roster] | Signed[Reduced] | Signed[Proposal] | Signed[Vote] | Signed[Skip]
    | Signed[GroupRoster] | Signed[WideRoster] | Signed[WideReduced]
)  # fmt: skip
RoundMessage = SignedRound | Quorum | Decision | Ask | WideDecision


def is_signed(raw: bytes) -> bool:
    """Tell a signed message, an array of three whose first item is bytes, from others, which start with their kind."""
    return len(raw) > 1 and raw[0] == 0x93 and raw[1] in (0xC4, 0xC5, 0xC6)
