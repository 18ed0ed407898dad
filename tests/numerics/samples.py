"""Tensors for the tests: from the bit patterns of the reference and of the vectors, and made-up chunks."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from p2pnet.numerics.codec import Sparse, decode, encode
from p2pnet.numerics.formats import CHUNK_VALUES, ChunkFormat
from tests.numerics.make_vectors import patterns_of
from tests.numerics.reference import Value


def floats(patterns: list[int]) -> Tensor:
    """(n,) float32 of n bit patterns."""
    return torch.tensor(patterns, dtype=torch.int64).to(torch.int32).view(torch.float32)


def patterns(values: Tensor) -> list[int]:
    """Bit patterns of float32, flattened."""
    found: list[int] = (values.cpu().contiguous().view(-1).view(torch.int32).to(torch.int64) & 0xFFFFFFFF).tolist()
    return found


def chunks_of(described: list[dict[str, Any]]) -> Tensor:
    """(chunks, 4096) float32 of a vector's description."""
    return torch.stack([floats(patterns_of(chunk)) for chunk in described])


def values_of(sparse: Sparse) -> list[list[Value]]:
    """Decoded chunks as the reference has them."""
    rows = zip(sparse.indices.tolist(), sparse.codes.tolist(), sparse.negative.tolist(), strict=True)
    return [[Value(*value) for value in zip(*row, strict=True)] for row in rows]


def sent_of(values: Tensor, fmt: ChunkFormat, level_bias: int = 32) -> Sparse:
    """What the payload of an accumulator says."""
    return decode(encode(values, fmt, level_bias), fmt)


def flat_places(sparse: Sparse) -> Tensor:
    """(chunks, k) int64: the indices into the flattened chunks."""
    return sparse.indices + torch.arange(sparse.indices.shape[0]).unsqueeze(1) * CHUNK_VALUES


KINDS = ("normal", "heavy", "few", "ties", "wide", "subnormal", "equal", "zero")


def made_up(kind: str, seed: int, chunks: int = 1, scale: float = 1e-3) -> Tensor:
    """(chunks, 4096) float32 of one of KINDS."""
    rng = torch.Generator().manual_seed(seed)
    shape = (chunks, CHUNK_VALUES)
    normal = torch.randn(shape, generator=rng) * scale
    if kind == "heavy":
        return normal / torch.rand(shape, generator=rng).clamp(min=1e-3)
    if kind == "few":
        return normal * (torch.rand(shape, generator=rng) < 0.004)
    if kind == "ties":
        return torch.randint(-3, 4, shape, generator=rng) * scale
    if kind == "wide":
        return normal * 2.0 ** torch.randint(-60, 60, shape, generator=rng)
    if kind == "subnormal":
        return torch.randint(-(2**12), 2**12, shape, generator=rng, dtype=torch.int32).abs().view(torch.float32)
    if kind == "equal":
        return torch.full(shape, -scale)
    return normal if kind == "normal" else torch.zeros(shape)


made_up_chunks = st.builds(
    made_up, st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([1e-30, 1e-3, 1.0, 1e9])
)
sizes = st.one_of(st.integers(8, 2048), st.sampled_from([8, 64, 128, 512, 1024, 1025, 1536]))
widths = st.sampled_from([1, 2, 3])  # bits of a value
biases = st.one_of(st.just(32), st.integers(0, 129))
