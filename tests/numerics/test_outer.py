from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnet.errors import WireError
from p2pnet.numerics.codec import as_bytes, decode, encode
from p2pnet.numerics.feedback import accepted, residual
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.outer import apply_result, settle, take_over
from tests.numerics import reference
from tests.numerics.samples import KINDS, biases, chunks_of, made_up, patterns, sent_of, values_of, widths
from tests.vectors import vectors

pytestmark = pytest.mark.usefixtures("path")


@pytest.mark.parametrize("vector", vectors("reduce-1", "apply"))
def test_the_vectors_hold(vector: dict[str, Any], device: torch.device) -> None:
    theta = chunks_of([vector["theta"]]).to(device)
    before = patterns(theta)
    fmt = ChunkFormat(vector["k_result"])
    apply_result(theta, bytes.fromhex(vector["result"]), fmt, vector["level_bias"], vector["alpha_ppm"])
    after = patterns(theta)
    assert [[i, f"{after[i]:08x}"] for i in range(4096) if after[i] != before[i]] == vector["changed"]


@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    bias=biases,
    alpha_ppm=st.one_of(st.integers(0, 2_000_000), st.just(2**32)),
)
def test_a_step_is_one_subtraction_in_float64_and_one_rounding(seed: int, kind: str, bias: int, alpha_ppm: int) -> None:
    theta = made_up("wide", seed, 2)
    result = encode(made_up(kind, seed + 1, 2), ChunkFormat(40), bias)
    rows = zip(theta, values_of(decode(result, ChunkFormat(40))), strict=True)
    expected = [reference.apply(patterns(row), values, bias, alpha_ppm) for row, values in rows]
    apply_result(theta, result, ChunkFormat(40), bias, alpha_ppm)
    assert [patterns(row) for row in theta] == expected


def test_only_what_the_result_selects_is_touched() -> None:
    theta = torch.full((1, 4096), -0.0)
    theta[0, 10] = float("nan")  # not a number of ours, but it shows that it is not read
    update = torch.zeros(1, 4096)
    update[0, 4000] = 0.5
    apply_result(theta, encode(update, ChunkFormat(8), 32), ChunkFormat(8), 32, 1_000_000)
    assert theta[0, 4000] == -0.5
    theta[0, 4000] = -0.0
    assert patterns(theta).count(0x80000000) == 4095


def test_all_of_theta_moves_in_blocks_of_any_number(threads: int) -> None:
    theta, update = made_up("normal", 1, 3000), made_up("normal", 2, 3000)
    result = encode(update, ChunkFormat(64), 32)
    whole = theta.clone()
    apply_result(whole, result, ChunkFormat(64), 32, 900_000)
    for chunk in (0, 1023, 1024, 2047, 2999):
        one = theta[chunk : chunk + 1].clone()
        apply_result(one, result[chunk], ChunkFormat(64), 32, 900_000)
        assert one[0].equal(whole[chunk])
    assert int((whole != theta).sum()) == 3000 * 64


def test_a_malformed_result_moves_nothing() -> None:
    theta = made_up("normal", 1, 2)
    before = theta.clone()
    payload = encode(theta, ChunkFormat(64), 32)
    payload[1, 50] ^= 1
    with pytest.raises(WireError, match="codec-1/R2"):
        apply_result(theta, payload, ChunkFormat(64), 32, 1_000_000)
    with pytest.raises(WireError, match="codec-1/R1"):
        apply_result(theta, payload[:1], ChunkFormat(64), 32, 1_000_000)
    assert theta.equal(before)


def test_a_result_of_other_shape_is_our_own_mistake() -> None:
    theta = made_up("normal", 1, 2)
    other = sent_of(theta[:1], ChunkFormat(64))
    with pytest.raises(ValueError, match="shape"):
        apply_result(theta, other, ChunkFormat(64), 32, 1_000_000)
    with pytest.raises(ValueError, match="alpha_ppm"):
        apply_result(theta[:1], other, ChunkFormat(64), 32, -1)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    bits=widths,
    k_result=st.sampled_from([40, 1100]),
    named=st.lists(st.booleans(), min_size=3, max_size=3),
    is_silent=st.booleans(),
)
def test_the_end_of_a_round_is_its_three_steps(
    seed: int, bits: int, k_result: int, named: list[bool], is_silent: bool
) -> None:
    theta, a = made_up("wide", seed, 3), made_up("heavy", seed + 1, 3)
    formats = ChunkFormat(k_result, bits), ChunkFormat(64, bits)
    result = encode(a * 0.6 + made_up("normal", seed + 2, 3), formats[0], 32)
    sent = None if is_silent else encode(a, formats[1], 32)
    expected = theta.clone(), a.clone()
    apply_result(expected[0], result, formats[0], 32, 1_300_000)
    if sent is not None:
        mine = decode(sent, formats[1])
        residual(a, mine, accepted(mine, decode(result, formats[0]), torch.tensor(named)), 32, out=expected[1])
    take_over(theta, a, as_bytes(result), sent, torch.tensor(named), formats, 32, 1_300_000)
    assert (patterns(theta), patterns(a)) == (patterns(expected[0]), patterns(expected[1]))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    bits=widths,
    k_result=st.sampled_from([40, 1100]),
    named=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_settling_what_was_sent_leaves_what_the_end_of_a_round_leaves(
    seed: int, bits: int, k_result: int, named: list[bool]
) -> None:
    theta, a = made_up("wide", seed, 3), made_up("heavy", seed + 1, 3)
    formats, mine = (ChunkFormat(k_result, bits), ChunkFormat(64, bits)), torch.tensor(named)
    result, sent = encode(a * 0.6 + made_up("normal", seed + 2, 3), formats[0], 32), encode(a, formats[1], 32)
    settled = a.clone()
    settle(settled, as_bytes(result), sent, mine, formats, 32)
    take_over(theta, a, result, sent, mine, formats, 32, 1_300_000)
    assert patterns(settled) == patterns(a)


def test_a_round_does_not_end_with_a_malformed_result() -> None:
    theta, a, fmt = made_up("normal", 1, 2), made_up("normal", 2, 2), ChunkFormat(64)
    before = theta.clone(), a.clone()
    sent, result = encode(a, fmt, 32), encode(theta, fmt, 32)
    result[1, 50] ^= 1
    with pytest.raises(WireError, match="codec-1/R2: chunk 1"):
        take_over(theta, a, result, sent, torch.ones(2, dtype=torch.bool), (fmt, fmt), 32, 1_000_000)
    with pytest.raises(WireError, match="codec-1/R2: chunk 1"):
        settle(a, result, sent, torch.ones(2, dtype=torch.bool), (fmt, fmt), 32)
    assert theta.equal(before[0])
    assert a.equal(before[1])


def test_the_end_of_a_round_wants_shapes_that_fit() -> None:
    theta, fmt = made_up("normal", 1, 3), ChunkFormat(64)
    payload, named = encode(theta, fmt, 32), torch.ones(3, dtype=torch.bool)
    for a, sent, mine in (
        (theta[:2], payload, named), (theta.double(), payload, named), (theta, payload[:2], named),
        (theta, payload, named[:2]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="shape"):
            take_over(theta, a, payload, sent, mine, (fmt, fmt), 32, 1_000_000)
