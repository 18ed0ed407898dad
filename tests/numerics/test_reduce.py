from __future__ import annotations

import random
from fractions import Fraction
from math import isqrt
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pnet.errors import NotFiniteError, WireError
from p2pnet.numerics.codec import as_bytes, decode, dequantise, encode
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.levels import LEVEL_MAX, LEVELS
from p2pnet.numerics.reduce import clip_factors, reduce_leaf, reduce_part, squared_norm
from tests.numerics import reference
from tests.numerics.samples import KINDS, made_up, widths
from tests.vectors import vectors

pytestmark = pytest.mark.usefixtures("path")


def payload(values: Tensor, k: int = 64, bits: int = 2) -> bytes:
    return as_bytes(encode(values, ChunkFormat(k, bits), 32))


@pytest.mark.parametrize("vector", vectors("reduce-1", "reduce"))
def test_the_vectors_hold(vector: dict[str, Any], device: torch.device) -> None:
    fmt, fmt_out = (ChunkFormat(vector[k], vector["value_bits"]) for k in ("k", "k_result"))
    slices = [torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8, device=device) for text in vector["slices"]]
    result = reduce_part(slices, vector["weights"], vector["total_weight"], fmt, fmt_out)
    assert result.clips == vector["clips"]
    assert result.output.hex() == "".join(vector["output"])


@settings(max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    k=st.sampled_from([8, 13, 64]),
    k_out=st.sampled_from([8, 26, 128, 1100]),
    absent=st.integers(0, 20),
    bits=widths,
)
def test_the_result_is_that_of_python_integers(
    kinds: list[str], seed: int, k: int, k_out: int, absent: int, bits: int
) -> None:
    rng = random.Random(seed)
    scales = [rng.choice([1e-3, 2e-3, 1.0]) for _ in kinds]
    updates = [made_up(kind, seed + i, scale=scale) for i, (kind, scale) in enumerate(zip(kinds, scales, strict=True))]
    slices = [payload(update, k, bits) for update in updates]
    weights = [rng.randint(1, 8) for _ in slices]
    total = sum(weights) + absent
    result = reduce_part(slices, weights, total, ChunkFormat(k, bits), ChunkFormat(k_out, bits))
    assert (result.output, result.clips) == reference.reduce(slices, weights, total, k, k_out, bits)


@given(norms=st.lists(st.one_of(st.just(0), st.integers(1, 10), st.integers(1, 2**90)), min_size=1, max_size=9))
def test_a_clip_factor_is_the_largest_that_keeps_to_the_median(norms: list[int]) -> None:
    clips = clip_factors(norms)
    assert clips == reference.clip_factors(norms)
    some = sorted(norm for norm in norms if norm)
    for norm, q in zip(norms, clips, strict=True):
        assert 0 <= q <= 256
        assert not norm or q * q * norm <= 256**2 * some[(len(some) - 1) // 2]


def test_the_median_is_the_lower_one_of_the_norms_that_are_not_zero() -> None:
    assert clip_factors([0, 100, 0, 400]) == [256, 256, 256, 128]
    assert clip_factors([100, 400, 1600]) == [256, 256, 128]
    assert clip_factors([0, 0]) == [256, 256]
    assert clip_factors([1, 256**2, 256**2 + 1]) == [256, 256, 255]
    assert clip_factors([1, 1, 256**2 + 1]) == [256, 256, 0]


@given(seed=st.integers(0, 2**32), k=st.sampled_from([8, 13, 64, 100, 1100]), bits=widths)
def test_the_norm_is_exact(seed: int, k: int, bits: int) -> None:
    data = payload(torch.cat([made_up("heavy", seed, 2), made_up("few", seed)]), k, bits)
    assert squared_norm(data, ChunkFormat(k, bits)) == reference.norm2(data, k, bits)


def six_members(chunks: int = 2) -> list[bytes]:
    return [payload(made_up(kind, i, chunks)) for i, kind in enumerate(KINDS[:4] * 2)][:6]


WEIGHTS = [1, 8, 2, 1, 3, 5]


@settings(max_examples=15)
@given(order=st.permutations(range(6)))
def test_the_order_of_the_inputs_changes_nothing(order: list[int]) -> None:
    slices = six_members()
    fmt, fmt_out = ChunkFormat(64), ChunkFormat(128)
    expected = reduce_part(slices, WEIGHTS, 24, fmt, fmt_out)
    found = reduce_part([slices[i] for i in order], [WEIGHTS[i] for i in order], 24, fmt, fmt_out)
    assert found.output == expected.output
    assert found.clips == [expected.clips[i] for i in order]


def test_threads_do_not_change_the_result(threads: int) -> None:
    slices = six_members(300)
    result = reduce_part(slices, WEIGHTS, 24, ChunkFormat(64), ChunkFormat(128))
    expected = reduce_part(slices, WEIGHTS, 24, ChunkFormat(64), ChunkFormat(128))
    torch.set_num_threads(3 - threads)
    assert reduce_part(slices, WEIGHTS, 24, ChunkFormat(64), ChunkFormat(128)) == result == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_result_of_the_cpu() -> None:
    slices = six_members(300)
    on_gpu = [torch.frombuffer(bytearray(data), dtype=torch.uint8).cuda() for data in slices]
    fmt, fmt_out = ChunkFormat(64), ChunkFormat(128)
    assert reduce_part(on_gpu, WEIGHTS, 24, fmt, fmt_out) == reduce_part(slices, WEIGHTS, 24, fmt, fmt_out)


def test_anybody_can_recompute_one_leaf() -> None:
    slices = six_members(150)
    fmt, fmt_out = ChunkFormat(64), ChunkFormat(100)
    whole = reduce_part(slices, WEIGHTS, 30, fmt, fmt_out)
    for start in (0, 64, 128):
        stop = min(start + 64, 150)
        leaf = [data[fmt.payload_bytes(start) : fmt.payload_bytes(stop)] for data in slices]
        found = reduce_leaf(leaf, WEIGHTS, whole.clips, 30, fmt, fmt_out)
        assert found == whole.output[fmt_out.payload_bytes(start) : fmt_out.payload_bytes(stop)]


# In the second chunk they have nothing to say: it would be the liar's alone.
HONEST = [payload(made_up("normal", seed, 2) * torch.tensor([[1.0], [0.0]])) for seed in range(4)]


@settings(max_examples=40)
@given(lie=st.floats(width=32), places=st.lists(st.integers(0, 4095), min_size=1, max_size=64, unique=True))
def test_one_member_moves_no_coordinate_by_more_than_its_share(lie: float, places: list[int]) -> None:
    lies = torch.zeros(2, 4096)
    lies[1, places] = lie
    slices = list(HONEST)
    try:
        slices.append(payload(lies))
    except NotFiniteError:
        return  # and bytes cannot say it
    result = reduce_part(slices, [1] * 5, 5, ChunkFormat(64), ChunkFormat(128))
    moved = dequantise(decode(result.output, ChunkFormat(128)), 32)[1].abs().max()
    # No input counts for more than the longest honest one, and a level is at most 1/16 above what it stands for.
    norm = max(isqrt(reference.norm2(data, 64)) + 1 for data in slices[:4])
    assert Fraction(float(moved)) * 2**32 <= Fraction(norm, 5) * Fraction(17, 16)


def test_who_is_missing_still_counts_in_the_weight() -> None:
    data, fmt = payload(made_up("normal", 1)), ChunkFormat(64)
    alone = dequantise(decode(reduce_part([data], [1], 1, fmt, fmt).output, fmt), 32)
    one_of_four = dequantise(decode(reduce_part([data], [1], 4, fmt, fmt).output, fmt), 32)
    assert one_of_four.equal(alone / 4)


def test_a_coordinate_that_nobody_sent_does_not_move() -> None:
    fmt, fmt_out = ChunkFormat(8), ChunkFormat(64)
    values = made_up("normal", 1)
    sent = decode(payload(values, 8), fmt)
    result = decode(reduce_part([payload(values, 8)] * 2, [1, 1], 2, fmt, fmt_out).output, fmt_out)
    moved = result.indices[result.codes > 0].tolist()
    assert moved == sent.indices[0].tolist()


def test_the_loudest_swarm_there_can_be_does_not_overflow() -> None:
    chunk = reference.write_chunk([reference.Value(4 * i, 255, i % 2 == 1) for i in range(1024)])
    fmt = ChunkFormat(1024)
    result = reduce_part([chunk] * 64, [8] * 64, 512, fmt, fmt)
    assert result.output == chunk
    assert LEVELS[255] == LEVEL_MAX


@pytest.mark.parametrize("rule", ["R1", "R2"])
def test_a_malformed_slice_is_refused_and_its_number_told(rule: str) -> None:
    slices = six_members(300)
    bad = bytearray(slices[4])
    if rule == "R1":
        bad += b"\0"
    else:
        bad[290 * 82 + 50] ^= 1
    slices[4] = bytes(bad)
    with pytest.raises(WireError, match=f"codec-1/{rule}: .*") as refused:
        reduce_part(slices, WEIGHTS, 24, ChunkFormat(64), ChunkFormat(128))
    assert refused.value.detail.startswith("input 4")


@pytest.mark.parametrize(
    ("weights", "clips", "total"),
    [([1], [256], 2), ([1, 9], [256, 256], 20), ([0, 1], [1, 1], 2), ([1, 1], [257, 1], 2), ([2, 2], [1, 1], 3)],
)
def test_factors_out_of_range_are_our_own_mistake(weights: list[int], clips: list[int], total: int) -> None:
    slices = [payload(made_up("normal", seed), 8) for seed in (1, 2)]
    with pytest.raises(ValueError, match="weight"):
        reduce_leaf(slices, weights, clips, total, ChunkFormat(8), ChunkFormat(8))


def test_a_weight_that_could_overflow_is_refused() -> None:
    data, fmt = payload(made_up("normal", 1), 8), ChunkFormat(1024)
    with pytest.raises(ValueError, match="1048576"):
        reduce_part([data], [1], 1025, ChunkFormat(8), fmt)
    with pytest.raises(ValueError, match="without inputs"):
        reduce_part([], [], 1, ChunkFormat(8), fmt)
