"""The messages of one round: commit, roster, reduced, proposal, votes, decision. Contract: protocols/round-1.md."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar

from p2pnet.identity import PeerId
from p2pnet.wire.codec import Count, Digest, Flag, Message, Range, Size, Uint32, Uint64, decode, encode
from p2pnet.wire.signing import Signed, Verify, domain_tag, open_signed

PROTOCOL = "round/1"
GROUP_SIZE_MAX = 64  # members of one averaging group
VOTERS_MAX = 100
PARTS_MAX = GROUP_SIZE_MAX
VIEW_MAX = 2**32 - 1
COMMIT_RAW_MAX = 512  # a signed commit has about 330 bytes
REDUCED_RAW_MAX = 640  # 64 inputs of at most 3 bytes, two digests, the signature
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


SIGNED: tuple[type[Message], ...] = (Commit, Roster, Reduced, Proposal, Vote, Skip)
UNSIGNED: tuple[type[Message], ...] = (Quorum, Decision, Ask)  # certified by what is in them, or harmless
MESSAGES: tuple[type[Message], ...] = (*SIGNED, Outcome, Endorsement, Exclusion, *UNSIGNED)


def roster_digest(commits: tuple[bytes, ...]) -> bytes:
    """SHA-256 of the signed commits, each after its length as 4 bytes big-endian."""
    state = hashlib.sha256(b"p2pnet/roster/1\n")
    for raw in commits:
        state.update(len(raw).to_bytes(4, "big") + raw)
    return state.digest()


def outcome_digest(outcome: bytes) -> bytes:
    """The value that voters sign, 32 bytes."""
    return hashlib.sha256(b"p2pnet/outcome/1\n" + outcome).digest()


def next_lineage(lineage: bytes, value: bytes) -> bytes:
    """The hash chain of decided results: H(lineage, decided value), 32 bytes."""
    return hashlib.sha256(b"p2pnet/lineage/1\n" + lineage + value).digest()


def decode_outcome(data: bytes) -> Outcome:
    """Decode an outcome; raises WireError."""
    return decode((Outcome,), data, OUTCOME_BYTES_MAX)


def slot_of(message: Message) -> bytes:
    """Name what may be signed only once: (kind, round, view, part or phase), 13 bytes.

    The slot of a commit and of a skip is the round alone: one payload a round. The swarm is the store's own.
    """
    view, sub = 0, 0
    match message:
        case Commit() | Skip():
            pass
        case Reduced():
            view, sub = message.view, message.part
        case Vote():
            view, sub = message.view, message.phase
        case Roster() | Proposal():
            view = message.view
        case _:
            raise ValueError(f"{type(message).__name__} is not signed")
    number: int = message.round
    return bytes([message.kind]) + number.to_bytes(4, "big") + view.to_bytes(4, "big") + sub.to_bytes(4, "big")


SignedRound = Signed[Commit] | Signed[Roster] | Signed[Reduced] | Signed[Proposal] | Signed[Vote] | Signed[Skip]


def open_round_message(raw: bytes, verify: Verify) -> SignedRound | Quorum | Decision | Ask:
    """Decode a message of a round, signed or not; the signature on the outside is checked. Raises WireError.

    A signed message is an array of three whose first item is bytes; every other one starts with its kind.
    """
    if len(raw) > 1 and raw[0] == 0x93 and raw[1] in (0xC4, 0xC5, 0xC6):
        return open_signed(SIGNED, raw, verify)  # type: ignore[return-value]
    return decode(UNSIGNED, raw)  # type: ignore[return-value]
