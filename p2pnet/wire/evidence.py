"""Evidence: bytes that prove by themselves that their author lied. Contract: protocols/evidence-1.md."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from p2pnet.wire.codec import Count, Digest, Message, Range, Size, Uint32, decode
from p2pnet.wire.exchange import Proof
from p2pnet.wire.gossip import DATA_BYTES_MAX
from p2pnet.wire.round import COMMIT_RAW_MAX, GROUP_SIZE_MAX, REDUCED_RAW_MAX

PROTOCOL = "evidence/1"
EVIDENCE_BYTES_MAX = DATA_BYTES_MAX  # it travels as gossip
SIGNED_RAW_MAX = 49_152  # the largest signed message of a round is a proposal
LEAF_BYTES_MAX = 20_544  # 16 chunks of 2048 values of three bits
NORMS_BYTES_MAX = 1_040_000  # as large as evidence may be with the rest of it

SignedRaw = Annotated[bytes, Size(1, SIGNED_RAW_MAX)]
CommitRaw = Annotated[bytes, Size(1, COMMIT_RAW_MAX)]


@dataclass(frozen=True, slots=True)
class DoubleSigned(Message):
    """Two signed messages of one author for one slot, which say different things."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 1
    first: SignedRaw = field(repr=False)  # the one with the lower body
    second: SignedRaw = field(repr=False)


@dataclass(frozen=True, slots=True)
class ShownLeaf(Message):
    """The bytes of one leaf, and its proof against a root."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 2
    data: Annotated[bytes, Size(0, LEAF_BYTES_MAX)] = field(repr=False)
    proof: Proof = field(repr=False)


@dataclass(frozen=True, slots=True)
class MalformedLeaf(Message):
    """A leaf under a signed commit that is no leaf of chunks; the contributor's lie."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 3
    commit: CommitRaw = field(repr=False)
    leaf: Uint32
    shown: ShownLeaf


@dataclass(frozen=True, slots=True)
class WrongLeaf(Message):
    """A leaf of a reduced part that does not follow from the inputs that its reducer signed; the reducer's lie."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 4
    reduced: Annotated[bytes, Size(1, REDUCED_RAW_MAX)] = field(repr=False)
    commits: Annotated[tuple[CommitRaw, ...], Count(1, GROUP_SIZE_MAX)] = field(repr=False)  # the roster
    leaf: Uint32  # of the payload, and so of the result
    output: ShownLeaf
    inputs: Annotated[tuple[ShownLeaf, ...], Count(1, GROUP_SIZE_MAX)]  # of those that are not missing, by place


@dataclass(frozen=True, slots=True)
class WrongNorm(Message):
    """A norm behind the clip factors that is not that of the leaf it is said of; the reducer's lie."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 6
    reduced: Annotated[bytes, Size(1, REDUCED_RAW_MAX)] = field(repr=False)
    commits: Annotated[tuple[CommitRaw, ...], Count(1, GROUP_SIZE_MAX)] = field(repr=False)  # the roster
    leaf: Uint32  # of the payload
    row: ShownLeaf  # of norms
    place: Annotated[int, Range(0, GROUP_SIZE_MAX - 1)]  # of the input in the roster
    shown: ShownLeaf  # that leaf of this input


@dataclass(frozen=True, slots=True)
class WrongClips(Message):
    """Clip factors that do not follow from the norms that their reducer signed with them; the reducer's lie."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 7
    reduced: Annotated[bytes, Size(1, REDUCED_RAW_MAX)] = field(repr=False)
    norms: Annotated[bytes, Size(1, NORMS_BYTES_MAX)] = field(repr=False)  # all rows


@dataclass(frozen=True, slots=True)
class GetEvidence(Message):
    """Give me the evidence with this digest. Answered by a frame with its bytes, empty when it is not held."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 5
    swarm: Digest
    digest: Digest


Evidence = DoubleSigned | MalformedLeaf | WrongLeaf | WrongNorm | WrongClips
PROOFS: tuple[type[Message], ...] = (DoubleSigned, MalformedLeaf, WrongLeaf, WrongNorm, WrongClips)
MESSAGES: tuple[type[Message], ...] = (*PROOFS, ShownLeaf, GetEvidence)


def evidence_digest(raw: bytes) -> bytes:
    """What names evidence, 32 bytes."""
    return hashlib.sha256(b"p2pnet/evidence/1\n" + raw).digest()


def decode_evidence(raw: bytes) -> Evidence:
    """Decode evidence, nothing in it checked but limits; raises WireError."""
    return decode(PROOFS, raw, EVIDENCE_BYTES_MAX)  # type: ignore[return-value]
