"""Say what chunks take, put them into frames and take them out again, in threads beside the loop where that is long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import trio

from p2pnet.core.parts import CHUNKS_PER_LEAF, Part
from p2pnet.errors import PeerError, WireError
from p2pnet.identity import PeerId
from p2pnet.numerics.dense import restore, shorten
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire import merkle

HASH_BYTES_MAX = 1 << 18  # hashed in the loop, in 0.2 ms or so: to wake a thread for it takes as long

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Freight:
    """The chunks of a swarm's payloads and results, as they lie in memory and as they travel."""

    def __init__(self, chunks: int, formats: tuple[ChunkFormat, ChunkFormat], is_dense: bool) -> None:
        """chunks: of a payload, and so of the result.   formats: of payload and result.   is_dense: send dense-1."""
        self.fmt_in, self.fmt_out = formats
        self.is_dense = is_dense
        self.chunks = chunks
        self._cpu = trio.CapacityLimiter(1)  # one reduction at a time, beside the training
        self.hashing = trio.CapacityLimiter(1)

    @property
    def leaves(self) -> int:
        """Leaves of the payload, and so of the result."""
        return -(-self.chunks // CHUNKS_PER_LEAF)

    def span(self, part: Part, fmt: ChunkFormat) -> tuple[int, int]:
        """Where the bytes of a part begin and end in a payload or result."""
        start = fmt.payload_bytes(part.start * CHUNKS_PER_LEAF)
        return start, fmt.payload_bytes(min(part.stop * CHUNKS_PER_LEAF, self.chunks))

    def size(self, part: Part, fmt: ChunkFormat) -> int:
        """Bytes of a part."""
        start, stop = self.span(part, fmt)
        return stop - start

    def leaf_bytes(self, leaf: int, fmt: ChunkFormat) -> int:
        """Bytes of one leaf; the last one may be shorter."""
        stop = min((leaf + 1) * CHUNKS_PER_LEAF, self.chunks)
        return fmt.payload_bytes(stop - leaf * CHUNKS_PER_LEAF)

    async def wrap(self, data: bytes, fmt: ChunkFormat) -> bytes:
        """The frame in which whole chunks travel."""
        return await self.beside(shorten, data, fmt) if self.is_dense and data else data

    async def unwrap(self, peer: PeerId, frame: bytes, fmt: ChunkFormat, size: int) -> bytes:
        """The chunks that a frame of a peer stands for, `size` bytes if it is honest."""
        if not self.is_dense or len(frame) == size:
            return frame
        try:
            return await self.beside(restore, frame, fmt, size // fmt.chunk_bytes)
        except WireError as error:
            raise PeerError(peer, error.rule, error.detail) from error

    async def hash(self, data: bytes, fmt: ChunkFormat) -> list[bytes]:
        """The hashes of the leaves of a part; of a large one beside the loop, as it may take a second."""
        leaf_bytes = fmt.payload_bytes(CHUNKS_PER_LEAF)
        if len(data) <= HASH_BYTES_MAX:
            return merkle.payload_leaves(data, leaf_bytes)
        return await trio.to_thread.run_sync(merkle.payload_leaves, data, leaf_bytes, limiter=self.hashing)

    async def beside(self, work: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Do tensor work in a thread beside the loop, and beside the training: one at a time."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._cpu)
