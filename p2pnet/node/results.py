"""Put a decided result together from its parts, of which some may be void."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from p2pnet.core.parts import CHUNKS_PER_LEAF
from p2pnet.numerics.formats import CHUNK_VALUES, ChunkFormat

Leaves = tuple[int, int]  # from .. to, without the second


def join_result(parts: Sequence[tuple[Leaves, bytes]], chunks: int, fmt: ChunkFormat) -> bytes:
    """The bytes of a whole result.   parts: in the order of their leaves; what is between them is void, and zero.

    chunks: of the result.
    """
    found, end = list[bytes](), 0
    leaves = -(-chunks // CHUNKS_PER_LEAF)
    for (start, stop), data in (*parts, ((leaves, leaves), b"")):
        if end < start:
            missing = min(start * CHUNKS_PER_LEAF, chunks) - end * CHUNKS_PER_LEAF
            found.append(empty_chunk(fmt) * missing)
        found.append(data)
        end = stop
    return b"".join(found)


@functools.cache
def empty_chunk(fmt: ChunkFormat) -> bytes:
    """A chunk of zeros."""
    import torch  # here: who keeps the history of a swarm needs none

    from p2pnet.numerics.codec import as_bytes, encode

    return as_bytes(encode(torch.zeros(1, CHUNK_VALUES), fmt, 0))
