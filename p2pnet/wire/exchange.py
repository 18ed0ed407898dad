"""The requests that move bulk data: slices, reduced parts, leaves for an audit. Contract: protocols/exchange-1.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from p2pnet.wire import merkle
from p2pnet.wire.codec import Count, Digest, Message, Range, Uint32
from p2pnet.wire.round import GROUP_SIZE_MAX, PARTS_MAX, View

PROTOCOL = "exchange/1"
PROOF_MAX = 128  # hashes beside a contiguous range of a tree: two for each level
PIECE_BYTES_MAX = 256 << 20  # one slice or one reduced part, in a frame of its own
NORM_BYTES = 12  # the norm^2 of one leaf: at most 16 * 2048 * (15 * 2^31)^2, under 2^86

Part = Annotated[int, Range(0, PARTS_MAX - 1)]
Proof = Annotated[tuple[Digest, ...], Count(0, PROOF_MAX)]


@dataclass(frozen=True, slots=True)
class Slice(Message):
    """Here is my slice of this part; its bytes follow in the next frame. Answered by `Reduced` and its bytes."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 1
    swarm: Digest
    round: Uint32
    view: View
    roster: Digest  # of the commits: a proposer may have told others another roster for this view
    part: Part
    proof: Proof  # of the part's leaves against my commit's payload_root


@dataclass(frozen=True, slots=True)
class GetOutput(Message):
    """Give me the reduced bytes with this root. Answered by a frame with the bytes, empty when they are not held."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 2
    swarm: Digest
    round: Uint32
    root: Digest


@dataclass(frozen=True, slots=True)
class GetLeaf(Message):
    """Give me the inputs of one leaf of a part you reduced. Answered by `Leaves` and one frame for each input."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 3
    swarm: Digest
    round: Uint32
    view: View
    part: Part
    leaf: Uint32  # within the part


@dataclass(frozen=True, slots=True)
class LeafProof(Message):
    """The proof of one input's leaf against its sender's commit."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 4
    place: Annotated[int, Range(0, GROUP_SIZE_MAX - 1)]  # of the sender in the roster
    proof: Proof


@dataclass(frozen=True, slots=True)
class Leaves(Message):
    """The proofs of a leaf's inputs, by place in the roster, rising; the leaves follow in frames, in the same order."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 5
    inputs: Annotated[tuple[LeafProof, ...], Count(0, GROUP_SIZE_MAX)]
    output: Proof  # of the same leaf of the output against its root
    known: Annotated[int, Range(0, 1)]  # 0: I do not hold the inputs (any more)


REQUESTS: tuple[type[Message], ...] = (Slice, GetOutput, GetLeaf)
MESSAGES: tuple[type[Message], ...] = (*REQUESTS, LeafProof, Leaves)


def norms_root(norms: bytes, inputs: int) -> bytes:
    """The root over the rows of norms of a part, 32 bytes.

    norms: a row for each leaf; in it the norm^2 of that leaf of each input that is not missing, by place, big-endian.
    """
    return merkle.root(merkle.payload_leaves(norms, NORM_BYTES * inputs))
