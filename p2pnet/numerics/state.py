"""What tells two states apart: the checksum in a commit, the hash in a snapshot. Contract: protocols/reduce-1.md."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor


def checksum(chunks: Tensor) -> int:
    """Return the 64-bit checksum of a state: sum over chunks c of (2 c + 1) * (sum of its words), modulo 2^64.

    chunks: (chunks, 4096) float32. A word is two neighbouring values' bit patterns, the first one in the lower half. It
    tells a flipped bit, tensors changed for each other and a value moved to another chunk, whatever the order of the
    summation. It is no hash: who wants to deceive can.
    """
    if chunks.shape[0] == 0:
        return 0
    words = chunks.view(torch.int64).sum(1)  # int64 sums wrap, modulo 2^64 as wanted
    odd = torch.arange(chunks.shape[0], device=chunks.device) * 2 + 1
    return int((words * odd).sum()) % 2**64


def state_sha256(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the SHA-256 (32 bytes) over all values as little-endian fp32, in the order of the names, without padding.

    tensors: by name, float32 masters; for what lies in chunks, `Layout.views` gives them.
    """
    digest = sha256()
    for name in sorted(tensors):
        values = tensors[name].detach()
        if values.dtype != torch.float32:
            raise ValueError(f"{name} is {values.dtype}, the masters are float32")
        digest.update(values.contiguous().view(-1).cpu().numpy().data.cast("B"))
    return digest.digest()
