"""What a round's bytes come to: payload, result, proofs and headers by formula, messages by their encoding.

A formula is checked against the real encoder in the tests; encoding every copy of every message would be half the work
of a simulation. Counted is what a node counts (`p2pnet.net.framing.Traffic`): application bytes with their frame
prefixes, without what libp2p, TCP and IP add.
"""

from __future__ import annotations

import functools

from p2pnet.core.parts import CHUNKS_PER_LEAF, Part
from p2pnet.numerics.formats import CHUNK_VALUES, ChunkFormat
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.exchange import NORM_BYTES, GetLeaf, GetOutput, LeafProof, Leaves, Slice
from p2pnet.wire.gossip import ID_BYTES, Data, Have, Want
from p2pnet.wire.round import PARTS_MAX

HASH = bytes(32)
ROUND = 1 << 12  # a number of typical length


class Sizes:
    """Sizes for one swarm: so many parameters, this format of payload and result."""

    def __init__(self, params: int, payload: ChunkFormat, result: ChunkFormat) -> None:
        self.chunks = -(-params // CHUNK_VALUES)
        self.leaves = -(-self.chunks // CHUNKS_PER_LEAF)
        self._payload, self._result = payload, result

    @property
    def payload_bytes(self) -> int:
        """A whole payload."""
        return self._payload.payload_bytes(self.chunks)

    @property
    def result_bytes(self) -> int:
        """A whole result."""
        return self._result.payload_bytes(self.chunks)

    @property
    def leaf_bytes(self) -> tuple[int, int]:
        """A whole leaf of a payload, and of a result."""
        return self._payload.payload_bytes(CHUNKS_PER_LEAF), self._result.payload_bytes(CHUNKS_PER_LEAF)

    def values(self, part: Part) -> int:
        """Parameters of a part."""
        return self._chunks(part) * CHUNK_VALUES

    def slice_bytes(self, part: Part) -> int:
        """A slice of a payload, with its frame's prefix."""
        return framed(self._payload.payload_bytes(self._chunks(part)))

    @functools.lru_cache(maxsize=1 << 15)  # noqa: B019
    def output_bytes(self, part: Part) -> int:
        """A reduced part, with its frame's prefix."""
        return framed(self._result.payload_bytes(self._chunks(part)))

    def slice_head_bytes(self, part: Part) -> int:
        """The request before a slice: what it is, and the proof of its leaves."""
        return _slice_bytes(part.index, proof_hashes(self.leaves, part.start, part.stop))

    @functools.lru_cache(maxsize=1 << 15)  # noqa: B019 - there is one of these for a simulation
    def bundle_bytes(self, part: Part, members: int) -> tuple[int, int]:
        """So many slices of a part, and the head before them: what they are, and each one's proof."""
        proof = 3 + 34 * proof_hashes(self.leaves, part.start, part.stop)
        head = _slice_bytes(part.index, 0) + members * (2 + proof)
        return framed(members * self._payload.payload_bytes(self._chunks(part))), framed(head)

    def leaves_bytes(self, part: Part, leaf: int, inputs: int) -> int:
        """The answer to an audit of one leaf: each input's with its proof, and the norms of the whole part.

        leaf: of the payload.
        """
        chunks = min(CHUNKS_PER_LEAF, self.chunks - leaf * CHUNKS_PER_LEAF)
        proofs = _leaves_bytes(inputs, proof_hashes(self.leaves, leaf, leaf + 1))
        norms = framed(NORM_BYTES * inputs * (part.stop - part.start))
        return proofs + inputs * framed(self._payload.payload_bytes(chunks)) + norms

    def _chunks(self, part: Part) -> int:
        return min(part.stop * CHUNKS_PER_LEAF, self.chunks) - part.start * CHUNKS_PER_LEAF


def framed(size_bytes: int) -> int:
    """A frame's size: its content and the varint before it (frame-1)."""
    return size_bytes + max(1, -(-size_bytes.bit_length() // 7))


@functools.lru_cache(maxsize=1 << 16)
def proof_hashes(size: int, start: int, stop: int) -> int:
    """How many hashes prove leaves [start, stop) of a tree of `size` leaves (merkle-1)."""

    def outside(low: int, high: int) -> int:
        if high <= start or stop <= low:
            return 1
        if start <= low and high <= stop:
            return 0
        middle = low + (1 << ((high - low - 1).bit_length() - 1))
        return outside(low, middle) + outside(middle, high)

    return outside(0, size)


def get_output_bytes() -> int:
    """The request for a reduced part."""
    return framed(len(encode(GetOutput(HASH, ROUND, HASH))))


def get_leaf_bytes(part: int, leaf: int) -> int:
    """The request for a leaf of a part."""
    return framed(len(encode(GetLeaf(HASH, ROUND, 0, part, leaf))))


@functools.lru_cache(maxsize=1 << 12)
def _slice_bytes(part: int, hashes: int) -> int:
    return framed(len(encode(Slice(HASH, ROUND, 0, HASH, min(part, PARTS_MAX - 1), (HASH,) * hashes))))


@functools.lru_cache(maxsize=1 << 10)
def _leaves_bytes(inputs: int, hashes: int) -> int:
    proof = (HASH,) * hashes
    return framed(len(encode(Leaves(tuple(LeafProof(place, proof) for place in range(inputs)), proof, 1))))


def gossip_bytes(message: Message) -> int:
    """The frame of a message of gossip."""
    match message:
        case Data(lane=lane, hops=hops, topic=topic, data=data):
            name, size = len(topic.encode()), len(data)
            head = 2 + _int_bytes(lane) + _int_bytes(hops) + (1 if name < 32 else 2)
            return framed(head + name + (2 if size < 256 else 3 if size < 1 << 16 else 5) + size)
        case Have(ids=ids) | Want(ids=ids):
            return framed(3 + (1 if len(ids) < 16 else 3) + len(ids) * (2 + ID_BYTES))
        case _:
            return framed(len(encode(message)))


def _int_bytes(value: int) -> int:
    return 1 if value < 128 else 2
