from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pnet.errors import WireError
from p2pnet.numerics import native
from p2pnet.numerics.codec import as_bytes, encode
from p2pnet.numerics.dense import restore, shorten
from p2pnet.numerics.formats import ChunkFormat
from tests.numerics import reference, reference_dense
from tests.numerics.samples import biases, made_up, made_up_chunks, sizes, widths
from tests.vectors import vectors

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=f"no CPU library: {native.missing()}")


@pytest.mark.parametrize("vector", vectors("dense-1", "dense"))
def test_the_vectors_hold(vector: dict[str, Any]) -> None:
    fmt, frame = ChunkFormat(vector["k"], vector["value_bits"]), bytes.fromhex(vector["dense"])
    if not vector["valid"]:
        with pytest.raises(WireError, match=vector["rule"]):
            restore(frame, fmt, vector["chunks"])
        return
    payload = bytes.fromhex("".join(vector["payload"]))
    assert shorten(payload, fmt) == frame
    assert restore(frame, fmt, vector["chunks"]) == payload


@settings(max_examples=40)
@given(values=made_up_chunks, k=sizes, bias=biases, bits=widths)
def test_the_bytes_are_those_of_the_reference(values: Tensor, k: int, bias: int, bits: int) -> None:
    fmt = ChunkFormat(k, bits)
    payload = as_bytes(encode(values, fmt, bias))
    expected = reference_dense.write(reference.read(payload, k, bits), k, bits)
    frame = shorten(payload, fmt)
    assert frame == (expected if len(expected) < len(payload) else payload)
    assert restore(frame, fmt, values.shape[0]) == payload
    assert reference_dense.read(expected, values.shape[0], k, bits) == payload


@pytest.mark.parametrize(("k", "bits"), [(64, 1), (64, 2), (64, 3), (512, 1), (512, 2), (1536, 1)])
def test_it_takes_no_more_than_2_percent_over_the_entropy_of_what_it_says(k: int, bits: int) -> None:
    fmt, chunks = ChunkFormat(k, bits), 200 if k == 64 else 50  # the reference below is slow
    payload = as_bytes(encode(made_up("heavy", 1, chunks), fmt, 32))
    bound = chunks * (math.log2(math.comb(4096, k)) + k) + entropy_of_levels(payload, fmt)
    assert 0.995 * bound < 8 * len(shorten(payload, fmt)) < 1.02 * bound


def entropy_of_levels(payload: bytes, fmt: ChunkFormat) -> float:
    """Bits of the selectors, each chunk's by its own shares, and of the changes of the levels, by their shares."""
    found, changes = 0.0, [[0] * 256 for _ in range(fmt.levels)]
    before = [0] * fmt.levels
    for start in range(0, len(payload), fmt.chunk_bytes):
        data = payload[start : start + fmt.chunk_bytes]
        counts = [0] * 256
        for value in reference.read_chunk(data, fmt.k, fmt.value_bits):
            counts[value.code] += 1
        found += bits_of(counts) if fmt.value_bits > 1 else 0.0
        for j, code in enumerate(data[-fmt.levels :]):
            changes[j][(code - before[j]) % 256] += 1
            before[j] = code
    return found + sum(map(bits_of, changes))


def bits_of(counts: list[int]) -> float:
    return -sum(count * math.log2(count / sum(counts)) for count in counts if count)


@given(frame=st.binary(max_size=300), k=sizes, bits=widths, chunks=st.integers(1, 4))
def test_garbage_is_refused_or_says_chunks(frame: bytes, k: int, bits: int, chunks: int) -> None:
    fmt = ChunkFormat(k, bits)
    with contextlib.suppress(WireError):
        assert len(restore(frame, fmt, chunks)) == fmt.payload_bytes(chunks)


@given(flip=st.integers(0, 10**6), cut=st.integers(0, 3))
def test_a_damaged_frame_never_says_the_same(flip: int, cut: int) -> None:
    fmt = ChunkFormat(64)
    payload = as_bytes(encode(made_up("normal", 1, 3), fmt, 32))
    frame = bytearray(shorten(payload, fmt))
    frame[flip % len(frame)] ^= 1 << flip % 8
    try:
        found = restore(bytes(frame[: len(frame) - cut]), fmt, 3)
    except WireError:
        return
    assert found != payload or len(frame) - 4 <= flip % len(frame)  # the last bytes hold more than is needed


def test_what_is_no_shorter_travels_as_it_is() -> None:
    fmt = ChunkFormat(8)
    payload = as_bytes(encode(torch.zeros(1, 4096), fmt, 32))
    assert restore(shorten(payload, fmt), fmt, 1) == payload
    assert shorten(b"", fmt) == b""
    garbage = bytes(range(15)) * 3
    assert shorten(garbage, fmt) == garbage  # malformed: whoever gets it shall see what it is


def test_a_frame_longer_than_the_chunks_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(WireError, match="dense-1/R1"):
        restore(bytes(83), ChunkFormat(64), 1)
