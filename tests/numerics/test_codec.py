from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pnet.errors import NotFiniteError, WireError
from p2pnet.numerics import formats
from p2pnet.numerics.codec import as_bytes, check, decode, dequantise, encode, pack
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.levels import level_value
from tests.numerics import make_vectors, reference
from tests.numerics.samples import (
    biases,
    chunks_of,
    flat_places,
    made_up,
    made_up_chunks,
    patterns,
    sent_of,
    sizes,
    values_of,
    widths,
)
from tests.vectors import vectors

pytestmark = pytest.mark.usefixtures("path")


def encoded(values: Tensor, k: int, bias: int = 32, bits: int = 2) -> bytes:
    return as_bytes(encode(values, ChunkFormat(k, bits), bias))


@pytest.mark.parametrize("vector", vectors("codec-1", "encode"))
def test_the_vectors_are_encoded_and_decoded(vector: dict[str, Any], device: torch.device) -> None:
    fmt, values = ChunkFormat(vector["k"], vector["value_bits"]), chunks_of(vector["chunks"]).to(device)
    if not vector["valid"]:
        with pytest.raises(NotFiniteError, match="chunk 1"):
            encode(values, fmt, vector["level_bias"])
        return
    payload = encode(values, fmt, vector["level_bias"])
    assert [bytes(row).hex() for row in payload.tolist()] == vector["payload"]
    check(payload, fmt, len(vector["chunks"]))
    decoded = decode(payload, fmt, len(vector["chunks"]))
    assert [[v.index, -v.code if v.negative else v.code] for v in values_of(decoded)[0][:8]] == vector["first_values"]


@pytest.mark.parametrize("vector", vectors("codec-1", "decode"))
def test_a_lie_is_refused_by_its_rule(vector: dict[str, Any], device: torch.device) -> None:
    data, fmt = bytes.fromhex(vector["payload"]), ChunkFormat(vector["k"], vector["value_bits"])
    with pytest.raises(WireError) as lie:
        check(data, fmt)
    assert lie.value.rule == vector["rule"]
    with pytest.raises(WireError) as again:
        decode(torch.tensor(list(data), dtype=torch.uint8, device=device), fmt)
    assert str(again.value) == str(lie.value)


def test_the_vectors_on_disk_are_what_the_reference_says() -> None:
    for page, cases in make_vectors.all_cases().items():
        on_disk = {param.id: param.values[0] for param in vectors(page)}
        assert on_disk == cases, f"run python -m tests.numerics.make_vectors ({page})"


@settings(max_examples=60)
@given(values=made_up_chunks, k=sizes, bias=biases, bits=widths)
def test_the_bytes_are_those_of_the_reference(values: Tensor, k: int, bias: int, bits: int) -> None:
    expected = [reference.encode_chunk(patterns(row), k, bias, bits) for row in values]
    assert encoded(values, k, bias, bits) == b"".join(expected)


@settings(max_examples=60)
@given(values=made_up_chunks, k=sizes, bias=biases, bits=widths)
def test_what_is_decoded_is_what_was_sent(values: Tensor, k: int, bias: int, bits: int) -> None:
    fmt = ChunkFormat(k, bits)
    data = encoded(values, k, bias, bits)
    check(data, fmt, values.shape[0])
    assert values_of(decode(data, fmt, values.shape[0])) == reference.read(data, k, bits)


@st.composite
def contents(draw: st.DrawFn) -> tuple[ChunkFormat, bytes, list[reference.Value]]:
    """Any k values that a chunk can say, not only those an encoder would choose, and the bytes that say them."""
    k, bits = draw(sizes), draw(widths)
    rng = random.Random(draw(st.integers(0, 2**32)))
    if bits == 1:
        code, count = rng.randint(1, 255), rng.choice([0, 1, k // 2, k - 1, k])
        some = [reference.Value(index, code, rng.random() < 0.5) for index in sorted(rng.sample(range(4096), count))]
        data = reference.write_signs(some, k)
        return ChunkFormat(k, 1), data, reference.read_chunk(data, k, 1)
    codes = [rng.randrange(256) for _ in range(rng.randint(1, 2 ** (bits - 1)))]
    codes[0] = rng.choice([0, codes[0]])
    chosen = [(rng.choice(codes), rng.random() < 0.5) for _ in range(k)]
    rows = zip(sorted(rng.sample(range(4096), k)), chosen, strict=True)
    values = [reference.Value(index, code, negative and code > 0) for index, (code, negative) in rows]
    return ChunkFormat(k, bits), reference.write_chunk(values, bits=bits), values


@given(content=contents())
def test_all_that_can_be_said_is_said_in_one_way(content: tuple[ChunkFormat, bytes, list[reference.Value]]) -> None:
    fmt, data, values = content
    sparse = decode(data, fmt)
    assert values_of(sparse) == [values]
    assert as_bytes(pack(sparse.indices.long(), sparse.codes.long(), sparse.negative, fmt)) == data


@given(content=contents(), flips=st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
def test_a_payload_with_flipped_bits_is_refused_or_says_something_else(
    content: tuple[ChunkFormat, bytes, list[reference.Value]], flips: list[int]
) -> None:
    fmt, honest, _ = content
    word = int.from_bytes(honest, "little")
    for flip in flips:
        word ^= 1 << flip % (8 * fmt.chunk_bytes)
    data = word.to_bytes(fmt.chunk_bytes, "little")
    try:
        expected, rule = [reference.read_chunk(data, fmt.k, fmt.value_bits)], None
    except reference.RefusedError as lie:
        expected, rule = [], str(lie)
    if rule:
        for reading in (decode, check):
            with pytest.raises(WireError) as refused:
                reading(data, fmt)
            assert refused.value.rule == rule
    else:
        check(data, fmt)
        sparse = decode(data, fmt)
        assert values_of(sparse) == expected
        assert as_bytes(pack(sparse.indices.long(), sparse.codes.long(), sparse.negative, fmt)) == data


@given(data=st.binary(max_size=300), k=sizes, bits=widths)
def test_garbage_is_refused_and_nothing_else_happens(data: bytes, k: int, bits: int) -> None:
    fmt = ChunkFormat(k, bits)
    if len(data) % fmt.chunk_bytes:
        with pytest.raises(WireError, match="codec-1/R1"):
            decode(data, fmt)
    with pytest.raises(WireError, match="codec-1/R1"):
        decode(data, fmt, chunks=1 + len(data) // fmt.chunk_bytes)


def test_the_error_names_the_first_bad_chunk() -> None:
    data = bytearray(encoded(made_up("normal", 1, chunks=9), 64))
    data[7 * 82 + 48] ^= 1
    data[8 * 82 + 48] ^= 1
    with pytest.raises(WireError, match="codec-1/R2: chunk 7:"):
        decode(data, ChunkFormat(64))


def test_k_64_takes_82_bytes_199_8_times_less_than_fp32() -> None:
    fmt = ChunkFormat(64)
    assert (fmt.low_bytes, fmt.upper_bytes, fmt.sign_bytes, fmt.chunk_bytes) == (48, 16, 8, 82)
    assert round(4 * formats.CHUNK_VALUES / fmt.chunk_bytes, 1) == 199.8


def test_the_split_is_the_best_of_all_and_the_wider_of_equal_ones() -> None:
    for k in range(formats.K_MIN, formats.K_MAX + 1):
        for bits in (1, 2, 3):
            fmt = ChunkFormat(k, bits)
            assert fmt.chunk_bytes == sum(reference.section_bytes(k, bits)) == fmt.sections[-1].stop
        assert fmt.low_bits == (reference.best_low_bits(k) if k <= 1024 else 0) <= 9
        assert fmt.low_bytes + fmt.upper_bytes >= math.log2(math.comb(4096, k)) / 8


def test_a_bit_map_is_shorter_exactly_where_it_is_used() -> None:
    for k in range(formats.K_MIN, formats.K_MAX + 1):
        coded = sum(-(-size // 8) for size in reference.index_bits(k, reference.best_low_bits(k)))
        assert (coded > 4096 // 8) == ChunkFormat(k).is_map


@pytest.mark.parametrize("k", [7, 2049, 0, -8])
def test_another_k_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=r"8\.\.2048"):
        ChunkFormat(k)


@pytest.mark.parametrize("bits", [0, 4])
def test_another_number_of_bits_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.3"):
        ChunkFormat(64, bits)


@pytest.mark.parametrize(("kind", "expected"), [("laplace", 0.213), ("student", 0.268)])
def test_the_energy_captured_is_that_of_the_design(kind: str, expected: float) -> None:
    torch.manual_seed(1)
    shape = torch.Size((512, formats.CHUNK_VALUES))
    made: dict[str, torch.distributions.Distribution] = {
        "laplace": torch.distributions.Laplace(0.0, 1e-3),
        "student": torch.distributions.StudentT(4.0, 0.0, 1e-3),
    }
    a = made[kind].sample(shape)
    sent = sent_of(a, ChunkFormat(64))
    rest = a.clone().view(-1)
    rest[flat_places(sent)] -= dequantise(sent, 32)
    assert 1 - float(rest.square().sum() / a.square().sum()) == pytest.approx(expected, abs=0.006)


def test_one_not_a_number_stops_the_whole_payload(device: torch.device) -> None:
    a = made_up("normal", 2, chunks=600).to(device)
    for bad in (math.nan, math.inf, -math.inf):
        a[513, 77] = bad
        with pytest.raises(NotFiniteError, match="chunk 513"):
            encode(a, ChunkFormat(64), 32)


def test_dequantised_values_are_exact(device: torch.device) -> None:
    for bias in (0, 32, 129):
        sent = sent_of(made_up("heavy", 3, scale=2.0 ** (20 - bias)).to(device), ChunkFormat(256), bias)
        signs = [-1 if negative else 1 for negative in sent.negative.view(-1).tolist()]
        expected = [
            sign * level_value(code, bias) for sign, code in zip(signs, sent.codes.view(-1).tolist(), strict=True)
        ]
        assert dequantise(sent, bias).view(-1).tolist() == expected


def test_no_level_of_an_honest_chunk_is_wasted() -> None:
    for bits in (1, 2, 3):
        for value in values_of(sent_of(made_up("normal", 4, chunks=64), ChunkFormat(64, bits))):
            assert len(Counter(v.code for v in value)) >= (1, 2, 3)[bits - 1]  # two of four may have the same code


def test_threads_do_not_change_the_bytes(threads: int) -> None:
    values = torch.cat([made_up(kind, 5, chunks=40) for kind in ("normal", "heavy", "few", "ties")])
    assert encoded(values, 64) == b"".join(encoded(values[i : i + 1], 64) for i in range(values.shape[0]))


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("k", [8, 64, 1000, 1500])
def test_devices_do_not_change_the_bytes(k: int, bits: int, device: torch.device) -> None:
    values = torch.cat([made_up(kind, 6, chunks=2) for kind in ("normal", "heavy", "few", "ties", "wide", "subnormal")])
    payload = encode(values.to(device), ChunkFormat(k, bits), 32)
    assert payload.device.type == device.type
    assert as_bytes(payload) == encoded(values, k, bits=bits)


def test_shapes_and_dtypes_that_are_not_chunks_are_our_own_mistake() -> None:
    for wrong in (torch.zeros(2, 4095), torch.zeros(4096), torch.zeros(1, 4096).double(), torch.zeros(4096, 2).T):
        with pytest.raises(ValueError, match="contiguous float32"):
            encode(wrong, ChunkFormat(64), 32)


def test_no_chunks_make_an_empty_payload() -> None:
    assert encoded(torch.zeros(0, 4096), 64) == b""
    assert decode(b"", ChunkFormat(64), chunks=0).codes.shape == (0, 64)


def test_the_first_chunk_with_a_wrong_number_of_ones_is_named_when_another_makes_up_for_it() -> None:
    fmt = ChunkFormat(64)
    payload = torch.cat([encode(made_up("normal", seed), fmt, 32)[:1] for seed in range(4)])
    upper = fmt.sections[1].start
    first, second = (
        next(byte for byte in range(upper, upper + 16) if payload[row, byte] not in (0, 255)) for row in (1, 2)
    )
    payload[1, first] &= payload[1, first] - 1  # one less
    payload[2, second] |= payload[2, second] + 1  # one more
    with pytest.raises(WireError, match="chunk 1: upper word"):
        decode(payload, fmt)
