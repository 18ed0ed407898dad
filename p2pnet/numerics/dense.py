"""A denser coding of the same payloads, for slow links: lossless, a stream without random access. Contract: dense-1.

Only the CPU library does it (native.py): bit by bit in Python it would take seconds for a small model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from p2pnet.errors import WireError
from p2pnet.numerics import native
from p2pnet.numerics.codec import as_bytes, as_chunks
from p2pnet.numerics.formats import ChunkFormat


def shorten(data: bytes, fmt: ChunkFormat) -> bytes:
    """Return well-formed chunks as dense-1, or as they are where that is no shorter: the length tells which it is.

    data: whole chunks.   Raises `RuntimeError` where there is no CPU library.
    """
    chunks = as_chunks(data, fmt)
    coded = torch.empty(max(len(data) - 1, 0), dtype=torch.uint8)
    size = native.dense_encode(chunks, fmt, coded)
    return data if size < 0 else as_bytes(coded[:size])


def restore(frame: bytes, fmt: ChunkFormat, chunks: int) -> bytes:
    """Undo `shorten`. chunks: how many are expected; what comes of damaged bytes has another hash, or is refused.

    Raises `WireError`, "dense-1/R1" or "dense-1/R2".
    """
    size = fmt.payload_bytes(chunks)
    if len(frame) == size:
        return frame
    if len(frame) > size:
        raise WireError("dense-1/R1", f"{len(frame)} bytes for {chunks} chunks, at most {size}")
    payload: Tensor = torch.empty((chunks, fmt.chunk_bytes), dtype=torch.uint8)
    coded = torch.frombuffer(bytearray(frame), dtype=torch.uint8) if frame else torch.empty(0, dtype=torch.uint8)
    if (bad := native.dense_decode(coded, fmt, payload)) >= 0:
        raise WireError("dense-1/R2", f"chunk {bad}: no encoder says this")
    return as_bytes(payload)
