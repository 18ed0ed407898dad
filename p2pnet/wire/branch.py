"""The messages by which a part of a swarm that has no quorum goes on, marked. Contract: protocols/branch-1.md."""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from typing import Annotated, ClassVar

from p2pnet.identity import PeerId
from p2pnet.wire.codec import Count, Digest, Message, Size, Uint32, decode, encode
from p2pnet.wire.round import SIGNED, UNSIGNED, VOTERS_MAX, RoundMessage, Signature, is_signed
from p2pnet.wire.signing import Signed, Verify, domain_tag, open_signed

PROTOCOL = "branch/1"  # its kinds are none of round/1's: both travel on the same streams
NONCE_BYTES = 8
HEARS_BYTES_MAX = -(-VOTERS_MAX // 8)

Nonce = Annotated[bytes, Size(NONCE_BYTES)]
Hears = Annotated[bytes, Size(1, HEARS_BYTES_MAX)]  # a bit for each voter of the electorate in order, highest bit first
Voters = Annotated[tuple[PeerId, ...], Count(1, VOTERS_MAX)]


@dataclass(frozen=True, slots=True)
class Branch(Message):
    """I would go on from this round, which has no quorum, with exactly these voters; one of them signs."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 20
    swarm: Digest  # that is stalled: the final chain's id, or a branch's
    round: Uint32
    lineage: Digest
    voters: Voters  # rising
    hears: Hears  # whom its author hears, of all that could vote
    nonce: Nonce  # drawn for this stall, so that no branch ever has an id that an earlier one had


@dataclass(frozen=True, slots=True)
class BranchCertificate(Message):
    """Each of these voters signed for going on with all of them: the branch exists."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 21
    swarm: Digest
    round: Uint32
    lineage: Digest
    voters: Voters  # rising
    hears: Annotated[tuple[Hears, ...], Count(1, VOTERS_MAX)]  # in the order of the voters, like the next two
    nonces: Annotated[tuple[Nonce, ...], Count(1, VOTERS_MAX)]
    signatures: Annotated[tuple[Signature, ...], Count(1, VOTERS_MAX)]

    def proposals(self) -> list[bytes]:
        """The encoded `Branch` of each voter, in their order; ValueError when there are not as many of all."""
        about = self.swarm, self.round, self.lineage, self.voters
        each = zip(self.hears, self.nonces, strict=True)
        return [encode(Branch(*about, hears, nonce)) for hears, nonce in each]

    def signed_bytes(self) -> list[bytes]:
        """The bytes under each signature, domain tag included."""
        return [domain_tag(PROTOCOL) + body for body in self.proposals()]

    def branch_id(self) -> bytes:
        """The id of the branch, 32 bytes: it takes the place of the swarm's in every message of the branch."""
        state = hashlib.sha256(b"p2pnet/branch/1\n")
        for body in self.proposals():
            state.update(len(body).to_bytes(4, "big") + body)
        return state.digest()


MESSAGES: tuple[type[Message], ...] = (Branch, BranchCertificate)

Spoken = RoundMessage | Signed[Branch] | BranchCertificate


def open_spoken(raw: bytes, verify: Verify) -> Spoken:
    """Decode what travels on the streams of rounds, of round-1 or of branch-1; raises WireError.

    The signature on the outside is checked, those inside a message are not.
    """
    if is_signed(raw):
        return open_signed((*SIGNED, Branch), raw, verify)
    return decode((*UNSIGNED, BranchCertificate), raw)


def write_hears(electorate: tuple[PeerId, ...], heard: Set[PeerId]) -> bytes:
    """The bits of those voters that are heard."""
    bits = [peer in heard for peer in electorate] + [False] * (-len(electorate) % 8)
    whole = [bits[start : start + 8] for start in range(0, len(bits), 8)]
    return bytes(sum(bit << 7 - at for at, bit in enumerate(byte)) for byte in whole)


def read_hears(electorate: tuple[PeerId, ...], hears: bytes) -> frozenset[PeerId]:
    """The voters whose bits are set."""
    padded = hears.ljust(HEARS_BYTES_MAX, b"\0")
    return frozenset(peer for at, peer in enumerate(electorate) if padded[at // 8] >> 7 - at % 8 & 1)
