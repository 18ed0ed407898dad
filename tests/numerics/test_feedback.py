from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnet.numerics.codec import Sparse, decode, dequantise
from p2pnet.numerics.feedback import accepted, accumulate, add_change, named_chunks, residual
from p2pnet.numerics.formats import ChunkFormat
from tests.numerics import reference
from tests.numerics.samples import KINDS, chunks_of, flat_places, floats, made_up, patterns, sent_of, values_of
from tests.vectors import vectors

pytestmark = pytest.mark.usefixtures("path")


@pytest.mark.parametrize("vector", vectors("reduce-1", "accumulate"))
def test_the_vectors_are_accumulated(vector: dict[str, Any], device: torch.device) -> None:
    e, delta = (floats([int(text, 16) for text in vector[name]]).to(device) for name in ("e", "delta"))
    for beta_ppm, a in vector["a"].items():
        assert [f"{pattern:08x}" for pattern in patterns(accumulate(e, delta, int(beta_ppm)))] == a


@pytest.mark.parametrize("vector", vectors("reduce-1", "residual"))
def test_the_vectors_leave_their_residual(vector: dict[str, Any], device: torch.device) -> None:
    a = chunks_of([vector["a"]]).to(device)
    sent, result = (
        decode(torch.tensor([list(bytes.fromhex(vector[name]))], dtype=torch.uint8, device=device), ChunkFormat(k))
        for name, k in (("payload", vector["k"]), ("result", vector["k_result"]))
    )
    taken = accepted(sent, result, named_chunks([(0, vector["named"])], 1, device))
    before, after = patterns(a), patterns(residual(a, sent, taken, vector["level_bias"]))
    changed = [[i, f"{after[i]:08x}"] for i in range(4096) if after[i] != before[i]]
    assert changed == vector["changed"]


@given(seed=st.integers(0, 2**32), beta_ppm=st.integers(0, 10**6), kind=st.sampled_from(KINDS))
def test_accumulating_rounds_the_product_and_the_sum(seed: int, beta_ppm: int, kind: str) -> None:
    e, delta = made_up(kind, seed)[0, :50], made_up("heavy", seed + 1)[0, :50]
    expected = reference.accumulate(patterns(e), patterns(delta), beta_ppm)
    assert patterns(accumulate(e, delta, beta_ppm)) == expected
    assert patterns(accumulate(e, delta, beta_ppm, out=e)) == expected


def test_a_fused_multiply_add_would_be_noticed() -> None:
    e, delta = torch.tensor([1 + 2**-23]), torch.tensor([-0.95])
    exactly = 0.949999988079071044921875 * (1 + 2**-23) + float(delta)  # one rounding, as an FMA does
    assert float(accumulate(e, delta, 950_000)) != float(torch.tensor(exactly, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@given(seed=st.integers(0, 2**32), beta_ppm=st.integers(0, 10**6), scale=st.sampled_from([1.0, 0.5, 1 / 3, 7.0]))
def test_a_change_is_measured_from_where_the_local_model_began(
    dtype: torch.dtype, seed: int, beta_ppm: int, scale: float
) -> None:
    e, start = made_up("heavy", seed)[0, :60], made_up("wide", seed + 1)[0, :60].clamp(-6e4, 6e4)
    local = (start + made_up("normal", seed + 2)[0, :60]).to(dtype)
    factor = float(torch.tensor(scale, dtype=torch.float32))
    moved = start.to(dtype).to(torch.promote_types(dtype, torch.float32)) - local
    delta = moved.to(torch.float32) * factor if scale != 1 else moved.to(torch.float32)
    expected = reference.accumulate(patterns(e), patterns(delta), beta_ppm)
    add_change(e, start, local, factor, beta_ppm)
    assert patterns(e) == expected


def test_a_change_of_many_values_is_taken_in_blocks() -> None:
    e, start, local = torch.zeros(3 << 20), torch.ones(3 << 20), torch.full((3 << 20,), 0.25).to(torch.bfloat16)
    add_change(e, start, local, 1.0, 0)
    assert e.equal(torch.full_like(e, 0.75))


def two_peers(seed: int) -> tuple[torch.Tensor, Sparse, Sparse]:
    a = made_up("normal", seed, 3)
    sent = sent_of(a, ChunkFormat(64))
    return a, sent, sent_of(a * 0.6 + made_up("normal", seed + 1, 3) * 0.8, ChunkFormat(128))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), named=st.lists(st.booleans(), min_size=3, max_size=3))
def test_taken_is_what_the_result_holds_where_it_names_me(seed: int, named: list[bool]) -> None:
    a, sent, result = two_peers(seed)
    taken = accepted(sent, result, torch.tensor(named))
    after = residual(a, sent, taken, 32)
    rows = zip(a, values_of(sent), values_of(result), named, strict=True)
    expected = [reference.residual(patterns(row), mine, decided, name, 32) for row, mine, decided, name in rows]
    assert [patterns(row) for row in after] == expected


def test_a_level_of_zero_takes_nothing() -> None:
    a = torch.zeros(1, 4096)
    a[0, :8] = 1.0
    sent = sent_of(a, ChunkFormat(8))
    result = sent_of(a * (torch.arange(4096) < 3), ChunkFormat(8))  # indices 0..7, of which 3..7 at level zero
    assert result.indices.tolist() == sent.indices.tolist()
    assert accepted(sent, result, torch.tensor([True])).tolist() == [[True] * 3 + [False] * 5]
    nothing = sent_of(torch.zeros(1, 4096), ChunkFormat(8))
    assert not accepted(sent, nothing, torch.tensor([True])).any()


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_nothing_is_lost_between_what_was_sent_and_the_residual(seed: int) -> None:
    a, sent, result = two_peers(seed)
    taken = accepted(sent, result, torch.ones(3, dtype=torch.bool))
    assert taken.any()
    e = residual(a, sent, taken, 32)
    received = torch.zeros_like(a).view(-1)
    received[flat_places(sent)[taken]] = dequantise(sent, 32)[taken]
    # Exact, since every level here is of the size of its values: the difference needs no more bits than they have.
    assert (received.double().view_as(a) + e.double()).equal(a.double())


def test_a_void_round_leaves_all() -> None:
    a, sent, _ = two_peers(1)
    assert residual(a, sent, torch.zeros((3, 64), dtype=torch.bool), 32).equal(a)


def test_the_residual_may_take_the_place_of_the_accumulator() -> None:
    a, sent, result = two_peers(2)
    taken = accepted(sent, result, torch.ones(3, dtype=torch.bool))
    fresh, other = residual(a, sent, taken, 32), torch.empty_like(a)
    assert residual(a, sent, taken, 32, out=other) is other
    assert other.equal(fresh)
    assert residual(a, sent, taken, 32, out=a) is a
    assert a.equal(fresh)


def test_only_whole_ranges_of_chunks_are_named() -> None:
    assert named_chunks([(0, 2), (3, 4)], 5).tolist() == [True, True, False, True, False]
    with pytest.raises(ValueError, match=r"3\.\.6 of 5"):
        named_chunks([(3, 6)], 5)


@pytest.mark.parametrize("beta_ppm", [-1, 1_000_001])
def test_beta_is_between_0_and_1(beta_ppm: int) -> None:
    with pytest.raises(ValueError, match="beta_ppm"):
        accumulate(torch.zeros(1), torch.zeros(1), beta_ppm)
